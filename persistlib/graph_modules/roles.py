"""Which tensors of a graph training may change.

A tensor is a parameter if a gradient can reach it: it is made of floats, and a way leads from it to
an output of the graph through inputs that are neither indices, shapes nor numbers of the program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.graph_modules.dtypes import torch_dtype
from persistlib.graph_modules.operators import OPERATORS
from persistlib.graph_modules.soundness import inner_graphs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

    from persistlib.graph_modules.structure import Graph, Node

# Their outputs are whole numbers or truths, or flat.
_FLAT = frozenset(
    {
        *("And", "ArgMax", "ArgMin", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr"),
        *("BitwiseXor", "Ceil", "Compress", "ConstantOfShape", "ConvInteger", "Equal", "EyeLike"),
        *("Floor", "Greater", "GreaterOrEqual", "Hardmax", "IsInf", "IsNaN", "Less"),
        *("LessOrEqual", "MatMulInteger", "NonMaxSuppression", "NonZero", "Not", "OneHot", "Or"),
        *("QLinearConv", "QLinearMatMul", "QuantizeLinear", "RandomNormalLike"),
        *("RandomUniformLike", "Round", "Shape", "Sign", "Size", "Xor", "Bernoulli", "Multinomial"),
    }
)
# Inputs that decide and are not computed with.
_DECIDING = {"If": {0}, "Loop": {0, 1}, "Where": {0}, "Dropout": {1, 2}}
# Where a lone number is a weight all the same: a bias of one output, one slope.
_OWN_SLOTS = frozenset(
    {
        *("BatchNormalization", "Conv", "ConvTranspose", "Gemm", "GRU", "GroupNormalization"),
        *("InstanceNormalization", "LSTM", "LayerNormalization", "PRelu", "RMSNormalization"),
        "RNN",
    }
)
_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
_MASK = -1e3


def reached(graphs: Iterable[Graph], outputs: Iterable[str]) -> set[str]:
    """Return the values that a gradient of the outputs can reach."""
    known = tuple(graphs)
    makers = {name: node for graph in known for node in graph.nodes for name in node.outputs}
    found: set[str] = set()
    waiting = [name for name in outputs if name]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        if (node := makers.get(name)) is not None and not _is_flat(node):
            waiting += _carrying(node)
            waiting += [out for inner in inner_graphs(node) for out in known[inner].outputs]
    return found


def _is_flat(node: Node) -> bool:
    if node.operator == "Cast":
        dtype = torch_dtype(node.attributes.get("to", 0))
        return dtype is None or not dtype.is_floating_point
    return node.operator in _FLAT


def _carrying(node: Node) -> list[str]:
    numbers = OPERATORS[node.domain, node.operator].numbers
    stopped = numbers | _DECIDING.get(node.operator, set())
    return [n for position, n in enumerate(node.inputs) if n and position not in stopped]


def is_weight(
    tensor: torch.Tensor, users: list[tuple[Node, int]], makers: Mapping[str, Node]
) -> bool:
    """Return whether a tensor that a gradient reaches is a weight, and no number of the program.

    Args:
        tensor: its values.
        users: the nodes that use it, each with the input's position.
        makers: every value's node.
    """
    if not tensor.is_floating_point() or not tensor.numel() or not tensor.isfinite().all():
        return False
    if tensor.numel() > 1:
        return not _is_mask(tensor)
    return tensor.ndim > 0 and any(_is_own_slot(*user, makers) for user in users)


def _is_own_slot(node: Node, position: int, makers: Mapping[str, Node]) -> bool:
    if node.operator in _OWN_SLOTS:
        return position > 0
    if node.operator != "Add":
        return False
    other = makers.get(node.inputs[1 - position])
    return other is not None and other.operator in _PRODUCTS


def _is_mask(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is zero or one far negative number everywhere."""
    low = tensor.min()
    return bool(low <= _MASK) and bool(((tensor == 0) | (tensor == low)).all())
