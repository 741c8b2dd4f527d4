"""A tensor of an ONNX file: what it is, and its bytes read a window at a time.

Law: the windows of a tensor are the little-endian row-major bytes of what
`onnx.numpy_helper.to_array` makes of it, whichever field or file holds them.

A tensor stands in `raw_data`, in one of the typed fields, where protobuf encodes small integers in
fewer bytes, or in a file beside the model. It stands in one place; what no reader may take twice,
or what its dtype and shape do not account for to the byte, is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from persistlib.checkpoint import WINDOW, Entry
from persistlib.converters.onnx_numbers import count_numbers, decoded
from persistlib.dtypes import DType, by_name
from persistlib.errors import Code, PersistlibError, error
from persistlib.graph_tensors import ExternalPlace, dtype_name, place_of
from persistlib.wire import VARINT, Field, FileBytes, fields, number_of, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from persistlib.converters.onnx_data import DataFolder

TEXT_LIMIT = 1 << 20
RANK_LIMIT = 64
# Old writers give each number of a small tensor a part of its own.
PARTS_LIMIT = 1 << 16
# Fields of TensorProto by number.
DIMS, DTYPE, SEGMENT, NAME, RAW, EXTERNAL, LOCATION = 1, 2, 3, 8, 9, 13, 14
FLOATS, INT32S, STRINGS, INT64S, DOUBLES, UINT64S = 4, 5, 6, 7, 10, 11
VALUES = frozenset({RAW, FLOATS, INT32S, STRINGS, INT64S, DOUBLES, UINT64S})
_TYPED = {
    FLOATS: {DType.F32, DType.C64},
    DOUBLES: {DType.F64, DType.C128},
    INT64S: {DType.I64},
    UINT64S: {DType.U64, DType.U32},
}
_WIDTH = {FLOATS: 4, DOUBLES: 8}
# What stands in no field of 32-bit integers.
_WIDE = {dtype for dtypes in _TYPED.values() for dtype in dtypes}
_STRING = "STRING"
_AGAIN = "do not use this file; export the model again"


class Tensor(NamedTuple):
    """What a `TensorProto` says, its values not read.

    Attributes:
        name: its own.
        dtype: ONNX's name of the element type; empty when unknown.
        number: ONNX's number of it.
        dims: the extents.
        values: the fields that hold values.
        place: where the values lie outside the file, if they do.
        span: begin and end of the message.
    """

    name: str
    dtype: str
    number: int
    dims: tuple[int, ...]
    values: tuple[Field, ...]
    place: ExternalPlace | None
    span: tuple[int, int]

    @property
    def is_text(self) -> bool:
        """Whether the elements are strings."""
        return self.dtype == _STRING


def tensor_at(data: FileBytes, start: int, end: int, location: str) -> Tensor:
    """Return the tensor whose message lies between two bytes of a file.

    Raises:
        FormatError: it is ambiguous, or refers to what is never read.
    """
    found = list(islice(fields(data, start, end, location), PARTS_LIMIT + 1))
    if len(found) > PARTS_LIMIT:
        raise error(Code.FORMAT_LIMIT, location, f"a tensor in over {PARTS_LIMIT} parts", _AGAIN)
    name = next((text_of(data, f, location, TEXT_LIMIT) for f in found if f.number == NAME), "")
    where = f"{location}: {name}"
    if "\0" in name:
        raise error(Code.FORMAT_NAME, where, "the name holds a NUL character", _AGAIN)
    numbers = {f.number: number_of(data, f, where) for f in found if f.number in {DTYPE, LOCATION}}
    values = tuple(f for f in found if f.number in VALUES)
    pairs = [_pair(data, f, where) for f in found if f.number == EXTERNAL]
    is_external = numbers.get(LOCATION, 0) == 1
    if any(f.number == SEGMENT for f in found):
        raise _invalid(where, "in segments, which no reader puts together")
    if len({f.number for f in values}) > 1 or (values and (is_external or pairs)):
        raise _invalid(where, "values in more than one place")
    if pairs and not is_external:
        raise _invalid(where, "a place outside the file, and values said to be in it")
    return Tensor(
        name,
        dtype_name(numbers.get(DTYPE, 0)),
        numbers.get(DTYPE, 0),
        _dims(data, [f for f in found if f.number == DIMS], where),
        values,
        place_of(pairs, where) if is_external else None,
        (start, end),
    )


def _dims(data: FileBytes, found: Sequence[Field], where: str) -> tuple[int, ...]:
    """Return the extents, of which each field holds one, or several packed."""
    dims: list[int] = []
    if sum(field.end - field.start for field in found) <= 10 * RANK_LIMIT:
        for field in found:
            at = field.start
            for place, byte in enumerate(data[field.start : field.end], field.start + 1):
                if byte < 0x80:
                    dims.append(number_of(data, Field(DIMS, VARINT, at, at, place), where))
                    at = place
        if any(extent < 0 for extent in dims):
            raise _invalid(where, "a negative extent")
        if len(dims) <= RANK_LIMIT:
            return tuple(dims)
    raise error(Code.FORMAT_SHAPE, where, f"more than {RANK_LIMIT} extents", _AGAIN)


def _pair(data: FileBytes, field: Field, where: str) -> tuple[str, str]:
    """Return the key and value of a `StringStringEntryProto`."""
    said = {
        f.number: text_of(data, f, where, TEXT_LIMIT)
        for f in fields(data, field.start, field.end, where)
    }
    return said.get(1, ""), said.get(2, "")


@dataclass(frozen=True, slots=True)
class Spans:
    """Values that stand in the file as they are, in one part or several."""

    data: FileBytes
    spans: tuple[tuple[int, int], ...]

    def windows(self, size: int = WINDOW) -> Iterator[memoryview]:
        """Yield the bytes in order, each window but the last of `size` bytes."""
        buffer = memoryview(bytearray(min(sum(end - at for at, end in self.spans), size)))
        filled = 0
        for start, end in self.spans:
            at = start
            while at < end:
                count = min(end - at, len(buffer) - filled)
                self.data.read_into(buffer[filled : filled + count], at)
                at, filled = at + count, filled + count
                if filled == len(buffer):
                    yield buffer
                    filled = 0
        if filled:
            yield buffer[:filled]


@dataclass(frozen=True, slots=True)
class Numbers:
    """Values that protobuf encodes as numbers of varying length."""

    encoded: Spans
    dtype: DType
    is_int32: bool
    where: str

    def windows(self) -> Iterator[memoryview]:
        """Yield the bytes in order."""
        return decoded(self.encoded.windows, self.dtype, self.where, is_int32=self.is_int32)


@dataclass(frozen=True, slots=True)
class Outside:
    """Values that lie in a file beside the model."""

    folder: DataFolder
    place: ExternalPlace
    nbytes: int
    where: str

    def windows(self) -> Iterator[memoryview]:
        """Yield the bytes in order."""
        start = self.place.offset
        data = self.folder.bytes_of(self.place, self.where)
        return Spans(data, ((start, start + self.nbytes),)).windows()


class Stored(NamedTuple):
    """A tensor that a checkpoint can hold, and where its values lie."""

    entry: Entry
    values: Spans | Numbers | Outside


def stored(tensor: Tensor, name: str, data: FileBytes, folder: DataFolder, location: str) -> Stored:
    """Return a tensor under a name, once its values are known to be there to the byte.

    Raises:
        FormatError: they are not, or its dtype or shape is none that is known.
        TargetError: the file that holds them cannot be read.
    """
    where = f"{location}: {name}"
    dtype = by_name("onnx", tensor.dtype)
    if dtype is None:
        reason = f"the dtype {tensor.dtype or tensor.number} is none that persistlib holds"
        raise error(Code.FORMAT_DTYPE, where, reason, "cast it in the graph, and export it again")
    entry = Entry(name, dtype, tensor.dims)
    if any(e >> 63 for e in tensor.dims) or math.prod(max(e, 1) for e in tensor.dims) >> 63:
        raise error(Code.FORMAT_SHAPE, where, "impossible extents", _AGAIN)
    if tensor.place is not None:
        return Stored(entry, _outside(tensor.place, entry.nbytes, folder, where))
    spans = Spans(data, tuple((f.start, f.end) for f in tensor.values))
    kind = tensor.values[0].number if tensor.values else RAW
    if kind not in {RAW, FLOATS, DOUBLES}:
        return Stored(entry, _numbers(tensor, spans, dtype, where))
    if kind != RAW and dtype not in _TYPED[kind]:
        raise _invalid(where, f"{dtype.name} in a field of other numbers")
    if any((end - start) % _WIDTH.get(kind, 1) for start, end in spans.spans):
        raise _invalid(where, "a part of a number")
    size = sum(end - start for start, end in spans.spans)
    if size != entry.nbytes:
        reason = f"{size} bytes for {entry.nbytes}"
        raise error(Code.FORMAT_SHAPE, where, reason, _AGAIN)
    return Stored(entry, spans)


def _numbers(tensor: Tensor, spans: Spans, dtype: DType, where: str) -> Numbers:
    """Return values of a field of integers, as many as the tensor has."""
    kind = tensor.values[0].number
    if kind == STRINGS or (dtype in _WIDE if kind == INT32S else dtype not in _TYPED[kind]):
        raise _invalid(where, f"{dtype.name} in a field of other numbers")
    wanted = dtype.nbytes(tensor.dims) if dtype.is_packed else math.prod(tensor.dims)
    if (count := count_numbers(spans.data, spans.spans, where)) != wanted:
        raise error(Code.FORMAT_SHAPE, where, f"{count} values for {wanted}", _AGAIN)
    return Numbers(spans, dtype, kind == INT32S, where)


def _outside(place: ExternalPlace, nbytes: int, folder: DataFolder, where: str) -> Outside:
    if place.length is not None and place.length != nbytes:
        reason = f"{place.length} external bytes for {nbytes}"
        raise error(Code.FORMAT_SHAPE, where, reason, _AGAIN)
    if place.offset + nbytes > (size := folder.size(place.name, where)):
        reason = f"external data ends at byte {place.offset + nbytes} of {size}"
        raise error(Code.FORMAT_TRUNCATED, where, reason, "fetch the data file again")
    return Outside(folder, place._replace(length=nbytes), nbytes, where)


def _invalid(where: str, reason: str) -> PersistlibError:
    return error(Code.GRAPH_INVALID, where, reason, _AGAIN)
