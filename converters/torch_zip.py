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
from typing import NamedTuple

from persistlib.errors import Code, error

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
# TorchScript deflates its sources, which are never read.
_UNREAD = "code/"
_RECORDS = 1 << 18
_REMEDY = "save the file again with torch.save"


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


def audit(data: memoryview, location: str) -> dict[str, Record]:
    """Return the records by name, without the archive's root folder, in directory order.

    Raises:
        FormatError: the archive breaks a rule, or could be read in two ways.
    """
    try:
        return _records(data)
    except struct.error as fault:
        raise error(Code.FORMAT_TRUNCATED, location, "the archive is cut off", _REMEDY) from fault
    except _BentError as fault:
        raise error(Code.FORMAT_HEADER, location, str(fault), _REMEDY) from fault


def content(data: memoryview, record: Record, name: str, code: Code, location: str) -> memoryview:
    """Return a record's bytes, compared with their CRC-32.

    Args:
        data: the archive.
        record: what `audit` found.
        name: the record's name, for the message.
        code: the code of a mismatch.
        location: what the error names.

    Raises:
        IntegrityError: the bytes differ from the CRC-32.
        FormatError: the record is compressed.
    """
    if not record.is_stored:
        reason = f"the record {name} is compressed"
        raise error(Code.FORMAT_HEADER, location, reason, _REMEDY)
    view = data[record.start : record.start + record.size]
    if record.crc is not None and (found := zlib.crc32(view)) != record.crc:
        unsaid = " (saved with set_crc32_options(False)?)" if record.crc == 0 else ""
        reason = f"the record {name} has CRC-32 {found:08x}, not {record.crc:08x}{unsaid}"
        raise error(code, location, reason, "fetch or save the file again")
    return view


def _records(data: memoryview) -> dict[str, Record]:
    start, stop, count = _end(data)
    members = _directory(data, start, stop, count)
    root = _root(members)
    begins = [*sorted(member.offset for member in members), start]
    if begins[0] != 0:
        raise _BentError("bytes before the first record")
    follow = dict(pairwise(begins))
    if len(follow) != len(members):
        raise _BentError("two records begin at one place")
    return {
        member.name[len(root) :]: _record(data, member, follow[member.offset], root)
        for member in members
    }


def _end(data: memoryview) -> tuple[int, int, int]:
    """Return where the directory begins and ends, and how many records it has."""
    at = len(data) - END.size
    if at < 0:
        raise _BentError("shorter than an end record")
    magic, *disks, here, total, length, start, comment = END.unpack_from(data, at)
    if magic != END_MAGIC or comment != 0:
        raise _BentError("the file does not end with an end record")
    found = (here, total, length, start)
    stop = at
    back = at - LOCATOR.size
    if back >= 0 and bytes(data[back : back + 4]) == LOCATOR_MAGIC:
        _, disk, stop, all_disks = LOCATOR.unpack_from(data, back)
        if stop != back - END64.size:
            raise _BentError("the zip64 end record is not where it must be")
        magic, rest, _, _, *disks64, here, total, length, start = END64.unpack_from(data, stop)
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


def _directory(data: memoryview, start: int, stop: int, count: int) -> list[_Member]:
    """Return the rows of the central directory, which must fill its place exactly."""
    members: list[_Member] = []
    at = start
    for _ in range(count):
        row = CENTRAL.unpack_from(data, at)
        magic, _, _, flags, method, _, _, crc, packed, size = row[:10]
        name_size, extra_size, comment_size, disk, _, _, offset = row[10:]
        at += CENTRAL.size
        raw_name = bytes(data[at : at + name_size])
        extra = data[at + name_size : at + name_size + extra_size]
        at += name_size + extra_size
        if magic != CENTRAL_MAGIC or comment_size or disk or at > stop:
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
    if at != stop:
        raise _BentError("bytes after the last directory entry")
    return members


def _take(wide: list[int]) -> int:
    if not wide:
        raise _BentError("a zip64 value is missing")
    return wide.pop(0)


def _wide(extra: memoryview) -> list[int]:
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
    """Return a record's name: a plain relative path of two or more components."""
    try:
        name = raw.decode("utf-8" if flags & _UTF8 else "ascii")
    except UnicodeDecodeError as fault:
        raise _BentError(f"the record name {raw!r} is not text") from fault
    parts = name.split("/")
    if len(parts) < 2 or any(part in ("", ".", "..") for part in parts):
        raise _BentError(f"the record name {name} is not root/name")
    if not name.isprintable() or "\\" in name:
        raise _BentError(f"the record name {name} holds a character that has no place there")
    return name


def _root(members: list[_Member]) -> str:
    """Return the one root folder with its slash; no two names may be taken for each other."""
    root = members[0].name.split("/", 1)[0] + "/"
    twins: set[str] = set()
    for member in members:
        if not member.name.startswith(root):
            raise _BentError(f"two root folders, {root} and that of {member.name}")
        twin = unicodedata.normalize("NFC", member.name.casefold())
        if twin in twins:
            raise _BentError(f"the record name {member.name} stands twice, but for case or form")
        twins.add(twin)
    return root


def _record(data: memoryview, member: _Member, stop: int, root: str) -> Record:
    """Return the record of a directory row, after comparing it with its local header.

    Args:
        data: the archive.
        member: the directory's row.
        stop: where the next record, or the directory, begins.
        root: the archive's root folder.
    """
    is_unread = member.name.startswith(root + _UNREAD)
    if member.method != STORED and not is_unread:
        raise _BentError(f"the record {member.name} is compressed")
    if member.method == STORED and member.packed != member.size:
        raise _BentError(f"the record {member.name} has two sizes")
    at = member.offset
    local = LOCAL.unpack_from(data, at)
    magic, _, flags, method, _, _, crc, packed, size, name_size, extra_size = local
    at += LOCAL.size
    raw_name = bytes(data[at : at + name_size])
    start = at + name_size + extra_size
    if magic != LOCAL_MAGIC or (flags, method, raw_name) != (*member[2:4], member.raw_name):
        raise _BentError(f"the local header of {member.name} differs from the directory")
    wide = _wide(data[at + name_size : start])
    true = (member.crc, member.size, member.packed)
    if not set(wide) <= {0, member.size, member.packed, member.offset}:
        raise _BentError(f"the local header of {member.name} has other zip64 values")
    gap = stop - start - member.packed
    if flags & _HAS_DESCRIPTOR:
        said_here = (0, 0, 0)
        _check_descriptor(data[stop - max(gap, 0) : stop], member)
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


def _check_descriptor(found: memoryview, member: _Member) -> None:
    """Require the descriptor after a record, which says again what the directory says."""
    for shape in _DESCRIPTORS:
        if len(found) == shape.size:
            said = shape.unpack(found)
            if said == (_DESCRIPTOR_MAGIC, member.crc, member.packed, member.size):
                return
    raise _BentError(f"the record {member.name} is not followed by its descriptor")
