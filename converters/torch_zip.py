"""A strict audit of the zip archives that `torch.save` writes: one reading, or none.

Zip readers disagree about files that bend the rules: on twin names, on local headers that differ
from the directory, on what stands between records. A file that two readers could read differently
is refused, so what was audited is what is used. torch's own files bend nothing: flag bit 3 with a
descriptor after the bytes, padding extras that align them, zip64 end records always.

Law: every byte of an accepted file belongs to exactly one record, the directory or the end record.

Format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT (version 6.3.10).
"""

from __future__ import annotations

import struct
import unicodedata
import zlib
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, Protocol

from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.converters.file_bytes import FileBytes

STORED = 0
LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
END64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR = struct.Struct("<4sIQI")
LOCAL_MAGIC, CENTRAL_MAGIC, END_MAGIC = b"PK\3\4", b"PK\1\2", b"PK\5\6"
END64_MAGIC, LOCATOR_MAGIC = b"PK\6\6", b"PK\6\7"
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF
ZIP64_EXTRA = 0x0001
PADDING_EXTRA = 0x4246  # "FB", as torch pads

_DESCRIPTORS = (struct.Struct("<4s3I"), struct.Struct("<4sI2Q"))
_DESCRIPTOR_MAGIC = b"PK\7\x08"
_HAS_DESCRIPTOR, _UTF8 = 0x0008, 0x0800
# What other archivers add when they repack: times and owners. Nothing that renames or encrypts.
_EXTRAS = {ZIP64_EXTRA, PADDING_EXTRA, 0x5455, 0x7875}
_RECORDS = 1 << 18
# Bytes of what is read whole: the directory (torch's rows have about 100), a pickle (about 250 a
# tensor), and of what most local headers need.
_DIRECTORY, _CONTENT, _HEADER = 64 << 20, 128 << 20, 256


class Bytes(Protocol):
    """The archive's bytes, any stretch of them as a copy; fewer where they end."""

    def __len__(self) -> int: ...

    def __getitem__(self, span: slice, /) -> bytes: ...


class _BentError(Exception):
    """A rule is broken; `audit` says of which file."""


class Record(NamedTuple):
    """Where a record's bytes stand, and what their CRC-32 must be.

    Attributes:
        start: offset of the first byte in the file.
        size: bytes.
        crc: expected CRC-32; None in a file that keeps none.
        is_stored: whether the bytes stand there as they are; no other record is ever read.
    """

    start: int
    size: int
    crc: int | None
    is_stored: bool = True

    @property
    def stop(self) -> int:
        """The offset behind the last byte."""
        return self.start + self.size


class Writer(NamedTuple):
    """What a program's archives are like.

    Attributes:
        has_root: whether all records stand in one folder, whose name is left out.
        unread: beginnings of names whose records may be compressed, since they are never read.
        remedy: what to do about an archive that bends the rules.
    """

    has_root: bool
    unread: tuple[str, ...]
    remedy: str


# TorchScript deflates its sources.
TORCH = Writer(has_root=True, unread=("code/",), remedy="save the file again with torch.save")
KERAS = Writer(has_root=False, unread=(), remedy="save the model again with Keras 3")


class _Member(NamedTuple):
    """A row of the central directory."""

    name: str
    raw_name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int


def audit(data: Bytes, location: str, writer: Writer = TORCH) -> dict[str, Record]:
    """Return the records by name, without the archive's root folder, in directory order.

    Raises:
        FormatError: the archive breaks a rule, or could be read in two ways.
    """
    try:
        return _records(data, writer)
    except struct.error as fault:
        raise error(
            Code.FORMAT_TRUNCATED, location, "the archive is cut off", writer.remedy
        ) from fault
    except _BentError as fault:
        raise error(Code.FORMAT_HEADER, location, str(fault), writer.remedy) from fault


def content(data: FileBytes, record: Record, name: str, location: str) -> bytes:
    """Return the bytes of a record of moderate size, compared with their CRC-32.

    Args:
        data: the archive.
        record: what `audit` found.
        name: the record's name, for the message.
        location: what the error names.

    Raises:
        IntegrityError: the bytes differ from the CRC-32.
        FormatError: the record is compressed, or large.
    """
    if not record.is_stored:
        reason = f"the record {name} is compressed"
        raise error(Code.FORMAT_HEADER, location, reason, TORCH.remedy)
    if record.size > _CONTENT:
        reason = f"the record {name} has {record.size} bytes"
        raise error(Code.FORMAT_LIMIT, location, reason, "save the state_dict alone")
    found = data[record.start : record.stop]
    check_crc(record, zlib.crc32(found), name, location, Code.FILE_DIGEST)
    return found


