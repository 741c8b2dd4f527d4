"""The laws of `blocks` and `casting`."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from persistlib.blocks import recut
from persistlib.casting import Cast
from persistlib.checkpoint import Entry, MemoryCheckpoint
from persistlib.dtypes import DType
from persistlib.errors import LossError
from property.strategies import checkpoints, dtypes
from rounding import SMALL, nearest

TARGETS = st.sampled_from([d for d in DType if d.is_float and not d.is_packed])


@given(st.lists(st.binary(max_size=9), max_size=8), st.integers(1, 12))
def test_blocks_are_the_same_bytes_cut_anew(windows: list[bytes], size: int) -> None:
    whole = b"".join(windows)
    given_windows = (memoryview(window) for window in windows)
    blocks = [bytes(block) for block in recut(given_windows, size, len(whole))]
    assert b"".join(blocks) == whole
    assert all(len(block) == size for block in blocks[:-1])
    assert all(0 < len(block) <= size for block in blocks)
    assert next(given_windows, None) is None  # what a checksum says comes with the last


@given(st.lists(st.floats(width=64), max_size=20), st.sampled_from(SMALL))
def test_a_cast_holds_the_nearest_values_or_is_refused(values: list[float], target: DType) -> None:
    array = np.array(values, np.float64)
    source = MemoryCheckpoint((Entry("x", DType.F64, array.shape),), {"x": DType.F64.pack(array)})
    wanted = nearest(array, target)
    if target is DType.F8_E8M0:
        wanted[array <= 2.0**-128] = np.inf
    has_place = (np.isinf(array) | np.isfinite(wanted) | np.isnan(array)).all()
    if target not in {DType.F16, DType.BF16, DType.F8_E5M2}:
        has_place &= not np.isinf(array).any()
    through = Cast(source, target)
    try:
        found = through.read("x").astype(np.float64)
    except LossError:
        assert not has_place
        return
    assert has_place
    np.testing.assert_array_equal(found, wanted)
    is_finite = np.isfinite(array)
    gaps = abs(wanted[is_finite] - array[is_finite])
    assert through.ledger["x"].absolute == max(gaps, default=0)


@given(checkpoints(of=dtypes), TARGETS)
def test_a_cast_keeps_names_shapes_ties_and_what_is_no_real_number(
    source: MemoryCheckpoint, target: DType
) -> None:
    through = Cast(source, target)
    assert [(e.name, e.shape) for e in through] == [(e.name, e.shape) for e in source]
    assert (through.aliases, through.metadata) == (source.aliases, source.metadata)
    for before, after in zip(source, through, strict=True):
        assert after.dtype is (target if before.dtype.is_float else before.dtype)
        try:
            data = through.read_bytes(after.name)
        except LossError:
            assert before.dtype.is_float
            continue
        assert data.nbytes == after.nbytes
        if not before.dtype.is_float:
            assert data == source.read_bytes(before.name)
        assert (after.name in through.ledger) == (after.dtype is not before.dtype)


@given(st.lists(st.floats(width=32, allow_infinity=False), max_size=20), TARGETS)
def test_a_wider_dtype_and_back_is_the_same(values: list[float], narrow: DType) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        array = np.array(values, np.float32).astype(narrow.numpy)
    source = MemoryCheckpoint((Entry("x", narrow, array.shape),), {"x": narrow.pack(array)})
    wide = Cast(source, DType.F64)
    back = Cast(wide, narrow).read("x")
    np.testing.assert_array_equal(back.astype(np.float64), array.astype(np.float64))
    assert not wide.ledger or wide.ledger["x"].absolute == 0
