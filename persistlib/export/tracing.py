"""Torch's own graph of a module, with the axes free that are to be free.

Torch is given no more than names of the free axes. Where a module takes not all extents, torch
refuses, and says which it takes: they become bounds, and it is asked again. What the bounds leave
out is tried when the graph is proved (`beyond`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch._decomp import get_decompositions
from torch._dynamo.exc import UserError

from persistlib.errors import Code, PersistlibError, error
from persistlib.export.axes import place_of
from persistlib.export.conditions import SIZE, Axis, condition_of, extents_of, interval
from persistlib.export.recurrence import KeptWhole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.export import ExportedProgram

    from persistlib.export.axes import FreeAxes
    from persistlib.export.conditions import Condition

# What an axis that cannot be free asks of the caller.
REMEDY = "compute shapes from the input's own in forward, or leave the axis fixed"


def trace(
    traced: torch.nn.Module,
    inputs: tuple[torch.Tensor, ...],
    *,
    names: Sequence[str],
    axes: FreeAxes,
) -> ExportedProgram:
    """Return torch's own graph of a module whose arguments are one tuple called `inputs`.

    Args:
        traced: the module.
        inputs: its arguments, where it is.
        names: what they are called, for an error.
        axes: of each the free axes by name.

    Raises:
        ExportError: the module fixes an axis that is to be free.
        Exception: whatever else torch raises.
    """
    traced.training = False
    try:
        return _unrolled(_trace(traced, inputs, axes, {}))
    except _FixedAxisError as fault:
        raise _fixed(fault, names, axes) from fault


def _trace(
    traced: torch.nn.Module, inputs: tuple[torch.Tensor, ...], axes: FreeAxes, bounds: _Bounds
) -> ExportedProgram:
    try:
        return _export(traced, inputs, _shapes(axes, bounds))
    except UserError as fault:
        found = _found_bounds(str(fault)) or _asked_bounds(str(fault), inputs)
        wider = {symbol: {**bounds.get(symbol, {}), **bound} for symbol, bound in found.items()}
        if all(bounds.get(symbol) == bound for symbol, bound in wider.items()):
            raise
    return _trace(traced, inputs, axes, {**bounds, **wider})


def _export(
    traced: torch.nn.Module, inputs: tuple[torch.Tensor, ...], shapes: Any
) -> ExportedProgram:
    try:
        with KeptWhole():
            return torch.export.export(traced, inputs, dynamic_shapes=shapes, strict=False)
    except UserError:
        raise
    except Exception:
        # What plain tracing cannot follow, reading the byte code sometimes can.
        with contextlib.suppress(Exception):
            return torch.export.export(traced, inputs, dynamic_shapes=shapes, strict=True)
        raise


class _FixedAxisError(Exception):
    """The module fixes a free axis; `symbol` is its name in torch, `extent` what it is fixed to."""

    def __init__(self, symbol: str, extent: str, reason: str) -> None:
        super().__init__(reason)
        self.symbol = symbol
        self.extent = extent


def _found_bounds(message: str) -> _Bounds:
    """Return the bounds that torch found.

    Raises:
        _FixedAxisError: torch found that an axis has one extent, is as long as another, or a
            multiple of something.
    """
    bounds: dict[str, dict[str, int]] = {}
    for symbol, other in _SUGGESTED.findall(message):
        if not other.startswith("Dim("):
            lines = [
                line.strip(" -")
                for line in message.splitlines()
                if f"{symbol} " in line and " - " in line
            ]
            reason = lines[0].partition(" If you're")[0] if lines else message
            raise _FixedAxisError(symbol, other, reason)
        bounds[symbol] = {side: int(extent) for side, extent in _BOUND.findall(other)}
    return bounds


def _asked_bounds(message: str, inputs: Sequence[torch.Tensor]) -> _Bounds:
    """Return bounds within which the module asks for extents what it asked for the examples'.

    Raises:
        _FixedAxisError: an axis has no other such extent.
    """
    extents = extents_of(inputs)
    asked: dict[tuple[str, Axis], list[Condition]] = {}
    for symbol, index, number, text in _ASKED.findall(message):
        if (condition := condition_of(text)) is not None:
            asked.setdefault((symbol, Axis(int(index), int(number))), []).append(condition)
    bounds: dict[str, dict[str, int]] = {}
    for (symbol, axis), conditions in asked.items():
        least, most = interval(conditions, [axis], extents)
        if least == most is not None:
            reason = f"It asks whether {SIZE.sub(symbol, conditions[0].text)}"
            raise _FixedAxisError(symbol, str(least), reason)
        sides = {"min": least, "max": most}
        bounds[symbol] = {side: extent for side, extent in sides.items() if extent is not None}
    return bounds


# Of an axis, by its name in torch, the least and the most that it may be.
_Bounds = Mapping[str, Mapping[str, int]]
_SUGGESTED = re.compile(r"^\s*(free\d+) = (\S.*?)\s*$", re.MULTILINE)
_BOUND = re.compile(r"(min|max)=(\d+)")
# How torch says that it was asked for an extent, and what the answer was taken to be.
_ASKED = re.compile(
    rf"values of (free\d+) = {SIZE.pattern}.* satisfy the generated guard (.*)\.$", re.MULTILINE
)
_SYMBOL = re.compile(r"_?free\d+")


def _fixed(fault: _FixedAxisError, names: Sequence[str], axes: FreeAxes) -> PersistlibError:
    """Return our error for an axis that the module fixes, in the caller's names."""
    called = _symbols(axes)
    spelled = {symbol: name for name, symbol in called.items()}
    name = spelled[fault.symbol]
    where = place_of(names, axes, name)
    said = f"{name} is always {fault.extent}. {fault}"
    reason = _SYMBOL.sub(lambda found: spelled.get(found[0], "n"), said)[:400]
    return error(Code.EXPORT_FAILED, where, reason, REMEDY)


def _symbols(axes: FreeAxes) -> dict[str, str]:
    """Return what torch calls each free axis: a word that means nothing in its formulas."""
    called: dict[str, str] = {}
    for free in axes:
        for name in free.values():
            called.setdefault(name, f"free{len(called)}")
    return called


def _shapes(axes: FreeAxes, bounds: _Bounds) -> tuple[Any, ...] | None:
    """Return torch's description of the free axes, one entry for the lone variadic argument."""
    symbols = {
        name: torch.export.Dim(symbol, **bounds.get(symbol, {}))
        for name, symbol in _symbols(axes).items()
    }
    if not symbols:
        return None
    each = ({axis: symbols[name] for axis, name in free.items()} or None for free in axes)
    return (tuple(each),)


def _unrolled(program: ExportedProgram) -> ExportedProgram:
    """Return a graph in which no LSTM is left whole: torch's translation knows no projections."""
    whole = torch.ops.aten.lstm.input
    if all(node.target is not whole for node in program.graph.nodes):
        return program
    unrolled: ExportedProgram = program.run_decompositions(get_decompositions([whole]))
    return unrolled
