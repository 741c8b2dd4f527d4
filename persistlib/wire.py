"""Walking an encoded protobuf message without building it, at a bounded cost.

Laws: what `measure` accepts a parser accepts, and its cost is bounded by the limits, not by what
the bytes claim; `fields` gives every field of a message in order, whose places are inside it.

A few megabytes of empty nodes become gigabytes of objects, and a graph inside a graph inside a
graph meets the parser's own limit at a depth that differs by release. So the bytes are walked
first, and values of tensors are stepped over: of a file (`FileBytes`) they are not even read.

A field that may stand once must stand once: parsers merge a second one into the first, or take the
last, and do not agree which (https://protobuf.dev/programming-guides/encoding/#last-one-wins).
"""

from __future__ import annotations

import codecs
import os
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from persistlib.errors import Code, PersistlibError, error
from persistlib.files import read_fault

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# About fifty times what a network of a thousand layers holds; a second of walking.
FIELDS_LIMIT = 500_000
DEPTH_LIMIT = 64
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_WIDTH = {FIXED64: 8, FIXED32: 4}
_BLOCK = 1 << 16  # of a file that is walked
_HEAD = 32  # bytes that hold any field's tag, and its number or length
_TEXT_PIECE = 1 << 20  # of a text that is decoded
_VARINT_BYTES = 10
_REPEATED = 3  # FieldDescriptor.LABEL_REPEATED
_TEXT = 9  # FieldDescriptor.TYPE_STRING
# FieldDescriptor.TYPE_* to wire type, for those that are no varint.
_WIRES = {1: FIXED64, 2: FIXED32, 9: LENGTH, 11: LENGTH, 12: LENGTH}


class FileBytes:
    """The bytes of an open file, read a block at a time; no page of it is mapped.

    Attributes:
        size: how many there are.
    """

    def __init__(self, fd: int, size: int, location: object) -> None:
        self.size = size
        self._fd, self._location = fd, location
        self._start, self._block = 0, b""

    def __getitem__(self, part: slice) -> bytes:
        if self._start <= part.start <= part.stop <= self._start + len(self._block):
            return self._block[part.start - self._start : part.stop - self._start]
        data = bytearray(part.stop - part.start)
        self.read_into(memoryview(data), part.start)
        return bytes(data)

    def __len__(self) -> int:
        return self.size

    def block(self, at: int) -> tuple[bytes, int, int]:
        """Return bytes around a place, where they begin, and where the last whole head does."""
        if not self._start <= at < self._start + _BLOCK or not self._block:
            start = at - at % _BLOCK
            self._block = self[start : min(start + _BLOCK + _HEAD, self.size)]
            self._start = start
        return self._block, self._start, self._start + _BLOCK

    def read_into(self, view: memoryview, start: int) -> None:
        """Fill a buffer with the bytes from `start` on.

        Raises:
            FormatError: the file ends before.
            TargetError: it cannot be read.
        """
        done = 0
        while done < view.nbytes:
            try:
                count = os.preadv(self._fd, [view[done:]], start + done)
            except OSError as fault:
                raise read_fault(fault, str(self._location)) from fault
            if count == 0:
                raise error(
                    Code.FORMAT_TRUNCATED,
                    self._location,
                    f"the file ends before byte {start + view.nbytes}",
                    "fetch the file again from where it came",
                )
            done += count


Encoded = memoryview | FileBytes


class Field(NamedTuple):
    """A field's place in the buffer.

    Attributes:
        number: of the field in its message.
        wire: how its content is encoded.
        tag: where the field begins.
        start: where its content begins.
        end: where both end.
    """

    number: int
    wire: int
    tag: int
    start: int
    end: int


class _Declared(NamedTuple):
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


