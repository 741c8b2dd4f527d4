"""What a graph keeps in other files, made ready to be handed to ONNX Runtime in memory.

Three ways, since none takes every tensor. A value by name the runtime copies once, whatever its
size, but only for a tensor of the outermost graph that is read, of elements of a byte or more. What
it reads while it opens a graph (shapes, axes), and whatever an inner graph holds, it takes from the
graph itself alone. A whole file in memory is left for packed elements: it is copied twice, no
tensor in it may have 2 GiB, and releases before 1.24 take none.

Law: the graph that comes out computes what the given one does, from the very bytes that were given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from persistlib.dtypes import DType, by_name
from persistlib.errors import Code, error
from persistlib.graph_tensors import dtype_name, place_of
from persistlib.runtime.refusals import LOCATION
from persistlib.runtime.tensors import to_runtime
from persistlib.runtime.walking import captured, nodes_within

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import TypeGuard

    import onnx

# Bytes of a tensor: no shape has as many extents.
_SMALL = 1 << 12
_LARGEST = (1 << 31) - 1  # bytes of a message of protobuf
TAKES_FILES = "add_external_initializers_from_files_in_memory"
# The runtime has no value of this dtype.
_NO_VALUE = frozenset({DType.C64, DType.C128})


class Handed(NamedTuple):
    """A graph, and what the runtime is handed beside it.

    Attributes:
        model: the graph; every tensor of it lies in it, in `values` or in `files`.
        values: ONNX Runtime's own by the name of the tensor, over the given memory; a session has
            copied them when it is open.
        files: by name, for what goes neither way.
    """

    model: bytes
    values: Mapping[str, Any]
    files: Mapping[str, memoryview]


def handed(model: bytes, external: Mapping[str, memoryview]) -> Handed:
    """Return a graph ready for a session.

    Args:
        model: the graph, known to be harmless (`structure.check_graph`).
        external: its external data by name.

    Raises:
        SessionError: what must stand in the graph itself is more than a message of protobuf holds.
    """
    if not external:
        return Handed(model, {}, {})
    import onnx
    import onnxruntime

    proto: onnx.ModelProto = onnx.ModelProto.FromString(model)
    _drop_unread(proto.graph)
    takes_files = hasattr(onnxruntime.SessionOptions, TAKES_FILES)
    values: dict[str, Any] = {}
    files: dict[str, memoryview] = {}
    for tensor in filter(_is_outside, proto.graph.initializer):
        name, dtype, data = _found(tensor, external)
        if data.nbytes > _SMALL and _has_value(dtype):
            values[tensor.name] = _value(data, dtype, tuple(tensor.dims))
        elif data.nbytes > _SMALL and takes_files:
            files[name] = external[name]
        else:
            _put_in(tensor, data)
    for tensor in filter(_is_outside, _inner(proto)):
        _put_in(tensor, _found(tensor, external)[-1])
    if proto.ByteSize() > _LARGEST:
        reason = "its inner graphs and constants hold more than 2 GiB, and it is one message"
        raise error(Code.SESSION_FAILED, LOCATION, reason, "move them to the outermost graph")
    return Handed(proto.SerializeToString(), values, files)


def _is_outside(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == tensor.EXTERNAL


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Drop what lies outside and nothing reads, as second names of a tensor may.

    The runtime drops it too, and takes no value for it.
    """
    read = {value.name for value in graph.output}
    for node in graph.node:
        read.update(node.input, captured(node))
    kept = [t for t in graph.initializer if t.name in read or not _is_outside(t)]
    if len(kept) != len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)


def _has_value(dtype: DType | None) -> TypeGuard[DType]:
    return dtype is not None and not dtype.is_packed and dtype not in _NO_VALUE


def _value(data: memoryview, dtype: DType, shape: tuple[int, ...]) -> Any:
    array = np.frombuffer(data, dtype.numpy).reshape(shape)
    return to_runtime(np.require(array, requirements="A"), dtype)


def _put_in(tensor: onnx.TensorProto, data: memoryview) -> None:
    tensor.raw_data = bytes(data)
    del tensor.external_data[:]
    tensor.ClearField("data_location")


def _found(
    tensor: onnx.TensorProto, external: Mapping[str, memoryview]
) -> tuple[str, DType | None, memoryview]:
    """Return the file that a tensor lies in, its dtype, and its bytes."""
    row = by_name("onnx", dtype_name(tensor.data_type))
    place = place_of(((pair.key, pair.value) for pair in tensor.external_data), tensor.name)
    size = place.length if row is None else row.nbytes(tuple(tensor.dims))
    end = None if size is None else place.offset + size
    return place.name, row, external[place.name][place.offset : end]


def _inner(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor but the initializers of the outermost graph."""
    yield from _sparse(proto.graph.sparse_initializer)
    for node in nodes_within(proto.graph.node, *(body.node for body in proto.functions)):
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            yield from _sparse((attribute.sparse_tensor, *attribute.sparse_tensors))
            for graph in (attribute.g, *attribute.graphs):
                yield from graph.initializer
                yield from _sparse(graph.sparse_initializer)


def _sparse(tensors: Iterable[onnx.SparseTensorProto]) -> Iterator[onnx.TensorProto]:
    for tensor in tensors:
        yield from (tensor.values, tensor.indices)