def check_crc(record: Record, found: int, name: str, location: str, code: Code) -> None:
    """Require the CRC-32 that the file says, where it says one.

    Raises:
        IntegrityError: it is another.
    """
    if record.crc is not None and found != record.crc:
        unsaid = " (saved with set_crc32_options(False)?)" if record.crc == 0 else ""
        reason = f"the record {name} has CRC-32 {found:08x}, not {record.crc:08x}{unsaid}"
        raise error(code, location, reason, "fetch or save the file again")


def checked_windows(
    data: FileBytes, record: Record, name: str, location: str
) -> Iterator[memoryview]:
    """Yield the bytes of a record; before the last window they are compared with their CRC-32.

    Raises:
        IntegrityError: the bytes differ from the CRC-32.
        FormatError: the file shrank.
    """
    if record.crc is None:
        yield from data.windows(record.start, record.stop)
        return
    crc = passed = 0

    def watch(window: memoryview) -> None:
        nonlocal crc, passed
        crc = zlib.crc32(window, crc)
        passed += window.nbytes
        if passed == record.size:
            check_crc(record, crc, name, location, Code.TENSOR_DIGEST)

    yield from data.windows(record.start, record.stop, watch)


def _records(data: Bytes, writer: Writer) -> dict[str, Record]:
    start, stop, count = _end(data)
    if stop - start > _DIRECTORY:
        raise _BentError(f"a directory of {stop - start} bytes")
    members = _directory(data[start:stop], count)
    root = _root(members, writer)
    begins = [*sorted(member.offset for member in members), start]
    if begins[0] != 0:
        raise _BentError("bytes before the first record")
    follow = dict(pairwise(begins))
    if len(follow) != len(members):
        raise _BentError("two records begin at one place")
    unread = tuple(root + beginning for beginning in writer.unread)
    return {
        member.name[len(root) :]: _record(data, member, follow[member.offset], unread)
        for member in members
    }


def _end(data: Bytes) -> tuple[int, int, int]:
    """Return where the directory begins and ends, and how many records it has."""
    at = len(data) - END.size
    if at < 0:
        raise _BentError("shorter than an end record")
    magic, *disks, here, total, length, start, comment = END.unpack(data[at:])
    if magic != END_MAGIC or comment != 0:
        raise _BentError("the file does not end with an end record")
    found = (here, total, length, start)
    stop = at
    back = at - LOCATOR.size
    if back >= 0 and (locator := data[back:at])[:4] == LOCATOR_MAGIC:
        _, disk, stop, all_disks = LOCATOR.unpack(locator)
        if stop != back - END64.size:
            raise _BentError("the zip64 end record is not where it must be")
        magic, rest, _, _, *disks64, here, total, length, start = END64.unpack(data[stop:back])
        if magic != END64_MAGIC or rest != END64.size - 12 or disk or all_disks > 1 or any(disks64):
            raise _BentError("a malformed zip64 end record")
        full = (FULL16, FULL16, FULL32, FULL32)
        for old, new, unsaid in zip(found, (here, total, length, start), full, strict=True):
            if old not in (new, unsaid):
                raise _BentError("the two end records differ")
    if any(disks) or here != total or start + length != stop:
        raise _BentError("the directory is not where the end record says")
    if not 0 < total <= _RECORDS:
        raise _BentError(f"{total} records")
    return start, stop, total


def _directory(data: bytes, count: int) -> list[_Member]:
    """Return the rows of the central directory, which must fill its place exactly."""
    members: list[_Member] = []
    at = 0
    for _ in range(count):
        row = CENTRAL.unpack_from(data, at)
        magic, _, _, flags, method, _, _, crc, packed, size = row[:10]
        name_size, extra_size, comment_size, disk, _, _, offset = row[10:]
        at += CENTRAL.size
        raw_name = data[at : at + name_size]
        extra = data[at + name_size : at + name_size + extra_size]
        at += name_size + extra_size
        if magic != CENTRAL_MAGIC or comment_size or disk or at > len(data):
            raise _BentError("a malformed directory")
        name = _name(raw_name, flags)
        if flags & ~(_HAS_DESCRIPTOR | _UTF8):
            raise _BentError(f"the record {name} has flags {flags:#06x}")
        wide = _wide(extra)
        size, packed, offset = (
            _take(wide) if value == FULL32 else value for value in (size, packed, offset)
        )
        if wide:
            raise _BentError(f"the record {name} has zip64 values that nothing asks for")
        members.append(_Member(name, raw_name, flags, method, crc, packed, size, offset))
    if at != len(data):
        raise _BentError("bytes after the last directory entry")
    return members


