"""Whether a rebuilt module computes what the live one does: bit-equal outputs on one input.

Where a module runs without values, equal operators on the same tensors show it without arithmetic
(`trace`); otherwise, and where they differ, both modules are run.

Law: a trial leaves both modules, their tensors and flags, and the caller's random states as they
were.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.utils import _pytree

from persistlib.architecture.edits import INTERNALS
from persistlib.architecture.isolation import random_states, seed
from persistlib.architecture.trace import trace
from persistlib.architecture.values import same_values

if TYPE_CHECKING:
    from persistlib.architecture.trace import Outcomes, Trace

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class TrialFailedError(Exception):
    """Neither module could be tried on the input."""


class Inputs(NamedTuple):
    """Arguments of `forward`."""

    positional: Sequence[Any] = ()
    keywords: Mapping[str, Any] = MappingProxyType({})

    @classmethod
    def of(cls, given: Any) -> Inputs:
        """Return arguments from a tuple or list of them, a mapping by name, or a single one."""
        if isinstance(given, Mapping):
            return cls((), given)
        return cls(given if isinstance(given, (tuple, list)) else (given,))


def same_outputs(live: nn.Module, rebuilt: nn.Module, inputs: Inputs) -> bool:
    """Return whether both modules give the same bits.

    Args:
        live: the module with values.
        rebuilt: its copy, which is given the live tensors and is of no further use.
        inputs: arguments of `forward`.

    Raises:
        TrialFailedError: both fail on the input, or the live one does not repeat itself.
    """
    _lend(live, rebuilt)
    outcomes: Outcomes = {}
    operators = _operators(live, inputs, outcomes)
    if operators is not None and operators == _operators(rebuilt, inputs, outcomes):
        return True
    expected, given = _outcome(live, inputs), _outcome(rebuilt, inputs)
    if isinstance(expected, Exception) and isinstance(given, Exception):
        reason = f"{type(expected).__name__}: {expected}".splitlines()[0]
        raise TrialFailedError(f"the module refuses the input ({reason})")
    if same_results(expected, given):
        return True
    if not same_results(expected, _outcome(live, inputs)):
        raise TrialFailedError("the module gives other outputs each time it is run")
    return False


# Arguments of builders that say the extents of an image.
SIZES = ("image_size", "input_size", "img_size")


def probe(
    live: nn.Module,
    shapes: Sequence[Sequence[int]],
    arguments: Mapping[str, Any] = MappingProxyType({}),
) -> Inputs:
    """Return seeded inputs of the given shapes, fitted to a module's dtype, device and channels.

    A shape of three extents stands for a list that holds one image, as detection models take it.
    """
    first = next(live.parameters(), None)
    dtype = first.dtype if first is not None and first.dtype.is_floating_point else torch.float32
    device = first.device if first is not None else torch.device("cpu")
    generator = torch.Generator().manual_seed(0)
    inputs: list[Any] = []
    for extents in fitted(live, shapes, arguments):
        tensor = torch.rand(extents, generator=generator).to(device, dtype)
        inputs.append([tensor] if len(extents) == 3 else tensor)
    return Inputs(inputs)


def fitted(
    live: nn.Module, shapes: Sequence[Sequence[int]], arguments: Mapping[str, Any]
) -> Iterator[list[int]]:
    """Yield the shapes of inputs, fitted to a module.

    A first convolution that was replaced decides the channels; an attribute `image_size`, or the
    builder's argument, the extents of an image.
    """
    stem = next((m for m in live.modules() if isinstance(m, _CONVOLUTIONS)), None)
    edges = _edges(vars(live).get("image_size"), *(arguments.get(name) for name in SIZES))
    for shape in shapes:
        extents = list(shape)
        if stem is not None and len(extents) in {3, stem.weight.dim()}:
            extents[0 if len(extents) == 3 else 1] = stem.in_channels
        extents[-2:] = edges or extents[-2:]
        yield extents


def _edges(*sizes: Any) -> list[int]:
    """Return height and width from the first size that says them: a number, or an encoded pair."""
    for size in sizes:
        edges = size.get("$tuple", []) if isinstance(size, dict) else [size, size]
        if len(edges) == 2 and all(type(edge) is int for edge in edges):
            return list(edges)
    return []


def same_results(one: Any, other: Any) -> bool:
    """Return whether two results of `forward` are the same, tensors bit by bit."""
    ours, theirs = _leaves(one), _leaves(other)
    return len(ours) == len(theirs) and all(map(_same_leaf, ours, theirs))


def _same_leaf(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return same_values(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return one == other or (one != one and other != other)  # noqa: PLR0124 - NaN
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001 - a foreign type may raise anything; then nothing is shown
        return False


def _leaves(value: Any) -> list[Any]:
    """Return what a result holds, containers and plain objects opened, in order."""
    leaves: list[Any] = []
    found, spec = _pytree.tree_flatten(value)
    leaves.append(str(spec))
    for leaf in found:
        if isinstance(leaf, torch.Tensor) or not hasattr(leaf, "__dict__") or callable(leaf):
            leaves.append(leaf)
        else:
            leaves.append(type(leaf))
            leaves += [part for item in vars(leaf).items() for part in _leaves(item)]
    return leaves


def _lend(live: nn.Module, rebuilt: nn.Module) -> None:
    """Give the rebuilt module every tensor of the live one, by reference."""
    others = dict(rebuilt.named_modules(remove_duplicate=False))
    for path, module in live.named_modules(remove_duplicate=False):
        other = others[path]
        other._parameters.update(module._parameters)  # noqa: SLF001 - setattr runs modules' own code
        other._buffers.update(module._buffers)  # noqa: SLF001 - as above
        other.__dict__.update(
            {
                name: value
                for name, value in vars(module).items()
                if name not in INTERNALS and _holds_tensor(value) and name in vars(other)
            }
        )


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return True
    if isinstance(value, dict):
        return any(map(_holds_tensor, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_holds_tensor, value))


def _operators(module: nn.Module, inputs: Inputs, outcomes: Outcomes) -> Trace | None:
    """Return the operators that `forward` runs in evaluation, where that needs no values."""
    with _trial(module):
        return trace(module, inputs.positional, inputs.keywords, outcomes)


def _outcome(module: nn.Module, inputs: Inputs) -> Any:
    """Return what `forward` gives in evaluation, or what it raises."""
    with _trial(module):
        positional = _pytree.tree_map(_copied, list(inputs.positional))
        keywords = _pytree.tree_map(_copied, dict(inputs.keywords))
        try:
            return module(*positional, **keywords)
        except Exception as fault:  # noqa: BLE001 - whatever a model raises is its outcome
            return fault


@contextlib.contextmanager
def _trial(module: nn.Module) -> Generator[None]:
    """Put a module in evaluation, without gradients, from one seed; then all back as it was."""
    with untouched(module), random_states(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seed()
        for inner in module.modules():
            inner.training = False
        yield


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


@contextlib.contextmanager
def untouched(module: nn.Module) -> Generator[None]:
    """Put back every attribute, member and buffer value that the block changes by running it."""
    before = [
        (inner, dict(vars(inner)), dict(inner._parameters), dict(inner._buffers))  # noqa: SLF001 - no public form
        for inner in module.modules()
    ]
    buffers = [
        (buffer, buffer._version, buffer.clone())  # noqa: SLF001 - how torch counts the writes
        for buffer in module.buffers()
        if not (buffer.is_meta or buffer.is_inference())
    ]
    try:
        yield
    finally:
        for inner, plain, parameters, members in before:
            vars(inner).clear()
            vars(inner).update(plain)
            _put_back(inner._parameters, parameters)  # noqa: SLF001 - as above
            _put_back(inner._buffers, members)  # noqa: SLF001 - as above
        with torch.no_grad():
            for buffer, version, value in buffers:
                # Batch normalization writes its statistics without counting.
                if buffer._version != version or not buffer.equal(value):  # noqa: SLF001 - as above
                    buffer.copy_(value)


def _put_back(registry: Any, members: dict[str, Any]) -> None:
    if list(registry) != list(members):
        registry.clear()
    registry.update(members)
