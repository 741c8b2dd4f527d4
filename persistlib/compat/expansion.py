"""Bodies of functions as the nodes that a call becomes.

A runtime that has no kernel for an operator puts the operator's definition in its place, and always
does so for functions that a model brings itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from packaging.version import Version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import onnx


# Of definitions that ONNX Runtime has and onnx has not: the first release that has one, and its
# operators, which decide alone.
_OPERATORS_OF = {
    ("com.microsoft", "FastGelu"): ("1.15", "s = BIASED t = Tanh(s) u = Add(t, s) y = Mul(u, s)"),
    ("com.microsoft", "QuickGelu"): ("1.31", "s = Sigmoid(x) y = Mul(x, s)"),
}


class Body(NamedTuple):
    """What a call becomes.

    Attributes:
        inputs: formal names, in order.
        outputs: likewise.
        nodes: with the call's attributes put in.
        opsets: versions by domain that the body is written for.
    """

    inputs: Sequence[str]
    outputs: Sequence[str]
    nodes: list[onnx.NodeProto]
    opsets: Mapping[str, int]


def body_of(function: onnx.FunctionProto, call: onnx.NodeProto) -> Body:
    """Return the body of a call of a function; attributes that are not given take their default."""
    given = {attribute.name: attribute for attribute in function.attribute_proto}
    given |= {attribute.name: attribute for attribute in call.attribute}
    return Body(
        tuple(function.input),
        tuple(function.output),
        [_filled(node, given) for node in function.node],
        {_domain(opset.domain): opset.version for opset in function.opset_import},
    )


def defined(
    domain: str, call: onnx.NodeProto, opset: int, types: Iterable[onnx.TypeProto]
) -> onnx.FunctionProto | None:
    """Return an operator's own definition at an operator set, or None where it has none.

    Args:
        domain: of the operator, the default one as "".
        call: the node.
        opset: of the domain.
        types: of the node's inputs, empty ones where a place is empty.
    """
    import onnx

    try:
        schema: Any = onnx.defs.get_schema(call.op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None
    try:
        if schema.has_context_dependent_function:
            encoded = _for_this_call(schema, call, opset, types)
        elif schema.has_function:
            encoded = _for_this_set(schema, opset)
        else:
            return None
    except (RuntimeError, ValueError, onnx.checker.ValidationError):
        return None  # the definition does not cover this call
    if not encoded:
        return None
    function: onnx.FunctionProto = onnx.FunctionProto.FromString(encoded)
    own = {attribute.name for attribute in function.attribute_proto}
    function.attribute_proto.extend(
        attribute.default_value
        for name, attribute in schema.attributes.items()
        if name not in own and attribute.default_value.name
    )
    return function


def defined_by_runtime(
    domain: str, call: onnx.NodeProto, release: Version
) -> onnx.FunctionProto | None:
    """Return the definition that a release has of an operator of its own, or None."""
    import onnx.parser

    since, text = _OPERATORS_OF.get((domain, call.op_type), ("", ""))
    if not since or release < Version(since):
        return None
    names = ", ".join("xb"[: len(call.input)])
    body = text.replace("BIASED", "Add(x, b)" if len(call.input) > 1 else "Identity(x)")
    return onnx.parser.parse_function(
        f'<domain: "{domain}", opset_import: ["": 13]> F ({names}) => (y) {{ {body} }}'
    )


def _for_this_call(
    schema: Any, call: onnx.NodeProto, opset: int, types: Iterable[onnx.TypeProto]
) -> bytes:
    """Return a definition that depends on the call, of the newest set that has one; or nothing."""
    known = [kind.SerializeToString() for kind in types]
    own = schema.context_dependent_function_opset_versions
    newest = max((version for version in own if version <= opset), default=None)
    if newest is None:
        return b""
    node = call.SerializeToString()
    return bytes(schema.get_context_dependent_function_with_opset_version(newest, node, known))


def _for_this_set(schema: Any, opset: int) -> bytes:
    """Return the newest definition for an operator set; nothing where it means other operators.

    Runtimes refuse a definition one of whose operators has a newer version by then
    (https://github.com/onnx/onnx, `OpSchema::ValidateReferencedOpsInFunction`).
    """
    import onnx

    written = max((v for v in schema.function_opset_versions if v <= opset), default=None)
    if written is None:
        return b""
    encoded = bytes(schema.get_function_with_opset_version(written))
    for node in onnx.FunctionProto.FromString(encoded).node:
        if not _domain(node.domain):
            then, now = (onnx.defs.get_schema(node.op_type, v) for v in (written, opset))
            if then.since_version != now.since_version:
                return b""
    return encoded


def _filled(node: onnx.NodeProto, given: Mapping[str, onnx.AttributeProto]) -> onnx.NodeProto:
    """Return a node whose references to the call's attributes are those attributes."""
    import onnx

    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.attribute[:]
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            if (value := given.get(attribute.ref_attr_name)) is not None:
                own = copy.attribute.add()
                own.CopyFrom(value)
                own.name = attribute.name
            continue
        own = copy.attribute.add()
        own.CopyFrom(attribute)
        for graph in (*([own.g] if own.HasField("g") else []), *own.graphs):
            _fill_graph(graph, given)
    return copy


def _fill_graph(graph: onnx.GraphProto, given: Mapping[str, onnx.AttributeProto]) -> None:
    nodes = [_filled(node, given) for node in graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def without_absent(node: onnx.NodeProto, absent: set[str]) -> onnx.NodeProto:
    """Return a node of a body whose inputs that the call does not give are empty places."""
    import onnx

    if not absent.intersection(node.input):
        return node
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    names = ["" if name in absent else name for name in node.input]
    while names and not names[-1]:
        names.pop()
    copy.input[:] = names
    return copy