def measure(
    data: Encoded,
    kind: Any,
    location: object,
    *,
    gather: Mapping[str, list[tuple[int, int]]] | None = None,
) -> int:
    """Return how many fields a message holds, those of the messages inside it included.

    Args:
        data: the encoded message.
        kind: its protobuf descriptor.
        location: what to name in an error.
        gather: lists by the full name of a message, to which the place of each such message that
            is not empty is added.

    Raises:
        FormatError: cut off, not protobuf, with fields that the type lacks, deeper or larger than
            any well-meant graph, or holding a field twice that may stand once.
    """
    walk = _Walk(data, location, gather or {})
    waiting = [_Span(0, len(data), kind, 0)]
    while waiting:
        waiting.extend(walk.message(waiting.pop()))
    return walk.count


def fields(data: Encoded, start: int, end: int, location: object) -> Iterator[Field]:
    """Yield the fields of a message in order.

    Raises:
        FormatError: the bytes are no message.
    """
    walk = _Walk(data, location, {})
    at = start
    while at < end:
        walk.move(at)
        tag, content, stop = walk.field(at, end)
        yield Field(tag >> 3, tag & 7, at, content, stop)
        at = stop


def number_of(data: Encoded, field: Field, location: object) -> int:
    """Return the number that a field holds, as a signed one of 64 bits.

    Raises:
        FormatError: it holds none.
    """
    if field.wire != VARINT:
        raise error(Code.GRAPH_INVALID, location, f"field {field.number} is no number", _REMEDY)
    value = 0
    for place, byte in enumerate(bytes(data[field.start : min(field.end, field.start + 10)])):
        value |= (byte & 0x7F) << 7 * place
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def text_of(data: Encoded, field: Field, location: object, limit: int) -> str:
    """Return the text that a field holds.

    Raises:
        FormatError: it is none, or longer than `limit` bytes.
    """
    if field.end - field.start > limit:
        reason = f"a text of {field.end - field.start} bytes, at most {limit} are read"
        raise error(Code.FORMAT_LIMIT, location, reason, _REMEDY)
    try:
        return str(data[field.start : field.end], "utf-8")
    except UnicodeDecodeError as fault:
        raise error(Code.GRAPH_INVALID, location, "a text is not UTF-8", _REMEDY) from fault


def varint(number: int) -> bytes:
    """Return a number as protobuf encodes it; a negative one as 64 bits."""
    number &= (1 << 64) - 1
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def number_field(number: int, value: int) -> bytes:
    """Return an encoded field that holds a number."""
    return varint(number << 3 | VARINT) + varint(value)


def field_head(number: int, length: int) -> bytes:
    """Return what stands before the content of a field of `length` bytes."""
    return varint(number << 3 | LENGTH) + varint(length)


def bytes_field(number: int, content: bytes) -> bytes:
    """Return an encoded field that holds text, bytes or a message."""
    return field_head(number, len(content)) + content


@cache
def _declared(kind: Any) -> Mapping[int, _Declared]:
    return {
        number: _Declared(
            field.full_name,
            _WIRES.get(field.type, VARINT),
            # Older protobuf has `label` alone, newer ones warn about it.
            field.is_repeated if hasattr(field, "is_repeated") else field.label == _REPEATED,
            field.type == _TEXT,
            field.message_type,
        )
        for number, field in kind.fields_by_number.items()
    }


