"""A graph whose weights, and whose arithmetic where that can be, are of half the width.

Laws: inputs and outputs keep their names, dtypes and shapes; every floating-point tensor of the
state keeps its name and holds what `casting.cast` makes of it, so weights read from the graph are
those that a cast of the weights alone gives; an operator works in half only where its schema allows
it and none of its values, nor its constants, leaves what half holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from persistlib.casting import cast, rounded
from persistlib.quantization.parts import Names, Parts, dtype_of
from persistlib.quantization.signatures import Signature, signature
from persistlib.runtime.walking import captured

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    from persistlib.casting import CastError
    from persistlib.dtypes import DType

# A value may be this many times larger than any that was seen.
_HEADROOM = 2


@dataclass(frozen=True, kw_only=True)
class HalfWishes:
    """How a graph is halved.

    Attributes:
        dtype: `DType.F16` or `DType.BF16`.
        computes: whether operators work in it; else each weight is widened where it is used.
        state: names of the initializers that are the model's weights.
        types: numbers of the dtypes of the graph's values.
        reach: the largest magnitude that was seen of each value, for what must not overflow.
        kept: names of operators that stay as they are.
        operators: types of those that may work in it; None for all.
    """

    dtype: DType
    computes: bool
    state: Collection[str]
    types: Mapping[str, int]
    reach: Mapping[str, float] = field(default_factory=dict)
    kept: Collection[str] = ()
    operators: Collection[str] | None = None


def halved(parts: Parts, wishes: HalfWishes) -> dict[str, CastError]:
    """Change a graph so, and return what the casts of its weights changed.

    Raises:
        LossError: a weight has no place in the dtype.
    """
    work = _Halving(parts, wishes)
    work.weights()
    work.operators()
    return work.ledger


class _Halving:
    """One graph on its way; `half` are the names under which a value is there in half."""

    def __init__(self, parts: Parts, wishes: HalfWishes) -> None:
        self.parts, self.wishes = parts, wishes
        self.ledger: dict[str, CastError] = {}
        self.number = onnx.TensorProto.DataType.Value(wishes.dtype.value.onnx)
        self.largest = float(_finfo(wishes.dtype).max)
        self.smallest = float(_finfo(wishes.dtype).smallest_normal)
        self.names = Names(parts.graph)
        self.types = dict(wishes.types)
        self.constants = _constants(parts, wishes.state)
        self.half: dict[str, str] = {}
        self.wide: dict[str, str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.captured = {n for node in parts.graph.node for n in captured(node)}
        self.outputs = {value.name for value in parts.graph.output}

    def weights(self) -> None:
        """Cast the state; a complex tensor's real view, which is none of it, stays."""
        for name, tensor in self.parts.initializers().items():
            dtype = dtype_of(tensor)
            if name in self.wishes.state and dtype.is_float and dtype is not self.wishes.dtype:
                self.types[name] = tensor.data_type
                values = self.parts.array(tensor)
                made, absolute, relative = cast(values.ravel(), self.wishes.dtype, name)
                self.ledger[name] = _error(dtype, self.wishes.dtype, absolute, relative)
                self.parts.put(tensor, made.reshape(values.shape))
                self.half[name] = name

    def operators(self) -> None:
        """Rewrite the operators in order, with a cast where a value is there in another dtype."""
        for node in list(self.parts.graph.node):
            form = signature(node, self.parts.opset, self.wishes.dtype)
            if form is not None and self._works_in_half(node, form):
                self._halve(node, form)
            else:
                self._widen(node)
        del self.parts.graph.node[:]
        self.parts.graph.node.extend(self.nodes)
        del self.parts.graph.value_info[:]
        self._drop_unused()

    def _works_in_half(self, node: onnx.NodeProto, form: Signature) -> bool:
        wishes = self.wishes
        if not wishes.computes or node.name in wishes.kept:
            return False
        if wishes.operators is not None and node.op_type not in wishes.operators:
            return False
        moved = [n for n, moves in zip(node.input, form.inputs, strict=True) if moves]
        moved = [name for name in moved if self.types.get(name) == onnx.TensorProto.FLOAT]
        given = [n for n, moves in zip(node.output, form.outputs, strict=True) if moves]
        return bool(moved) and all(self._fits(name) for name in (*moved, *given))

    def _fits(self, name: str) -> bool:
        """Return whether a value loses no more than its last digits in half."""
        if name in self.constants:
            values = np.abs(self.constants[name].astype(np.float64))
            finite = values[np.isfinite(values) & (values > 0)]
            return not finite.size or (
                finite.max() <= self.largest and finite.min() >= self.smallest
            )
        return self.wishes.reach.get(name, 0.0) * _HEADROOM <= self.largest

    def _halve(self, node: onnx.NodeProto, form: Signature) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for index, moves in enumerate(form.inputs):
            name = node.input[index]
            if moves and self.types.get(name) == onnx.TensorProto.FLOAT:
                copy.input[index] = self._in_half(name)
            elif name:
                copy.input[index] = self._as_it_was(name)
        self.nodes.append(copy)
        for index, moves in enumerate(form.outputs):
            name = node.output[index]
            if name and moves and self.types.get(name) == onnx.TensorProto.FLOAT:
                self._give_half(copy, index)

    def _give_half(self, node: onnx.NodeProto, index: int) -> None:
        """Let an output be in half: under its own name, unless others need that as it was."""
        name = node.output[index]
        self.half[name] = name
        if name in self.outputs or name in self.captured:
            self.half[name] = node.output[index] = self.names.free(f"{name}.half")
            self.wide[name] = name
            self._cast(self.half[name], name, onnx.TensorProto.FLOAT)

    def _widen(self, node: onnx.NodeProto) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [self._as_it_was(name) if name else name for name in node.input]
        inner = {name: self._as_it_was(name) for name in captured(node)}
        _rename_captured(copy, {name: wide for name, wide in inner.items() if wide != name})
        self.nodes.append(copy)

    def _in_half(self, name: str) -> str:
        if name not in self.half:
            self.half[name] = self.names.free(f"{name}.half")
            if name in self.constants:
                tensor = self.parts.graph.initializer.add(name=self.half[name])
                self.parts.put(tensor, rounded(self.constants[name], self.wishes.dtype))
            else:
                self._cast(name, self.half[name], self.number)
        return self.half[name]

    def _as_it_was(self, name: str) -> str:
        """Return a name under which a value is there in the dtype that it had."""
        if name not in self.half or self.half[name] != name:
            return name
        if name not in self.wide:
            self.wide[name] = self.names.free(f"{name}.wide")
            self._cast(name, self.wide[name], self.types.get(name, onnx.TensorProto.FLOAT))
        return self.wide[name]

    def _cast(self, source: str, target: str, number: int) -> None:
        name = self.names.free(f"cast.{target}")
        node = onnx.helper.make_node("Cast", [source], [target], name=name, to=number)
        self.nodes.append(node)

    def _drop_unused(self) -> None:
        """Remove the constants that stand in half alone now."""
        graph = self.parts.graph
        read = {name for node in graph.node for name in (*node.input, *captured(node))}
        kept = [
            tensor
            for tensor in graph.initializer
            if tensor.name in read
            or tensor.name not in self.constants
            or tensor.name in self.outputs
        ]
        for name in {tensor.name for tensor in graph.initializer} - {t.name for t in kept}:
            self.parts.data.pop(name, None)
        tensors = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
        del graph.initializer[:]
        graph.initializer.extend(tensors)


def _constants(parts: Parts, state: Collection[str]) -> dict[str, NDArray[Any]]:
    """Return the float constants of a graph: initializers beside the state, and what nodes hold."""
    found = {
        name: parts.array(tensor)
        for name, tensor in parts.initializers().items()
        if name not in state and tensor.data_type == onnx.TensorProto.FLOAT
    }
    for node in parts.graph.node:
        if node.op_type == "Constant" and not node.domain:
            for attribute in node.attribute:
                if attribute.name == "value" and attribute.t.data_type == onnx.TensorProto.FLOAT:
                    found[node.output[0]] = onnx.numpy_helper.to_array(attribute.t)
    return found


def _rename_captured(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Rename what the graphs in a node's attributes take from outside."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                inner.input[:] = [names.get(name, name) for name in inner.input]
                _rename_captured(inner, names)
            for value in graph.output:
                value.name = names.get(value.name, value.name)


def _finfo(dtype: DType) -> Any:
    import ml_dtypes

    return ml_dtypes.finfo(dtype.numpy)  # type: ignore[no-untyped-call] # has no types


def _error(before: DType, after: DType, absolute: float, relative: float) -> CastError:
    from persistlib.casting import CastError

    return CastError(before.name, after.name, absolute, relative)
