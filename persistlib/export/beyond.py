"""A graph tried where torch's program of the module no longer holds.

Law: where the module asks how long a free axis is, and does something else for some lengths, the
graph is right there too, or it is refused, or the condition is told as untried; but for lengths
beyond `conditions.FARTHEST`.

Of each axis the extents nearest to the examples' on both sides are tried that break a condition. A
module that takes none such (it knows no more positions) needs no graph that does. Lengths that
would fill the memory (attention takes their square) are not tried.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from persistlib.errors import Code, PersistlibError, SessionError, error
from persistlib.export.axes import place_of
from persistlib.export.comparison import deviation
from persistlib.export.conditions import Axis, extents_of, interval
from persistlib.export.state import array_of
from persistlib.export.tracing import REMEDY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch
    from pydantic import JsonValue

    from persistlib.export.calling import Named
    from persistlib.export.conditions import Condition
    from persistlib.export.onnx_export import Exported
    from persistlib.runtime.session import Session


class _Step(NamedTuple):
    """One extent beyond, of the axis by that name; `condition` is what it breaks."""

    name: str
    extent: int
    condition: str
    is_cheap: bool


# What is tried is at most so long, or so many times the example's; and so many elements in all.
_LONG, _TIMES = 1 << 10, 4
_ELEMENTS = 1 << 24


def require_right_beyond(
    exported: Exported,
    session: Session,
    draw: Callable[[Mapping[str, int]], tuple[torch.Tensor, ...]],
    compute: Callable[[tuple[torch.Tensor, ...]], Named],
    limit: Callable[[str, torch.Tensor], float],
) -> list[JsonValue]:
    """Compare the graph with the module where a condition of its program does not hold.

    Args:
        exported: the graph, with its conditions.
        session: that runs it.
        draw: gives inputs of some extents of the free axes, the examples' where none is given.
        compute: gives the module's outputs.
        limit: gives how far an output may be off, of its name and the module's values.

    Returns:
        The conditions beyond which it was not tried, in the caller's names.

    Raises:
        ExportError: the module takes such inputs, and the graph is off there.
    """
    untried: list[JsonValue] = []
    for step in _steps(exported):
        if not step.is_cheap:
            untried.append(step.condition)
            continue
        inputs = draw({step.name: step.extent})
        try:
            expected = compute(inputs)
        except Exception:  # noqa: BLE001, S112 - it takes no such inputs; a module raises anything
            continue
        if fault := _fault(session, inputs, expected, limit):
            raise _refusal(exported, step, fault)
    return untried


def _steps(exported: Exported) -> Iterator[_Step]:
    """Yield the nearest extents of each free axis that break a condition."""
    extents = extents_of(exported.examples)
    names = {
        Axis(index, axis): str(extent)
        for index, spec in enumerate(exported.inputs)
        for axis, extent in enumerate(spec.shape)
    }
    free = {name: axis for axis, name in reversed(names.items()) if not name.isdigit()}
    for name in reversed(free):
        axes = [axis for axis in names if names[axis] == name]
        yield from _around(name, axes, exported.conditions, extents, names)


def _around(
    name: str,
    axes: Sequence[Axis],
    conditions: Sequence[Condition],
    extents: Mapping[Axis, int],
    names: Mapping[Axis, str],
) -> Iterator[_Step]:
    """Yield a step down and a step up of the axes of one name."""
    least, most = interval(conditions, axes, extents)
    for extent in (least and least - 1, most and most + 1):
        if extent:
            changed = {**extents, **dict.fromkeys(axes, extent)}
            broken = next(one for one in conditions if not one.holds(changed))
            is_short = extent <= max(_LONG, _TIMES * extents[axes[0]])
            is_cheap = is_short and _elements(changed) <= max(
                _ELEMENTS, _TIMES * _elements(extents)
            )
            yield _Step(name, extent, broken.spelled(names), is_cheap)


def _elements(extents: Mapping[Axis, int]) -> int:
    """Return how many elements the inputs of some extents have together."""
    sizes: dict[int, int] = {}
    for axis, extent in extents.items():
        sizes[axis.input] = sizes.get(axis.input, 1) * extent
    return sum(sizes.values())


def _fault(
    session: Session,
    inputs: Sequence[torch.Tensor],
    expected: Named,
    limit: Callable[[str, torch.Tensor], float],
) -> str | None:
    """Return what is wrong with the graph's outputs."""
    try:
        given = session.run([array_of(tensor, "inputs") for tensor in inputs])
    except SessionError as fault:
        if fault.code == Code.RUN_TIMEOUT.identifier:
            raise
        return f"the graph fails: {fault.reason}"
    for (name, values), tensor in zip(given.items(), expected.values(), strict=True):
        wanted = array_of(tensor, name)
        if wanted.shape != values.shape:
            return f"{name} has shape {values.shape}, the module's {wanted.shape}"
        if (off := deviation(wanted, values)) > limit(name, tensor):
            return f"{name} is off by {off:.2g} of its spread"
    return None


def _refusal(exported: Exported, step: _Step, fault: str) -> PersistlibError:
    inputs = exported.inputs
    axes = [{i: n for i, n in enumerate(spec.shape) if isinstance(n, str)} for spec in inputs]
    where = place_of([spec.name for spec in inputs], axes, step.name)
    reason = (
        f"with {step.name} {step.extent} the module goes another way than the graph, for which "
        f"{step.condition}: {fault}"
    )
    return error(Code.EXPORT_FAILED, where, reason, REMEDY)
