"""Where a model may be cut in two: before a part that ends it, or between its own steps.

A part ends a model when it is entered once, with one tensor that has a row a sample and came about
without a random number, and when what it returns is what the model returns. What goes into it may
be kept when no row of it depends on the other samples of the batch: every epoch has other
batches. None of this is assumed: it is tried on a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from persistlib.architecture.behaviour import untouched
from persistlib.architecture.freezing import is_kept_in_eval
from persistlib.architecture.structure import is_within
from persistlib.training import nests
from persistlib.training.answers import primary
from persistlib.training.batches import call
from persistlib.training.cuts import Cut
from persistlib.training.tails import tail_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.training.batch import Batch


class Entry(NamedTuple):
    """What a part was given, and the random state at that moment."""

    features: torch.Tensor
    random: torch.Tensor


def trained_cuts(model: torch.nn.Module, batch: Batch) -> Iterator[Cut]:
    """Yield where a model may be cut before all that trains, the latest first.

    Args:
        model: left in evaluation; its tensors are untouched.
        batch: to try it on.
    """
    for cut in _alike_in_both_modes(model, batch):
        model.eval()
        if _is_of_each(cut, batch):
            yield cut


def _alike_in_both_modes(model: torch.nn.Module, batch: Batch) -> Iterator[Cut]:
    """Yield cuts whose features are the same in both modes, for the same batch.

    Of a part of which something is frozen, the steps are looked at before the part.
    """
    if all(item.requires_grad for item in model.parameters()):
        return
    paths = [*_parts(model)]
    last = 1 if paths and _trains_throughout(model.get_submodule(paths[0])) else 0
    for path in paths[:last]:
        yield from _trained_cut(model, path, batch)
    if (tail := tail_of(model, batch)) is not None:
        yield tail
    for path in paths[last:]:
        yield from _trained_cut(model, path, batch)


def _parts(model: torch.nn.Module) -> Iterator[str]:
    """Yield the paths of parts that hold all that trains and not all parameters, smallest first."""
    named = [*model.named_parameters(remove_duplicate=False)]
    shared = next(name for name, item in named if item.requires_grad).split(".")[:-1]
    while shared:
        prefix = ".".join(shared)
        has_front = any(not name.startswith(f"{prefix}.") for name, _ in named)
        if has_front and _holds_all(model, prefix):
            yield prefix
        shared.pop()


def _trains_throughout(part: torch.nn.Module) -> bool:
    return all(item.requires_grad for item in part.parameters())


def _holds_all(model: torch.nn.Module, prefix: str) -> bool:
    """Return whether all that trains, and all statistics that move, lie in a part."""
    named = model.named_parameters(remove_duplicate=False)
    trains = (name for name, item in named if item.requires_grad)
    return all(name.startswith(f"{prefix}.") for name in trains) and _rest_is_still(model, prefix)


def _rest_is_still(model: torch.nn.Module, prefix: str) -> bool:
    """Return whether no module outside a part may change its buffers."""
    return all(
        is_kept_in_eval(module) or next(module.buffers(recurse=False), None) is None
        for path, module in model.named_modules()
        if not is_within(path, (prefix,))
    )


@torch.no_grad()
def _trained_cut(model: torch.nn.Module, path: str, batch: Batch) -> list[Cut]:
    """Return the cut before a part; none where training the part is not training the model.

    It is where the part ends the model, and is given the same in both modes.
    """
    part = model.get_submodule(path)
    model.eval()
    entries, outputs = watched(model, part, batch.inputs)
    again = part(entries[0].features.clone()) if len(entries) == 1 else None
    model.train()
    before = _random_state(_device(batch))
    with untouched(part):  # it may have statistics, which a trial must not move
        trained, moved_outputs = watched(model, part, batch.inputs)
    model.eval()
    if len(entries) != 1 or len(trained) != 1 or not _has_one_form(outputs, moved_outputs):
        return []
    (entry,), (moved,) = entries, trained
    holds = (
        nests.equal(again, outputs)
        and moved.features.equal(entry.features)
        and moved.random.equal(before)
        and len(entry.features) == nests.count(batch.targets)
    )
    return [_before(model, path, entry.features)] if holds else []


@torch.no_grad()
def _is_of_each(cut: Cut, batch: Batch) -> bool:
    """Return whether each row of features is of its own sample alone.

    It is not where statistics of the batch take part, as in a BatchNorm without running ones. Each
    half is run again, in its place, while copies of it stand where the other half was: kernels take
    rows of one place and one shape alike, bit for bit.
    """
    count, features = len(cut.features), cut.features
    places = torch.arange(count, device=features.device)
    for kept in filter(len, (places[: count // 2], places[count // 2 :])):
        company = kept[places % len(kept)]
        company[kept] = kept
        among = nests.rows(batch.inputs, company, count)
        if not cut.head(among)[kept].equal(features[kept]):
            return False
    return True


@torch.no_grad()
def judged_cut(model: torch.nn.Module, path: str, batch: Batch) -> Cut | None:
    """Return the cut before a part in evaluation, or None where it does not end the model.

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
    holds = is_same and len(features) == nests.count(batch.targets)
    return _before(model, path, features) if holds else None


def _before(model: torch.nn.Module, path: str, features: torch.Tensor) -> Cut:
    """Return the cut before a part."""
    part = model.get_submodule(path)

    def head(inputs: Any) -> torch.Tensor:
        (entry,), _ = watched(model, part, inputs)
        return entry.features

    return Cut(path, part, (path,), head, features)


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
