"""A cast rounds once and to the nearest, tells how far it went, and makes nothing infinite."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

import persistlib
from persistlib import publish
from persistlib.blocks import BLOCK
from persistlib.casting import Cast, cast_target, rounded
from persistlib.checkpoint import Entry, MemoryCheckpoint
from persistlib.converters import safetensors_file
from persistlib.dtypes import DType
from persistlib.errors import LossError, UsageError
from rounding import SMALL, nearest, steps

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from persistlib.checkpoint import CheckpointReader

TARGETS = [d for d in DType if d.is_float and not d.is_packed]
SOURCES = [d for d in DType if d.is_float]
WITHOUT_INFINITY = {DType.F8_E4M3, DType.F8_E8M0, DType.F8_E4M3FNUZ, DType.F8_E5M2FNUZ}


def checkpoint(**tensors: tuple[DType, np.ndarray]) -> MemoryCheckpoint:
    entries = tuple(Entry(name, dtype, array.shape) for name, (dtype, array) in tensors.items())
    return MemoryCheckpoint(entries, {n: d.pack(a) for n, (d, a) in tensors.items()})


def cast(dtype: DType, array: np.ndarray, target: DType) -> np.ndarray:
    return Cast(checkpoint(x=(dtype, array)), target).read("x")


def tricky(target: DType) -> np.ndarray:
    """Return doubles around every value of a dtype and every place midway between two."""
    values = steps(target)
    middles = (values[:-1] + values[1:]) / 2
    near = [1.0] + [1 + sign * 2.0**power for power in (-20, -40, -52) for sign in (1, -1)]
    found = np.concatenate([place * factor for place in (values, middles) for factor in near])
    return np.concatenate([found, -found])


def as_held(values: np.ndarray, dtype: DType) -> np.ndarray:
    """Return what is expected: the nearest values, NaN for what has no place."""
    wanted = nearest(values, dtype)
    if dtype is DType.F8_E8M0:
        return np.where((values > 2.0**-128) & np.isfinite(wanted), wanted, np.nan)
    return np.where(np.isfinite(wanted), wanted, np.nan)


def finite(values: np.ndarray) -> np.ndarray:
    doubles = values.astype(np.float64)
    return np.where(np.isfinite(doubles), doubles, np.nan)


@pytest.mark.parametrize("source", [DType.F64, DType.F32])
@pytest.mark.parametrize("target", SMALL)
def test_every_value_is_rounded_once_and_to_the_nearest(source: DType, target: DType) -> None:
    with np.errstate(over="ignore", under="ignore"):
        values = tricky(target).astype(source.numpy)
    found = rounded(values, target)
    np.testing.assert_array_equal(finite(found), as_held(values.astype(np.float64), target))


@pytest.mark.parametrize("target", SMALL)
@pytest.mark.parametrize("source", SMALL)
def test_every_value_of_a_small_dtype_is_rounded_to_the_nearest(
    source: DType, target: DType
) -> None:
    values = np.concatenate([steps(source)[:-1], -steps(source)[:-1]]).astype(source.numpy)
    found = rounded(values, target)
    np.testing.assert_array_equal(finite(found), as_held(values.astype(np.float64), target))


def test_a_double_is_not_rounded_twice() -> None:
    just_above = np.array([1 + 2.0**-8 + 2.0**-40])
    assert cast(DType.F64, just_above, DType.BF16).astype(float) == 1 + 2.0**-7
    assert cast(DType.F64, np.array([1.0625 + 2.0**-40]), DType.F8_E4M3).astype(float) == 1.125
    assert cast(DType.F64, np.array([5e-324]), DType.BF16).astype(float) == 0


@pytest.mark.parametrize("target", TARGETS)
def test_nan_stays_nan(target: DType) -> None:
    payloads = np.array([0x7F800001, 0xFFC12345, 0x7FFFFFFF], np.uint32).view(np.float32)
    with np.errstate(invalid="ignore"):  # the first one signals
        assert np.isnan(cast(DType.F32, payloads, target).astype(np.float64)).all()
    if target is not DType.F64:
        assert np.isnan(cast(DType.F64, np.array([np.nan, -np.nan]), target).astype(float)).all()


@pytest.mark.parametrize("target", [t for t in TARGETS if t is not DType.F8_E8M0])
def test_the_sign_of_zero_stays_where_the_dtype_has_one(target: DType) -> None:
    found = cast(DType.F32, np.array([-0.0, 0.0, -1e-44], np.float32), target).astype(np.float64)
    signs = [False] * 3 if target.name.endswith("FNUZ") else [True, False, True]
    assert not np.isnan(found).any()
    assert [bool(sign) for sign in np.signbit(found)] == signs


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_an_infinity_stays_one_or_is_refused(target: DType, value: float) -> None:
    source = DType.F32 if target is DType.F64 else DType.F64
    values = np.array([value], source.numpy)
    if target not in WITHOUT_INFINITY:
        assert cast(source, values, target).astype(float) == value
        return
    with pytest.raises(LossError, match=f"x: -?inf has no place in {target.name}"):
        cast(source, values, target)


BEYOND = {
    DType.F16: (65519.99, 65520.0),
    DType.BF16: (3.3961e38, 3.3962e38),
    DType.F32: (3.4028235677973362e38, 3.4028235677973366e38),
    DType.F8_E4M3: (464.0, 464.01),
    DType.F8_E5M2: (61439.99, 61440.0),
    DType.F8_E8M0: (2.0**-127, 0.0),
    DType.F8_E4M3FNUZ: (247.99, 248.0),
    DType.F8_E5M2FNUZ: (61439.99, 61440.0),
}


@pytest.mark.parametrize("target", BEYOND)
@pytest.mark.parametrize("sign", [1, -1])
def test_what_would_become_infinite_or_nan_is_refused_by_name(target: DType, sign: int) -> None:
    fits, does_not = BEYOND[target]
    if target is not DType.F8_E8M0 or sign > 0:
        assert np.isfinite(cast(DType.F64, np.array([sign * fits]), target).astype(float)).all()
    values = np.ones(7)
    values[4] = sign * does_not
    with pytest.raises(LossError) as caught:
        Cast(checkpoint(x=(DType.F64, values)), target, "m.pt").read("x")
    assert caught.value.location == "m.pt: x"
    assert caught.value.reason == f"{sign * does_not!r} has no place in {target.name}"
    wider = caught.value.remedy.split()[2].rstrip(",")
    assert np.isfinite(cast(DType.F64, values, cast_target(wider)).astype(float)).all()


class Windowed(MemoryCheckpoint):
    """A checkpoint that cuts its windows where it likes, each in the same memory."""

    cuts: tuple[int, ...] = (1,)

    def windows(self, name: str) -> Iterator[memoryview]:
        data, start, turn = self.buffers[name], 0, 0
        memory = bytearray(max(self.cuts))
        while start < data.nbytes:
            part = data[start : start + self.cuts[turn % len(self.cuts)]]
            memory[: part.nbytes] = part
            yield memoryview(memory)[: part.nbytes]
            start, turn = start + part.nbytes, turn + 1


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("count", [1, 2, 3, 5, BLOCK - 1, 2 * BLOCK + 3])
def test_windows_may_end_within_an_element(source: DType, count: int) -> None:
    held = np.unique(finite(np.arange(1, 128, dtype=np.uint8).astype(np.float32)) / 16)
    values = np.resize(held.astype(source.numpy), count)
    whole = checkpoint(x=(source, values))
    target = DType.F32 if source is not DType.F32 else DType.F64
    windowed = Windowed(whole.entries, whole.buffers)
    windowed.cuts = (3 << 20, 7, (1 << 20) + 5) if count > BLOCK // 2 else (1, 2)
    found = Cast(windowed, target).read("x")
    np.testing.assert_array_equal(found, values.astype(target.numpy))


def test_no_window_of_a_cast_is_larger_than_a_window() -> None:
    values = np.ones(3 * BLOCK, np.uint8).view(DType.F8_E4M3.numpy)
    windows = list(Cast(checkpoint(x=(DType.F8_E4M3, values)), DType.F64).windows("x"))
    assert [w.nbytes for w in windows] == [8 * BLOCK] * 3


def test_the_ledger_tells_the_largest_errors() -> None:
    values = np.array([1.0, 1 + 2.0**-9, 300.1, 0.0, -2.0, np.inf, np.nan], np.float32)
    source = checkpoint(x=(DType.F32, values), n=(DType.I64, np.arange(3)))
    through = Cast(source, DType.BF16)
    for entry in through:
        through.read(entry.name)
    error = through.ledger["x"]
    exact = values[:5].astype(np.float64)
    gaps = abs(exact - nearest(exact, DType.BF16))
    assert (error.before, error.after) == ("F32", "BF16")
    assert error.absolute == gaps.max() > 0
    assert error.relative == (gaps[:3] / exact[:3]).max()
    assert set(through.ledger) == {"x"}
    widened = Cast(source, DType.F64)
    widened.read("x")
    assert (widened.ledger["x"].absolute, widened.ledger["x"].relative) == (0, 0)


def test_what_is_no_real_number_passes_as_it_is() -> None:
    source = checkpoint(
        i=(DType.I64, np.array([2**53 + 1, -1])),
        b=(DType.BOOL, np.array([True, False])),
        c=(DType.C64, np.array([1 + 1e-7j], np.complex64)),
        n=(DType.U4, np.array([1, 15, 3], DType.U4.numpy)),
        f=(DType.F16, np.array([1.5, 2.5], np.float16)),
    )
    through = Cast(source, DType.F16)
    assert [e.dtype for e in through] == [e.dtype for e in source]
    for entry in source:
        assert through.read_bytes(entry.name) == source.read_bytes(entry.name)
    assert through.ledger == {}


@pytest.mark.parametrize("dtype", TARGETS)
def test_a_dtype_has_several_spellings(dtype: DType) -> None:
    for word in (dtype.name, dtype.name.lower(), dtype.value.numpy, f"torch.{dtype.value.torch}"):
        assert cast_target(word) is dtype


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("i8", "floating-point dtypes"),
        ("int64", "floating-point dtypes"),
        ("bool", "floating-point dtypes"),
        ("complex64", "floating-point dtypes"),
        ("f4", "narrower than a byte"),
        ("fp16", r"did you mean f16\?"),
        ("bfloat", r"did you mean bf16\?"),
        ("float8_e4m3", r"did you mean f8_e4m3\?"),
        ("nonsense", "is no dtype"),
        ("", "is no dtype"),
    ],
)
def test_what_nothing_is_cast_to_is_a_usage_error(word: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        cast_target(word)
    assert "bf16" in caught.value.remedy


def written(path: Path, source: CheckpointReader) -> Path:
    with publish.file(path) as out:
        safetensors_file.write_to(source, out)
    return path


def test_a_value_beyond_the_dtype_leaves_no_file(tmp_path: Path) -> None:
    values = np.ones(10, np.float32)
    values[9] = 70000
    source = written(
        tmp_path / "in.safetensors",
        checkpoint(a=(DType.F32, values[:9]), z=(DType.F32, values)),
    )
    with pytest.raises(
        LossError, match=r"in.safetensors: z: 70000.0 has no place in F16 \| cast to bf16"
    ):
        persistlib.convert(source, tmp_path / "out.safetensors", dtype="f16")
    assert os.listdir(tmp_path) == ["in.safetensors"]
    report = persistlib.convert(source, tmp_path / "out.safetensors", dtype="bf16")
    assert {row.dtype for row in report.rows} == {"BF16"}
    assert [row.cast.absolute for row in report.rows if row.cast] == [0.0, 144.0]
    assert all(row.before != row.after for row in report.rows)
    back = persistlib.convert(tmp_path / "out.safetensors", tmp_path / "back.pt", dtype="F32")
    assert [row.cast.absolute for row in back.rows if row.cast] == [0.0, 0.0]
