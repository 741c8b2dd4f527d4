"""One HDF5 dataset as a tensor: judged before anything is read, then read a window at a time.

Law: the bytes of a `Dataset` are the values as they are stored, bit for bit, little-endian and row
by row; reading them touches no other file, calls no filter that is not built in, and needs memory
for one band of chunks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np

from persistlib.checkpoint import WINDOW
from persistlib.converters.listing import refusal
from persistlib.dtypes import DType
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.converters.hdf5_tree import Item

_low: Any = h5py  # the compiled modules have no types
h5d, h5p, h5s, h5t, h5z = _low.h5d, _low.h5p, _low.h5s, _low.h5t, _low.h5z

CHUNK_LIMIT = 64 << 20
LZF = 32_000  # h5py's own filter, registered with the HDF5 Group
# A tall band of chunks is read whole, so that each chunk is read once; a taller one is not.
_BAND = 64 << 20
# Where chunks are read several times, some of them are kept.
_CACHE, _SLOTS = 64 << 20, 4_001
_MANY = 1 << 16  # chunks; more need at least this many bytes of a file each:
_CHUNK_BYTES = 8
_FILTERS = {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32, LZF}
_LAYOUTS = {h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED}
# Of a float: bits, its fields (sign, exponent at and size, mantissa at and size), exponent's bias.
_FLOATS = {
    (64, (63, 52, 11, 0, 52), 1023): DType.F64,
    (32, (31, 23, 8, 0, 23), 127): DType.F32,
    (16, (15, 10, 5, 0, 10), 15): DType.F16,
    (16, (15, 7, 8, 0, 7), 127): DType.BF16,
}
_WHAT = {
    h5t.REFERENCE: (Code.FORMAT_UNSAFE, "references, which are never followed"),
    h5t.VLEN: (Code.FORMAT_DTYPE, "rows of varying length"),
    h5t.OPAQUE: (Code.FORMAT_DTYPE, "opaque bytes, whose dtype the file does not tell"),
    h5t.COMPOUND: (Code.FORMAT_DTYPE, "compound values"),
    h5t.FLOAT: (Code.FORMAT_DTYPE, "floats of another width or layout, such as long double"),
    h5t.INTEGER: (Code.FORMAT_DTYPE, "integers of another width or layout"),
    h5t.ENUM: (Code.FORMAT_DTYPE, "an enumeration that is no boolean"),
}
_REMEDY = "write it again with plain numbers, or leave it out"


_SPARE: list[np.ndarray] = []


class Dataset(NamedTuple):
    """A dataset that may be read.

    Attributes:
        item: where it stands.
        dtype: what its elements are, by its HDF5 type.
        shape: extents.
        is_big_endian: whether the stored bytes are turned around.
        chunk: extents of a chunk, empty where it is not chunked.
    """

    item: Item
    dtype: DType
    shape: tuple[int, ...]
    is_big_endian: bool
    chunk: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return self.dtype.itemsize * math.prod(self.shape)

    def windows(self) -> Iterator[memoryview]:
        """Yield its bytes in order; a window may change when the next one is asked for.

        Raises:
            IntegrityError: a chunk differs from its checksum, or cannot be unpacked.
        """
        opened = self._open()
        # Fresh memory costs as much as reading into it, so one window's is kept.
        buffer = _SPARE.pop() if _SPARE else np.empty(0, np.uint8)
        for start, extents in self._boxes():
            size = math.prod(extents) * self.dtype.itemsize
            if buffer.nbytes < size:
                buffer = np.empty(size, np.uint8)
            self._read(opened, start, extents, buffer[:size])
            yield buffer[:size].data
        if not _SPARE:
            _SPARE.append(buffer)

    def values(self) -> np.ndarray:
        """Return all its values; for small ones."""
        data = b"".join(self.windows())
        return self.dtype.unpack(memoryview(data), math.prod(self.shape)).reshape(self.shape)

    def _boxes(self) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Yield start and extents of boxes that follow each other in the order of the rows."""
        if not self.shape or self.nbytes == 0:
            if self.nbytes:
                yield (), ()
            return
        axis, step = self._step()
        for front in np.ndindex(*self.shape[:axis]):
            for at in range(0, self.shape[axis], step):
                extent = min(step, self.shape[axis] - at)
                rest = self.shape[axis + 1 :]
                yield (*front, at, *(0,) * len(rest)), (*(1,) * axis, extent, *rest)

    def _step(self) -> tuple[int, int]:
        """Return the axis along which boxes are cut, and how many of its rows a box has."""
        axis, row = 0, self.nbytes // self.shape[0]
        while axis + 1 < len(self.shape) and self._band(axis) * row > WINDOW:
            # Cutting across a chunk would unpack it once for every cut.
            is_read_here = row <= WINDOW or self._band(axis) * row <= _BAND
            if self.chunk and self.chunk[axis] > 1 and is_read_here:
                break
            axis += 1
            row //= self.shape[axis]
        band = self._band(axis)
        if band * row > _BAND:
            return axis, max(WINDOW // row, 1)
        return axis, band * max(WINDOW // (band * row), 1)

    def _is_banded(self) -> bool:
        """Return whether every box is made of whole chunks."""
        if not self.chunk or self.nbytes == 0:
            return True
        axis, step = self._step()
        return step % self._band(axis) == 0 and self.chunk[:axis] == (1,) * axis

    def _band(self, axis: int) -> int:
        return min(self.chunk[axis], self.shape[axis]) if self.chunk else 1

    def _open(self) -> Any:
        access = h5p.create(h5p.DATASET_ACCESS)
        # Boxes are whole chunks, each of which is needed once.
        access.set_chunk_cache(_SLOTS, 0 if self._is_banded() else _CACHE, 1.0)
        return h5d.open(self.item.root, self.item.path.encode(), access)

    def _read(
        self, opened: Any, start: tuple[int, ...], extents: tuple[int, ...], into: np.ndarray
    ) -> None:
        where, memory = opened.get_space(), h5s.ALL
        if extents:
            where.select_hyperslab(start, extents)
            memory = h5s.create_simple(extents)
        try:
            # The file's own type in memory too: nothing is converted.
            opened.read(memory, where, into, opened.get_type())
        except OSError as fault:
            raise error(
                Code.TENSOR_DIGEST,
                self.item.path,
                f"a chunk cannot be read, or differs from its checksum: {fault}",
                "fetch or save the file again",
            ) from fault
        if self.is_big_endian:
            width = self.dtype.itemsize // (2 if self.dtype in {DType.C64, DType.C128} else 1)
            into.view(f"<u{width}").byteswap(inplace=True)


def judge(item: Item, size: int, opaque: DType | None = None) -> Dataset | None:
    """Return a dataset of a file of `size` bytes, None where it is text or holds no value.

    Args:
        item: the dataset.
        size: bytes of its file.
        opaque: what opaque bytes of its width are, where the file's layout says it.

    Raises:
        FormatError: it lies outside the file, needs an unknown filter, is larger than it may be, or
            has no dtype that persistlib keeps.
    """
    opened = item.id
    plan = opened.get_create_plist()
    layout = plan.get_layout()
    if layout not in _LAYOUTS:
        raise refusal(Code.FORMAT_UNSAFE, item.path, "a virtual dataset, made of other files")
    if plan.get_external_count() > 0:
        raise refusal(Code.FORMAT_UNSAFE, item.path, "its values lie in another file")
    for place in range(plan.get_nfilters()):
        if (code := plan.get_filter(place)[0]) not in _FILTERS:
            raise refusal(Code.FORMAT_UNSAFE, item.path, f"the filter {code} is not built in")
    space, kind = opened.get_space(), opened.get_type()
    is_text = isinstance(kind, h5t.TypeStringID)
    if space.get_simple_extent_type() not in {h5s.SCALAR, h5s.SIMPLE} or is_text:
        return None
    shape = tuple(int(extent) for extent in space.get_simple_extent_dims())
    if math.prod(max(extent, 1) for extent in shape) >= 1 << 63:
        raise refusal(Code.FORMAT_SHAPE, item.path, f"impossible extents {shape}")
    dtype, is_big_endian = _element(kind, item.path, opaque)
    chunk = tuple(int(n) for n in plan.get_chunk()) if layout == h5d.CHUNKED else ()
    _check_chunks(chunk, shape, dtype.itemsize, item.path, size)
    return Dataset(item, dtype, shape, is_big_endian, chunk)


def _check_chunks(
    chunk: tuple[int, ...], shape: tuple[int, ...], itemsize: int, path: str, size: int
) -> None:
    if not chunk:
        return
    if math.prod(chunk) * itemsize > CHUNK_LIMIT:
        reason = f"chunks of {math.prod(chunk) * itemsize} bytes, at most {CHUNK_LIMIT} are read"
        raise refusal(Code.FORMAT_LIMIT, path, reason)
    count = math.prod(-(-extent // part) for extent, part in zip(shape, chunk, strict=True))
    if count > max(_MANY, size // _CHUNK_BYTES):
        raise refusal(Code.FORMAT_LIMIT, path, f"{count} chunks in a file of {size} bytes")


def _element(kind: Any, path: str, opaque: DType | None = None) -> tuple[DType, bool]:
    """Return what the elements are and whether they are big-endian, or refuse them."""
    if isinstance(kind, h5t.TypeOpaqueID) and opaque and kind.get_size() == opaque.itemsize:
        return opaque, False
    base = kind.get_super() if isinstance(kind, h5t.TypeEnumID) else kind
    if isinstance(kind, h5t.TypeCompoundID):
        found = _complex(kind)
        base = kind.get_member_type(0) if found else kind
    elif isinstance(kind, h5t.TypeEnumID):
        found = DType.BOOL if _is_boolean(kind) else None
    else:
        found = _number(kind)
    if found is None:
        code, what = _WHAT.get(kind.get_class(), (Code.FORMAT_DTYPE, "values of an unknown class"))
        raise error(code, path, f"holds {what}", _REMEDY)
    order = base.get_order() if base.get_size() > 1 else h5t.ORDER_LE
    if order not in {h5t.ORDER_LE, h5t.ORDER_BE}:
        raise error(Code.FORMAT_DTYPE, path, "its numbers have a mixed byte order", _REMEDY)
    return found, order == h5t.ORDER_BE


def _number(kind: Any) -> DType | None:
    bits = kind.get_size() * 8
    if isinstance(kind, h5t.TypeFloatID):
        if (kind.get_precision(), kind.get_offset(), kind.get_norm()) != (
            bits,
            0,
            h5t.NORM_IMPLIED,
        ):
            return None
        return _FLOATS.get((bits, tuple(kind.get_fields()), kind.get_ebias()))
    if isinstance(kind, h5t.TypeIntegerID):
        if (kind.get_precision(), kind.get_offset()) != (bits, 0):
            return None
        signed = "I" if kind.get_sign() == h5t.SGN_2 else "U"
        return DType.__members__.get(f"{signed}{bits}") if bits >= 8 else None
    return None


def _is_boolean(kind: Any) -> bool:
    """Return whether an enumeration is what h5py makes of booleans: FALSE 0 and TRUE 1, a byte."""
    if kind.get_size() != 1 or kind.get_nmembers() != 2:
        return False
    return {kind.get_member_name(n): kind.get_member_value(n) for n in (0, 1)} == {
        b"FALSE": 0,
        b"TRUE": 1,
    }


def _complex(kind: Any) -> DType | None:
    """Return the complex dtype of a compound {r, i} without gaps, as h5py writes it."""
    if kind.get_nmembers() != 2 or [kind.get_member_name(n) for n in (0, 1)] != [b"r", b"i"]:
        return None
    parts = [kind.get_member_type(n) for n in (0, 1)]
    width = parts[0].get_size()
    if not parts[0].equal(parts[1]) or kind.get_size() != 2 * width:
        return None
    if [kind.get_member_offset(n) for n in (0, 1)] != [0, width]:
        return None
    part = _number(parts[0])
    return None if part is None else {DType.F32: DType.C64, DType.F64: DType.C128}.get(part)
