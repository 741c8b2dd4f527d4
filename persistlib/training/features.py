"""Running the frozen front of a model once a sample instead of once an epoch.

Where all that trains lies in one part that ends the model (a classifier), and nothing before it
draws random numbers or depends on the mode, the part's inputs are the same in every epoch. They
are computed once, and the part alone is trained on them. None of this is assumed: it is tried on
the first batch, and the whole model is trained where it does not hold.

Law: training with and without gives the same weights, up to the rounding of batches of other
sizes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from persistlib.architecture.freezing import is_kept_in_eval
from persistlib.training.batches import Batches, call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Kept for all samples together; beyond it the whole model is run each time.
_MEMORY = 1 << 30


class Stage(NamedTuple):
    """What is trained, on what: the whole model, or its last part on that part's inputs.

    Attributes:
        path: of the part; empty for the whole model.
        module: the part.
        train: its training batches.
        valid: its held-out batches.
    """

    path: str
    module: torch.nn.Module
    train: Batches
    valid: Batches | None


class _Entry(NamedTuple):
    """What a part was given, and the random state at that moment."""

    features: torch.Tensor
    random: torch.Tensor


def _go_on() -> None:
    """Let nothing come between two batches."""


def stage(
    model: torch.nn.Module,
    train: Batches,
    valid: Batches | None,
    *,
    known: str | None = None,
    between: Callable[[], None] = _go_on,
) -> Stage:
    """Return the smallest part of a frozen model that need be run in each epoch.

    Args:
        model: left in evaluation; its tensors are untouched.
        train: training batches.
        valid: held-out batches.
        known: the part's path where an earlier trial found it, empty for the whole model.
        between: called after each batch whose features were computed; what it raises ends that.
    """
    whole = Stage("", model, train, valid)
    if known == "":
        return whole
    if known is not None and _holds_all(model, known):
        return _staged(model, known, train, valid, between)
    if not train.fixed or not (valid is None or valid.fixed):
        return whole
    for path in _parts(model):
        size = _feature_bytes(model, path, train)
        count = (train.size or 0) + (valid.size or 0 if valid else 0)
        if size is not None and size * count <= _MEMORY:
            return _staged(model, path, train, valid, between)
    return whole


def _staged(
    model: torch.nn.Module,
    path: str,
    train: Batches,
    valid: Batches | None,
    between: Callable[[], None],
) -> Stage:
    part = model.get_submodule(path)
    held_out = valid and _features(model, part, valid, between)
    return Stage(path, part, _features(model, part, train, between), held_out)


def _parts(model: torch.nn.Module) -> Iterator[str]:
    """Yield the paths of parts that hold all that trains, the smallest first."""
    names = [n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]
    shared = names[0].split(".")[:-1]
    while shared:
        prefix = ".".join(shared)
        if _holds_all(model, prefix):
            yield prefix
        shared.pop()


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
        if f"{path}.".startswith(f"{prefix}.") is False
    )


@torch.no_grad()
def _feature_bytes(model: torch.nn.Module, path: str, samples: Batches) -> int | None:
    """Return the size of a sample's features, or None where the part cannot stand for the model.

    It can when it is entered once, with one tensor that is the same in both modes and came about
    without a random number, and when what it returns is what the model returns.
    """
    part = model.get_submodule(path)
    batch = next(samples.in_order())
    model.eval()
    entries, outputs = _watched(model, part, batch.inputs)
    again = part(entries[0].features.clone()) if len(entries) == 1 else None
    model.train()
    before = _random_state(batch.targets.device)
    # The part may have statistics, which a trial must not move.
    buffers = [(buffer, buffer.clone()) for buffer in part.buffers()]
    trained, _ = _watched(model, part, batch.inputs)
    for buffer, value in buffers:
        buffer.copy_(value)
    model.eval()
    if len(entries) != 1 or len(trained) != 1 or not isinstance(outputs, torch.Tensor):
        return None
    (entry,), (moved,) = entries, trained
    holds = (
        isinstance(again, torch.Tensor)
        and again.equal(outputs)
        and moved.features.equal(entry.features)
        and moved.random.equal(before)
        and len(entry.features) == len(batch.targets)
    )
    return entry.features[0].nbytes if holds else None


def _watched(
    model: torch.nn.Module, part: torch.nn.Module, inputs: Any
) -> tuple[list[_Entry], Any]:
    """Return what a part was given while the model ran, and what the model returned.

    What is not one tensor counts as never given.
    """
    entries: list[_Entry] = []

    def enter(_: torch.nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if len(args) == 1 and not keywords and isinstance(args[0], torch.Tensor):
            # A copy: the part may work in place.
            entries.append(_Entry(args[0].clone(), _random_state(args[0].device)))

    hook = part.register_forward_pre_hook(enter, with_kwargs=True)
    try:
        return entries, call(model, inputs)
    finally:
        hook.remove()


@torch.no_grad()
def _features(
    model: torch.nn.Module, part: torch.nn.Module, samples: Batches, between: Callable[[], None]
) -> Batches:
    """Return the part's inputs for all samples, in batches as before."""
    model.eval()
    features: list[torch.Tensor] = []
    targets: list[torch.Tensor] = []
    for batch in samples.in_order():
        (entry,), _ = _watched(model, part, batch.inputs)
        features.append(entry.features)
        targets.append(batch.targets)
        between()
    pair = (torch.cat(features), torch.cat(targets))
    place = pair[0].device
    return Batches(pair, samples.name, samples.batch_size, place, seed=samples.seed)


def _random_state(device: torch.device) -> torch.Tensor:
    """Return the state of the generator that layers on a device draw from."""
    if device.type == "cpu":
        return torch.get_rng_state()
    state: torch.Tensor = torch.get_device_module(device).get_rng_state(device)
    return state
