"""A graph as nodes and values: who makes what, who takes it, and what does not depend on inputs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx

# Their results are the same for all inputs of one shape.
_SHAPES = frozenset({"Shape", "Size"})
_DRAWN = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"})
_SAME = frozenset({"Identity", "Dropout"})
# They move numbers and change none.
LAYOUT = _SAME | {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True, slots=True)
class Node:
    """One operator of a graph.

    Attributes:
        index: its place in the graph's order.
        operator: its type.
        domain: of the operator; empty for the standard ones.
        name: its own; may be empty.
        inputs: names of values; an absent one is empty.
        outputs: likewise.
        attributes: by name, decoded.
        captured: values that graphs inside it use.
    """

    index: int
    operator: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    captured: tuple[str, ...] = ()

    def input(self, position: int) -> str:
        """Return an input's name; empty where there is none."""
        return self.inputs[position] if position < len(self.inputs) else ""

    @property
    def label(self) -> str:
        """The operator and what tells it apart."""
        return f"{self.operator} {self.name or next(iter(self.outputs), '')!r}"


class Network:
    """The main graph.

    Attributes:
        nodes: in order.
        inputs: names of the inputs that must be given.
        outputs: names of the outputs.
        constants: values that are the same for all inputs of one shape.
        makers: the node that makes a value.
        takers: the nodes that use it; those that ask for its shape alone are left out.
        dtypes: ONNX's number of a value's dtype, as far as it can be told.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.nodes = tuple(_nodes(proto.graph))
        stored = {tensor.name for tensor in proto.graph.initializer}
        self.inputs = tuple(v.name for v in proto.graph.input if v.name not in stored)
        self.outputs = tuple(value.name for value in proto.graph.output)
        self.makers = {name: node for node in self.nodes for name in node.outputs if name}
        self.takers: dict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for name in (*node.inputs, *node.captured):
                if name and node.operator not in _SHAPES:
                    self.takers[name].append(node)
        self.constants = self._constants(stored)
        self.dtypes = _dtypes(proto)

    def _constants(self, stored: set[str]) -> set[str]:
        found = set(stored)
        for node in self.nodes:
            names = [name for name in (*node.inputs, *node.captured) if name]
            is_fixed = node.operator in _SHAPES or all(name in found for name in names)
            if is_fixed and node.operator not in _DRAWN:
                found.update(name for name in node.outputs if name)
        return found

    def root(self, value: str) -> str:
        """Return the value that another is the same as."""
        while (node := self.makers.get(value)) and node.operator in _SAME:
            value = node.inputs[0]
        return value

    def only_taker(self, value: str) -> Node | None:
        """Return the one node that uses a value, if it is one and the value is no output."""
        takers = self.takers.get(value, [])
        return takers[0] if len(takers) == 1 and value not in self.outputs else None


def _nodes(graph: onnx.GraphProto) -> Iterator[Node]:
    from onnx import helper

    for index, node in enumerate(graph.node):
        attributes = {
            item.name: helper.get_attribute_value(item)
            for item in node.attribute
            if item.type != item.GRAPH
        }
        inner = [item.g for item in node.attribute if item.type == item.GRAPH]
        yield Node(
            index,
            node.op_type,
            "" if node.domain == "ai.onnx" else node.domain,
            node.name,
            tuple(node.input),
            tuple(node.output),
            attributes,
            tuple(name for body in inner for name in _captured(body)),
        )


def _captured(graph: onnx.GraphProto) -> Iterator[str]:
    own = {value.name for value in (*graph.input, *graph.initializer)}
    own |= {name for node in graph.node for name in node.output}
    for node in graph.node:
        inner = [item.g for item in node.attribute if item.type == item.GRAPH]
        for name in (*node.input, *(n for body in inner for n in _captured(body))):
            if name and name not in own:
                yield name


def _dtypes(proto: onnx.ModelProto) -> dict[str, int]:
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(proto).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}
