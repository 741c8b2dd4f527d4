"""Tensors of an ONNX file as torch's, and as the text of a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from persistlib.errors import Code, error
from persistlib.graph_modules.dtypes import torch_dtype
from persistlib.graph_modules.structure import number_to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

# ONNX packs these two to a byte; torch has no such dtype, and a byte each holds the same numbers.
_NARROW = {21: (np.uint8, torch.uint8), 22: (np.int8, torch.int8)}
_BITS = {1: np.uint8, 2: np.uint16}


def tensor_from(
    proto: onnx.TensorProto, external: Mapping[str, memoryview], location: object
) -> torch.Tensor:
    """Return a tensor's values.

    Args:
        proto: as the file has it, checked by `runtime.structure`.
        external: the files beside the model by name.
        location: what to name in an error.

    Raises:
        FormatError: its dtype is none of torch's, or its bytes do not fit its shape.
    """
    where = f"{location}: {proto.name}"
    dtype = torch_dtype(proto.data_type)
    if dtype is None and proto.data_type not in _NARROW:
        raise error(
            Code.GRAPH_OPERATOR,
            where,
            f"dtype {proto.data_type} is none of torch's",
            "see the docs",
        )
    try:
        array = _array(proto, external, where)
    except (ValueError, TypeError, IndexError) as fault:
        raise error(Code.GRAPH_INVALID, where, str(fault), "export the model again") from fault
    if dtype is None:
        narrow, kept = _NARROW[proto.data_type]
        return torch.from_numpy(array.astype(narrow)).to(kept)
    if array.dtype.isbuiltin != 1:  # numpy has no such dtype of its own, so torch takes the bits
        size = array.dtype.itemsize
        bits = torch.from_numpy(np.array(array, order="C").view(_BITS[size]).reshape(-1))
        return bits.view(dtype).reshape(array.shape)
    return torch.from_numpy(np.array(array)).to(dtype)


def _array(proto: onnx.TensorProto, external: Mapping[str, memoryview], where: str) -> Any:
    from onnx import numpy_helper

    from persistlib.graph_tensors import place_of

    if proto.data_location != proto.EXTERNAL:
        return numpy_helper.to_array(proto)
    place = place_of(((item.key, item.value) for item in proto.external_data), where)
    data = external[place.name][place.offset :]
    inner = type(proto)(name=proto.name, data_type=proto.data_type, dims=proto.dims)
    inner.raw_data = bytes(data if place.length is None else data[: place.length])
    return numpy_helper.to_array(inner)


def is_narrow(proto: onnx.TensorProto) -> bool:
    """Return whether a tensor's dtype is narrower than a byte, so that torch has a wider one."""
    return proto.data_type in _NARROW


def to_json(tensor: torch.Tensor) -> dict[str, Any]:
    """Return a small tensor as the text of a configuration says it."""
    plain = tensor.double() if tensor.is_floating_point() else tensor
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "data": [number_to_json(number) for number in plain.reshape(-1).tolist()],
    }


def can_be_said(tensor: torch.Tensor) -> bool:
    """Return whether a tensor's numbers can stand in a configuration."""
    return tensor.dtype is not torch.uint64 and not tensor.is_complex() and tensor.itemsize > 0