class _Walk:
    """One pass over a buffer; counts fields as it goes."""

    def __init__(
        self, data: Encoded, location: object, gather: Mapping[str, list[tuple[int, int]]]
    ) -> None:
        self.data = data
        self.location = location
        self.gather = gather
        self.count = 0
        # The part of the data that is at hand: its bytes, where it begins, and where it ends.
        whole = data if isinstance(data, memoryview) else None
        self._at_hand: memoryview | bytes = b"" if whole is None else whole
        self._base, self._limit = 0, 0 if whole is None else whole.nbytes

    def move(self, at: int) -> None:
        """Have the bytes at hand in which the field at a place begins."""
        if not self._base <= at < self._limit and not isinstance(self.data, memoryview):
            self._at_hand, self._base, self._limit = self.data.block(at)

    def message(self, span: _Span) -> list[_Span]:
        """Return the messages directly inside `span` that hold anything."""
        known = _declared(span.kind)
        at, end = span.start, span.end
        seen: set[int] = set()
        inner: list[_Span] = []
        while at < end:
            self.move(at)
            tag, start, at = self.field(at, end)
            if (field := known.get(tag >> 3)) is None:
                raise self._fault(f"field {tag >> 3} is unknown in {span.kind.name}", _NEWER)
            self.count += 1
            if self.count > FIELDS_LIMIT:
                raise self._fault(f"more than {FIELDS_LIMIT} fields", code=Code.FORMAT_LIMIT)
            if tag & 7 != field.wire or not field.repeated:
                self._require_allowed(field, tag, seen)
            if start < at and field.text:
                self._require_text(start, at, field.name)
            elif start < at and field.message is not None:
                inner.append(_Span(start, at, field.message, span.depth + 1))
        if inner and span.depth == DEPTH_LIMIT:
            raise self._fault(f"nested deeper than {DEPTH_LIMIT}", code=Code.FORMAT_LIMIT)
        if self.gather:
            self._gather(inner)
        return inner

    def _require_allowed(self, field: _Declared, tag: int, seen: set[int]) -> None:
        wire = tag & 7
        if wire != field.wire and not (wire == LENGTH and field.repeated):
            raise self._fault(f"{field.name} has wire type {wire}")
        if not field.repeated:
            if tag in seen:
                raise self._fault(f"{field.name} stands twice")
            seen.add(tag)

    def _gather(self, inner: list[_Span]) -> None:
        for span in inner:
            if (found := self.gather.get(span.kind.full_name)) is not None:
                found.append((span.start, span.end))

    def _require_text(self, start: int, end: int, name: str) -> None:
        """Raise for text that is not UTF-8: parsers of proto2 pass it on, some as bytes."""
        try:
            if end - self._base <= len(self._at_hand):
                str(self._at_hand[start - self._base : end - self._base], "utf-8")
                return
            decoder = codecs.getincrementaldecoder("utf-8")()
            for at in range(start, end, _TEXT_PIECE):
                last = min(end, at + _TEXT_PIECE)
                decoder.decode(self.data[at:last], last == end)
        except UnicodeDecodeError as fault:
            raise self._fault(f"{name} is not UTF-8") from fault

    def field(self, at: int, end: int) -> tuple[int, int, int]:
        """Return a field's tag, where its content starts and where it ends.

        The bytes at hand must hold its head (`move`).
        """
        data, base = self._at_hand, self._base
        tag = data[at - base]
        at += 1
        if tag >= 0x80:
            tag, at = self._varint(at - 1, end)
        if (wire := tag & 7) == LENGTH:
            if at < end and (length := data[at - base]) < 0x80:
                at += 1
            else:
                length, at = self._varint(at, end)
        elif wire == VARINT:
            return tag, at, self._varint(at, end)[1]
        elif (length := _WIDTH.get(wire, -1)) < 0:
            raise self._fault(f"wire type {wire} at byte {at}")
        if length > end - at:
            raise self._fault(f"cut off at byte {at}")
        return tag, at, at + length

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """Return a number and where it ends."""
        data, base = self._at_hand, self._base
        value = shift = 0
        for place in range(at - base, min(end, at + _VARINT_BYTES) - base):
            byte = data[place]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, base + place + 1
            shift += 7
        raise self._fault(f"no protobuf: a number without end at byte {at}")

    def _fault(
        self, reason: str, remedy: str = "", code: Code = Code.GRAPH_INVALID
    ) -> PersistlibError:
        return error(code, self.location, reason, remedy or _REMEDY)


_REMEDY = "do not use this file; export the model again"
_NEWER = "pip install --upgrade onnx, if a newer release wrote this file; otherwise do not use it"
