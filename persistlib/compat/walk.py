"""Every node of a model, held against what a release of ONNX Runtime can compute.

Law: what the walk finds nothing against, the release makes a session of; each cause found is one
for which it refuses. `docs/compatibility.md` says how far that was tried.

A call of a function is walked once for each set of types that it is called with, so a file whose
functions would expand to a thousand million nodes costs what it holds.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from packaging.version import Version

from persistlib.compat.expansion import Body, body_of, defined, defined_by_runtime, without_absent
from persistlib.compat.inference import InferenceFault, inferred, input_names, type_of_tensor
from persistlib.compat.names import name_of
from persistlib.compat.operators import Signature, computed, schema_faults
from persistlib.compat.ordering import in_order
from persistlib.compat.rules import construction_faults, is_inferred_there
from persistlib.compat.scopes import Scope, unshaped
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import onnx

    from persistlib.compat.releases import Release, Schema

NODES_LIMIT = 200_000
_DEFINITIONS_OF_LATER_SETS = Version("1.17")
DEPTH_LIMIT = 64
_CONTROL = {"If", "Loop", "Scan"}
_STORED = "Constant"  # becomes an initializer when the model is read, and needs no kernel
_REMEDY = "do not use this file; export the model again"


class Cause(NamedTuple):
    """Why a release refuses a model.

    Attributes:
        kind: "ir", "opset", "operator", "schema", "types", "kernel" or "limit".
        node: the node's name, or its first output's.
        operator: with its domain and version, such as "Gelu(20)"; empty where it is no node.
        reason: what is needed, and what is there.
    """

    kind: str
    node: str
    operator: str
    reason: str


def causes(model: onnx.ModelProto, release: Release) -> list[Cause]:
    """Return why a release refuses a model; nothing where it makes a session of it.

    Raises:
        FormatError: functions that call themselves, or more nodes than a walk may take.
    """
    found = list(_ceilings(model, release))
    if found:
        return found
    walk = _Walk(model, release)
    walk.graph(model.graph, Scope(), walk.opsets)
    return walk.found


def _ceilings(model: onnx.ModelProto, release: Release) -> Iterator[Cause]:
    if model.ir_version > release.ir:
        reason = f"IR {model.ir_version}; this release reads up to IR {release.ir}"
        yield Cause("ir", "", "", reason)
    for opset in model.opset_import:
        domain = _plain(opset.domain)
        newest = release.opsets.get(domain)
        if newest is not None and opset.version > newest:
            word = domain or "ai.onnx"
            reason = f"opset {opset.version} of {word}; this release has up to {newest}"
            yield Cause("opset", "", "", reason)


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


class _Walk:
    """One walk; `found` fills as it goes."""

    def __init__(self, model: onnx.ModelProto, release: Release) -> None:
        self.release = release
        self.functions = {(_plain(f.domain), f.name, f.overload): f for f in model.functions}
        self.opsets = {_plain(opset.domain): opset.version for opset in model.opset_import}
        self.found: list[Cause] = []
        self._visited = 0
        self._calls: dict[object, Sequence[onnx.TypeProto | None]] = {}
        self._open: list[object] = []

    def graph(
        self, graph: onnx.GraphProto, scope: Scope, opsets: Mapping[str, int]
    ) -> list[onnx.TypeProto | None]:
        """Walk a graph and return the types of its outputs, None where unknown."""
        for value in graph.input:
            if value.name not in scope.names or value.type.WhichOneof("value"):
                scope.add(value.name, value.type)
                self._require_known(value.name, value.type)
        overridable = {value.name for value in graph.input}
        for tensor in graph.initializer:
            scope.add(tensor.name, type_of_tensor(tensor))
            self._require_known(tensor.name, scope.types[tensor.name])
            if tensor.name not in overridable and tensor.data_location != tensor.EXTERNAL:
                scope.constants[tensor.name] = tensor
        for sparse in graph.sparse_initializer:
            scope.add(sparse.values.name, type_of_tensor(sparse.values))
        declared = {value.name: value.type for value in (*graph.value_info, *graph.output)}
        self.nodes(graph.node, scope, opsets, declared)
        return [scope.types.get(value.name) for value in graph.output]

    def nodes(
        self,
        nodes: Sequence[onnx.NodeProto],
        scope: Scope,
        opsets: Mapping[str, int],
        declared: Mapping[str, onnx.TypeProto],
    ) -> None:
        """Walk nodes; `scope` afterwards knows what they put out."""
        for node in in_order(nodes, scope.names):
            self._visited += 1
            if self._visited > NODES_LIMIT:
                reason = f"its functions expand to more than {NODES_LIMIT} nodes"
                raise error(Code.FORMAT_LIMIT, node.name or node.op_type, reason, _REMEDY)
            outputs = self._node(node, scope, opsets, declared)
            for name in filter(None, node.output):
                kind = outputs.get(name)
                said = declared.get(name)
                if kind is not None and said is not None:
                    self._compare(node, name, kind, said)
                scope.add(name, kind if kind is not None else said)
                if name in scope.types:
                    self._require_known(name, scope.types[name])
            if node.op_type == _STORED and not _plain(node.domain):
                tensor = next((a.t for a in node.attribute if a.name == "value"), None)
                if tensor is not None and tensor.data_location != tensor.EXTERNAL:
                    scope.constants[node.output[0]] = tensor

    def _require_known(self, name: str, kind: onnx.TypeProto) -> None:
        word = name_of(kind)
        unknown = sorted(self.release.unknown.intersection(re.findall(r"\w+", word)))
        if unknown:
            reason = f"{name} is {word}; this release does not know {unknown[0]}"
            self.found.append(Cause("types", name, "", reason))

    def _compare(
        self, node: onnx.NodeProto, name: str, kind: onnx.TypeProto, said: onnx.TypeProto
    ) -> None:
        own, declared = name_of(kind), name_of(said)
        if own and declared and own != declared:
            self._add("types", node, 0, f"{name} is {own} and said to be {declared}")

    def _node(
        self,
        node: onnx.NodeProto,
        scope: Scope,
        opsets: Mapping[str, int],
        declared: Mapping[str, onnx.TypeProto],
    ) -> dict[str, onnx.TypeProto]:
        """Walk a node and return the types of its outputs."""
        domain = _plain(node.domain)
        unknown = [name for name in node.input if name and name not in scope.names]
        if unknown:
            self._add("schema", node, 0, f"nothing puts out its input {unknown[0]}")
            return {}
        if domain not in opsets and not self.release.newest(domain):
            self._add("operator", node, 0, f"no operator set of {domain} is imported")
            return {}
        opset = opsets.get(domain, self.release.newest(domain))
        schema = self.release.schema(domain, node.op_type, opset)
        key = (domain, node.op_type, node.overload)
        if schema is None and key in self.functions:
            return self._call(body_of(self.functions[key], node), node, scope, key)
        if schema is None:
            self._add("operator", node, opset, self._no_operator(domain, node, opset))
            return {}
        return self._operator(node, schema, scope, opsets, declared)

    def _no_operator(self, domain: str, node: onnx.NodeProto, opset: int) -> str:
        word = domain or "ai.onnx"
        if self.release.knows(domain, node.op_type):
            return f"not in opset {opset} of {word}"
        known = self.release.newest(domain) > 0
        return f"no such operator in {word}" if known else f"the domain {word} is not known"

    def _operator(
        self,
        node: onnx.NodeProto,
        schema: Schema,
        scope: Scope,
        opsets: Mapping[str, int],
        declared: Mapping[str, onnx.TypeProto],
    ) -> dict[str, onnx.TypeProto]:
        domain = _plain(node.domain)
        is_control = not domain and node.op_type in _CONTROL
        if is_control:
            outputs = self._control(node, scope, opsets)
        else:
            try:
                outputs = inferred(node, schema, scope.types, scope.constants, opsets)
            except InferenceFault as fault:
                if is_inferred_there(node.op_type, str(fault), self.release.number):
                    self._add("types", node, schema.since, str(fault))
                return {}
        known = {**declared, **outputs}
        names = [name_of(known[n]) if n in known else "" if n else None for n in node.output]
        signature = Signature(input_names(node, scope.types), names)
        faults = list(schema_faults(node, schema, signature))
        if faults:
            self._add("schema", node, schema.since, faults[0])
            return outputs
        if node.op_type == _STORED and not domain:
            return outputs
        if not computed(self.release, (domain, node.op_type), schema, signature):
            return {**outputs, **self._expanded(node, schema, signature, scope, opsets=opsets)}
        for reason in construction_faults(node, self.release.number):
            self._add("kernel", node, schema.since, reason)
        return outputs

    def _expanded(
        self,
        node: onnx.NodeProto,
        schema: Schema,
        signature: Signature,
        scope: Scope,
        *,
        opsets: Mapping[str, int],
    ) -> dict[str, onnx.TypeProto]:
        """Walk the definition of a node that no kernel computes, as one cause if it is refused."""
        function = self._definition(node, schema, scope, opsets)
        reason = _no_kernel(signature)
        if function is None:
            self._add("kernel", node, schema.since, reason)
            return {}
        before = len(self.found)
        key = (_plain(node.domain), node.op_type, "")
        outputs = self._call(body_of(function, node), node, scope, key)
        if len(self.found) > before:
            first = self.found[before]
            del self.found[before:]
            reason = f"{reason}, and {first.operator} in its definition has {first.reason}"
            self._add("kernel", node, schema.since, reason)
        return outputs

    def _definition(
        self, node: onnx.NodeProto, schema: Schema, scope: Scope, opsets: Mapping[str, int]
    ) -> onnx.FunctionProto | None:
        import onnx

        domain = _plain(node.domain)
        types = [scope.types.get(name, onnx.TypeProto()) for name in node.input]
        # Before 1.17 only definitions that are as old as the operator's version are found.
        opset = opsets.get(domain, schema.since)
        if self.release.number < _DEFINITIONS_OF_LATER_SETS:
            opset = schema.since
        own = defined_by_runtime(domain, node, self.release.number)
        return own or defined(domain, node, opset, types)

    def _call(
        self, body: Body, node: onnx.NodeProto, scope: Scope, function: object
    ) -> dict[str, onnx.TypeProto]:
        """Walk the body of a call, once for each set of types and attributes."""
        inner = Scope()
        for formal, actual in zip(body.inputs, node.input, strict=False):
            if actual:
                inner.add(formal, scope.types.get(actual))
                if actual in scope.constants:
                    inner.constants[formal] = scope.constants[actual]
        given = tuple(a.SerializeToString(deterministic=True) for a in node.attribute)
        kinds = tuple(
            scope.types[n].SerializeToString() if n in scope.types else n and b""
            for n in node.input
        )
        key = (function, kinds, given, len(node.output))
        if key not in self._calls:
            self._require_open(function, node)
            self._open.append(function)
            absent = set(body.inputs) - inner.names
            nodes = [without_absent(one, absent) for one in body.nodes]
            self.nodes(nodes, inner, {**body.opsets, **self.opsets}, {})
            self._open.pop()
            self._calls[key] = [inner.types.get(name) for name in body.outputs]
        pairs = zip(node.output, self._calls[key], strict=False)
        return {name: kind for name, kind in pairs if name and kind is not None}

    def _require_open(self, function: object, node: onnx.NodeProto) -> None:
        if function in self._open and function in self.functions:
            reason = f"the function {node.op_type} calls itself"
        elif len(self._open) >= DEPTH_LIMIT:
            reason = f"functions call each other deeper than {DEPTH_LIMIT}"
        else:
            return
        raise error(Code.FORMAT_LIMIT, node.name or node.op_type, reason, _REMEDY)

    def _control(
        self, node: onnx.NodeProto, scope: Scope, opsets: Mapping[str, int]
    ) -> dict[str, onnx.TypeProto]:
        results: list[Sequence[onnx.TypeProto | None]] = []
        for attribute in node.attribute:
            if attribute.HasField("g"):
                inner = Scope(scope)
                self._bind(node, attribute.g, inner)
                results.append(self.graph(attribute.g, inner, opsets))
        if not results:
            return {}
        kinds = list(results[0])
        if node.op_type == "Loop":
            kinds = kinds[1:]
        pairs = zip(node.output, kinds, strict=False)
        return {n: unshaped(kind) for n, kind in pairs if n and kind is not None}

    def _bind(self, node: onnx.NodeProto, graph: onnx.GraphProto, inner: Scope) -> None:
        """Make the inputs of a graph inside a node known by what the node gives them."""
        given = list(node.input)
        formal = [value.name for value in graph.input]
        if node.op_type == "Loop":
            given, formal = given[2:], formal[2:]
        for name, actual in zip(formal, given, strict=False):
            kind = inner.types.get(actual)
            inner.add(name, None if kind is None else unshaped(kind))

    def _add(self, kind: str, node: onnx.NodeProto, since: int, reason: str) -> None:
        domain = _plain(node.domain)
        word = f"{domain}:{node.op_type}" if domain else node.op_type
        name = node.name or next((o for o in node.output if o), node.op_type)
        self.found.append(Cause(kind, name, f"{word}({since})" if since else word, reason))


def _no_kernel(signature: Signature) -> str:
    names = dict.fromkeys(name for name in signature.inputs if name)
    names |= dict.fromkeys(name for name in signature.outputs if name)
    return f"no kernel for {', '.join(names) or 'it'} on the CPU provider"
