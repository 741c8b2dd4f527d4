"""What torch takes for granted of the extents of free axes.

While it traces, torch follows the one way that a module goes with the example inputs. Where the
module asks for an extent (`if x.shape[0] > 4`), the answer is a condition of the graph. Torch
keeps such conditions beside its program; ONNX has no place for them.
"""

from __future__ import annotations

import ast
import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch.export import ExportedProgram

    # One extent, or several that are tried at once.
    Extents = int | NDArray[np.int64]


class Axis(NamedTuple):
    """An axis of an input, both counted from 0."""

    input: int
    axis: int


def extents_of(inputs: Sequence[torch.Tensor]) -> dict[Axis, int]:
    """Return the extent of each axis of some inputs."""
    return {
        Axis(index, axis): extent
        for index, tensor in enumerate(inputs)
        for axis, extent in enumerate(tensor.shape)
    }


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on extents.

    Attributes:
        text: as torch writes it, each extent as `SIZE` finds it.
        tree: the same, each extent as a name that `axes` knows.
        axes: the extents that it asks for.
    """

    text: str
    tree: ast.expr
    axes: Mapping[str, Axis]

    def holds(self, extents: Mapping[Axis, Extents]) -> NDArray[np.bool_]:
        """Return whether it is true of some extents, all that it asks for among them."""
        known = {name: extents[axis] for name, axis in self.axes.items()}
        with np.errstate(divide="ignore"):
            return np.asarray(_value(self.tree, known), np.bool_)

    def spelled(self, names: Mapping[Axis, str]) -> str:
        """Return the text with other words for the extents."""
        return SIZE.sub(lambda found: names[_axis(found)], self.text)


# How torch writes the extent of an argument of `_Traced`, whose arguments are one tuple.
SIZE = re.compile(r"L\['inputs'\]\[(\d+)\]\.size\(\)\[(\d+)\]")


def condition_of(text: str) -> Condition | None:
    """Return what torch wrote as a condition; None for what asks for more than whole extents."""
    axes: dict[str, Axis] = {}

    def named(found: re.Match[str]) -> str:
        name = f"extent_{found[1]}_{found[2]}"
        axes[name] = _axis(found)
        return name

    try:
        tree = ast.parse(SIZE.sub(named, text), mode="eval").body
        _value(tree, {name: np.ones(1, np.int64) for name in axes})
    except (SyntaxError, LookupError):
        return None
    return Condition(text, tree, axes) if axes else None


def conditions_of(program: ExportedProgram) -> tuple[Condition, ...]:
    """Return what holds in a program of `_Traced`: the range of each axis, and all between axes."""
    texts = [*_ranges(program), *getattr(program, "_guards_code", ())]  # none before torch 2.9
    found = (condition_of(text) for text in texts)
    return tuple(condition for condition in found if condition is not None)


def interval(
    conditions: Sequence[Condition], axes: Sequence[Axis], extents: Mapping[Axis, int]
) -> tuple[int | None, int | None]:
    """Return how far axes of one name may shrink and grow while all conditions hold.

    Args:
        conditions: which hold of `extents`.
        axes: that are changed together.
        extents: of every axis.

    Returns:
        The least and the largest extent; None where none from 0 to `FARTHEST` breaks a condition.
    """
    here = extents[axes[0]]
    tried = np.arange(FARTHEST + 1)
    changed: dict[Axis, Extents] = {**extents, **dict.fromkeys(axes, tried)}
    hold = np.ones(len(tried), np.bool_)
    for condition in conditions:
        hold &= condition.holds(changed)
    below, above = np.flatnonzero(~hold[:here]), np.flatnonzero(~hold[here + 1 :])
    least = int(below[-1]) + 1 if below.size else None
    most = here + int(above[0]) if above.size else None
    return least, most


# Extents up to which a condition is looked at: steps of sound, positions of a language model.
FARTHEST = 1 << 17


def _ranges(program: ExportedProgram) -> Iterator[str]:
    """Yield the range of each free axis as a condition."""
    inputs = {name: index for index, name in enumerate(program.graph_signature.user_inputs)}
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.name in inputs and isinstance(value, torch.Tensor):
            for axis, extent in enumerate(value.shape):
                bound = program.range_constraints.get(_symbol(extent))
                size = f"L['inputs'][{inputs[node.name]}].size()[{axis}]"
                if bound is not None and bound.lower.is_Integer:
                    yield f"{size} >= {bound.lower}"
                if bound is not None and bound.upper.is_Integer:
                    yield f"{size} <= {bound.upper}"


def _symbol(extent: Any) -> Any:
    """Return torch's symbol for a free extent; None for a fixed one."""
    return getattr(getattr(extent, "node", None), "expr", None)


def _axis(found: re.Match[str]) -> Axis:
    return Axis(int(found[1]), int(found[2]))


def _all(*truths: Any) -> Any:
    return np.logical_and.reduce(np.broadcast_arrays(*truths))


def _any(*truths: Any) -> Any:
    return np.logical_or.reduce(np.broadcast_arrays(*truths))


_OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.Not: np.logical_not,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.And: _all,
    ast.Or: _any,
}
_CALLS: Mapping[str, Callable[..., Any]] = {"min": np.minimum, "max": np.maximum}


def _value(tree: ast.expr, known: Mapping[str, Extents]) -> Any:
    """Return the value of an expression of whole numbers, for each of the extents.

    Raises:
        LookupError: it has anything else in it.
    """
    if isinstance(tree, ast.Constant) and isinstance(tree.value, int):
        return np.int64(tree.value)
    if isinstance(tree, ast.Name):
        return known[tree.id]
    if isinstance(tree, ast.Compare):
        chain = [_value(side, known) for side in (tree.left, *tree.comparators)]
        pairs = zip(tree.ops, chain, chain[1:], strict=False)
        return _all(*(_OPERATORS[type(op)](one, other) for op, one, other in pairs))
    function, operands = _applied(tree)
    return function(*(_value(operand, known) for operand in operands))


def _applied(tree: ast.expr) -> tuple[Callable[..., Any], Sequence[ast.expr]]:
    """Return what an expression applies, and to what.

    Raises:
        LookupError: it is none that applies something known.
    """
    match tree:
        case ast.UnaryOp(op=op, operand=inner):
            return _OPERATORS[type(op)], [inner]
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)], [left, right]
        case ast.BoolOp(op=op, values=values):
            return _OPERATORS[type(op)], values
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            return _CALLS[name], args
        case _:
            raise LookupError(ast.dump(tree))
