"""Operators written out in simpler ones, as ONNX's own definitions do.

Law: the nodes of `expanded` have the outputs of the node that they stand for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx.defs import OpSchema

    from persistlib.export.rewriting import Context


def expanded(node: onnx.NodeProto, schema: OpSchema, context: Context) -> list[onnx.NodeProto]:
    """Return simpler nodes that compute what a node does; none where ONNX defines it by words.

    Args:
        node: any.
        schema: its definition.
        context: what is known of its inputs.
    """
    if (body := _body(node, schema, context)) is None:
        return []
    names = dict(zip(body.input, node.input, strict=False))
    names |= dict.fromkeys(list(body.input)[len(node.input) :], "")
    names |= dict(zip(body.output, node.output, strict=False))
    return list(_inlined(body, names, node, schema, context))


def _body(
    node: onnx.NodeProto, definition: OpSchema, context: Context
) -> onnx.FunctionProto | None:
    schema: Any = definition  # its types lack what says it in operators
    if schema.function_opset_versions:
        data = schema.get_function_with_opset_version(max(schema.function_opset_versions))
        return _parsed(data)
    versions = schema.context_dependent_function_opset_versions
    if not versions or any(name and name not in context.types for name in node.input):
        return None
    types = [
        onnx.helper.make_tensor_type_proto(context.types[name], None).SerializeToString()
        if name
        else b""
        for name in node.input
    ]
    data = schema.get_context_dependent_function_with_opset_version(
        min(versions), node.SerializeToString(), types
    )
    return _parsed(data) if data else None


def _parsed(data: bytes) -> onnx.FunctionProto:
    body: onnx.FunctionProto = onnx.FunctionProto.FromString(data)
    return body


def _inlined(
    body: onnx.FunctionProto,
    names: dict[str, str],
    node: onnx.NodeProto,
    schema: OpSchema,
    context: Context,
) -> Iterator[onnx.NodeProto]:
    given = {item.name: item for item in node.attribute}
    defaults = {
        name: attribute.default_value
        for name, attribute in schema.attributes.items()
        if attribute.default_value.name
    }
    for part in body.node:
        made = onnx.NodeProto()
        made.CopyFrom(part)
        del made.attribute[:]
        for item in part.attribute:
            source = given.get(item.ref_attr_name) or defaults.get(item.ref_attr_name)
            if item.ref_attr_name and source is None:
                continue
            made.attribute.add().CopyFrom(source if source is not None else item)
            made.attribute[-1].name = item.name
        for index, name in enumerate(part.output):
            if name and name not in names:
                names[name] = context.fresh(node, name)
            made.output[index] = names.get(name, "")
        made.input[:] = [names.get(name, "") for name in part.input]
        yield made
