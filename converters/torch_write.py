"""Writing the zip archive that every `torch.load` since 1.6 reads, with `weights_only` too.

Law: the same checkpoint gives the same bytes; nothing of the clock, the path or the machine is in
them.

Records are stored as they are, their bytes on multiples of 64 so that `torch.load(mmap=True)` has
aligned tensors, with true CRC-32s. Tied names share a storage, and stand after the entries.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

from persistlib import publish
from persistlib.converters import torch_zip
from persistlib.converters.torch_values import STORAGES, UNTYPED
from persistlib.converters.torch_zip import FULL16, FULL32
from persistlib.digests import encode_name
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from typing_extensions import Buffer

    from persistlib.checkpoint import CheckpointReader, Entry
    from persistlib.files import StrPath

_ROOT = "archive"
_ALIGNMENT = 64
_VERSION, _VERSION64 = 20, 45  # of the zip format: needed to extract
_DATE = 0x21  # 1 January 1980, the first that zip can spell
_UTF8 = 0x0800
# torch's version of the archive; every reader since 1.6 takes 3.
_ARCHIVE_VERSION = b"3\n"
_LITTLE = b"little"
_DICT = b"ccollections\nOrderedDict\n)R"


def write(checkpoint: CheckpointReader, path: StrPath) -> None:
    """Write a checkpoint as the state_dict that `torch.load` reads, whole and durable.

    String metadata has no place in the format.

    Raises:
        FormatError: a name cannot be carried.
        TargetError: writing failed; what stood at `path` stands unchanged.
    """
    with publish.file(path) as out:
        write_to(checkpoint, out)


def write_to(checkpoint: CheckpointReader, out: publish.OutFile) -> None:
    """Write a checkpoint into a new file, a window of a tensor at a time.

    Raises:
        FormatError: a name or dtype cannot be carried.
        OSError: writing failed.
    """
    archive = _Archive(out)
    pickled = _pickle(checkpoint)
    archive.add("data.pkl", len(pickled), [pickled])
    archive.add("byteorder", len(_LITTLE), [_LITTLE])
    for index, entry in enumerate(checkpoint.entries):
        archive.add(f"data/{index}", entry.nbytes, checkpoint.windows(entry.name))
    archive.add("version", len(_ARCHIVE_VERSION), [_ARCHIVE_VERSION])
    archive.finish()


class _Archive:
    """A zip archive being written."""

    def __init__(self, out: publish.OutFile) -> None:
        self._out = out
        self._directory: list[bytes] = []

    def add(self, name: str, size: int, parts: Iterable[Buffer]) -> None:
        """Write one record, its bytes aligned; its CRC-32 is known, and filled in, at the end."""
        raw = f"{_ROOT}/{name}".encode()
        offset = self._out.size
        wide = _zip64([size, size]) if size >= FULL32 else b""
        fixed = offset + torch_zip.LOCAL.size + len(raw) + len(wide) + 4
        padding = -fixed % _ALIGNMENT
        extra = wide + struct.pack("<2H", torch_zip.PADDING_EXTRA, padding) + bytes(padding)
        self._out.write(_local(0, size, raw, extra))
        crc = 0
        for part in parts:
            crc = zlib.crc32(part, crc)
            self._out.write(part)
        self._out.patch(offset, _local(crc, size, raw, extra))
        far = [size, size] * bool(wide) + [offset] * (offset >= FULL32)
        extra = _zip64(far) if far else b""
        needed = _VERSION64 if far else _VERSION
        tail = (len(extra), 0, 0, 0, 0, min(offset, FULL32))
        meta = _meta(crc, size, raw)
        row = torch_zip.CENTRAL.pack(torch_zip.CENTRAL_MAGIC, needed, needed, *meta, *tail)
        self._directory.append(row + raw + extra)

    def finish(self) -> None:
        """Write the directory and the end records; zip64 always, as torch does."""
        start, count = self._out.size, len(self._directory)
        length = self._out.write(b"".join(self._directory))
        end64 = (torch_zip.END64.size - 12, _VERSION64, _VERSION64, 0, 0)
        sizes = (count, count, length, start)
        self._out.write(torch_zip.END64.pack(torch_zip.END64_MAGIC, *end64, *sizes))
        locator = torch_zip.LOCATOR.pack(torch_zip.LOCATOR_MAGIC, 0, start + length, 1)
        near = (*(min(c, FULL16) for c in sizes[:2]), *(min(s, FULL32) for s in sizes[2:]))
        self._out.write(locator + torch_zip.END.pack(torch_zip.END_MAGIC, 0, 0, *near, 0))


def _meta(crc: int, size: int, raw: bytes) -> tuple[int, ...]:
    said = min(size, FULL32)
    return (_UTF8, torch_zip.STORED, 0, _DATE, crc, said, said, len(raw))


def _local(crc: int, size: int, raw: bytes, extra: bytes) -> bytes:
    """Return a record's local header, name and extra field."""
    needed = _VERSION64 if size >= FULL32 else _VERSION
    meta = _meta(crc, size, raw)
    return torch_zip.LOCAL.pack(torch_zip.LOCAL_MAGIC, needed, *meta, len(extra)) + raw + extra


