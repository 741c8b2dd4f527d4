"""The header of a safetensors file: parsed by stricter rules than usual, and rendered.

Law: `parse_header(render_header(x)) == x` for names, dtypes, shapes, aliases and metadata.

Ties are written once, under the smallest name; the other names stand in `__metadata__` as
`alias -> name`, which is what `safetensors.torch.save_model` writes and `load_model` reads.

Today's readers accept names that stand twice, shapes beyond any memory, unknown fields and white
space before the header; none of these is read here.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from persistlib.canonical import parse
from persistlib.checkpoint import Entry
from persistlib.digests import encode_name
from persistlib.dtypes import by_name
from persistlib.errors import Code, error
from persistlib.files import StrPath, read_all

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

# Bytes: 100,000 tensors need about 10 MB. The library allows 100 MB, which took it 21 s to open.
HEADER_LIMIT = 16 << 20
RANK_LIMIT = 64
TENSORS_LIMIT = 100_000
PREFIX = 8
_ALIGNMENT = 64
_METADATA = "__metadata__"
_FORMAT = "format"  # the Hub's key for the framework; its value is never a tensor's name
_FIELDS = {"dtype", "shape", "data_offsets"}


class Header(NamedTuple):
    """What the first bytes of a file say.

    Attributes:
        entries: the tensors in the order of their bytes.
        spans: begin and end of each tensor's bytes, from the start of the file.
        metadata: the string map, ties not among it.
        aliases: second names of tied tensors.
        length: bytes of the length field and the header together.
    """

    entries: tuple[Entry, ...]
    spans: Mapping[str, tuple[int, int]]
    metadata: Mapping[str, str]
    aliases: Mapping[str, str]
    length: int


def header_bytes(fd: int, size: int, location: StrPath) -> bytes:
    """Return the length field and the header of an open file of `size` bytes.

    Raises:
        FormatError: the header breaks a rule of the format.
        OSError: reading failed.
    """
    length = header_length(read_all(fd, PREFIX), size, location)
    return read_all(fd, PREFIX + length)


def header_length(prefix: bytes, size: int, location: StrPath) -> int:
    """Return the bytes of the header, given the first 8 of a file of `size` bytes.

    Raises:
        FormatError: the header breaks a rule of the format.
    """
    length = int.from_bytes(prefix, "little")
    if len(prefix) < PREFIX or length > size - PREFIX:
        refuse(Code.FORMAT_TRUNCATED, location, f"{size} bytes are less than its header says")
    if length > HEADER_LIMIT:
        refuse(Code.FORMAT_LIMIT, location, f"a header of {length} bytes")
    return length


def parse_header(data: bytes, size: int, location: StrPath) -> Header:
    """Return what a header says about a file of `size` bytes.

    Args:
        data: the length field and the header, exactly.
        size: bytes of the whole file.
        location: what to name in an error.

    Raises:
        FormatError: the header breaks a rule of the format.
    """
    text = data[PREFIX:].rstrip(b" ")
    if not text.startswith(b"{"):
        refuse(Code.FORMAT_HEADER, location, "the header does not begin with a brace")
    # Counted before anything is parsed: each tensor has a brace, and names have none or few.
    if (count := text.count(b"{")) > TENSORS_LIMIT:
        refuse(Code.FORMAT_LIMIT, location, f"a header of {count} objects")
    raw = parse(text, location, code=Code.FORMAT_HEADER, limit=HEADER_LIMIT)
    metadata = raw.pop(_METADATA, {})
    if not isinstance(metadata, dict) or any(type(v) is not str for v in metadata.values()):
        refuse(Code.FORMAT_HEADER, location, "__metadata__ is no map from string to string")
    placed = sorted(
        (_entry(name, record, f"{location}: {name}") for name, record in raw.items()),
        key=lambda item: item[1],
    )
    end = len(data)
    spans: dict[str, tuple[int, int]] = {}
    for entry, (begin, stop) in placed:
        if begin + len(data) != end:
            refuse(Code.FORMAT_HEADER, f"{location}: {entry.name}", "a hole or overlap before it")
        spans[entry.name] = (end, stop + len(data))
        end = stop + len(data)
    if end != size:
        refuse(Code.FORMAT_TRUNCATED, location, f"{size} bytes, its header describes {end}")
    aliases = {a: n for a, n in metadata.items() if _is_tie(a, n, spans)}
    rest = {key: value for key, value in metadata.items() if key not in aliases}
    return Header(tuple(entry for entry, _ in placed), spans, rest, aliases, len(data))


def _entry(name: str, record: Any, where: str) -> tuple[Entry, tuple[int, int]]:
    """Return a tensor and the begin and end of its bytes, or refuse its record."""
    encode_name(name, where.removesuffix(f": {name}"))
    if not isinstance(record, dict) or set(record) != _FIELDS:
        refuse(Code.FORMAT_HEADER, where, f"its fields are not {', '.join(sorted(_FIELDS))}")
    dtype = by_name("safetensors", record["dtype"]) if type(record["dtype"]) is str else None
    if dtype is None:
        refuse(Code.FORMAT_DTYPE, where, f"the dtype {record['dtype']!r} is not known")
    shape, offsets = record["shape"], record["data_offsets"]
    if not _are_counts(shape) or len(shape) > RANK_LIMIT:
        refuse(Code.FORMAT_SHAPE, where, "a malformed shape")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        refuse(Code.FORMAT_HEADER, where, "malformed data_offsets")
    entry = Entry(name, dtype, tuple(shape))
    bits = math.prod(shape) * dtype.value.bits
    if any(extent >= 1 << 63 for extent in shape) or bits != 8 * (offsets[1] - offsets[0]):
        refuse(
            Code.FORMAT_SHAPE, where, f"{offsets[1] - offsets[0]} bytes do not fit its dtype, shape"
        )
    if entry.nbytes == 0 and math.prod(max(extent, 1) for extent in shape) >= 1 << 63:
        refuse(Code.FORMAT_SHAPE, where, "an empty tensor of impossible extents")
    return entry, (offsets[0], offsets[1])


def _is_tie(key: str, value: str, names: Container[str]) -> bool:
    return key != _FORMAT and value in names and key not in names


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)


def refuse(code: Code, where: StrPath, reason: str) -> NoReturn:
    """Raise the error of a malformed file."""
    raise error(code, where, reason, "fetch the file again from where it came")


def data_order(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return the entries in the order of their bytes: element size falling, then name."""
    return tuple(sorted(entries, key=lambda e: (-e.dtype.value.bits, encode_name(e.name))))


