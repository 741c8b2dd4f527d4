"""A graph without its weights, and the weights beside it.

Law: `assemble(take_apart(files), name)` gives a graph that computes what `files` computes. What
works on the graph then moves no weights, and protobuf's limit of 2 GiB is nobody's concern.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx

from persistlib.dtypes import DType, by_name
from persistlib.errors import Code, error
from persistlib.graph_tensors import (
    EXTERNAL_ABOVE,
    EXTERNAL_TENSOR,
    ExternalPlace,
    aligned,
    dtype_name,
    pairs_of,
    place_of,
)
from persistlib.runtime.walking import graphs_within

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
    from typing_extensions import Buffer

# Smaller tensors stay where they are: shape inference reads their values.
_STAYS = 1024


class GraphFile(NamedTuple):
    """A file of a graph: its plain name and its bytes."""

    name: str
    data: memoryview | bytes


@dataclass(frozen=True, slots=True)
class Parts:
    """A graph apart from its large weights.

    Attributes:
        proto: the graph; the tensors in `data` have no values here.
        data: the bytes of the large initializers by name, row-major and little-endian.
    """

    proto: onnx.ModelProto
    data: dict[str, memoryview]

    @property
    def graph(self) -> onnx.GraphProto:
        """The graph itself."""
        return self.proto.graph

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        versions = {item.domain: item.version for item in self.proto.opset_import}
        return int(versions.get("", versions.get("ai.onnx", 1)))

    def initializers(self) -> dict[str, onnx.TensorProto]:
        """Return the initializers by name."""
        return {tensor.name: tensor for tensor in self.graph.initializer}

    def array(self, tensor: onnx.TensorProto) -> NDArray[Any]:
        """Return the values of an initializer."""
        if tensor.name in self.data:
            dtype = dtype_of(tensor).numpy
            return np.frombuffer(self.data[tensor.name], dtype).reshape(tuple(tensor.dims))
        values: NDArray[Any] = onnx.numpy_helper.to_array(tensor)
        return values

    def put(self, tensor: onnx.TensorProto, values: NDArray[Any]) -> None:
        """Give an initializer other values, of any dtype and shape."""
        row = by_name("numpy", values.dtype.name)
        assert row is not None
        name = tensor.name
        tensor.Clear()
        tensor.name = name
        tensor.dims.extend(values.shape)
        tensor.data_type = onnx.TensorProto.DataType.Value(row.value.onnx)
        raw = memoryview(values.tobytes())
        self.data.pop(name, None)
        if len(raw) > _STAYS:
            self.data[name] = raw
        else:
            tensor.raw_data = bytes(raw)


def take_apart(files: Mapping[str, Buffer], location: object) -> Parts:
    """Return a graph apart from its weights.

    Args:
        files: the model first, then its external data by name; the structure was checked.
        location: what to name in an error.
    """
    model, *external = files
    data: Any = files[model]
    proto: onnx.ModelProto = onnx.ModelProto.FromString(bytes(data))
    views = {name: memoryview(files[name]).cast("B") for name in external}
    parts = Parts(proto, {})
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            pairs = ((item.key, item.value) for item in tensor.external_data)
            place = place_of(pairs, f"{location}: {tensor.name}")
            size = dtype_of(tensor).nbytes(tuple(tensor.dims))
            raw = views[place.name][place.offset : place.offset + size]
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
        elif tensor.HasField("raw_data") and len(tensor.raw_data) > _STAYS:
            raw = memoryview(tensor.raw_data)
        else:
            continue
        tensor.ClearField("raw_data")
        if len(raw) > _STAYS:
            parts.data[tensor.name] = raw
        else:
            tensor.raw_data = bytes(raw)
    return parts


def assemble(
    parts: Parts, name: str, *, external_above: int = EXTERNAL_ABOVE
) -> tuple[GraphFile, ...]:
    """Return the files of a graph: the model, and its external data when it is large.

    Args:
        parts: left as they are.
        name: of the model; its data is called so and ends in `.data`.
        external_above: bytes of weights above which they go to a file of their own.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(parts.proto)
    is_external = sum(view.nbytes for view in parts.data.values()) > external_above
    places: dict[str, tuple[int, memoryview]] = {}
    end = 0
    for tensor in proto.graph.initializer:
        if (view := parts.data.get(tensor.name)) is None:
            continue
        if not is_external or view.nbytes < EXTERNAL_TENSOR:
            tensor.raw_data = bytes(view)
            continue
        start = aligned(end)
        places[tensor.name] = (start, view)
        end = start + view.nbytes
        for key, text in pairs_of(ExternalPlace(f"{name}.data", start, view.nbytes)):
            tensor.external_data.add(key=key, value=text)
        tensor.data_location = onnx.TensorProto.EXTERNAL
    model = GraphFile(name, proto.SerializeToString(deterministic=True))
    if not places:
        return (model,)
    buffer = memoryview(mmap.mmap(-1, end))
    for start, view in places.values():
        buffer[start : start + view.nbytes] = view
    return (model, GraphFile(f"{name}.data", buffer))


def dtype_of(tensor: onnx.TensorProto) -> DType:
    """Return the table's row of an initializer's dtype.

    Raises:
        FormatError: the table has none.
    """
    spelled = dtype_name(tensor.data_type)
    if (dtype := by_name("onnx", spelled)) is None:
        remedy = "export the model again"
        raise error(Code.GRAPH_INVALID, tensor.name, f"{spelled} is no dtype of ours", remedy)
    return dtype


class Names:
    """Names that no value or operator of a graph has yet."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._taken = {name for part in graphs_within(graph) for name in _names(part)}

    def free(self, wanted: str) -> str:
        """Return the name, with a number behind it where it is taken, and take it."""
        name, count = wanted, 1
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in (*graph.input, *graph.output))
    yield from (tensor.name for tensor in graph.initializer)
    for node in graph.node:
        yield node.name
        yield from node.output
