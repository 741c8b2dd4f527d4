"""Functions put in the place of their calls: the file's own, and those that define operators.

ONNX defines some operators by others. Where the table lacks one of those, its definition takes its
place, so that it needs no code here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from persistlib.errors import Code, error
from persistlib.graph_modules.operators import OPERATORS
from persistlib.graph_modules.structure import NODES_LIMIT
from persistlib.runtime.walking import nodes_within

if TYPE_CHECKING:
    import onnx

# A definition may be made of operators that are defined by others again.
_ROUNDS = 8


def expanded(proto: onnx.ModelProto, location: object) -> onnx.ModelProto:
    """Return the model without functions, as far as their definitions can be had.

    Raises:
        FormatError: it cannot be done, or the graph would be too large.
    """
    import onnx.inliner

    try:
        if proto.functions:
            _require_few(proto, location)
            proto = onnx.inliner.inline_local_functions(proto)
        for _ in range(_ROUNDS):
            missing = _defined(proto)
            if not missing:
                break
            proto = onnx.inliner.inline_selected_functions(
                proto, sorted(missing), inline_schema_functions=True
            )
            if _defined(proto) == missing:
                break
    except Exception as fault:  # the library raises what its C++ raised
        reason = f"its functions cannot be expanded: {str(fault).splitlines()[0:1]}"
        remedy = "export the model without functions"
        raise error(Code.GRAPH_INVALID, location, reason, remedy) from fault
    return proto


def _require_few(proto: onnx.ModelProto, location: object) -> None:
    from persistlib.runtime.functions import require_bounded

    if require_bounded(proto, location) > NODES_LIMIT:
        reason = f"its functions expand to more than {NODES_LIMIT} nodes"
        raise error(Code.FORMAT_LIMIT, location, reason, "do not use this file")


def _defined(proto: onnx.ModelProto) -> set[tuple[str, str]]:
    """Return the operators that the table lacks and ONNX defines by others."""
    import onnx

    versions = {o.domain: o.version for o in proto.opset_import}
    found: set[tuple[str, str]] = set()
    for node in nodes_within(proto.graph.node):
        domain = "" if node.domain == "ai.onnx" else node.domain
        if (domain, node.op_type) in OPERATORS or (domain, node.op_type) in found:
            continue
        version = versions.get(domain, 0) or versions.get("ai.onnx", 0)
        if onnx.defs.has(node.op_type, version, domain):
            # Its stubs leave both attributes out.
            schema: Any = onnx.defs.get_schema(node.op_type, version, domain)
            if schema.has_function or schema.has_context_dependent_function:
                found.add((node.domain, node.op_type))
    return found
