"""Small ONNX graphs made by hand, well-formed and hostile; no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from collections.abc import Sequence

FLOAT = TensorProto.FLOAT
STANDARD = {"", "ai.onnx"}


def value(name: str, dtype: int = FLOAT, shape: Sequence[int | str] = ("n", 2)) -> Any:
    return helper.make_tensor_value_info(name, dtype, list(shape))


def weight(name: str = "w", extents: Sequence[int] = (2,)) -> onnx.TensorProto:
    count = 1
    for extent in extents:
        count *= extent
    tensor = TensorProto(name=name, dims=extents, data_type=FLOAT)
    tensor.raw_data = b"\0\0\x80\x3f" * count
    return tensor


def outside(location: str, name: str = "w", **places: str) -> onnx.TensorProto:
    """Return a tensor of two floats whose values lie in another file."""
    tensor = TensorProto(name=name, dims=[2], data_type=FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in {"location": location, **places}.items():
        tensor.external_data.add(key=key, value=text)
    return tensor


def model(
    nodes: Sequence[onnx.NodeProto] = (),
    tensors: Sequence[onnx.TensorProto] = (),
    *,
    dtype: int = FLOAT,
    opset: int = 17,
    ir_version: int = 8,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """Return a model from x (n, 2) to y; by default y = x + w."""
    if not nodes:
        nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
        tensors = tensors or [weight()]
    graph = helper.make_graph(
        list(nodes), "g", [value("x", dtype)], [value("y", dtype)], list(tensors)
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    imports += [
        helper.make_opsetid(domain, 1)
        for domain in sorted({f.domain for f in functions} - STANDARD)
    ]
    return helper.make_model(
        graph, opset_imports=imports, ir_version=ir_version, functions=list(functions)
    )


def function(
    name: str, calls: Sequence[str], domain: str = "own", attribute: onnx.TensorProto | None = None
) -> onnx.FunctionProto:
    """Return a function whose body calls others of its domain one after the other, or Identity."""
    nodes = [
        helper.make_node(call, ["a"], [f"v{index}"], domain="" if call == "Identity" else domain)
        for index, call in enumerate(calls)
    ]
    if attribute is not None:
        nodes.append(helper.make_node("Constant", [], ["c"], value=attribute))
    imports = [helper.make_opsetid("", 17)]
    imports += [] if domain in STANDARD else [helper.make_opsetid(domain, 1)]
    return helper.make_function(domain, name, ["a"], [nodes[0].output[0]], nodes, imports)


def branches(inner: onnx.GraphProto, depth: int) -> onnx.GraphProto:
    """Return a graph with `inner` at the bottom of that many Ifs."""
    for _ in range(depth):
        outer = onnx.GraphProto(name="g")
        node = outer.node.add(op_type="If", output=["b"])
        node.input.append("condition")
        attribute = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
        attribute.g.CopyFrom(inner)
        inner = outer
    return inner


def varint(number: int) -> bytes:
    encoded = b""
    while number > 0x7F:
        encoded += bytes([number & 0x7F | 0x80])
        number >>= 7
    return encoded + bytes([number])


def field(number: int, content: bytes) -> bytes:
    """Return a length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def of(proto: onnx.ModelProto) -> bytes:
    data: bytes = proto.SerializeToString()
    return data
