"""Checkpoints as HDF5 files of persistlib's layout, which docs/hdf5.md describes.

Law: the same checkpoint gives the same bytes, whenever it is written; writing holds one window of
one tensor, and a chunk.

The file is of HDF5 1.10's format: its metadata carries checksums, and a group costs 100 bytes
instead of 1,000. Each chunk carries the checksum of HDF5's fletcher32 filter. No time is recorded.
"""

from __future__ import annotations

import io
import json
import math
import os
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from persistlib.converters.hdf5_layout import (
    DTYPE,
    FORMAT,
    KIND,
    METADATA,
    NUMBER,
    ORDER,
    PRIMARY,
    SHAPE,
    VERSION,
)
from persistlib.converters.hdf5_names import paths_of
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from typing_extensions import Buffer

    from persistlib.checkpoint import CheckpointReader, Entry
    from persistlib.publish import OutFile

_low: Any = h5py  # the compiled modules have no types
h5a, h5d, h5f, h5g, h5o = _low.h5a, _low.h5d, _low.h5f, _low.h5g, _low.h5o
h5p, h5s, h5t, h5z = _low.h5p, _low.h5s, _low.h5t, _low.h5z

_RANK = 32  # H5S_MAX_RANK
# Large enough that a call a chunk costs nothing, small enough for every reader's chunk cache.
_CHUNK = 1 << 20
_GZIP_LEVEL = 4
_COMPRESSIONS = (None, "gzip", "lzf")


def write_to(checkpoint: CheckpointReader, out: OutFile, *, compression: str | None = None) -> None:
    """Write a checkpoint into a new file, a window of a tensor at a time.

    Args:
        checkpoint: what to write.
        out: the empty file.
        compression: "gzip", "lzf" or None.

    Raises:
        FormatError: a name cannot be carried.
        UsageError: there is no such compression.
        OSError: writing failed.
    """
    if compression not in _COMPRESSIONS:
        raise error(Code.USAGE, "compression", f"{compression!r}", "use gzip or lzf, or leave it")
    disk = _Disk(out)
    file = _create(disk)
    try:
        _Writing(file.id, disk, compression).write(checkpoint)
    except BaseException:
        disk.is_closed = True
        raise
    finally:
        # What is not written now the library would write when it is unloaded, into whatever has
        # the descriptor then.
        file.close()
    disk.require()


class _Disk(io.RawIOBase):
    """The new file as h5py's file objects are, except that writing never fails.

    The library cannot close a file whose last writes fail, and crashes when it is asked again. So a
    fault is kept and what comes after it is dropped; `require` raises it.

    Attributes:
        is_closed: whether what is written from now on is dropped.
    """

    def __init__(self, out: OutFile) -> None:
        self._out, self._at = out, 0
        self._fault: OSError | None = None
        self.is_closed = False

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position and return it."""
        self._at = offset + (0, self._at, self._out.size)[whence]
        return self._at

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def readinto(self, into: Buffer) -> int:
        """Read back what was written; past the end are zeros."""
        view = memoryview(into).cast("B")
        done = 0 if self.is_closed else os.preadv(self._out.fd, [view], self._at)
        view[done:] = bytes(len(view) - done)
        return len(view)

    def write(self, data: Buffer) -> int:
        """Write at the position; a gap before it is filled with zeros."""
        view = memoryview(data).cast("B")
        inside = max(0, min(len(view), self._out.size - self._at))
        self.truncate(self._at)
        self._try(self._out.patch, self._at, view[:inside])
        self._try(self._out.write, view[inside:])
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Make the file as long as `size`, in which it never shrinks."""
        size = self._at if size is None else size
        while self._out.size < size and not self.is_closed:
            gap = bytes(min(size - self._out.size, _CHUNK))
            self._try(self._out.write, gap)
        return size

    def _try(self, put: Callable[..., object], *what: object) -> None:
        if not self.is_closed:
            try:
                put(*what)
            except OSError as fault:
                self._fault, self.is_closed = fault, True

    def require(self) -> None:
        """Raise the fault that stopped the writing, if there was one.

        Raises:
            OSError: there was.
        """
        if self._fault is not None:
            raise self._fault

    def flush(self) -> None:
        """Do nothing: nothing is held back."""


def _create(disk: _Disk) -> Any:
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_libver_bounds(h5f.LIBVER_V110, h5f.LIBVER_V110)
    access.set_fileobj_driver(_low.h5fd.fileobj_driver, disk)
    access.set_fclose_degree(h5f.CLOSE_STRONG)
    creation = h5p.create(h5p.FILE_CREATE)
    creation.set_obj_track_times(False)
    return h5py.File(h5f.create(b"weights", h5f.ACC_TRUNC, creation, access))


