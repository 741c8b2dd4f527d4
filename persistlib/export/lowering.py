"""A graph rewritten for an older default operator set, one version at a time.

Law: a lowered graph computes the same, or an error names the operator that has no counterpart.

An operator is rewritten at the version that changed it: by a rule of `lowering_rules` where what it
does is said otherwise there, and otherwise as it stands, once the older schema is known to take its
inputs, outputs and attributes. What only newer versions can say must have the value that the older
ones mean (`_MEANT`). Element types are checked in the end, on the whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
from onnx import inliner
from onnx.defs import OpSchema, get_schema

from persistlib.errors import Code, PersistlibError, error
from persistlib.export.lowering_rules import RULES, settle_reshapes
from persistlib.export.operator_bodies import expanded
from persistlib.export.rewriting import Context, attributes_of
from persistlib.runtime.walking import graphs_within

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LOWEST = 11
# Attributes that older versions lack, each with the value that those mean.
_MEANT: dict[tuple[str, str], Any] = {
    ("ArgMax", "select_last_index"): 0,
    ("ArgMin", "select_last_index"): 0,
    ("BatchNormalization", "training_mode"): 0,
    ("GatherND", "batch_dims"): 0,
    ("GRU", "layout"): 0,
    ("LSTM", "layout"): 0,
    ("LpPool", "ceil_mode"): 0,
    ("Reshape", "allowzero"): 0,
    ("Resize", "antialias"): 0,
    ("Resize", "keep_aspect_ratio_policy"): b"stretch",
    ("RNN", "layout"): 0,
    ("RoiAlign", "coordinate_transformation_mode"): b"output_half_pixel",
    ("ScatterElements", "reduction"): b"none",
    ("ScatterND", "reduction"): b"none",
}
# Values of attributes that were new in a version.
_NEW_VALUES: dict[tuple[str, str, int], tuple[bytes, ...]] = {
    ("ScatterElements", "reduction", 18): (b"max", b"min"),
    ("ScatterND", "reduction", 18): (b"max", b"min"),
}
_REMEDY = "ask for a newer operator set"


def lower(proto: onnx.ModelProto, opset: int) -> None:
    """Rewrite a graph for an older operator set, in place.

    Args:
        proto: its default operator set is newer; the state is among its inputs.
        opset: at least `LOWEST`.

    Raises:
        ExportError: an operator, or an element type that it computes in, has no counterpart.
    """
    if proto.functions:
        proto.CopyFrom(inliner.inline_local_functions(proto))
    (default,) = (item for item in proto.opset_import if not item.domain)
    context = Context(proto)
    for graph in graphs_within(proto.graph):
        settle_reshapes(graph.node, context)
    while default.version > opset:
        context = Context(proto)
        for graph in reversed(list(graphs_within(proto.graph))):  # the inner ones first
            if graph.node:
                nodes = list(_lowered(graph.node, default.version, context))
                del graph.node[:]
                graph.node.extend(nodes)
        default.version -= 1
    _require_types(proto, opset)


def _lowered(
    nodes: Iterable[onnx.NodeProto], version: int, context: Context
) -> Iterator[onnx.NodeProto]:
    """Yield what stands for the nodes in the version before."""
    for node in nodes:
        if node.domain or _schema(node, version).since_version != version:
            yield node
            continue
        rule = RULES.get((node.op_type, version))
        reason = None if rule is None else rule.refusal(node, context)
        if rule is not None and reason is None:
            yield from rule.rewrite(node, context)
        elif reason is None and _has_counterpart(node, version):
            yield _as_it_stands(node, version)
        elif body := expanded(node, _schema(node, version), context):
            yield from _lowered(body, version, context)
        else:
            raise _no_counterpart(node, version, reason or "it is new there")


def _schema(node: onnx.NodeProto, version: int) -> OpSchema:
    return get_schema(node.op_type, version, "")


def _has_counterpart(node: onnx.NodeProto, version: int) -> bool:
    try:
        return not _schema(node, version - 1).deprecated
    except onnx.defs.SchemaError:
        return False


def _as_it_stands(node: onnx.NodeProto, version: int) -> onnx.NodeProto:
    """Return a node that means in the version before what it means in this one."""
    newer, older = _schema(node, version), _schema(node, version - 1)
    made = onnx.NodeProto()
    made.CopyFrom(node)
    while made.input and not made.input[-1]:
        made.input.pop()
    counts = (
        (older.min_input, len(made.input), older.max_input),
        (older.min_output, len(made.output), older.max_output),
    )
    if any(not least <= count <= most for least, count, most in counts):
        raise _no_counterpart(node, version, "it has other inputs or outputs")
    del made.attribute[:]
    given = attributes_of(node)
    for name, attribute in newer.attributes.items():
        default = attribute.default_value
        value = given.get(name, onnx.helper.get_attribute_value(default) if default.name else None)
        if name not in older.attributes:
            if value is not None and _MEANT.get((node.op_type, name)) != value:
                raise _no_counterpart(node, version, f"it says {name}={value!r}")
        elif name in given:
            _require_value(node, version, name, value)
            made.attribute.append(next(item for item in node.attribute if item.name == name))
        elif value is not None:  # the defaults may differ
            made.attribute.append(default)
    return made


def _require_value(node: onnx.NodeProto, version: int, name: str, value: Any) -> None:
    if value in _NEW_VALUES.get((node.op_type, name, version), ()):
        raise _no_counterpart(node, version, f"it says {name}={value!r}")


def _require_types(proto: onnx.ModelProto, opset: int) -> None:
    """Raise where an operator of the older set does not compute in an element type."""
    try:
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as fault:
        reason = " ".join(str(fault).split())[:300]
        raise error(Code.EXPORT_VERSION, f"opset {opset}", reason, _REMEDY) from fault


def _no_counterpart(node: onnx.NodeProto, version: int, reason: str) -> PersistlibError:
    where = f"{node.op_type} {node.name or node.output[0]}"
    why = f"opset {version - 1} cannot say {node.op_type} of opset {version}: {reason}"
    return error(Code.EXPORT_VERSION, where, why, _REMEDY)
