"""Which axes of a graph's inputs are free, and what they are called.

By default the batch alone is: the first axis of every input that is as long there as the first
input is. Texts `INPUT:AXIS=NAME` free others, and axes of one name have one extent. An axis named
`batch` takes the place of the default wherever it lies; a first axis of the batch that is called
otherwise gives its name to all of them; `none` leaves only what the other texts say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.errors import Code, error
from persistlib.examples import BATCH

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

NONE = "none"
# Of each input the free axes, each with its name.
FreeAxes = tuple["Mapping[int, str]", ...]
_FORM = "write INPUT:AXIS=NAME, such as tokens:1=length"


def free_axes(
    dynamic: Collection[str], names: Sequence[str], shapes: Sequence[Sequence[int]]
) -> FreeAxes:
    """Return the free axes of each input.

    Args:
        dynamic: texts `INPUT:AXIS=NAME`, or `none`; an axis below 0 counts from the end.
        names: what the inputs are called.
        shapes: of the example inputs.

    Raises:
        UsageError: a text means nothing, names no input or axis, or says what another contradicts;
            or axes of one name have unlike extents in the examples.
    """
    if isinstance(dynamic, str):
        raise error(Code.USAGE, "dynamic", "is one text", "give a list of them")
    axes: list[dict[int, str]] = [{} for _ in names]
    for text in dynamic:
        if text == NONE:
            continue
        index, axis, name = _parsed(text, names, shapes)
        if axes[index].setdefault(axis, name) != name:
            reason = f"axis {axis} of {names[index]} is also called {axes[index][axis]}"
            raise error(Code.USAGE, f"dynamic: {text}", reason, "give the axis one name")
    if NONE not in dynamic:
        _free_batch(axes, shapes)
    _require_one_extent(axes, names, shapes)
    return tuple(axes)


def batch_axes(shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return which inputs have the batch as first axis: those as long there as the first one."""
    ranked = [(index, shape[0]) for index, shape in enumerate(shapes) if shape]
    return tuple(index for index, extent in ranked if extent == ranked[0][1])


def place_of(names: Sequence[str], axes: Sequence[Mapping[int, str]], name: str) -> str:
    """Return where a free axis is first met, as `dynamic` says it.

    Args:
        names: what the inputs are called.
        axes: of each the free axes by name.
        name: of one of them.
    """
    return next(
        f"{names[index]}:{axis}={name}"
        for index, free in enumerate(axes)
        for axis, found in free.items()
        if found == name
    )


def _parsed(
    text: str, names: Sequence[str], shapes: Sequence[Sequence[int]]
) -> tuple[int, int, str]:
    """Return the input's place, the axis from the front, and the name."""
    where = f"dynamic: {text}"
    place, _, name = text.rpartition("=")
    tensor, _, axis = place.rpartition(":")
    digits = axis.removeprefix("-")
    if not (tensor and digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS):
        raise error(Code.USAGE, where, "is no axis and its name", _FORM)
    if not (name.isascii() and name.isidentifier()):
        reason = f"{name!r} is no name of letters, digits and underscores"
        raise error(Code.USAGE, where, reason, _FORM)
    if tensor not in names:
        reason = f"there is no input {tensor}; there are {', '.join(names)}"
        raise error(Code.USAGE, where, reason, "name one of them")
    index = list(names).index(tensor)
    rank, number = len(shapes[index]), int(axis)
    if not -rank <= number < rank:
        reason = f"{tensor} has {rank} axes, 0 to {rank - 1}" if rank else f"{tensor} has no axes"
        raise error(Code.USAGE, where, reason, "name one that it has")
    return index, number % rank, name


_DIGITS = 3


def _free_batch(axes: Sequence[dict[int, str]], shapes: Sequence[Sequence[int]]) -> None:
    """Free the first axes that are the batch, unless the texts say where it lies."""
    if any(BATCH in named.values() for named in axes):
        return
    batched = batch_axes(shapes)
    given = {axes[index][0] for index in batched if 0 in axes[index]}
    if len(given) > 1:  # unlike names: these are different axes that happen to be as long
        return
    for index in batched:
        axes[index].setdefault(0, next(iter(given), BATCH))


def _require_one_extent(
    axes: Sequence[Mapping[int, str]], names: Sequence[str], shapes: Sequence[Sequence[int]]
) -> None:
    first: dict[str, tuple[int, str]] = {}
    for index, named in enumerate(axes):
        for axis, name in named.items():
            here = (shapes[index][axis], f"axis {axis} of {names[index]}")
            extent, there = first.setdefault(name, here)
            if here[0] != extent:
                reason = f"{here[1]} has {here[0]} in the example inputs, {there} has {extent}"
                raise error(Code.USAGE, f"dynamic: {name}", reason, "give unlike axes unlike names")