class _Writing:
    """One file being written."""

    def __init__(self, root: Any, disk: _Disk, compression: str | None) -> None:
        self._root, self._disk, self._compression = root, disk, compression
        self._groups = {""}
        self._timeless = h5p.create(h5p.GROUP_CREATE)
        self._timeless.set_obj_track_times(False)

    def write(self, checkpoint: CheckpointReader) -> None:
        paths = paths_of([*checkpoint.tensors, *checkpoint.aliases])
        ties: dict[str, list[str]] = {}
        for alias, name in checkpoint.aliases.items():
            ties.setdefault(name, []).append(alias)
        _describe(self._root, FORMAT, _text(KIND))
        _describe(self._root, VERSION, _text(NUMBER))
        metadata = json.dumps(dict(sorted(checkpoint.metadata.items())))
        _describe(self._root, METADATA, _text(metadata))
        for order, entry in enumerate(checkpoint.entries):
            self._make_groups(paths[entry.name])
            dataset = self._dataset(paths[entry.name], entry)
            _describe(dataset, DTYPE, _text(entry.dtype.name))
            _describe(dataset, ORDER, np.array(order, "<u4"))
            if _is_flat(entry):
                _describe(dataset, SHAPE, np.array(entry.shape, "<u8"))
            if names := ties.get(entry.name):
                place = sorted([entry.name, *names]).index(entry.name)
                _describe(dataset, PRIMARY, np.array(place, "<u4"))
            for _ in _fill(dataset, checkpoint.windows(entry.name)):
                self._disk.require()
            for alias in names or ():
                self._make_groups(paths[alias])
                h5o.link(dataset, self._root, paths[alias].encode())
            dataset._close()  # noqa: SLF001 - the id has no other way to be closed early

    def _make_groups(self, path: str) -> None:
        """Make the groups above a path: those that the library makes itself record the time."""
        at = path.find("/")
        while at >= 0:
            if path[:at] not in self._groups:
                h5g.create(self._root, path[:at].encode(), gcpl=self._timeless)
                self._groups.add(path[:at])
            at = path.find("/", at + 1)

    def _dataset(self, path: str, entry: Entry) -> Any:
        shape = _stored_shape(entry)
        dtype = np.dtype(entry.dtype.value.hdf5)
        plan = h5p.create(h5p.DATASET_CREATE)
        plan.set_obj_track_times(False)
        plan.set_fill_time(h5d.FILL_TIME_NEVER)
        if entry.nbytes:
            plan.set_chunk(chunk_of(shape, dtype.itemsize))
            if self._compression:
                plan.set_shuffle()
            if self._compression == "gzip":
                plan.set_deflate(_GZIP_LEVEL)
            if self._compression == "lzf":
                plan.set_filter(h5z.FILTER_LZF, h5z.FLAG_OPTIONAL)
            plan.set_fletcher32()
        kind = h5t.py_create(dtype, logical=True)
        return h5d.create(self._root, path.encode(), kind, h5s.create_simple(shape), plan)


def _text(text: str) -> np.ndarray:
    return np.array(text.encode("ascii"))


def _describe(owner: Any, name: str, value: np.ndarray) -> None:
    space = h5s.create_simple(value.shape) if value.shape else h5s.create(h5s.SCALAR)
    kind = h5t.py_create(value.dtype, logical=True)
    h5a.create(owner, name.encode(), kind, space).write(value)


def _is_flat(entry: Entry) -> bool:
    """Return whether the dataset is a row of stored elements, and its shape an attribute.

    So are packed elements, what has more dimensions than HDF5 can have, and scalars: a chunk, and
    so a checksum, needs a dimension.
    """
    return entry.dtype.is_packed or not 0 < len(entry.shape) <= _RANK


def _stored_shape(entry: Entry) -> tuple[int, ...]:
    return (entry.nbytes // entry.dtype.itemsize,) if _is_flat(entry) else entry.shape


def chunk_of(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Return the extents of a chunk: a run of whole rows, so that the bytes stay in order.

    Chunks are as even as they can be, since the last one is stored whole.
    """
    axis, row = 0, math.prod(shape[1:]) * itemsize
    while row > _CHUNK:
        axis += 1
        row //= shape[axis]
    rows = max(_CHUNK // row, 1)
    pieces = -(-shape[axis] // rows)
    return (*(1,) * axis, -(-shape[axis] // pieces), *shape[axis + 1 :])


def _fill(dataset: Any, windows: Iterable[memoryview]) -> Iterator[None]:
    """Write the bytes of a tensor into its dataset; what follows a chunk may be looked at."""
    plan, kind, space = dataset.get_create_plist(), dataset.get_type(), dataset.get_space()
    if plan.get_layout() != h5d.CHUNKED:
        for _ in windows:
            raise AssertionError("an empty tensor has bytes")
        return
    boxes = list(_boxes(dataset.shape, plan.get_chunk()))
    sizes = (math.prod(extents) * kind.get_size() for _, extents in boxes)
    for (start, extents), piece in zip(boxes, _cut(windows, sizes), strict=True):
        space.select_hyperslab(start, extents)
        memory = h5s.create_simple(extents)
        dataset.write(memory, space, np.frombuffer(piece, np.uint8), kind)
        yield


def _boxes(
    shape: Sequence[int], chunk: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield start and extents of each chunk, in the order of the rows."""
    steps = [range(0, extent, part) for extent, part in zip(shape, chunk, strict=True)]
    for place in np.ndindex(*(len(step) for step in steps)):
        start = tuple(step[n] for step, n in zip(steps, place, strict=True))
        ends = zip(start, chunk, shape, strict=True)
        yield start, tuple(min(part, extent - at) for at, part, extent in ends)


def _cut(windows: Iterable[memoryview], sizes: Iterable[int]) -> Iterator[memoryview]:
    """Yield pieces of given sizes of bytes that come in other pieces, copied where one spans two.

    All windows are taken to their end, where a checksum of the source may speak.
    """
    source = iter(windows)
    rest = memoryview(b"")
    for size in sizes:
        if len(rest) >= size:
            piece, rest = rest[:size], rest[size:]
            yield piece
            continue
        whole = bytearray(rest)
        while len(whole) < size:
            rest = next(source, memoryview(b""))
            if not len(rest):
                raise AssertionError("a tensor has fewer bytes than its shape")
            rest = memoryview(rest).cast("B")
            missing = size - len(whole)
            whole += rest[:missing]
            rest = rest[missing:]
        yield memoryview(whole)
    for more in source:
        rest = more
    if len(rest):
        raise AssertionError("a tensor has more bytes than its shape")
