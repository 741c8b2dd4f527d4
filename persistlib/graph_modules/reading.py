"""From the parsed bytes of an ONNX file to a structure and the values of its weights.

Law: every value of the structure has a name of its own, whatever scopes the file used, and every
tensor of the file that a node uses is in the structure, bit for bit.
"""

from __future__ import annotations

from collections import ChainMap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from persistlib.errors import Code, PersistlibError, error
from persistlib.graph_modules import structure as form
from persistlib.graph_modules.expansion import expanded
from persistlib.graph_modules.naming import Names
from persistlib.graph_modules.operators import OPERATORS
from persistlib.graph_modules.plan import require_operators
from persistlib.graph_modules.roles import is_weight, reached
from persistlib.graph_modules.structure import (
    BUFFER,
    INLINE,
    PARAMETER,
    Constant,
    Graph,
    Node,
    Structure,
    Weight,
)
from persistlib.graph_modules.tensors import can_be_said, is_narrow, tensor_from, to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, MutableMapping

    import onnx

_STATISTICS = {("BatchNormalization", 3), ("BatchNormalization", 4)}
_REMEDY = "export the model again"
# What `Optional` says of its value's type; the value says it too.
_IGNORED = frozenset({"TYPE_PROTO", "TYPE_PROTOS"})
_SCALARS = {
    "value_int": torch.int64,
    "value_ints": torch.int64,
    "value_float": torch.float32,
    "value_floats": torch.float32,
}


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


_PLAIN: dict[str, Callable[[onnx.AttributeProto], Any]] = {
    "FLOAT": lambda said: form.number_to_json(said.f),
    "INT": lambda said: said.i,
    "STRING": lambda said: _text(said.s),
    "FLOATS": lambda said: [form.number_to_json(number) for number in said.floats],
    "INTS": lambda said: list(said.ints),
    "STRINGS": lambda said: [_text(item) for item in said.strings],
}


@dataclass(frozen=True)
class Imported:
    """A graph taken out of its file.

    Attributes:
        structure: the graph without its weights.
        values: the weights by path.
    """

    structure: Structure
    values: Mapping[str, torch.Tensor]


def imported(
    proto: onnx.ModelProto, external: Mapping[str, memoryview], location: object
) -> Imported:
    """Return the graph of a model that `runtime.structure.check_graph` accepted.

    Args:
        proto: the parsed file.
        external: the files beside it by name.
        location: what to name in an error.

    Raises:
        FormatError: it has operators or dtypes that torch lacks (the error names the node and how
            many others), or breaks the rules of its format.
    """
    reader = _Reader(expanded(proto, location), external, location)
    reader.graph(reader.proto.graph, ChainMap())
    graphs = tuple(graph for graph in reader.graphs if graph is not None)
    require_operators(node for graph in graphs for node in graph.nodes)
    return reader.assembled(graphs)