def _take(wide: list[int]) -> int:
    if not wide:
        raise _BentError("a zip64 value is missing")
    return wide.pop(0)


def _wide(extra: bytes) -> list[int]:
    """Return the zip64 values of an extra field whose parts must all be known and whole."""
    values: list[int] = []
    seen: set[int] = set()
    at = 0
    while at < len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        at += 4 + size
        if kind not in _EXTRAS or kind in seen or at > len(extra):
            raise _BentError(f"an extra field of kind {kind:#06x}, unknown, doubled or cut off")
        seen.add(kind)
        if kind == ZIP64_EXTRA:
            if size % 8:
                raise _BentError("a malformed zip64 field")
            values = list(struct.unpack(f"<{size // 8}Q", extra[at - size : at]))
    return values


def _name(raw: bytes, flags: int) -> str:
    """Return a record's name: a plain relative path."""
    try:
        name = raw.decode("utf-8" if flags & _UTF8 else "ascii")
    except UnicodeDecodeError as fault:
        raise _BentError(f"the record name {raw!r} is not text") from fault
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise _BentError(f"the record name {name} is no plain path")
    if not name.isprintable() or "\\" in name:
        raise _BentError(f"the record name {name} holds a character that has no place there")
    return name


def _root(members: list[_Member], writer: Writer) -> str:
    """Return the one root folder with its slash; no two names may be taken for each other."""
    root = members[0].name.split("/", 1)[0] + "/" if writer.has_root else ""
    twins: set[str] = set()
    for member in members:
        if not member.name.startswith(root):
            raise _BentError(f"two root folders, {root} and that of {member.name}")
        twin = unicodedata.normalize("NFC", member.name.casefold())
        if twin in twins:
            raise _BentError(f"the record name {member.name} stands twice, but for case or form")
        twins.add(twin)
    return root


def _record(data: Bytes, member: _Member, stop: int, unread: tuple[str, ...]) -> Record:
    """Return the record of a directory row, after comparing it with its local header.

    Args:
        data: the archive.
        member: the directory's row.
        stop: where the next record, or the directory, begins.
        unread: beginnings of names that are never read.
    """
    is_unread = member.name.startswith(unread)
    if member.method != STORED and not is_unread:
        raise _BentError(f"the record {member.name} is compressed")
    if member.method == STORED and member.packed != member.size:
        raise _BentError(f"the record {member.name} has two sizes")
    at = LOCAL.size
    head = data[member.offset : member.offset + at + len(member.raw_name) + _HEADER]
    local = LOCAL.unpack(head[:at])
    magic, _, flags, method, _, _, crc, packed, size, name_size, extra_size = local
    if at + name_size + extra_size > len(head):
        head = data[member.offset : member.offset + at + name_size + extra_size]
    raw_name = head[at : at + name_size]
    extra = head[at + name_size : at + name_size + extra_size]
    start = member.offset + at + name_size + extra_size
    if magic != LOCAL_MAGIC or (flags, method, raw_name) != (*member[2:4], member.raw_name):
        raise _BentError(f"the local header of {member.name} differs from the directory")
    wide = _wide(extra)
    true = (member.crc, member.size, member.packed)
    if not set(wide) <= {0, member.size, member.packed, member.offset}:
        raise _BentError(f"the local header of {member.name} has other zip64 values")
    gap = stop - start - member.packed
    if flags & _HAS_DESCRIPTOR:
        said_here = (0, 0, 0)
        _check_descriptor(data[stop - min(max(gap, 0), _HEADER) : stop], member)
    else:
        said_here = true
        if gap != 0:
            raise _BentError(f"bytes after the record {member.name}, or too few")
    said = tuple(
        real if wide and value == FULL32 else value
        for value, real in zip((crc, size, packed), true, strict=True)
    )
    if said not in (said_here, true):
        raise _BentError(f"the local header of {member.name} differs from the directory")
    return Record(start, member.size, member.crc, member.method == STORED)


def _check_descriptor(found: bytes, member: _Member) -> None:
    """Require the descriptor after a record, which says again what the directory says."""
    for shape in _DESCRIPTORS:
        if len(found) == shape.size:
            said = shape.unpack(found)
            if said == (_DESCRIPTOR_MAGIC, member.crc, member.packed, member.size):
                return
    raise _BentError(f"the record {member.name} is not followed by its descriptor")
