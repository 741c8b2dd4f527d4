"""Operators whose meaning is said otherwise in an older operator set, each with how.

Law: `rewrite` is only asked about nodes of which `refusal` says nothing; its nodes have the
outputs of the node that they stand for, compute the same values, and are of the version before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
from onnx.helper import make_node

from persistlib.export.rewriting import Context, attributes_of, has_input

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

Nodes = list[onnx.NodeProto]


class Rule(NamedTuple):
    """How an operator is said in the version before.

    Attributes:
        rewrite: the nodes that stand for a node.
        refusal: why there are none for this one; None where there are.
    """

    rewrite: Callable[[onnx.NodeProto, Context], Nodes]
    refusal: Callable[[onnx.NodeProto, Context], str | None] = lambda _node, _context: None


def _with(
    node: onnx.NodeProto, count: int, drop: tuple[str, ...] = (), /, **attributes: Any
) -> onnx.NodeProto:
    """Return the node with its first inputs alone, less some attributes and with others."""
    kept = {k: v for k, v in attributes_of(node).items() if k not in drop} | attributes
    return make_node(node.op_type, list(node.input[:count]), list(node.output), node.name, **kept)


def _in_attribute(name: str, *, index: int = 1, optional: bool = True) -> Rule:
    """Return the rule for an operator that takes an input as an attribute there."""

    def refusal(node: onnx.NodeProto, context: Context) -> str | None:
        if not has_input(node, index):
            return None if optional else f"it has no {name}"
        return None if context.constant(node, index) is not None else f"its {name} vary"

    def rewrite(node: onnx.NodeProto, context: Context) -> Nodes:
        values = context.constant(node, index)
        given: dict[str, Any] = {}
        if values is not None and values.size:  # no axes are all axes there too
            given[name] = [int(v) for v in values.reshape(-1)]
        return [_with(node, index, **given)]

    return Rule(rewrite, refusal)


def _unsqueeze() -> Rule:
    """Return the rule for an operator that adds no axes where it is given none."""
    inner = _in_attribute("axes", optional=False)

    def rewrite(node: onnx.NodeProto, context: Context) -> Nodes:
        axes = context.constant(node, 1)
        if axes is not None and not axes.size:
            return [make_node("Identity", [node.input[0]], list(node.output), node.name)]
        return inner.rewrite(node, context)

    return Rule(rewrite, inner.refusal)


def _reduction() -> Rule:
    """Return the rule for a reduction whose axes became an input."""
    inner = _in_attribute("axes")

    def rewrite(node: onnx.NodeProto, context: Context) -> Nodes:
        keeps = bool(attributes_of(node).get("noop_with_empty_axes", 0))
        axes = context.constant(node, 1)
        if keeps and (not has_input(node, 1) or (axes is not None and not axes.size)):
            return [make_node("Identity", [node.input[0]], list(node.output), node.name)]
        (made,) = inner.rewrite(node, context)
        return [_with(made, 1, ("noop_with_empty_axes",))]

    return Rule(rewrite, inner.refusal)


def _pad(node: onnx.NodeProto, context: Context) -> Nodes:
    """Spread pads of some axes over all of them."""
    if not has_input(node, 3):
        return [_with(node, 3)]
    axes, rank = context.constants[node.input[3]], len(context.shapes[node.input[0]])
    pads = context.constants[node.input[1]]
    spread = np.zeros(2 * rank, np.int64)
    for place, axis in enumerate(int(a) % rank for a in axes):
        spread[axis], spread[rank + axis] = pads[place], pads[len(axes) + place]
    made = context.made(node, "pads", spread)
    whole = _with(node, 3)
    whole.input[1] = made.name
    return [made.node, whole]


def _pad_refusal(node: onnx.NodeProto, context: Context) -> str | None:
    if not has_input(node, 3):
        return None
    if any(context.constant(node, index) is None for index in (1, 3)):
        return "its pads or axes vary"
    return None if node.input[0] in context.shapes else _ANY_RANK


def _split(node: onnx.NodeProto, context: Context) -> Nodes:
    """Say the sizes of unequal parts; equal ones are as many as there are outputs."""
    plain = _with(node, 2, ("num_outputs",))
    if has_input(node, 1):
        return [plain]
    extent, count = _split_extent(node, context) or 0, len(node.output)
    if extent % count == 0:
        return [plain]
    size = -(-extent // count)
    made = context.made(node, "sizes", [size] * (count - 1) + [extent - size * (count - 1)])
    plain.input.append(made.name)
    return [made.node, plain]


def _split_refusal(node: onnx.NodeProto, context: Context) -> str | None:
    is_said = has_input(node, 1) or _split_extent(node, context) is not None
    return None if is_said else "it parts an axis of any extent"


def _split_extent(node: onnx.NodeProto, context: Context) -> int | None:
    shape = context.shapes.get(node.input[0])
    return None if shape is None else shape[attributes_of(node).get("axis", 0)]


def _layer_norm(node: onnx.NodeProto, context: Context) -> Nodes:
    """Write the sums out, in the order that runtimes know and make one operator of again."""
    said = attributes_of(node)
    axes = _normalized(node, context)
    value, scale = node.input[0], node.input[1]
    before: Nodes = []
    if (given := context.types.get(value, _FLOAT)) not in {_FLOAT, onnx.TensorProto.DOUBLE}:
        wide = [context.fresh(node, f"wide_{index}") for index in range(len(node.input))]
        before = [
            make_node("Cast", [narrow], [name], to=_FLOAT)
            for narrow, name in zip(node.input, wide, strict=True)
        ]
        value, scale = wide[0], wide[1]
    dtype = np.float64 if given == onnx.TensorProto.DOUBLE else np.float32
    two = context.made(node, "two", 2, dtype)
    epsilon = context.made(node, "epsilon", said.get("epsilon", 1e-5), dtype)
    names = {word: context.fresh(node, word) for word in _STEPS}
    shift = [before[2].output[0] if before else node.input[2]] if has_input(node, 2) else []
    chain = [
        make_node("ReduceMean", [value], [names["mean"]], axes=axes),
        make_node("Sub", [value, names["mean"]], [names["centred"]]),
        make_node("Pow", [names["centred"], two.name], [names["squared"]]),
        make_node("ReduceMean", [names["squared"]], [names["variance"]], axes=axes),
        make_node("Add", [names["variance"], epsilon.name], [names["positive"]]),
        make_node("Sqrt", [names["positive"]], [names["deviation"]]),
        make_node("Div", [names["centred"], names["deviation"]], [names["normal"]]),
        make_node("Mul", [names["normal"], scale], [names["scaled"]]),
    ]
    if shift:
        chain.append(make_node("Add", [names["scaled"], *shift], [names["shifted"]]))
    if before:
        chain.append(make_node("Cast", [chain[-1].output[0]], [node.output[0]], to=given))
    chain[-1].output[0] = node.output[0]
    return [*before, two.node, epsilon.node, *chain]


_FLOAT = onnx.TensorProto.FLOAT
_STEPS = (
    *("mean", "centred", "squared", "variance", "positive", "deviation"),
    *("normal", "scaled", "shifted"),
)


def _normalized(node: onnx.NodeProto, context: Context) -> list[int]:
    """Return the axes that a LayerNormalization is over, counted from the end."""
    axis = int(attributes_of(node).get("axis", -1))
    rank = context.rank(node.input[0])
    return list(range(axis if axis < 0 else axis - (rank or 0), 0))


def _layer_norm_refusal(node: onnx.NodeProto, context: Context) -> str | None:
    if sum(map(bool, node.output)) > 1:
        return "its mean or deviation is used"
    known = attributes_of(node).get("axis", -1) < 0 or node.input[0] in context.shapes
    return None if known else _ANY_RANK


def _shape(node: onnx.NodeProto, context: Context) -> Nodes:
    """Take a part of the whole shape."""
    said = attributes_of(node)
    if not said.get("start", 0) and "end" not in said:
        return [_with(node, 1, ("start",))]
    whole = context.fresh(node, "whole")
    starts = context.made(node, "starts", [said.get("start", 0)])
    ends = context.made(node, "ends", [said.get("end", _FAR)])
    axes = context.made(node, "axes", [0])
    inputs = [whole, starts.name, ends.name, axes.name]
    return [
        *(made.node for made in (starts, ends, axes)),
        make_node("Shape", list(node.input), [whole]),
        make_node("Slice", inputs, list(node.output), node.name),
    ]


def _cast_like(node: onnx.NodeProto, context: Context) -> Nodes:
    to = context.types[node.input[1]]
    return [make_node("Cast", [node.input[0]], list(node.output), node.name, to=to)]


def _cast_like_refusal(node: onnx.NodeProto, context: Context) -> str | None:
    return None if node.input[1] in context.types else "its type is not known"


def _reshape(node: onnx.NodeProto, context: Context) -> Nodes:
    """Take 0 for the extent that stood there: only where nothing is reshaped do the two differ."""
    del context
    return [_with(node, 2, ("allowzero",))]


def _reshape_refusal(node: onnx.NodeProto, context: Context) -> str | None:
    shape = context.constant(node, 1)
    if shape is None or not attributes_of(node).get("allowzero", 0):
        return None
    return "it makes an extent of 0" if 0 in shape else None


def settle_reshapes(nodes: Iterable[onnx.NodeProto], context: Context) -> None:
    """Leave out what makes no difference and stops old runtimes: 1.10 refuses it beside a -1."""
    for node in nodes:
        if node.op_type == "Reshape" and _reshape_refusal(node, context) is None:
            kept = [item for item in node.attribute if item.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)


def _trilu(node: onnx.NodeProto, context: Context) -> Nodes:
    """Compare each column with its row."""
    upper = bool(attributes_of(node).get("upper", 1))
    names = {word: context.fresh(node, word) for word in _TRIANGLE}
    zero, one = context.made(node, "zero", 0), context.made(node, "one", 1)
    extents = [context.made(node, word, index) for word, index in (("last2", -2), ("last", -1))]
    axes, nothing = context.made(node, "axes", [1]), context.made(node, "nothing", 0)
    diagonal = node.input[1] if has_input(node, 1) else zero.name
    kind = context.types[node.input[0]]
    made = (zero, one, *extents, axes, nothing)
    return [
        *(constant.node for constant in made),
        make_node("Shape", [node.input[0]], [names["shape"]]),
        make_node("Gather", [names["shape"], extents[0].name], [names["height"]]),
        make_node("Gather", [names["shape"], extents[1].name], [names["width"]]),
        make_node("Range", [zero.name, names["height"], one.name], [names["row"]]),
        make_node("Range", [zero.name, names["width"], one.name], [names["columns"]]),
        make_node("Unsqueeze", [names["row"], axes.name], [names["rows"]]),
        make_node("Sub", [names["columns"], names["rows"]], [names["place"]]),
        make_node("Less" if upper else "Greater", [names["place"], diagonal], [names["off"]]),
        make_node("Cast", [nothing.name], [names["blank"]], to=kind),
        make_node(
            "Where", [names["off"], names["blank"], node.input[0]], list(node.output), node.name
        ),
    ]


_TRIANGLE = (
    *("shape", "height", "width", "row", "columns", "rows", "place"),
    *("off", "blank"),
)


def _trilu_refusal(node: onnx.NodeProto, context: Context) -> str | None:
    return None if node.input[0] in context.types else "its type is not known"


def _along_axis(node: onnx.NodeProto, context: Context) -> Nodes:
    """Bring the axis to the end: before, every axis from the given one on was taken as one."""
    axis = int(attributes_of(node).get("axis", -1))
    rank = context.rank(node.input[0])
    if axis == -1 or (rank is not None and axis % rank == rank - 1):
        return [_with(node, 1, axis=-1)]
    order = list(range(rank or 0))
    order[axis], order[-1] = order[-1], order[axis]
    turned, done = context.fresh(node, "turned"), context.fresh(node, "done")
    return [
        make_node("Transpose", [node.input[0]], [turned], perm=order),
        make_node(node.op_type, [turned], [done], node.name, axis=-1),
        make_node("Transpose", [done], list(node.output), perm=order),
    ]


def _along_axis_refusal(node: onnx.NodeProto, context: Context) -> str | None:
    known = attributes_of(node).get("axis", -1) == -1 or node.input[0] in context.shapes
    return None if known else _ANY_RANK


def _resize(node: onnx.NodeProto, context: Context) -> Nodes:
    """Give what was not optional: regions and scales, empty where they are not used."""
    whole = _with(node, len(node.input))
    made: Nodes = []
    for index, word in ((1, "regions"), (2, "scales")):
        if not has_input(node, index):
            constant = context.made(node, word, [], np.float32)
            made.append(constant.node)
            whole.input.extend([""] * (index + 1 - len(whole.input)))
            whole.input[index] = constant.name
    return [*made, whole]


def _plain_constant(node: onnx.NodeProto, context: Context) -> Nodes:
    """Say numbers as a tensor."""
    value = context.constants[node.output[0]]
    tensor = onnx.numpy_helper.from_array(value, node.output[0])
    return [make_node("Constant", [], list(node.output), node.name, value=tensor)]


def _plain_constant_refusal(node: onnx.NodeProto, context: Context) -> str | None:
    return None if node.output[0] in context.constants else "it is text"


_FAR = (1 << 63) - 1
_ANY_RANK = "its input has any number of axes"
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
# An operator, and the version that changed it, to how it is said in the version before.
RULES: Mapping[tuple[str, int], Rule] = {
    **{(f"Reduce{kind}", 18): _reduction() for kind in _REDUCTIONS},
    ("Pad", 18): Rule(_pad, _pad_refusal),
    ("Split", 18): Rule(_split, _split_refusal),
    ("LayerNormalization", 17): Rule(_layer_norm, _layer_norm_refusal),
    ("CastLike", 15): Rule(_cast_like, _cast_like_refusal),
    ("Shape", 15): Rule(_shape),
    ("Reshape", 14): Rule(_reshape, _reshape_refusal),
    ("Trilu", 14): Rule(_trilu, _trilu_refusal),
    **{(kind, 13): Rule(_along_axis, _along_axis_refusal) for kind in ("Softmax", "LogSoftmax")},
    ("Hardmax", 13): Rule(_along_axis, _along_axis_refusal),
    ("ReduceSum", 13): _reduction(),
    ("Resize", 13): Rule(_resize),
    ("Split", 13): _in_attribute("split"),
    ("Squeeze", 13): _in_attribute("axes"),
    ("Unsqueeze", 13): _unsqueeze(),
    ("Constant", 12): Rule(_plain_constant, _plain_constant_refusal),
}
