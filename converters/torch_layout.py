"""Where the elements of a tensor stand in its storage, and how they become rows.

Law: a tensor is never larger than the storage it views, so no file can ask for more memory than
its own size.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from persistlib.checkpoint import WINDOW, Entry
from persistlib.dtypes import DType, by_name
from persistlib.errors import Code, PersistlibError, error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np

    from persistlib.converters.file_bytes import FileBytes
    from persistlib.converters.torch_values import Tensor
    from persistlib.converters.torch_zip import Record

_RANK = 32  # the most that every numpy can hold
_EXTENT = 1 << 63
_AGAIN = "fetch or save the file again"
# All tensors together may be this many times the storages they view: a weight and its transpose
# are twice one storage, a thousand views of one are an attack.
_EXPANSION = 8


class View(NamedTuple):
    """A strided run of elements in a storage; tensors with equal views are tied.

    Attributes:
        storage: the storage's key.
        begin: first byte, from the storage's start.
        dtype: element type.
        shape: extents, in bytes where two elements share one.
        strides: steps in elements, or in such bytes.
    """

    storage: str
    begin: int
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __hash__(self) -> int:
        """Return a hash that no file can foresee: text has a secret in its own, numbers have none.

        Strides of an axis with one element may be anything, so a file could make all its views
        collide, and looking them up cost the square of their number.
        """
        return hash(repr(tuple(self)))

    def entry(self, name: str) -> Entry:
        """Return the tensor that the view shows; of pairs, twice as many elements."""
        shape = (*self.shape[:-1], 2 * self.shape[-1]) if self.dtype.is_packed else self.shape
        return Entry(name, self.dtype, shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the dense tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_dense(self) -> bool:
        """Whether the elements stand row by row without gaps."""
        step = 1
        for extent, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if extent != 1 and stride != step:
                return False
            step *= extent
        return True

    def rows(self, storage: memoryview) -> memoryview:
        """Return the elements row by row: a view of the storage's bytes, or a copy."""
        if self.nbytes == 0:
            return memoryview(b"")
        if self.is_dense:
            return storage[self.begin : self.begin + self.nbytes]
        import numpy as np

        size = self.dtype.itemsize
        strided = np.ndarray(
            self.shape,
            np.dtype(f"V{size}"),
            storage,
            self.begin,
            tuple(stride * size for stride in self.strides),
        )
        return np.ascontiguousarray(strided).reshape(-1).view(np.uint8).data

    def blocks(self, data: FileBytes, start: int) -> Iterator[memoryview]:
        """Yield the elements row by row, in blocks, out of the storage that begins at `start`.

        A part of the file of at most `WINDOW` bytes is held with each block, which is as small, or
        one tensor where neighbours in a row stand farther apart than neighbours in a column.
        """
        if not self.nbytes:
            return
        gather = _Gather(data, self.dtype.itemsize)
        for _, block in gather.pieces(start + self.begin, self.shape, self.strides):
            yield block.reshape(-1).view("u1").data

    def swapped(self, values: memoryview) -> memoryview:
        """Return dense elements in the other byte order."""
        import numpy as np

        is_complex = self.dtype in (DType.C64, DType.C128)
        size = self.dtype.itemsize // 2 if is_complex else self.dtype.itemsize
        if size == 1 or not values.nbytes:
            return values
        array: np.ndarray = np.frombuffer(values, np.dtype(f"u{size}")).byteswap()
        return array.view(np.uint8).data


