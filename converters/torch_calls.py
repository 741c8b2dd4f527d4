"""The globals that a checkpoint's pickle may name, and what calling each would have made.

Each function takes the arguments as the walk described them and returns a description, or None
when torch never calls it so. The set is that of torch's own weights-only reader, less all that is
no plain tensor (https://docs.pytorch.org/docs/stable/notes/serialization.html).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.converters.torch_values import (
    DTYPES,
    STORAGE_DTYPES,
    Global,
    Inert,
    Mapping,
    Storage,
    Tensor,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Arguments = tuple[object, ...]
    Calls = dict[str, Callable[[Arguments], object]]

SIZE = "torch.Size"
_RANK = 64  # torch's own limit
_INERT = Inert()
_PLAIN_TYPES = frozenset({"torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter"})

# Named apart because their refusal should say what they are.
REFUSED = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without values (device meta)",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch.nested._internal.nested_tensor._rebuild_njt": "a nested tensor",
    "torch._utils._rebuild_wrapper_subclass": "a tensor subclass",
}


def is_known(name: str) -> bool:
    """Return whether a global may stand in a checkpoint."""
    return name in CALLS or name in STORAGE_DTYPES or name in DTYPES or name in _PLAIN_TYPES


def _tensor(arguments: Arguments) -> Tensor | None:
    match arguments:
        case (Storage() as storage, int(offset), tuple(shape), tuple(strides)):
            return _view(storage, storage.dtype, (offset,), (shape, strides))
        case _:
            return None


def _tensor_v2(arguments: Arguments) -> Tensor | None:
    match arguments:
        case (Storage() as storage, int(offset), tuple(shape), tuple(strides), bool(), _, *rest):
            lazy = _is_lazy(rest)
            found = _view(storage, storage.dtype, (offset,), (shape, strides), is_lazy=bool(lazy))
            return None if lazy is None else found
        case _:
            return None


def _tensor_v3(arguments: Arguments) -> Tensor | None:
    match arguments:
        case (
            Storage() as storage,
            int(offset),
            tuple(shape),
            tuple(strides),
            bool(),
            _,
            Global(dtype),
            *rest,
        ) if dtype in DTYPES:
            lazy = _is_lazy(rest)
            name = dtype.removeprefix("torch.")
            found = _view(storage, name, (offset,), (shape, strides), is_lazy=bool(lazy))
            return None if lazy is None else found
        case _:
            return None


def _view(
    storage: Storage,
    dtype: str,
    offset: tuple[object, ...],
    layout: tuple[tuple[object, ...], tuple[object, ...]],
    *,
    is_lazy: bool = False,
) -> Tensor | None:
    """Return the description of a view, or None when its numbers are none or dtype is unsaid."""
    start, shape, strides = (naturals(part) for part in (offset, *layout))
    if start is None or shape is None or strides is None or len(shape) != len(strides):
        return None
    if not dtype or len(shape) > _RANK:
        return None
    return Tensor(storage, dtype, start[0], shape, strides, is_lazy)


def naturals(values: tuple[object, ...]) -> tuple[int, ...] | None:
    """Return the values when each is an integer from 0 up; True and False are none."""
    numbers = tuple(value for value in values[: _RANK + 1] if type(value) is int and value >= 0)
    return numbers if len(numbers) == len(values) else None


def _is_lazy(rest: list[object]) -> bool | None:
    """Return whether a tensor's metadata says conjugated or negated; None when it says else."""
    match rest:
        case [] | [None]:
            return False
        case [Mapping() as metadata] if all(k in ("conj", "neg") for k, _ in metadata.items):
            return any(value is not False for _, value in metadata.items)
        case _:
            return None


def _parameter(arguments: Arguments) -> Tensor | None:
    match arguments:
        case (Tensor() as tensor, *rest) if len(rest) <= 3:
            return tensor
        case _:
            return None


def _typed(arguments: Arguments) -> Tensor | None:
    """A tensor of torch's own two classes with attributes of its own, which are not kept."""
    match arguments:
        case (Global(function), Global(kind), tuple(inner), _) if kind in _PLAIN_TYPES:
            rebuild = _REBUILDS.get(function)
            return None if rebuild is None else rebuild(inner)
        case _:
            return None


def _ordered(arguments: Arguments) -> Mapping | None:
    """An OrderedDict: empty, or from a list of pairs as Python 2 spelt it."""
    match arguments:
        case ():
            return Mapping()
        case (list(pairs),):
            items = [(p[0], p[1]) for p in pairs if type(p) in (list, tuple) and len(p) == 2]
            return Mapping(items) if len(items) == len(pairs) else None
        case _:
            return None


def _size(arguments: Arguments) -> tuple[int, ...] | None:
    match arguments:
        case (tuple(extents),):
            return naturals(extents)
        case _:
            return None


def _first(arguments: Arguments) -> object:
    """A TorchScript list, or a value with a type tag."""
    return arguments[0] if arguments and type(arguments[0]) is not bool else None


def _bytes(arguments: Arguments) -> Inert | None:
    """Bytes that are spelt out; never a number of zeros."""
    match arguments:
        case () | (Inert(),) | (str(), str()):
            return _INERT
        case _:
            return None


def _inert(arguments: Arguments) -> Inert | None:
    return _INERT if len(arguments) <= 2 else None


_REBUILDS: dict[str, Callable[[Arguments], Tensor | None]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
CALLS: Calls = {
    **_REBUILDS,
    "torch.nn.parameter.Parameter": _parameter,
    "torch._tensor._rebuild_from_type": _typed,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "collections.OrderedDict": _ordered,
    SIZE: _size,
    "_codecs.encode": _bytes,
    "builtins.bytearray": _bytes,
    "builtins.complex": _inert,
    "builtins.set": _inert,
    "builtins.frozenset": _inert,
    "collections.Counter": _inert,
    "torch.device": _inert,
    "torch.serialization._get_layout": _inert,
    "torch.jit._pickle.build_intlist": _first,
    "torch.jit._pickle.build_doublelist": _first,
    "torch.jit._pickle.build_boollist": _first,
    "torch.jit._pickle.build_tensorlist": _first,
    "torch.jit._pickle.restore_type_tag": _first,
}
