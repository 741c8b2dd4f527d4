"""Integers as protobuf packs them, back into rows of elements.

Law: `decoded` gives, for each number in order, the element of its dtype with that value, or those
bits for a float; a number that the dtype does not have is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from persistlib.dtypes import DType
from persistlib.errors import Code, PersistlibError, error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from persistlib.wire import FileBytes

# Bytes that are decoded at a time: each may be an element, which takes 8 while it is made.
_PIECE = 1 << 20
_LONGEST = 10  # bytes of an encoded number
_SIGNED = {DType.I32: np.int32, DType.I16: np.int16, DType.I8: np.int8}
_AGAIN = "do not use this file; export the model again"


def count_numbers(data: FileBytes, spans: Sequence[tuple[int, int]], where: str) -> int:
    """Return how many numbers stand in some parts of a file.

    Raises:
        FormatError: one goes on beyond its part.
    """
    count = 0
    for start, end in spans:
        for at in range(start, end, _PIECE):
            piece = np.frombuffer(data[at : min(at + _PIECE, end)], np.uint8)
            count += int(np.count_nonzero(piece < 0x80))
        if start < end and data[end - 1 : end] >= b"\x80":
            raise _endless(where)
    return count


def decoded(
    windows: Callable[[int], Iterator[memoryview]], dtype: DType, where: str, *, is_int32: bool
) -> Iterator[memoryview]:
    """Yield the elements that encoded numbers stand for, as bytes.

    Args:
        windows: gives the encoded bytes, so many at a time.
        dtype: of the elements; of those narrower than a byte a number holds a byte full.
        where: what to name in an error.
        is_int32: whether the numbers have 32 bits.

    Raises:
        FormatError: what is no number, or none of the dtype.
    """
    rest = b""
    for window in windows(_PIECE):
        data = np.frombuffer(rest + bytes(window), np.uint8)
        ends = np.flatnonzero(data < 0x80)
        whole = int(ends[-1]) + 1 if len(ends) else 0
        rest = data[whole:].tobytes()
        if len(rest) > _LONGEST:
            raise _endless(where)
        if whole:
            yield _elements(_unpacked(data, ends, where), dtype, where, is_int32=is_int32)


def _unpacked(data: NDArray[np.uint8], ends: NDArray[Any], where: str) -> NDArray[np.uint64]:
    """Return the numbers that end at the given places."""
    starts = np.concatenate((np.zeros(1, ends.dtype), ends[:-1] + 1))
    lengths = ends - starts + 1
    longest = int(lengths.max())
    if longest > _LONGEST:
        raise _endless(where)
    numbers = np.zeros(len(ends), np.uint64)
    for index in range(longest):
        reach = lengths > index
        bits = (data[starts[reach] + index] & 0x7F).astype(np.uint64)
        numbers[reach] |= bits << np.uint64(7 * index)
    return numbers


def _elements(
    numbers: NDArray[np.uint64], dtype: DType, where: str, *, is_int32: bool
) -> memoryview:
    if not is_int32:
        if dtype is DType.U32:
            return _narrowed(numbers, np.dtype("<u4"), 0, (1 << 32) - 1, where)
        return numbers.astype("<u8").view(np.uint8).data
    # A parser takes the low 32 bits, whatever stands above.
    values = (numbers & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.int32)
    if (signed := _SIGNED.get(dtype)) is not None:
        bounds = np.iinfo(signed)
        kind = np.dtype(signed).newbyteorder("<")
        return _narrowed(values, kind, int(bounds.min), int(bounds.max), where)
    highest = 1 if dtype is DType.BOOL else (1 << 8 * dtype.itemsize) - 1
    return _narrowed(values, np.dtype(f"<u{dtype.itemsize}"), 0, highest, where)


def _narrowed(
    values: NDArray[Any], kind: np.dtype[Any], lowest: int, highest: int, where: str
) -> memoryview:
    if int(values.min()) < lowest or int(values.max()) > highest:
        reason = f"a value that is not between {lowest} and {highest}"
        raise error(Code.FORMAT_VALUE, where, reason, _AGAIN)
    return values.astype(kind).view(np.uint8).data


def _endless(where: str) -> PersistlibError:
    return error(Code.GRAPH_INVALID, where, "a number without end", _AGAIN)