class _Reader:
    """One walk over a model."""

    def __init__(
        self, proto: onnx.ModelProto, external: Mapping[str, memoryview], location: object
    ) -> None:
        self.proto = proto
        self.graphs: list[Graph | None] = []
        self._external, self._location = external, location
        self._versions = {_domain(o.domain): o.version for o in proto.opset_import}
        self._taken: set[str] = {""}
        # Tensors by value; those that stand in nodes are numbers of the program by their place.
        self._tensors: dict[str, torch.Tensor] = {}
        self._in_nodes: set[str] = set()
        self._narrow: set[str] = set()

    def graph(self, proto: onnx.GraphProto, outer: ChainMap[str, str]) -> int:
        """Enter a graph and those inside it; return its number."""
        index = len(self.graphs)
        self.graphs.append(None)
        scope = outer.new_child()
        if proto.sparse_initializer:
            raise error(
                Code.GRAPH_OPERATOR,
                self._location,
                "sparse tensors are not read",
                "store them dense",
            )
        for tensor in proto.initializer:
            name = self._named(tensor.name, scope)
            self._enter(name, tensor)
        stored = {tensor.name for tensor in proto.initializer}
        inputs = [self._named(v.name, scope) for v in proto.input if v.name not in stored]
        nodes = [made for node in proto.node if (made := self._node(node, scope)) is not None]
        outputs = [self._used(value.name, scope) for value in proto.output]
        self.graphs[index] = Graph(tuple(inputs), tuple(outputs), tuple(nodes))
        return index

    def assembled(self, graphs: tuple[Graph, ...]) -> Imported:
        """Return the structure, each tensor given its role and name."""
        users: dict[str, list[tuple[Node, int]]] = {}
        for graph in graphs:
            for node in graph.nodes:
                for position, name in enumerate(node.inputs):
                    users.setdefault(name, []).append((node, position))
        makers = {name: node for graph in graphs for node in graph.nodes for name in node.outputs}
        is_reached = reached(graphs, graphs[0].outputs)
        kept = {name for graph in graphs for name in graph.outputs}
        names, weights, constants = Names(), list[Weight](), list[Constant]()
        values: dict[str, torch.Tensor] = {}
        numbers = self._numbers()
        for value, tensor in self._tensors.items():
            using = users.get(value, [])
            if not using and value not in kept:
                continue
            self._require_dequantised(value, using)
            is_live = value in is_reached and value not in numbers
            is_parameter = is_live and is_weight(tensor, using, makers)
            if not is_parameter and _is_small(tensor, using):
                constants.append(form.constant({"value": value, **to_json(tensor)}))
                continue
            path = names.name(value, using[0] if using else None)
            role = PARAMETER if is_parameter else BUFFER
            dtype = str(tensor.dtype).removeprefix("torch.")
            weights.append(Weight(value, path, dtype, tuple(tensor.shape), role))
            values[path] = tensor
        return Imported(Structure(graphs, tuple(weights), tuple(constants)), values)

    def _numbers(self) -> set[str]:
        """Return the tensors in nodes, unless that is where the file keeps its weights."""
        stored = (t for name, t in self._tensors.items() if name not in self._in_nodes)
        has_weights = any(t.is_floating_point() and t.ndim > 1 for t in stored)
        return self._in_nodes if has_weights else set()

    def _require_dequantised(self, value: str, using: Iterable[tuple[Node, int]]) -> None:
        """Raise where numbers narrower than a byte are used as such: torch has wider ones."""
        if value in self._narrow and any(n.operator != "DequantizeLinear" for n, _ in using):
            reason = f"{value}: numbers narrower than a byte, used before they are dequantised"
            raise error(Code.GRAPH_OPERATOR, self._location, reason, "export it in 8 bits")

    def _node(self, proto: onnx.NodeProto, scope: ChainMap[str, str]) -> Node | None:
        """Return a node; None for one that only holds a tensor."""
        domain = _domain(proto.domain)
        if (domain, proto.op_type) == ("", "Constant") and self._constant(proto, scope):
            return None
        inputs = tuple(self._used(name, scope) for name in proto.input)
        attributes = {
            a.name: self._attribute(a, scope)
            for a in proto.attribute
            if (domain, proto.op_type) in OPERATORS  # of others, the name is all that is told
            and a.AttributeType.Name(a.type) not in _IGNORED
        }
        outputs = tuple(self._named(name, scope) if name else "" for name in proto.output)
        version = self._versions.get(domain, 1)
        return Node(proto.op_type, domain, version, inputs, outputs, attributes, proto.name)

    def _constant(self, proto: onnx.NodeProto, scope: ChainMap[str, str]) -> bool:
        """Enter a constant's tensor; return whether it is one."""
        import onnx

        (attribute,) = proto.attribute[:1] or (None,)
        if attribute is None or len(proto.output) != 1:
            return False
        dtype = _SCALARS.get(attribute.name)
        if attribute.name != "value" and dtype is None:
            return False
        name = self._named(proto.output[0], scope)
        self._in_nodes.add(name)
        if attribute.name == "value":
            self._enter(name, attribute.t)
        else:
            said: Any = onnx.helper.get_attribute_value(attribute)
            self._tensors[name] = torch.tensor(
                list(said) if attribute.name.endswith("s") else said, dtype=dtype
            )
        return True

    def _enter(self, name: str, proto: onnx.TensorProto) -> None:
        self._tensors[name] = tensor_from(proto, self._external, self._location)
        if is_narrow(proto):
            self._narrow.add(name)

    def _attribute(self, proto: onnx.AttributeProto, scope: ChainMap[str, str]) -> Any:
        kind = proto.AttributeType.Name(proto.type)
        if kind in _PLAIN:
            return _PLAIN[kind](proto)
        if kind == "GRAPH":
            return {"graph": self.graph(proto.g, scope)}
        if kind != "TENSOR":
            raise self._fault(f"the attribute {proto.name} is of kind {kind}")
        tensor = tensor_from(proto.t, self._external, self._location)
        if tensor.numel() > INLINE or not can_be_said(tensor):
            raise self._fault(f"the attribute {proto.name} is a large tensor")
        return {"tensor": to_json(tensor)}

    def _named(self, name: str, scope: MutableMapping[str, str]) -> str:
        """Enter a value in the scope under a name that no other has; return that."""
        free, count = name, 0
        while free in self._taken:
            count += 1
            free = f"{name}.{count}"
        self._taken.add(free)
        scope[name] = free
        return free

    def _used(self, name: str, scope: Mapping[str, str]) -> str:
        if not name:
            return ""
        if name not in scope:
            raise self._fault(f"{name!r} is used and made by nothing before it")
        return scope[name]

    def _fault(self, reason: str) -> PersistlibError:
        return error(Code.GRAPH_INVALID, self._location, reason, _REMEDY)


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _is_small(tensor: torch.Tensor, using: Iterable[tuple[Node, int]]) -> bool:
    """Return whether a tensor stands in the text; statistics never do, training moves them."""
    is_statistic = any((node.operator, position) in _STATISTICS for node, position in using)
    return tensor.numel() <= INLINE and can_be_said(tensor) and not is_statistic
