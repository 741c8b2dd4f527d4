"""Arrays in and out of ONNX Runtime, checked against what the graph says of them.

Law: what passes `conform` has the input's name and dtype and, where the graph tells its rank, that
and its fixed extents, and one extent for each free one that two inputs share.
"""

from __future__ import annotations

import ctypes
import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from persistlib.dtypes import DType
from persistlib.errors import Code, PersistlibError, error
from persistlib.runtime import torch_tensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from persistlib.manifest.schema import TensorSpec

# A run of bits of the same width, for dtypes that numpy has no own name for.
_BITS = {8: np.uint8, 16: np.uint16}


def conform(
    inputs: object, specs: Sequence[TensorSpec], shapeless: Collection[str] = ()
) -> dict[str, Any]:
    """Return the inputs by name, as dense arrays; tensors on a device stay tensors.

    Args:
        inputs: arrays or tensors by name; or in order, in a list or tuple; or the only one.
        specs: what the graph takes.
        shapeless: those that it takes in any shape.

    Raises:
        SessionError: a name is missing or unknown, or a dtype or shape is wrong.
    """
    named = _named(inputs, specs)
    extents: dict[str, tuple[int, str]] = {}
    arrays: dict[str, Any] = {}
    for spec in specs:
        array = _array(named[spec.name], spec)
        is_any = spec.name in shapeless
        if not is_any and (fault := _shape_fault(tuple(array.shape), spec, extents)):
            raise _refusal(spec, fault, f"give shape {_shown(spec.shape)}")
        if torch_tensors.is_tensor(array):
            arrays[spec.name] = array.detach().contiguous()
        else:
            # Not ascontiguousarray, which gives a scalar an axis.
            arrays[spec.name] = np.asarray(array, order="C")
    return arrays


def to_runtime(array: Any, dtype: DType) -> Any:
    """Return an array or tensor as ONNX Runtime's value; it must live as long as that."""
    import onnx
    import onnxruntime

    if torch_tensors.is_tensor(array):
        if hasattr(onnxruntime.OrtValue, "from_dlpack"):
            return onnxruntime.OrtValue.from_dlpack(array)
        array = torch_tensors.to_array(array)
    if not dtype.value.extension:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)
    number = onnx.TensorProto.DataType.Value(dtype.value.onnx)
    bits = array.view(_BITS[dtype.value.bits])
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, number)


def from_runtime(value: Any, spec: TensorSpec) -> NDArray[Any]:
    """Return ONNX Runtime's value as an array of its own."""
    dtype = DType[spec.dtype]
    if not dtype.value.extension:
        array: NDArray[Any] = value.numpy()
        return array
    # ONNX Runtime makes no numpy array of these dtypes; its memory is plain and on the host.
    shape = tuple(value.shape())
    data = ctypes.string_at(value.data_ptr(), dtype.nbytes(shape))
    return np.frombuffer(bytearray(data), dtype.numpy).reshape(shape)


def _named(inputs: object, specs: Sequence[TensorSpec]) -> Mapping[str, object]:
    expected = [spec.name for spec in specs]
    if not isinstance(inputs, Mapping):
        given = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        if len(given) != len(expected):
            reason = f"{len(given)} given, the graph takes {len(expected)}"
            remedy = f"give {', '.join(expected)}"
            raise error(Code.SESSION_INPUT, "inputs", reason, remedy)
        return dict(zip(expected, given, strict=True))
    for name in inputs:
        if name not in expected:
            close = difflib.get_close_matches(str(name), expected, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"give {', '.join(expected)}"
            raise error(Code.SESSION_INPUT, name, "no input has this name", hint)
    for spec in specs:
        if spec.name not in inputs:
            remedy = f"give {spec.dtype} of shape {_shown(spec.shape)}"
            raise error(Code.SESSION_INPUT, spec.name, "missing", remedy)
    return inputs


def _array(value: object, spec: TensorSpec) -> Any:
    expected = DType[spec.dtype].numpy
    if torch_tensors.is_on_device(value):
        return _tensor(value, spec)
    try:
        array = (
            torch_tensors.to_array(value) if torch_tensors.is_tensor(value) else np.asarray(value)
        )
    except Exception as fault:  # any class may define what becomes of it as an array
        reason = f"a {type(value).__name__}, which is no array: {fault}"
        raise _refusal(spec, reason, "give a numpy array") from fault
    if np.ma.is_masked(value):
        reason = "a masked array, of which some entries have no value"
        raise _refusal(spec, reason, "give .filled(VALUE)")
    if array.dtype.newbyteorder("=") == expected:  # big-endian too, as some files have them
        return array.astype(expected, copy=False)
    if array.dtype != expected:
        reason = f"expected dtype {expected.name}, given {array.dtype.name}"
        raise _refusal(spec, reason, f"convert it with {_cast(value, spec)}")
    return array


def _tensor(value: Any, spec: TensorSpec) -> Any:
    """Return a tensor that lies on a device, once its dtype is right."""
    if (given := torch_tensors.dtype_name(value)) != DType[spec.dtype].numpy.name:
        reason = f"expected dtype {DType[spec.dtype].numpy.name}, given {given}"
        raise _refusal(spec, reason, f"convert it with {_cast(value, spec)}")
    return value


def _cast(value: object, spec: TensorSpec) -> str:
    dtype = DType[spec.dtype]
    if torch_tensors.is_tensor(value):
        return f".to(torch.{dtype.value.torch})"
    return f".astype({dtype.numpy.name!r})"


def _shape_fault(
    shape: tuple[int, ...], spec: TensorSpec, extents: dict[str, tuple[int, str]]
) -> str | None:
    if len(shape) != len(spec.shape) or any(
        isinstance(wanted, int) and extent != wanted
        for extent, wanted in zip(shape, spec.shape, strict=True)
    ):
        return f"expected shape {_shown(spec.shape)}, given {_shown(shape)}"
    for extent, wanted in zip(shape, spec.shape, strict=True):
        if isinstance(wanted, str):
            first, where = extents.setdefault(wanted, (extent, spec.name))
            if first != extent:
                return f"{wanted} is {extent}, but {first} in {where}"
    return None


def _refusal(spec: TensorSpec, reason: str, remedy: str) -> PersistlibError:
    return error(Code.SESSION_INPUT, spec.name, reason, remedy)


def _shown(shape: Sequence[int | str]) -> str:
    return f"({', '.join(str(extent) for extent in shape)}{',' if len(shape) == 1 else ''})"
