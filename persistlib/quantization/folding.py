"""What a quantizer should find done: BatchNorm folded away, and weights that are constants.

Law: the graph computes what it computed, to rounding. Quantized, a convolution followed by a
BatchNorm would leave integers and come back to them between the two.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from persistlib.export.excerpt import excerpt, value_types
from persistlib.quantization.parts import Names, assemble
from persistlib.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from persistlib.quantization.parts import Parts

_EPSILON = 1e-5  # the operator's default
_FOLDED = ("Conv", "ConvTranspose", "Gemm")


def fold_norms(parts: Parts) -> int:
    """Fold every BatchNorm that can be into the operator before it; return how many were.

    One can be where its statistics are initializers, and the operator before it has its weights as
    initializers and gives its output to nothing else.
    """
    graph = parts.graph
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    producers = {name: node for node in graph.node for name in node.output}
    names, folded = Names(graph), 0
    for norm in list(graph.node):
        before = producers.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        if before is None or before.op_type not in _FOLDED or readers[norm.input[0]] != 1:
            continue
        tensors = parts.initializers()
        if not {*norm.input[1:], *before.input[1:]} <= tensors.keys() or len(norm.output) > 1:
            continue
        arrays = {n: parts.array(tensors[n]) for n in (*norm.input[1:], *before.input[1:])}
        for name, values in _folded(before, norm, arrays).items():
            fresh = graph.initializer.add(name=names.free(name))
            parts.put(fresh, values)
            _replace(before, name, fresh.name)
        before.output[0] = norm.output[0]
        graph.node.remove(norm)
        producers[before.output[0]] = before
        folded += 1
    return folded


def _folded(
    before: onnx.NodeProto, norm: onnx.NodeProto, arrays: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Return the weight and the bias of the operator before, by names made of theirs."""
    scale, shift, mean, variance = (arrays[n].astype(np.float64) for n in norm.input[1:5])
    factor = scale / np.sqrt(variance + _attribute(norm, "epsilon", _EPSILON))
    weight = arrays[before.input[1]].astype(np.float64)
    bias = arrays[before.input[2]].astype(np.float64) if _has_bias(before) else np.zeros(())
    if before.op_type == "Gemm":
        rows = int(_attribute(before, "transB", 0))
        weight = weight * (factor[:, None] if rows else factor)
        bias = bias * (_attribute(before, "beta", 1.0) * factor) if _has_bias(before) else bias
    elif before.op_type == "Conv":
        weight = weight * factor.reshape(-1, *(1,) * (weight.ndim - 1))
        bias = bias * factor
    else:  # its weight's channels stand by group: (in, out / groups, ...)
        groups = int(_attribute(before, "group", 1))
        apart = weight.reshape(groups, -1, *weight.shape[1:])
        apart = apart * factor.reshape(groups, 1, -1, *(1,) * (weight.ndim - 2))
        weight, bias = apart.reshape(weight.shape), bias * factor
    moved = np.broadcast_to(bias + shift - mean * factor, factor.shape)
    kind = arrays[before.input[1]].dtype
    return {f"{before.input[1]}.folded": weight.astype(kind), _BIAS: moved.astype(kind)}


_BIAS = "bias.folded"


def _has_bias(node: onnx.NodeProto) -> bool:
    return len(node.input) > 2 and bool(node.input[2])


def _replace(node: onnx.NodeProto, name: str, fresh: str) -> None:
    """Let an operator read its new weight or bias."""
    if name != _BIAS:
        node.input[1] = fresh
        return
    node.input[:] = [*node.input[:2], fresh]
    for attribute in list(node.attribute):
        if attribute.name == "beta":  # it is in the bias already
            node.attribute.remove(attribute)


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    for attribute in node.attribute:
        if attribute.name == name:
            return float(onnx.helper.get_attribute_value(attribute))
    return default


def fold_constants(parts: Parts) -> int:
    """Compute once what operators make of initializers alone; return how many operators went.

    A transposed weight, or one that is put together from slices, is then a weight like any other.
    What becomes more than twice as large as all weights were stays as it is.
    """
    graph = parts.graph
    fixed = set(parts.initializers())
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if _is_fixed(node, fixed):
            fixed.update(node.output)
            nodes.append(node)
    inside = {name for node in nodes for name in node.output if name}
    read = {name for n in graph.node if n not in nodes for name in n.input}
    read |= {value.name for value in graph.output}
    wanted = [name for node in nodes for name in node.output if name in inside & read]
    values = _computed(parts, wanted)
    size = sum(array.nbytes for array in values.values())
    held = sum(view.nbytes for view in parts.data.values())
    if not values or size > _GROWTH * held + _GROWTH_FREE:
        return 0
    for node in nodes:
        graph.node.remove(node)
    for name, array in values.items():
        parts.put(graph.initializer.add(name=name), array)
    return len(nodes)


_GROWTH, _GROWTH_FREE = 2, 1 << 20


def _is_fixed(node: onnx.NodeProto, fixed: set[str]) -> bool:
    is_plain = node.domain in {"", "ai.onnx"} and not node.op_type.startswith(_RANDOM)
    has_graphs = any(a.HasField("g") or a.graphs for a in node.attribute)
    reads = [name for name in node.input if name]
    return is_plain and not has_graphs and all(name in fixed for name in reads)


_RANDOM = ("Random", "Multinomial", "Bernoulli", "Dropout", "Sequence", "Optional")


def _computed(parts: Parts, wanted: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the values of what is made of initializers alone, as the runtime computes them."""
    types = value_types(parts.proto)
    wanted = [name for name in wanted if name in types]
    if not wanted:
        return {}
    files = assemble(parts, "constants.onnx")
    whole = onnx.ModelProto.FromString(bytes(files[0].data))
    external = {file.name: memoryview(file.data) for file in files[1:]}
    proto = excerpt(whole, wanted, cut=()).proto({}, types)
    return open_session(proto.SerializeToString(), external=external, threads=1).run({})
