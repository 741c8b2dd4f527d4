"""ONNX files to read weights from and to put weights into, made by onnx or by hand; no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from persistlib.checkpoint import CheckpointReader, Entry

IR_VERSION = 10
OPSET = 20


def number_of(entry: Entry) -> int:
    """Return ONNX's number of an entry's dtype."""
    number: int = TensorProto.DataType.Value(entry.dtype.value.onnx)
    return number


def tensor_of(entry: Entry, data: bytes | memoryview, name: str | None = None) -> TensorProto:
    """Return an entry as a tensor whose values are raw."""
    tensor = TensorProto(name=entry.name if name is None else name, dims=entry.shape)
    tensor.data_type = number_of(entry)
    tensor.raw_data = bytes(data)
    return tensor


def model_of(
    *tensors: TensorProto, metadata: Mapping[str, str] | None = None, producer: str = "assembly"
) -> onnx.ModelProto:
    """Return a model that holds these initializers and hands its input on."""
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in ("in", "out")]
    node = helper.make_node("Identity", ["in"], ["out"])
    graph = helper.make_graph([node], "g", value[:1], value[1:], list(tensors))
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    made.producer_name = producer
    helper.set_model_props(made, dict(metadata or {}))
    return made


def template_for(checkpoint: CheckpointReader, path: str | Path) -> None:
    """Write an ONNX file that has a checkpoint's names, ties too, with zeros for all values."""
    owners = {name: name for name in checkpoint.tensors} | dict(checkpoint.aliases)
    tensors = [
        tensor_of(entry, bytes(entry.nbytes), name)
        for name, owner in owners.items()
        for entry in (checkpoint.tensors[owner],)
    ]
    with open(path, "wb") as file:
        file.write(model_of(*tensors).SerializeToString())


def outside_of(entry: Entry, place: Mapping[str, str]) -> TensorProto:
    """Return an entry as a tensor whose values lie where `place` says."""
    tensor = TensorProto(name=entry.name, dims=entry.shape, data_type=number_of(entry))
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in place.items():
        tensor.external_data.add(key=key, value=text)
    return tensor


def save(model: onnx.ModelProto, path: str | Path) -> None:
    """Write a model as it is; its data files are the caller's."""
    with open(path, "wb") as file:
        file.write(model.SerializeToString())
