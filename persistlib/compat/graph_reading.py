"""An ONNX file's structure without its weights: what a verdict needs, and no byte more.

Law: of tensors larger than `KEPT` no value is read; a tensor whose values were left out says that
they lie elsewhere, so that whoever wants them fails. Cost is bounded by `wire.measure`.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from typing import TYPE_CHECKING

from persistlib.errors import Code, error
from persistlib.files import read_fault
from persistlib.wire import LENGTH, FileBytes, bytes_field, fields, measure, number_field

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

    from persistlib.files import StrPath
    from persistlib.wire import Encoded

KEPT = 4096  # bytes of a tensor: shapes, axes and scalars are smaller
# Protobuf's own limit, and what a structure without weights may take.
_FILE_LIMIT = (1 << 31) - 1
_STRUCTURE_LIMIT = 256 << 20
# Fields of TensorProto that hold no values, and the one that says where they lie.
_DESCRIBING = {1, 2, 8, 12, 13}
_DATA_LOCATION, _EXTERNAL = 14, 1
_REMEDY = "do not use this file; export the model again"


def read_structure(path: StrPath) -> onnx.ModelProto:
    """Return the model of a file, its large tensors without values.

    Raises:
        FormatError: not a graph, or larger than well meant.
        TargetError: the file cannot be read.
    """
    location = os.fspath(path)
    try:
        fd = os.open(location, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as fault:
        raise read_fault(fault, str(location)) from fault
    try:
        return structure_of(FileBytes(fd, os.fstat(fd).st_size, location), location)
    finally:
        os.close(fd)


def structure_of(data: Encoded, location: object) -> onnx.ModelProto:
    """Return the model that lies in some bytes, its large tensors without values.

    Raises:
        FormatError: not a graph, or larger than well meant.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if len(data) > _FILE_LIMIT:
        raise error(Code.FORMAT_LIMIT, location, "more than 2 GiB", _REMEDY)
    spans: list[tuple[int, int]] = []
    measure(
        data,
        onnx.ModelProto.DESCRIPTOR,
        location,
        gather={onnx.TensorProto.DESCRIPTOR.full_name: spans},
    )
    large = sorted(span for span in spans if span[1] - span[0] > KEPT)
    if len(data) - sum(end - start for start, end in large) > _STRUCTURE_LIMIT:
        raise error(Code.FORMAT_LIMIT, location, "a structure of more than 256 MiB", _REMEDY)
    encoded = b"".join(_Copy(data, location, large).message(0, len(data)))
    try:
        model: onnx.ModelProto = onnx.ModelProto.FromString(encoded)
    except (DecodeError, ValueError, RecursionError) as fault:
        raise error(Code.GRAPH_INVALID, location, f"no ONNX file: {fault}", _REMEDY) from fault
    if not model.HasField("graph"):
        raise error(Code.GRAPH_INVALID, location, "no graph", _REMEDY)
    return model


class _Copy:
    """Copies messages; `large` are the places of tensors whose values are left out, in order."""

    def __init__(self, data: Encoded, location: object, large: list[tuple[int, int]]) -> None:
        self.data, self.location, self.large = data, location, large

    def message(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes of a message."""
        if not self._holds_large(start, end):
            yield bytes(self.data[start:end])
            return
        for field in fields(self.data, start, end, self.location):
            span = (field.start, field.end)
            if field.wire == LENGTH and self._holds_large(*span):
                inner = self._tensor(*span) if self._is_large(span) else self.message(*span)
                yield bytes_field(field.number, b"".join(inner))
            else:
                yield bytes(self.data[field.tag : field.end])

    def _tensor(self, start: int, end: int) -> Iterator[bytes]:
        for field in fields(self.data, start, end, self.location):
            if field.number in _DESCRIBING:
                yield bytes(self.data[field.tag : field.end])
        yield number_field(_DATA_LOCATION, _EXTERNAL)

    def _is_large(self, span: tuple[int, int]) -> bool:
        place = bisect_left(self.large, span)
        return place < len(self.large) and self.large[place] == span

    def _holds_large(self, start: int, end: int) -> bool:
        place = bisect_left(self.large, (start, 0))
        return place < len(self.large) and self.large[place][1] <= end
