"""Which inputs and outputs of an operator follow each other's dtype, by its schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import onnx

if TYPE_CHECKING:
    from collections.abc import Sequence

    from persistlib.dtypes import DType

_FLOAT = "tensor(float)"
_SPELLED = {"F16": "tensor(float16)", "BF16": "tensor(bfloat16)"}
# What its output's dtype follows from an attribute, or makes no difference to.
_UNMOVED = frozenset({"Cast", "CastLike", "Constant", "ConstantOfShape"})


class Signature(NamedTuple):
    """Of each input and output, whether it moves from float to another dtype with the others."""

    inputs: tuple[bool, ...]
    outputs: tuple[bool, ...]


def signature(node: onnx.NodeProto, opset: int, dtype: DType) -> Signature | None:
    """Return what of a standard operator may be of another dtype; None where nothing may.

    Args:
        node: the operator.
        opset: version of the default operator set.
        dtype: the other one.
    """
    if node.domain not in {"", "ai.onnx"} or node.op_type in _UNMOVED or _has_graphs(node):
        return None
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    allowed = {row.type_param_str: row.allowed_type_strs for row in schema.type_constraints}
    inputs = _variables(schema.inputs, len(node.input))
    outputs = _variables(schema.outputs, len(node.output))
    moving = {name for name in inputs if _FLOAT in allowed.get(name, ())}
    if any(_SPELLED[dtype.name] not in allowed[name] for name in moving):
        return None
    return Signature(
        tuple(name in moving for name in inputs), tuple(name in moving for name in outputs)
    )


def _variables(formal: Sequence[onnx.defs.OpSchema.FormalParameter], count: int) -> list[str]:
    """Return the type variable of each actual parameter; the last formal one may be repeated."""
    names = [parameter.type_str for parameter in formal]
    return [names[min(index, len(names) - 1)] for index in range(count)]


def _has_graphs(node: onnx.NodeProto) -> bool:
    graphs = {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
    return any(attribute.type in graphs for attribute in node.attribute)
