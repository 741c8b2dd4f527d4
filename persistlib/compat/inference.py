"""The types of what a node puts out, as ONNX's own rules infer them.

A rule that raises is a reason why a runtime refuses the node. Where the installed onnx does not
have the operator, or has no rule, its schema's type constraints tell the types alone.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from persistlib.compat.names import elements, name_of, type_of
from persistlib.compat.operators import bound_outputs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx

    from persistlib.compat.releases import Schema

_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "output_type")


class InferenceFault(Exception):  # noqa: N818 - never leaves this package
    """ONNX's rule for an operator refuses the node."""


def inferred(
    node: onnx.NodeProto,
    schema: Schema,
    types: Mapping[str, onnx.TypeProto],
    constants: Mapping[str, onnx.TensorProto],
    opsets: Mapping[str, int],
) -> dict[str, onnx.TypeProto]:
    """Return the types of a node's outputs; an output of unknown type is left out.

    Args:
        node: without graphs in its attributes.
        schema: of its operator.
        types: of its inputs, where known.
        constants: values of its inputs, where known and small.
        opsets: versions by domain.

    Raises:
        InferenceFault: the operator's rule refuses the node.
    """
    found: dict[str, onnx.TypeProto] = {}
    known = {name: types[name] for name in node.input if name in types}
    domain = "" if node.domain == "ai.onnx" else node.domain
    native = _native(domain, node.op_type, opsets.get(domain, 1), schema.since)
    complete = all(name in known for name in node.input if name)
    if native is not None and native.has_type_and_shape_inference_function and complete:
        found = _by_rule(native, node, known, constants, opsets)
    told = {name: kind for name, kind in found.items() if name_of(kind)}
    if all(name in told for name in node.output if name):
        return told
    return {**_by_constraints(node, schema, types), **told}


@cache
def _native(domain: str, op: str, opset: int, since: int) -> Any:
    """Return the installed onnx's schema of an operator, None where it has another version."""
    import onnx

    try:
        native = onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return None
    return native if native.since_version == since else None


def _by_rule(
    native: Any,
    node: onnx.NodeProto,
    known: Mapping[str, onnx.TypeProto],
    constants: Mapping[str, onnx.TensorProto],
    opsets: Mapping[str, int],
) -> dict[str, onnx.TypeProto]:
    import onnx

    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    values = {name: constants[name] for name in node.input if name in constants}
    try:
        return onnx.shape_inference.infer_node_outputs(
            native, node, dict(known), values, None, imports
        )
    except onnx.checker.ValidationError:
        return {}  # a type that the schema lacks: the releases do not look, see `operators`
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as fault:
        raise InferenceFault(" ".join(str(fault).split())) from fault


def _by_constraints(
    node: onnx.NodeProto, schema: Schema, types: Mapping[str, onnx.TypeProto]
) -> dict[str, onnx.TypeProto]:
    said = {
        attribute.name: f"tensor({elements()[attribute.i]})"
        for attribute in node.attribute
        if attribute.name in _TYPE_ATTRIBUTES and attribute.i in elements()
    }
    said |= {a.name: name_of(type_of_tensor(a.t)) for a in node.attribute if a.HasField("t")}
    names = input_names(node, types)
    outputs = bound_outputs(schema, names, said, len(node.output))
    pairs = zip(node.output, outputs, strict=True)
    return {name: type_of(kind) for name, kind in pairs if name and kind}


def input_names(node: onnx.NodeProto, types: Mapping[str, onnx.TypeProto]) -> Sequence[str | None]:
    """Return the names of the types of a node's inputs; None where a place is empty."""
    return [
        None if not name else name_of(types[name]) if name in types else "" for name in node.input
    ]


def type_of_tensor(tensor: onnx.TensorProto) -> onnx.TypeProto:
    """Return the type of a stored tensor."""
    import onnx

    kind = onnx.TypeProto()
    kind.tensor_type.elem_type = tensor.data_type
    kind.tensor_type.shape.SetInParent()
    for extent in tensor.dims:
        kind.tensor_type.shape.dim.add().dim_value = extent
    return kind
