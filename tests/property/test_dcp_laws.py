"""Laws of parts of tensors, tried on random ones: grids, grids with a flaw, and heaps of boxes."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import event, given
from hypothesis import strategies as st

from persistlib.converters.dcp_tiling import Box, bands, tiling_fault

if TYPE_CHECKING:
    from collections.abc import Sequence


def counted(shape: Sequence[int], boxes: Sequence[Box]) -> bool:
    """Return whether boxes tile a tensor, by counting every element."""
    count = np.zeros(tuple(shape), int)
    for offsets, sizes in boxes:
        if any(o + s > n for o, s, n in zip(offsets, sizes, shape, strict=True)):
            return False
        count[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))] += 1
    return bool((count == 1).all())


@st.composite
def tilings(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Box]]:
    """Return a shape and boxes that tile it: a box is cut in two again and again."""
    shape = tuple(draw(st.lists(st.integers(1, 6), max_size=4)))
    boxes = [Box((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 8)) if shape else 0):
        offsets, sizes = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        axis = draw(st.integers(0, len(shape) - 1))
        at = draw(st.integers(0, sizes[axis]))
        for begin, size in ((0, at), (at, sizes[axis] - at)):
            if size:
                head = (*offsets[:axis], offsets[axis] + begin, *offsets[axis + 1 :])
                boxes.append(Box(head, (*sizes[:axis], size, *sizes[axis + 1 :])))
    return shape, draw(st.permutations(boxes))


@st.composite
def heaps(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Box]]:
    """Return a tiling of which one box was moved, resized, dropped or taken twice."""
    shape, boxes = draw(tilings())
    index = draw(st.integers(0, len(boxes) - 1))
    old = boxes.pop(index)
    numbers = st.tuples(*(st.integers(0, 4) for _ in shape))
    extents = st.tuples(*(st.integers(1, 4) for _ in shape))
    new = draw(
        st.sampled_from([[], [old, old], [Box(draw(numbers), draw(extents))]])
        | st.builds(lambda offsets: [Box(offsets, old.sizes)], numbers)
    )
    return shape, boxes + new


@given(tilings())
def test_what_tiles_a_tensor_has_no_fault(case: tuple[tuple[int, ...], list[Box]]) -> None:
    shape, boxes = case
    assert counted(shape, boxes)
    assert tiling_fault(shape, boxes) is None


@given(heaps())
def test_a_fault_is_told_exactly_when_counting_finds_one(
    case: tuple[tuple[int, ...], list[Box]],
) -> None:
    shape, boxes = case
    fault = tiling_fault(shape, boxes)
    event(str(fault))
    assert (fault is None) == counted(shape, boxes)


@given(tilings())
def test_bands_follow_each_other_and_share_no_row(
    case: tuple[tuple[int, ...], list[Box]],
) -> None:
    shape, boxes = case
    groups = bands(boxes)
    assert sorted(index for group in groups for index in group) == [*range(len(boxes))]
    end = 0
    for group in groups if shape else []:
        first = min(boxes[i].offsets[0] for i in group)
        last = max(boxes[i].offsets[0] + boxes[i].sizes[0] for i in group)
        assert first == end
        assert sum(math.prod(boxes[i].sizes) for i in group) == (last - first) * math.prod(
            shape[1:]
        )
        end = last
    assert end == (shape[0] if shape else 0)


def test_boxes_around_a_middle_tile_and_a_volume_alone_does_not() -> None:
    around = [((0, 0), (1, 2)), ((0, 2), (2, 1)), ((2, 1), (1, 2)), ((1, 0), (2, 1))]
    boxes = [Box(*box) for box in (*around, ((1, 1), (1, 1)))]
    assert tiling_fault((3, 3), boxes) is None
    corners = [Box(at, (1, 1)) for at in product((0, 1), repeat=2)]
    assert tiling_fault((2, 2), corners) is None
    assert tiling_fault((2, 2), [*corners[:3], corners[0]]) is not None
    assert tiling_fault((0, 2), []) is None
    assert tiling_fault((2, 2), []) is not None
