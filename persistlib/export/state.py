"""The module's state as the graph holds it: bytes under their own names.

Law: `state_of(model)[name].data` are the bytes of `model.state_dict()[name]`, row-major and
little-endian; a complex tensor stands as its real view, whose bytes are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from persistlib.dtypes import DType, of_torch
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

_COMPLEX_PARTS = 2


@dataclass(frozen=True, slots=True)
class StateTensor:
    """One tensor of the state.

    Attributes:
        dtype: element type in the graph; F32 for a complex tensor.
        shape: extents in the graph; a complex tensor has a last one of 2.
        tensor: its values, wherever they lie.
        is_complex: whether the graph holds the real view of it.
    """

    dtype: DType
    shape: tuple[int, ...]
    tensor: torch.Tensor
    is_complex: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the dense tensor."""
        return self.dtype.nbytes(self.shape)

    @property
    def data(self) -> memoryview:
        """The bytes, a view of the tensor's own memory where that is dense and on the host."""
        return bytes_of(self.tensor)


def state_of(model: torch.nn.Module) -> dict[str, StateTensor]:
    """Return every tensor of the state_dict by name, second names of tied tensors included.

    Raises:
        ExportError: a tensor's dtype has no place in a graph.
    """
    state: dict[str, StateTensor] = {}
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            state[name] = _state_tensor(name, value)
    return state


def dtype_of(tensor: torch.Tensor, name: str) -> DType:
    """Return the table's row of a tensor's dtype.

    Raises:
        ExportError: the table has none.
    """
    dtype = of_torch(str(tensor.dtype))
    if dtype is None:
        raise error(Code.EXPORT_FAILED, name, f"{tensor.dtype} has no place in a graph", "cast it")
    return dtype


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return a tensor's row-major bytes, a view of its own memory where that is possible."""
    dense = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return dense.reshape(-1).view(torch.uint8).numpy().data


def array_of(tensor: torch.Tensor, name: str) -> NDArray[Any]:
    """Return a tensor as an array of the table's numpy dtype.

    Raises:
        ExportError: the table has no row for its dtype.
    """
    dtype = dtype_of(tensor, name)
    return np.frombuffer(bytes_of(tensor), dtype.numpy).reshape(tuple(tensor.shape))


def aliases_of(state: Mapping[str, StateTensor]) -> dict[str, str]:
    """Return the second names of tied tensors, each to the smallest name."""
    first: dict[object, str] = {}
    aliases: dict[str, str] = {}
    for name in sorted(state):
        tensor = state[name].tensor
        if tensor.numel() == 0:
            continue
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if (kept := first.setdefault(place, name)) != name:
            aliases[name] = kept
    return aliases


def precision_of(dtypes: Iterable[DType]) -> str:
    """Return the coarsest float dtype of a state, which is what a graph of it computes in."""
    floats = [dtype for dtype in dtypes if dtype.name[0] in "FB" and dtype is not DType.BOOL]
    return min(floats, key=lambda dtype: dtype.itemsize, default=DType.F32).name


def _state_tensor(name: str, tensor: torch.Tensor) -> StateTensor:
    dtype = dtype_of(tensor, name)
    shape = tuple(tensor.shape)
    if dtype is DType.C64:
        return StateTensor(DType.F32, (*shape, _COMPLEX_PARTS), tensor, is_complex=True)
    return StateTensor(dtype, shape, tensor, is_complex=False)
