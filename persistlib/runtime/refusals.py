"""What ONNX Runtime says when it refuses a graph, as our errors: what it was, and what to do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from persistlib.dtypes import by_name
from persistlib.errors import Code, PersistlibError, error
from persistlib.graph_tensors import dtype_name
from persistlib.runtime.providers import short
from persistlib.runtime.walking import nodes_within

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx

    from persistlib.runtime.providers import Provider

LOCATION = "model.onnx"  # what errors name where no file was named
_NO_KERNEL = re.compile(r"implementation for (\S+?)\((\d+)\) node with name '(.*?)'")
_NO_OPERATOR = re.compile(
    r"No Op registered for (\S+) with domain_version of|([^\s:]+)\(-?\d+\) is not a registered"
)
_CAST = "persistlib convert BUNDLE m.onnx --dtype f16 (or f32) gives one of another dtype"
_OLDER = "pip install --upgrade onnxruntime, or export with a lower opset (--opset)"


def message(fault: Exception) -> str:
    """Return the runtime's message without its numbers, source paths and C++ signatures."""
    lines = str(fault).strip().splitlines()
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", lines[0] if lines else "")
    if ".cc:" in text or ".h:" in text:
        text = text.rpartition(") ")[2]
    return text[:300] or type(fault).__name__


def refused(
    fault: Exception, model: bytes, providers: Sequence[Provider], location: object = LOCATION
) -> PersistlibError:
    """Return our error for a session that could not be opened.

    Args:
        fault: what the runtime raised.
        model: the graph.
        providers: that were asked for.
        location: what to name where no operator is at fault.
    """
    text = str(fault)
    reason = message(fault)
    if "IR version" in reason or "Opset" in reason:
        return error(Code.GRAPH_VERSION, location, reason, _OLDER)
    if (found := _NO_KERNEL.search(text)) is not None:
        return _no_kernel(model, found, providers)
    if (found := _NO_OPERATOR.search(text)) is not None:
        name = next(part for part in found.groups() if part)
        if node := _first(model, name):
            return _no_operator(model, node)
    return error(Code.SESSION_FAILED, location, reason, "export the model again")


def _no_kernel(
    model: bytes, found: re.Match[str], providers: Sequence[Provider]
) -> PersistlibError:
    """Return the error for an operator that no provider of the session computes."""
    operator, since, name = found.groups()
    node = _first(model, operator, name)
    where = name or operator
    names = ", ".join(short(provider.name) for provider in providers)
    domain, opset = _opset(model, "" if node is None else node.domain)
    dtypes = () if node is None else dtypes_of(model, node)
    told = f" of {', '.join(dtypes)}" if dtypes else ""
    reason = f"{names} has no kernel for {domain}:{operator}{told} (opset {opset}, since {since})"
    floats = {"BF16", "F16", "F64"} & set(dtypes)
    return error(Code.OPERATOR_UNSUPPORTED, where, reason, _CAST if floats else _OLDER)


def _no_operator(model: bytes, node: onnx.NodeProto) -> PersistlibError:
    """Return the error for an operator that its operator set does not have."""
    domain, opset = _opset(model, node.domain)
    reason = f"there is no operator {node.op_type} in {domain} opset {opset} of this runtime"
    remedy = "export with the opset that has it (--opset), or pip install --upgrade onnxruntime"
    if domain != "ai.onnx":
        remedy = f"export with operators of ai.onnx alone: {domain} belongs to a runtime"
    return error(Code.OPERATOR_UNSUPPORTED, node.name or node.op_type, reason, remedy)


def _opset(model: bytes, domain: str) -> tuple[str, int | str]:
    """Return a domain's full name, and its version in the model."""
    wanted = domain or "ai.onnx"
    opsets = {opset.domain or "ai.onnx": opset.version for opset in _proto(model).opset_import}
    return wanted, opsets.get(wanted, "unknown")


def dtypes_of(model: bytes, node: onnx.NodeProto) -> tuple[str, ...]:
    """Return the dtypes of a node's inputs as far as the graph says them, by persistlib's names."""
    return tuple(_inputs_of(node, _elements(_proto(model).graph)))


def operator_dtypes(model: bytes) -> dict[str, tuple[str, ...]]:
    """Return the dtypes that each kind of operator takes, as far as they can be inferred."""
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(_proto(model)).SerializeToString()
    except Exception:  # noqa: BLE001 - a library in C++ raises what it likes; it is a message's detail
        inferred = model
    graph = _proto(inferred).graph
    known = _elements(graph)
    found: dict[str, dict[str, None]] = {}
    for node in graph.node:
        kinds = found.setdefault(node.op_type, {})
        kinds |= _inputs_of(node, known)
    return {kind: tuple(names) for kind, names in found.items()}


def _elements(graph: onnx.GraphProto) -> dict[str, int]:
    """Return ONNX's number of the element type of each value that a graph says one of."""
    known = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        known[value.name] = value.type.tensor_type.elem_type
    return known


def _inputs_of(node: onnx.NodeProto, known: Mapping[str, int]) -> dict[str, None]:
    """Return the dtypes of a node's inputs that are known, each once, in their order."""
    rows = (by_name("onnx", dtype_name(known.get(name, 0))) for name in node.input)
    return {row.name: None for row in rows if row is not None}


def _first(model: bytes, operator: str, name: str | None = None) -> onnx.NodeProto | None:
    """Return the first node of an operator, of that name where one is given."""
    proto = _proto(model)
    found = (
        node
        for node in nodes_within(proto.graph.node, *(part.node for part in proto.functions))
        if node.op_type == operator and (name is None or node.name == name)
    )
    return next(found, None)


def _proto(model: bytes) -> onnx.ModelProto:
    import onnx

    proto: onnx.ModelProto = onnx.ModelProto.FromString(model)
    return proto
