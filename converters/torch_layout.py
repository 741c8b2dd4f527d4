"""Where the elements of a tensor stand in its storage, and how they become rows.

Law: a tensor is never larger than the storage it views, so no file can ask for more memory than
its own size.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from persistlib.checkpoint import Entry
from persistlib.dtypes import DType, by_name
from persistlib.errors import Code, PersistlibError, error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from persistlib.converters.torch_values import Tensor
    from persistlib.converters.torch_zip import Record

_RANK = 32  # the most that every numpy can hold
_EXTENT = 1 << 63
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

    def swapped(self, values: memoryview) -> memoryview:
        """Return dense elements in the other byte order."""
        import numpy as np

        is_complex = self.dtype in (DType.C64, DType.C128)
        size = self.dtype.itemsize // 2 if is_complex else self.dtype.itemsize
        if size == 1 or not values.nbytes:
            return values
        array: np.ndarray = np.frombuffer(values, np.dtype(f"u{size}")).byteswap()
        return array.view(np.uint8).data


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
            raise error(Code.FORMAT_TRUNCATED, where, "its storage is not in the file")
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
        raise error(Code.FORMAT_SHAPE, where, "two elements in a tensor without dimensions")
    if dtype is None:
        raise _dtype_fault(where, f"the dtype {tensor.dtype}", "cast it")
    if tensor.is_lazy:
        raise _dtype_fault(where, "lazily conjugated or negated", "call resolve_conj() first")
    if record.size != storage.numel * storage.itemsize:
        reason = f"its storage has {record.size} bytes, not {storage.numel * storage.itemsize}"
        raise error(Code.FORMAT_SHAPE, where, reason)
    span = 1
    for extent in tensor.shape:
        span *= max(extent, 1)
    if len(tensor.shape) > _RANK or span * dtype.itemsize >= _EXTENT:
        raise error(Code.FORMAT_LIMIT, where, "more dimensions or elements than any memory holds")
    view = View(
        storage.key,
        storage.start * storage.itemsize + tensor.offset * dtype.itemsize,
        dtype,
        tensor.shape,
        tensor.strides,
    )
    steps = (extent - 1 for extent in tensor.shape)
    last = sum(step * stride for step, stride in zip(steps, tensor.strides, strict=True)) + 1
    elements = last if view.nbytes else 0
    room = storage.length * storage.itemsize
    if (tensor.offset + elements) * dtype.itemsize > room:
        raise error(Code.FORMAT_SHAPE, where, "the view leaves its storage")
    if view.nbytes > room:
        reason = f"{view.nbytes} bytes out of a storage of {room}"
        raise error(Code.FORMAT_LIMIT, where, reason, "save it as a contiguous copy")
    return view


def _dtype_fault(where: str, reason: str, remedy: str) -> PersistlibError:
    return error(Code.FORMAT_DTYPE, where, reason, f"{remedy} and save again")
