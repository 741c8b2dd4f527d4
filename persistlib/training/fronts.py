"""Where a model may be cut in two: a part that ends it, and what goes into that part.

A part ends a model when it is entered once, with one tensor that has a row a sample and came about
without a random number, and when what it returns is what the model returns. What goes into it may
be kept when no row of it depends on the other samples of the batch: every epoch has other
batches. None of this is assumed: it is tried on a batch.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from persistlib.architecture.freezing import is_kept_in_eval
from persistlib.training import nests
from persistlib.training.answers import primary
from persistlib.training.batches import call

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.training.batch import Batch


class Entry(NamedTuple):
    """What a part was given, and the random state at that moment."""

    features: torch.Tensor
    random: torch.Tensor


def trained_parts(model: torch.nn.Module) -> Iterator[str]:
    """Yield the paths of parts that hold all that trains, the smallest first."""
    names = [n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]
    shared = names[0].split(".")[:-1]
    while shared:
        prefix = ".".join(shared)
        if holds_all(model, prefix):
            yield prefix
        shared.pop()


def holds_all(model: torch.nn.Module, prefix: str) -> bool:
    """Return whether all that trains, and all statistics that move, lie in a part."""
    named = model.named_parameters(remove_duplicate=False)
    trains = (name for name, item in named if item.requires_grad)
    return all(name.startswith(f"{prefix}.") for name in trains) and _rest_is_still(model, prefix)


def _rest_is_still(model: torch.nn.Module, prefix: str) -> bool:
    """Return whether no module outside a part may change its buffers."""
    return all(
        is_kept_in_eval(module) or next(module.buffers(recurse=False), None) is None
        for path, module in model.named_modules()
        if not f"{path}.".startswith(f"{prefix}.")
    )


@torch.no_grad()
def trained_entry(model: torch.nn.Module, path: str, batch: Batch) -> torch.Tensor | None:
    """Return what goes into a part, or None where training it is not training the model.

    It is where the part ends the model, and is given the same in both modes and in any company.
    """
    part = model.get_submodule(path)
    model.eval()
    entries, outputs = watched(model, part, batch.inputs)
    again = part(entries[0].features.clone()) if len(entries) == 1 else None
    model.train()
    before = _random_state(_device(batch))
    # The part may have statistics, which a trial must not move.
    buffers = [(buffer, buffer.clone()) for buffer in part.buffers()]
    trained, moved_outputs = watched(model, part, batch.inputs)
    for buffer, value in buffers:
        buffer.copy_(value)
    model.eval()
    if len(entries) != 1 or len(trained) != 1 or not _has_one_form(outputs, moved_outputs):
        return None
    (entry,), (moved,) = entries, trained
    holds = (
        nests.equal(again, outputs)
        and moved.features.equal(entry.features)
        and moved.random.equal(before)
        and len(entry.features) == nests.count(batch.targets)
        and _is_of_each(model, part, batch, entry.features)
    )
    return entry.features if holds else None


def _is_of_each(
    model: torch.nn.Module, part: torch.nn.Module, batch: Batch, features: torch.Tensor
) -> bool:
    """Return whether each row that goes into a part is of its own sample alone.

    It is not where statistics of the batch take part, as in a BatchNorm without running ones. Each
    half is run again, in its place, while copies of it stand where the other half was: kernels take
    rows of one place and one shape alike, bit for bit.
    """
    count = len(features)
    places = torch.arange(count, device=features.device)
    for kept in filter(len, (places[: count // 2], places[count // 2 :])):
        company = kept[places % len(kept)]
        company[kept] = kept
        among = nests.each(partial(_taken, company, count), batch.inputs)
        entries, _ = watched(model, part, among)
        if len(entries) != 1 or not entries[0].features[kept].equal(features[kept]):
            return False
    return True


def _taken(rows: torch.Tensor, count: int, item: torch.Tensor) -> torch.Tensor:
    """Return the rows of what has one a sample; anything else as it is."""
    return item[rows] if item.ndim and len(item) == count else item


@torch.no_grad()
def judged_entry(model: torch.nn.Module, path: str, batch: Batch) -> torch.Tensor | None:
    """Return what goes into a part in evaluation, or None where it does not end the model.

    Args:
        model: left in evaluation. Where it gives several outputs, the one that answers counts.
        path: of the part.
        batch: to try it on.
    """
    part = model.get_submodule(path)
    model.eval()
    before = _random_state(_device(batch))
    entries, outputs = watched(model, part, batch.inputs)
    if len(entries) != 1 or not entries[0].random.equal(before):
        return None
    features = entries[0].features
    again = part(features.clone())
    if not isinstance(again, torch.Tensor) or features.ndim == 0:
        return None
    try:
        answer = primary(outputs)
    except TypeError:
        return None
    # A model may lay out in a row what its last part gives, such as maps of one pixel.
    is_same = answer.ndim > 0 and again.flatten(1).equal(answer.flatten(1))
    return features if is_same and len(features) == nests.count(batch.targets) else None


def watched(model: torch.nn.Module, part: torch.nn.Module, inputs: Any) -> tuple[list[Entry], Any]:
    """Return what a part was given while the model ran, and what the model returned.

    What is not one tensor counts as never given.
    """
    entries: list[Entry] = []

    def enter(_: torch.nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if len(args) == 1 and not keywords and isinstance(args[0], torch.Tensor):
            # A copy: the part may work in place.
            entries.append(Entry(args[0].clone(), _random_state(args[0].device)))

    hook = part.register_forward_pre_hook(enter, with_kwargs=True)
    try:
        return entries, call(model, inputs)
    finally:
        hook.remove()


def _has_one_form(judged: Any, trained: Any) -> bool:
    """Return whether a model gives as many outputs in training as in evaluation."""
    return [path for path, _ in nests.leaves(judged)] == [path for path, _ in nests.leaves(trained)]


def _device(batch: Batch) -> torch.device:
    return nests.tensors(batch.targets)[0].device


def _random_state(device: torch.device) -> torch.Tensor:
    """Return the state of the generator that layers on a device draw from."""
    if device.type == "cpu":
        return torch.get_rng_state()
    state: torch.Tensor = torch.get_device_module(device).get_rng_state(device)
    return state
