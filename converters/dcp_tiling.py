"""Parts of a tensor: whether they are all of it, and which can be read one after the other."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

# Corners that are counted: a thousand boxes divided along ten dimensions.
_CORNERS = 1 << 20


class Box(NamedTuple):
    """A part of a tensor.

    Attributes:
        offsets: its first element, by dimension.
        sizes: its extents, none of them 0.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


def tiling_fault(shape: Sequence[int], boxes: Sequence[Box]) -> str | None:
    """Return what is wrong with boxes that should be a tensor.

    Law: None if and only if every element lies in exactly one box and every box in the tensor.

    The sum of the boxes' indicator functions is that of the tensor exactly when their mixed
    differences are the same, and that of a box is a sign at each of its corners, so it is enough to
    count signed corners. Dimensions along which nothing is divided are left out.

    Args:
        shape: of the tensor.
        boxes: of as many dimensions.
    """
    if any(
        first + size > extent
        for box in boxes
        for first, size, extent in zip(*box, shape, strict=True)
    ):
        return "a piece leaves the tensor"
    inside, whole = sum(math.prod(box.sizes) for box in boxes), math.prod(shape)
    if inside != whole:
        return "pieces overlap" if inside > whole else "pieces leave elements out"
    if not whole:
        return None
    axes = [
        axis for axis, extent in enumerate(shape) if any(box.sizes[axis] != extent for box in boxes)
    ]
    if len(boxes) << len(axes) > _CORNERS:
        return f"{len(boxes)} pieces, divided along {len(axes)} dimensions, are too many to compare"
    corners: Counter[tuple[int, ...]] = Counter()
    for sign, box in ((-1, Box((0,) * len(shape), tuple(shape))), *((1, box) for box in boxes)):
        for ends in product((0, 1), repeat=len(axes)):
            picked = zip(axes, ends, strict=True)
            at = tuple(box.offsets[axis] + end * box.sizes[axis] for axis, end in picked)
            corners[at] += -sign if sum(ends) % 2 else sign
    return "pieces overlap, and leave elements out" if any(corners.values()) else None


def bands(boxes: Sequence[Box]) -> list[list[int]]:
    """Return the places of boxes that tile a tensor, grouped by rows that no other group has.

    The groups follow each other in the order of rows, so they are read one after the other. A
    tensor that is divided along its first dimension alone has one box in each group.
    """
    found: list[list[int]] = []
    end = 0
    for index in sorted(range(len(boxes)), key=lambda index: boxes[index].offsets):
        offsets, sizes = boxes[index]
        if not found or offsets[0] >= end:
            found.append([])
        found[-1].append(index)
        end = max(end, offsets[0] + sizes[0]) if offsets else 0
    return found
