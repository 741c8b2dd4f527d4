"""Small tensors put back into a graph whose values all lie in other files.

ONNX Runtime reads shapes and axes while it opens a graph, and of tensors that are handed to it in
memory it has no values then. Some exporters put even those outside.

Law: the graph that comes out computes what the given one does, from the very bytes that were given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.dtypes import by_name
from persistlib.graph_tensors import dtype_name, place_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx

# Bytes of a tensor: no shape has as many extents.
_SMALL = 1 << 12


def with_small_tensors(model: bytes, external: Mapping[str, memoryview]) -> bytes:
    """Return a graph that holds its small tensors itself; the same bytes where there are none.

    Args:
        model: the graph, known to be harmless (`structure.check_graph`).
        external: its external data by name.
    """
    if not external:
        return model
    import onnx

    proto: onnx.ModelProto = onnx.ModelProto.FromString(model)
    was_changed = False
    for tensor in _outside(proto):
        row = by_name("onnx", dtype_name(tensor.data_type))
        place = place_of(((pair.key, pair.value) for pair in tensor.external_data), tensor.name)
        size = place.length if row is None else row.nbytes(tuple(tensor.dims))
        if size is None or size > _SMALL:
            continue
        tensor.raw_data = bytes(external[place.name][place.offset : place.offset + size])
        del tensor.external_data[:]
        tensor.ClearField("data_location")
        was_changed = True
    return proto.SerializeToString() if was_changed else model


def _outside(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor whose values lie in another file, those of inner graphs among them."""
    graphs = [proto.graph]
    nodes = [function.node for function in proto.functions]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            nodes.append(graph.node)
            yield from (t for t in graph.initializer if t.data_location == t.EXTERNAL)
        for attribute in (a for node in nodes.pop() for a in node.attribute):
            graphs += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
            yield from (
                t for t in (attribute.t, *attribute.tensors) if t.data_location == t.EXTERNAL
            )