def _zip64(values: Sequence[int]) -> bytes:
    return struct.pack(f"<2H{len(values)}Q", torch_zip.ZIP64_EXTRA, 8 * len(values), *values)


def _pickle(checkpoint: CheckpointReader) -> bytes:
    """Return the pickle of an OrderedDict of tensors, spelt out without a pickler."""
    places = {entry.name: index for index, entry in enumerate(checkpoint.entries)}
    named = {name: name for name in places} | dict(checkpoint.aliases)
    parts = [b"\x80\x02", _DICT, b"("]
    for name, kept in named.items():
        encode_name(name)
        parts += [_text(name), _tensor(checkpoint.tensors[kept], places[kept])]
    return b"".join((*parts, b"u."))


def _tensor(entry: Entry, index: int) -> bytes:
    """Return the call that rebuilds one tensor; dtypes without a storage class name themselves."""
    dtype, shape = _named(entry)
    kind = STORAGES.get(dtype)
    numel = entry.nbytes // entry.dtype.itemsize if kind else entry.nbytes
    storage = f"torch {kind}" if kind else " ".join(UNTYPED[0].rsplit(".", 1))
    strides: list[int] = []
    step = 1
    for extent in reversed(shape):
        strides.insert(0, step)
        step *= max(extent, 1)
    return b"".join(
        (
            _global(f"torch._utils _rebuild_tensor_v{2 if kind else 3}"),
            b"((",
            *(_text("storage"), _global(storage), _text(str(index)), _text("cpu"), _int(numel)),
            b"tQ",
            _int(0),
            *(b"(", *map(_int, shape), b"t"),
            *(b"(", *map(_int, strides), b"t"),
            b"\x89",
            _DICT,
            b"" if kind else _global(f"torch {dtype}"),
            b"tR",
        )
    )


def _named(entry: Entry) -> tuple[str, tuple[int, ...]]:
    """Return torch's dtype and shape of a tensor; of pairs, the last extent is half.

    Raises:
        FormatError: torch has no such dtype, or the elements do not come in pairs.
    """
    row = entry.dtype.value
    if row.torch:
        return row.torch, entry.shape
    if not row.torch_pairs:
        remedy = "cast it, or choose another format"
        raise error(Code.FORMAT_DTYPE, entry.name, f"torch has no {entry.dtype.name}", remedy)
    if not entry.shape or entry.shape[-1] % 2:
        reason = f"torch keeps {entry.dtype.name} in pairs, its last extent is odd or none"
        raise error(Code.FORMAT_SHAPE, entry.name, reason, "choose another format")
    return row.torch_pairs, (*entry.shape[:-1], entry.shape[-1] // 2)


def _global(name: str) -> bytes:
    return b"c" + name.replace(" ", "\n").encode() + b"\n"


def _text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _int(value: int) -> bytes:
    if value < 1 << 8:
        return b"K" + struct.pack("<B", value)
    if value < 1 << 16:
        return b"M" + struct.pack("<H", value)
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)