def _require_dtype(entry: Entry) -> None:
    """Refuse what the format cannot say: a dtype without a name, elements that fill no byte."""
    dtype = entry.dtype
    if not dtype.value.safetensors:
        remedy = "cast it (--dtype), leave it out (--only), or choose another format"
        raise error(Code.FORMAT_DTYPE, entry.name, f"safetensors has no {dtype.name}", remedy)
    if math.prod(entry.shape) * dtype.value.bits % 8:
        reason = f"{dtype.name} of shape {list(entry.shape)} ends within a byte, which the format"
        remedy = "pad the last dimension, or choose another format"
        raise error(Code.FORMAT_SHAPE, entry.name, f"{reason} cannot say", remedy)


def render_header(
    order: Iterable[Entry], metadata: Mapping[str, str], aliases: Mapping[str, str]
) -> bytes:
    """Return the length field and the header, padded so that the data begins aligned.

    Args:
        order: the entries in the order of their bytes.
        metadata: the string map.
        aliases: second names of tied tensors.

    Raises:
        FormatError: a key of the metadata is an alias or would be read as one, a tensor has the
            metadata's own name, or the format has no such dtype.
    """
    header: dict[str, Any] = {}
    offset = 0
    for entry in order:
        _require_dtype(entry)
        if entry.name == _METADATA:
            reason = "a tensor called as the header calls its metadata"
            raise error(Code.FORMAT_NAME, entry.name, reason, "rename it (--rename)")
        header[entry.name] = {
            "dtype": entry.dtype.value.safetensors,
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += entry.nbytes
    for key, value in metadata.items():
        if key in aliases or _is_tie(key, value, header):
            raise error(
                Code.FORMAT_NAME, key, "a metadata key that would read as a tied tensor", "drop it"
            )
    strings = dict(sorted([*metadata.items(), *aliases.items()]))
    document = ({_METADATA: strings} if strings else {}) | header
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(PREFIX + len(text)) % _ALIGNMENT)
    if len(text) > HEADER_LIMIT:
        reason = f"a header of {len(text)} bytes"
        raise error(Code.FORMAT_LIMIT, _METADATA, reason, "convert it in parts (--only)")
    return len(text).to_bytes(PREFIX, "little") + text
