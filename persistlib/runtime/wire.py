"""Counting what a protobuf message holds before a parser builds it.

A few megabytes of empty nodes become gigabytes of objects, and a graph inside a graph inside a
graph meets the parser's own limit at a depth that differs by release. So the bytes are walked
first, at a cost bounded by the limits and not by the file: values of tensors are stepped over.

A field that may stand once must stand once: parsers merge a second one into the first, or take the
last, and do not agree which (https://protobuf.dev/programming-guides/encoding/#last-one-wins).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from persistlib.errors import Code, PersistlibError, error

if TYPE_CHECKING:
    from collections.abc import Mapping


# About a hundred times what a network of a thousand layers holds; two seconds of walking.
FIELDS_LIMIT = 1_000_000
DEPTH_LIMIT = 64
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_WIDTH = {_FIXED64: 8, _FIXED32: 4}
_VARINT_BYTES = 10
_REPEATED = 3  # FieldDescriptor.LABEL_REPEATED
_TEXT = 9  # FieldDescriptor.TYPE_STRING
# FieldDescriptor.TYPE_* to wire type, for those that are no varint.
_WIRES = {1: _FIXED64, 2: _FIXED32, 9: _LENGTH, 11: _LENGTH, 12: _LENGTH}


class _Field(NamedTuple):
    """What is known of a field: name, encoding, whether it repeats or is text, message type."""

    name: str
    wire: int
    repeated: bool
    text: bool
    message: Any


class _Span(NamedTuple):
    """A message's place in the buffer, its type, and how deep it lies."""

    start: int
    end: int
    kind: Any
    depth: int


def measure(data: memoryview, kind: Any, location: object) -> int:
    """Return how many fields a message holds, those of the messages inside it included.

    Args:
        data: the encoded message.
        kind: its protobuf descriptor.
        location: what to name in an error.

    Raises:
        FormatError: cut off, not protobuf, with fields that the type lacks, deeper or larger than
            any well-meant graph, or holding a field twice that may stand once.
    """
    walk = _Walk(data, location)
    waiting = [_Span(0, len(data), kind, 0)]
    while waiting:
        waiting.extend(walk.message(waiting.pop()))
    return walk.count


@cache
def _fields(kind: Any) -> Mapping[int, _Field]:
    return {
        number: _Field(
            field.full_name,
            _WIRES.get(field.type, _VARINT),
            # Older protobuf has `label` alone, newer ones warn about it.
            field.is_repeated if hasattr(field, "is_repeated") else field.label == _REPEATED,
            field.type == _TEXT,
            field.message_type,
        )
        for number, field in kind.fields_by_number.items()
    }


class _Walk:
    """One pass over a buffer; counts fields as it goes."""

    def __init__(self, data: memoryview, location: object) -> None:
        self.data = data
        self.location = location
        self.count = 0

    def message(self, span: _Span) -> list[_Span]:
        """Return the messages directly inside `span` that hold anything."""
        data, fields = self.data, _fields(span.kind)
        at, end = span.start, span.end
        seen: set[int] = set()
        inner: list[_Span] = []
        while at < end:
            tag, at = (data[at], at + 1) if data[at] < 0x80 else self._varint(at, end)
            if (field := fields.get(tag >> 3)) is None:
                raise self._fault(f"field {tag >> 3} is unknown in {span.kind.name}", _NEWER)
            if (wire := tag & 7) != field.wire and not (wire == _LENGTH and field.repeated):
                raise self._fault(f"{field.name} has wire type {wire}")
            start, at = self._value(at, end, wire)
            self.count += 1
            if self.count > FIELDS_LIMIT:
                raise self._fault(f"more than {FIELDS_LIMIT} fields", code=Code.FORMAT_LIMIT)
            if not field.repeated:
                if tag in seen:
                    raise self._fault(f"{field.name} stands twice")
                seen.add(tag)
            if field.text and start < at:
                self._require_text(start, at, field.name)
            if field.message is not None and start < at:
                inner.append(_Span(start, at, field.message, span.depth + 1))
        if inner and span.depth == DEPTH_LIMIT:
            raise self._fault(f"nested deeper than {DEPTH_LIMIT}", code=Code.FORMAT_LIMIT)
        return inner

    def _require_text(self, start: int, end: int, name: str) -> None:
        """Raise for text that is not UTF-8: parsers of proto2 pass it on, some as bytes."""
        try:
            str(self.data[start:end], "utf-8")
        except UnicodeDecodeError as fault:
            raise self._fault(f"{name} is not UTF-8") from fault

    def _value(self, at: int, end: int, wire: int) -> tuple[int, int]:
        """Return where a field's content starts and where it ends."""
        if wire == _VARINT:
            return at, self._varint(at, end)[1]
        if wire == _LENGTH:
            if at < end and self.data[at] < 0x80:
                length, at = self.data[at], at + 1
            else:
                length, at = self._varint(at, end)
        else:
            length = _WIDTH[wire]
        if length > end - at:
            raise self._fault(f"cut off at byte {at}")
        return at, at + length

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        data = self.data
        value = shift = 0
        for place in range(at, min(end, at + _VARINT_BYTES)):
            byte = data[place]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, place + 1
            shift += 7
        raise self._fault(f"no protobuf: a number without end at byte {at}")

    def _fault(
        self, reason: str, remedy: str = "", code: Code = Code.GRAPH_INVALID
    ) -> PersistlibError:
        return error(code, self.location, reason, remedy or _REMEDY)


_REMEDY = "do not use this file; export the model again"
_NEWER = "pip install --upgrade onnx, if a newer release wrote this file; otherwise do not use it"
