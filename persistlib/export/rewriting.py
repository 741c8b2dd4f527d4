"""What is known of a graph's values while its nodes are rewritten."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
from onnx.helper import make_node

from persistlib.runtime.walking import graphs_within

if TYPE_CHECKING:
    from numpy.typing import NDArray


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes by name."""
    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}


def has_input(node: onnx.NodeProto, index: int) -> bool:
    """Return whether a node has an input there; an optional one may be left out."""
    return len(node.input) > index and bool(node.input[index])


class Context:
    """What is known of a graph's values while it is rewritten.

    Attributes:
        constants: the values that no input changes, by name.
        shapes: extents of values whose rank is known, None for one that is not.
        types: element types by ONNX's numbers, where they are known.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        inferred = onnx.shape_inference.infer_shapes(proto)
        self.constants: dict[str, NDArray[Any]] = {}
        self.shapes: dict[str, list[int | None]] = {}
        self.types: dict[str, int] = {}
        self._taken: set[str] = set()
        for graph in graphs_within(inferred.graph):
            for value in (*graph.input, *graph.output, *graph.value_info):
                self._note(value)
            for tensor in graph.initializer:
                self._note_constant(tensor.name, onnx.numpy_helper.to_array(tensor))
                self.types[tensor.name] = tensor.data_type
            for node in graph.node:
                self._taken.update(node.output)
                if node.op_type == "Constant" and (value := _constant(node)) is not None:
                    self._note_constant(node.output[0], value)
        self._taken |= {*self.constants, *self.types}

    def _note(self, value: onnx.ValueInfoProto) -> None:
        kind = value.type.tensor_type
        if kind.elem_type:
            self.types[value.name] = kind.elem_type
        if kind.HasField("shape"):
            self.shapes[value.name] = [
                extent.dim_value if extent.HasField("dim_value") else None
                for extent in kind.shape.dim
            ]

    def _note_constant(self, name: str, value: NDArray[Any]) -> None:
        self.constants[name], self.shapes[name] = value, [*value.shape]

    def rank(self, name: str) -> int | None:
        """Return how many axes a value has, where that is known."""
        return len(self.shapes[name]) if name in self.shapes else None

    def fresh(self, node: onnx.NodeProto, what: str) -> str:
        """Return a name for a value that no other has."""
        name, count = f"{node.output[0]}_{what}", 1
        while name in self._taken:
            count += 1
            name = f"{node.output[0]}_{what}_{count}"
        self._taken.add(name)
        return name

    def constant(self, node: onnx.NodeProto, index: int) -> NDArray[Any] | None:
        """Return the values of a node's input, None where it has none or they are not constant."""
        return self.constants.get(node.input[index]) if has_input(node, index) else None

    def made(self, node: onnx.NodeProto, what: str, values: Any, dtype: Any = np.int64) -> _Made:
        """Return a constant of a fresh name, and the node that makes it."""
        name = self.fresh(node, what)
        tensor = onnx.numpy_helper.from_array(np.array(values, dtype), name)
        return _Made(name, make_node("Constant", [], [name], value=tensor))


class _Made(NamedTuple):
    """A constant's name, and the node that makes it."""

    name: str
    node: onnx.NodeProto


def _constant(node: onnx.NodeProto) -> NDArray[Any] | None:
    """Return the values of a Constant; None where it is sparse or text."""
    said = attributes_of(node)
    if "value" in said:
        return onnx.numpy_helper.to_array(said["value"])
    for name, dtype in (("int", np.int64), ("float", np.float32)):
        for key in (f"value_{name}", f"value_{name}s"):
            if key in said:
                return np.array(said[key], dtype)
    return None