class _Gather:
    """Strided elements of a file, made dense piece by piece."""

    def __init__(self, data: FileBytes, size: int) -> None:
        self._data = data
        self._size = size  # of an element

    def pieces(
        self, begin: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> Iterator[tuple[tuple[int | slice, ...], np.ndarray]]:
        """Yield dense blocks in the order of rows, each with its place in the whole."""
        room = WINDOW // self._size
        if math.prod(shape) <= room and _span(shape, strides) <= room:
            yield (), self._piece(begin, shape, strides)
        elif strides[0] < max(strides):
            yield (), self._turned(begin, shape, strides)
        else:
            rows = self._rows(shape, strides, room)
            for at in range(0, shape[0], rows):
                start = begin + at * strides[0] * self._size
                if rows == 1:
                    for place, piece in self.pieces(start, shape[1:], strides[1:]):
                        yield (at, *place), piece
                else:
                    part = (min(rows, shape[0] - at), *shape[1:])
                    yield (slice(at, at + rows),), self._piece(start, part, strides)

    @staticmethod
    def _rows(shape: tuple[int, ...], strides: tuple[int, ...], room: int) -> int:
        """Return how many rows fit the room, with what lies between them; at least one."""
        free = room - _span(shape[1:], strides[1:])
        if free < 0 or (width := math.prod(shape[1:])) > room:
            return 1
        between = 1 + free // strides[0] if strides[0] else room
        return max(1, min(between, room // width))

    def _piece(self, begin: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
        import numpy as np

        size = self._size
        held = self._data[begin : begin + _span(shape, strides) * size]
        steps = tuple(stride * size for stride in strides)
        return np.ascontiguousarray(np.ndarray(shape, np.dtype(f"V{size}"), held, 0, steps))

    def _turned(self, begin: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
        """Return all elements, gathered in the order in which the file has them."""
        import numpy as np

        whole = np.empty(shape, np.dtype(f"V{self._size}"))
        order = sorted(range(len(shape)), key=lambda axis: -strides[axis])
        turned = whole.transpose(order)
        there = tuple(shape[axis] for axis in order)
        for place, piece in self.pieces(begin, there, tuple(strides[axis] for axis in order)):
            turned[place] = piece
        return whole


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Return how many elements lie from the first to the last of a view that has some."""
    return 1 + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))


def entangled(views: Mapping[str, View]) -> tuple[str, ...]:
    """Return the names of different views that stand in the same stretch of a storage."""
    placed = sorted(
        (view.storage, view.begin, view.begin + _span(view.shape, view.strides) * size, name)
        for name, view in views.items()
        if view.nbytes and (size := view.dtype.itemsize)
    )
    found: set[str] = set()
    last = ("", 0, 0, "")
    for here in placed:
        if here[0] == last[0] and here[1] < last[2]:
            found |= {here[3], last[3]}
            last = max(here, last, key=lambda span: span[2])
        else:
            last = here
    return tuple(name for name in views if name in found)


def views_of(
    tensors: Mapping[str, Tensor], storages: Mapping[str, Record], location: str
) -> dict[str, View]:
    """Return the view of each tensor, after comparing it with the storage in the file.

    Raises:
        FormatError: a dtype is not kept, a view leaves its storage, or is larger than it.
    """
    views: dict[str, View] = {}
    for name, tensor in tensors.items():
        where = f"{location}: {name}"
        record = storages.get(tensor.storage.key)
        if record is None or not record.is_stored:
            raise error(Code.FORMAT_TRUNCATED, where, "its storage is not in the file", _AGAIN)
        views[name] = _view(tensor, record, where)
    distinct = set(views.values())
    viewed = sum(storages[key].size for key in {view.storage for view in distinct})
    if sum(view.nbytes for view in distinct) > _EXPANSION * viewed:
        reason = f"the tensors are more than {_EXPANSION} times their storages"
        raise error(Code.FORMAT_LIMIT, location, reason, "save contiguous copies of the tensors")
    return views


def _view(tensor: Tensor, record: Record, where: str) -> View:
    storage, pairs = tensor.storage, by_name("torch_pairs", tensor.dtype)
    dtype = pairs or by_name("torch", tensor.dtype)
    if pairs and not tensor.shape:
        raise error(Code.FORMAT_SHAPE, where, "two elements in a tensor without dimensions", _AGAIN)
    if dtype is None:
        raise _dtype_fault(where, f"the dtype {tensor.dtype}", "cast it")
    if tensor.is_lazy:
        raise _dtype_fault(where, "lazily conjugated or negated", "call resolve_conj() first")
    if record.size != storage.numel * storage.itemsize:
        reason = f"its storage has {record.size} bytes, not {storage.numel * storage.itemsize}"
        raise error(Code.FORMAT_SHAPE, where, reason, _AGAIN)
    span = 1
    for extent in tensor.shape:
        span *= max(extent, 1)
    is_endless = max((tensor.offset, *tensor.strides)) >= _EXTENT
    if len(tensor.shape) > _RANK or span * dtype.itemsize >= _EXTENT or is_endless:
        reason = "more dimensions or elements than any memory holds"
        raise error(Code.FORMAT_LIMIT, where, reason, "do not use this file")
    view = View(
        storage.key,
        storage.start * storage.itemsize + tensor.offset * dtype.itemsize,
        dtype,
        tensor.shape,
        tensor.strides,
    )
    elements = _span(tensor.shape, tensor.strides) if view.nbytes else 0
    room = storage.length * storage.itemsize
    if (tensor.offset + elements) * dtype.itemsize > room:
        raise error(Code.FORMAT_SHAPE, where, "the view leaves its storage", _AGAIN)
    if view.nbytes > room:
        reason = f"{view.nbytes} bytes out of a storage of {room}"
        raise error(Code.FORMAT_LIMIT, where, reason, "save it as a contiguous copy")
    return view


def _dtype_fault(where: str, reason: str, remedy: str) -> PersistlibError:
    return error(Code.FORMAT_DTYPE, where, reason, f"{remedy} and save again")
