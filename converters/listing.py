"""What a file holds, as the process that parses it tells the process that asked.

Law: `parse(render(listing)) == listing` for all that crosses, whatever names it holds; what a
child says is judged as strictly as a file, so `parse` refuses what no well-meant child would say.
"""

from __future__ import annotations

import io
import json
import math
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from persistlib.canonical import parse as parse_json
from persistlib.checkpoint import Entry
from persistlib.digests import encode_name
from persistlib.dtypes import DType
from persistlib.errors import Code, PersistlibError, error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from typing_extensions import Buffer

RANK_LIMIT = 64
# A file may declare this many times its own bytes (what deflate makes of zeros is 1,000 times
# smaller, of trained weights not even half), or as many bytes as this when it is small.
EXPANSION = 32
FLOOR = 64 << 20
# Bytes of a listing: 100,000 tensors need about 10 MB.
LISTING_LIMIT = 32 << 20
_AGAIN = "fetch the file again from where it came"
_FIELDS = {"entries", "aliases", "metadata", "losses", "notes", "format", "container"}


@dataclass(frozen=True)
class Listing:
    """What a file holds, and how its bytes are fetched.

    Attributes:
        format: the format's name in `formats`.
        container: the format's variant and version, in words.
        entries: the tensors in order, no alias among them.
        aliases: second names, each to the name of an entry.
        metadata: string to string.
        losses: what the file holds and a checkpoint does not, as `CheckpointReader.losses`.
        notes: what whoever reads the file should know, a sentence each.
        windows: given an entry's name, yields its little-endian row-major bytes in order, a window
            at a time, and raises a `PersistlibError` where they are not to be had; it is called in
            the process that parses, and never crosses.
    """

    format: str
    container: str
    entries: tuple[Entry, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    losses: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    windows: Callable[[str], Iterator[memoryview]] | None = field(default=None, compare=False)


class Source(io.RawIOBase):
    """The file being read: an open descriptor, seen as Python's and h5py's file objects are.

    Nothing is opened by name. Bytes past the end are zeros, never what memory happened to hold.

    Attributes:
        fd: the descriptor, open for reading.
        size: the file's size in bytes when it was opened.
    """

    def __init__(self, fd: int, size: int) -> None:
        self.fd, self.size, self._at = fd, size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position and return it."""
        self._at = offset + (0, self._at, self.size)[whence]
        return self._at

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def readinto(self, into: Buffer) -> int:
        """Fill a buffer from the position; what lies past the end of the file is zero."""
        view = memoryview(into).cast("B")
        done = 0
        while done < len(view):
            count = os.preadv(self.fd, [view[done:]], self._at + done)
            if count == 0:
                view[done:] = bytes(len(view) - done)
                break
            done += count
        self._at += len(view)
        return len(view)


def refusal(code: Code, where: object, reason: str, remedy: str = "") -> PersistlibError:
    """Return an error of a walker: `where` is a place in the file, such as a tensor's name.

    The process that asked puts the file's path before it.
    """
    return error(code, where, reason, remedy or _AGAIN)


def check_declared(entries: tuple[Entry, ...], size: int) -> None:
    """Refuse tensors whose bytes are out of proportion to a file of `size` bytes.

    Raises:
        FormatError: they declare too much.
    """
    total = sum(entry.nbytes for entry in entries)
    if total > max(FLOOR, EXPANSION * size):
        most = max(entries, key=lambda entry: entry.nbytes)
        reason = f"{total} bytes of tensors are declared in a file of {size}"
        raise refusal(Code.FORMAT_LIMIT, most.name, reason)


def render(listing: Listing) -> bytes:
    """Return a listing as JSON, without its `windows`."""
    document = {
        "entries": [[e.name, e.dtype.name, list(e.shape)] for e in listing.entries],
        "aliases": dict(listing.aliases),
        "metadata": dict(listing.metadata),
        "losses": list(listing.losses),
        "notes": list(listing.notes),
        "format": listing.format,
        "container": listing.container,
    }
    try:
        data = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as fault:
        raise refusal(Code.FORMAT_NAME, "", "holds text that is not valid Unicode") from fault
    if len(data) > LISTING_LIMIT:
        raise refusal(Code.FORMAT_LIMIT, "", f"a listing of {len(data)} bytes")
    return data


def parse(data: bytes, size: int, location: object) -> Listing:
    """Return what a listing says of a file of `size` bytes.

    Raises:
        FormatError: it breaks a rule.
    """
    raw = parse_json(data, location, code=Code.FORMAT_HEADER, limit=LISTING_LIMIT)
    if set(raw) != _FIELDS or not _is_well_typed(raw):
        raise error(Code.FORMAT_HEADER, location, "a malformed listing", _AGAIN)
    entries = tuple(_entry(record, location) for record in raw["entries"])
    check_declared(entries, size)
    for name in raw["aliases"]:
        encode_name(name, location)
    return Listing(
        raw["format"],
        raw["container"],
        entries,
        raw["aliases"],
        raw["metadata"],
        tuple(raw["losses"]),
        tuple(raw["notes"]),
    )


def _is_well_typed(raw: dict[str, Any]) -> bool:
    return (
        all(type(raw[key]) is str for key in ("format", "container"))
        and all(_are_texts(raw[key]) for key in ("losses", "notes"))
        and all(
            isinstance(raw[key], dict) and _are_texts(list(raw[key].values()))
            for key in ("aliases", "metadata")
        )
        and isinstance(raw["entries"], list)
    )


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is str for item in value)


def _entry(record: Any, location: object) -> Entry:
    if not isinstance(record, list) or len(record) != 3 or not _are_texts(record[:2]):
        raise error(Code.FORMAT_HEADER, location, "a malformed entry", _AGAIN)
    name, dtype, shape = record
    encode_name(name, location)
    if dtype not in DType.__members__:
        reason = f"the dtype {dtype!r} is not known"
        raise error(Code.FORMAT_DTYPE, f"{location}: {name}", reason, _AGAIN)
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise error(Code.FORMAT_SHAPE, f"{location}: {name}", "a malformed shape", _AGAIN)
    if len(shape) > RANK_LIMIT or math.prod(max(n, 1) for n in shape) >= 1 << 63:
        raise error(Code.FORMAT_SHAPE, f"{location}: {name}", "impossible extents", _AGAIN)
    return Entry(name, DType[dtype], tuple(shape))
