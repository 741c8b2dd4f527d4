"""A part of a graph as a graph of its own: what some values come from, as far as a cut.

Law: run on the values at the cut, an excerpt computes what the whole graph computes from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx

from persistlib.dtypes import by_name
from persistlib.runtime.walking import captured

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

_COMPUTED = "\N{RIGHTWARDS ARROW}computed"  # no value of a graph that we meet is called so


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A part of a graph.

    Attributes:
        whole: the graph.
        nodes: those of the part, in order.
        inputs: names of the values at the cut and of the graph's own inputs that it needs.
        outputs: names of the values that it gives.
        cut: names of values at which it may begin.
    """

    whole: onnx.ModelProto
    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    cut: Collection[str]

    def proto(self, given: Mapping[str, NDArray[Any]], types: Mapping[str, int]) -> onnx.ModelProto:
        """Return the part as a model whose outputs are called as `original` undoes.

        Args:
            given: arrays for the inputs, which tell their extents.
            types: numbers of the dtypes of inner values; outputs without one are left out.
        """
        proto = onnx.ModelProto(ir_version=self.whole.ir_version)
        proto.opset_import.extend(self.whole.opset_import)
        proto.functions.extend(self.whole.functions)
        graph = proto.graph
        graph.name = "excerpt"
        for node in self.nodes:
            copy = graph.node.add()
            copy.CopyFrom(node)
            copy.output[:] = [self._computed(name) for name in node.output]
        needed = {name for node in self.nodes for name in _read_by(node)}
        graph.initializer.extend(t for t in self.whole.graph.initializer if t.name in needed)
        sparse = self.whole.graph.sparse_initializer
        graph.sparse_initializer.extend(t for t in sparse if t.values.name in needed)
        own = {value.name: value for value in self.whole.graph.input}
        for name in self.inputs:
            if name in own and name not in self.cut:
                graph.input.add().CopyFrom(own[name])
            elif name in given:
                shape = given[name].shape
                graph.input.append(onnx.helper.make_tensor_value_info(name, types[name], shape))
        for name in self.outputs:
            if name in types:
                output = graph.output.add(name=self._computed(name))
                output.type.tensor_type.elem_type = types[name]
        return proto

    def original(self, name: str) -> str:
        """Return what the whole graph calls a value of the part."""
        return name.removesuffix(_COMPUTED)

    def _computed(self, name: str) -> str:
        return name + _COMPUTED if name in self.cut else name


def excerpt(whole: onnx.ModelProto, outputs: Sequence[str], *, cut: Collection[str]) -> Excerpt:
    """Return what some values of a graph come from.

    Args:
        whole: the graph.
        outputs: names of values that operators give.
        cut: names of values that are taken as given; an output among them is computed all the same.
    """
    produced = producers(whole)
    own = {value.name for value in whole.graph.input}
    wanted: set[int] = set()
    inputs: dict[str, None] = {}
    waiting = [produced[name] for name in outputs]
    while waiting:
        node = waiting.pop()
        if id(node) in wanted:
            continue
        wanted.add(id(node))
        for name in _read_by(node):
            if name in cut or name in own:
                inputs[name] = None
            elif name in produced:
                waiting.append(produced[name])
    nodes = tuple(node for node in whole.graph.node if id(node) in wanted)
    return Excerpt(whole, nodes, tuple(inputs), tuple(outputs), frozenset(cut))


def producers(whole: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Return the operator that gives each value, in the graph's order."""
    return {name: node for node in whole.graph.node for name in node.output if name}


def value_types(whole: onnx.ModelProto) -> dict[str, int]:
    """Return the numbers of the dtypes of the values that onnx can tell without running it."""
    try:
        known = onnx.shape_inference.infer_shapes(whole)
    except Exception:  # noqa: BLE001 - it is known by its messages alone, and what it says is a help
        known = whole
    graph = known.graph
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name: number for name, number in types.items() if number}


def type_number(array: NDArray[Any]) -> int:
    """Return the number of an array's dtype; 0 for one that a graph cannot have."""
    dtype = by_name("numpy", array.dtype.name)
    return onnx.TensorProto.DataType.Value(dtype.value.onnx) if dtype and dtype.value.onnx else 0


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, those in the graphs of its attributes among them."""
    yield from (name for name in node.input if name)
    yield from captured(node)
