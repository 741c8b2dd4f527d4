"""A graph as plain JSON: nodes, small constants, and which tensor is which weight.

Laws: `parse(text(structure)) == structure`; what `parse` returns is bounded, every name in it is
made before it is used, and every graph stands in one node alone.

```text
{"version": 1,
 "graphs": [{"inputs": [name], "outputs": [name], "nodes": [node]}],
 "tensors": [{"value": name, "path": name, "dtype": dtype, "shape": [int], "role": role}],
 "constants": [{"value": name, "dtype": dtype, "shape": [int], "data": [number]}]}
node: {"op": name, "domain": name, "opset": int, "name": name, "in": [name], "out": [name],
       "attributes": {name: value}}
value: int, float, text, list, {"float": "inf"}, {"graph": int}, {"tensor": {dtype, shape, data}}
```

The first graph is the whole; others stand in attributes of nodes. A left-out input or output is "".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from persistlib.canonical import encode
from persistlib.canonical import parse as parse_json
from persistlib.errors import Code, PersistlibError, error

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = 1
SIZE_LIMIT = 32 << 20
NODES_LIMIT = 200_000
# Graphs inside graphs; each is a level of Python's own stack.
DEPTH_LIMIT = 32
INLINE = 16  # elements of a constant that stands in the text
PARAMETER, BUFFER = "parameter", "buffer"
_WHERE = "config"


@dataclass(frozen=True)
class Node:
    """One call of an operator.

    Attributes:
        operator: its name.
        domain: of the operator; "" for ONNX's own.
        version: of the operator set.
        inputs: names of values, "" for one that was left out.
        outputs: likewise.
        attributes: as JSON.
        name: what the file calls the node.
    """

    operator: str
    domain: str
    version: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True)
class Graph:
    """Nodes in the order in which they are run.

    Attributes:
        inputs: names of what it is given.
        outputs: names of what it gives.
        nodes: in order.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Weight:
    """A tensor of the state_dict.

    Attributes:
        value: its name in the graph.
        path: its name in the state_dict.
        dtype: torch's name of its dtype.
        shape: its extents.
        role: `PARAMETER` or `BUFFER`.
    """

    value: str
    path: str
    dtype: str
    shape: tuple[int, ...]
    role: str


@dataclass(frozen=True)
class Constant:
    """A small tensor that stands in the text.

    Attributes:
        value: its name in the graph.
        dtype: torch's name of its dtype.
        shape: its extents.
        data: its elements, row-major.
    """

    value: str
    dtype: str
    shape: tuple[int, ...]
    data: tuple[Any, ...]


@dataclass(frozen=True)
class Structure:
    """A whole graph without its weights.

    Attributes:
        graphs: the whole first, then those in attributes.
        weights: the tensors of the state_dict.
        constants: the others.
    """

    graphs: tuple[Graph, ...]
    weights: tuple[Weight, ...]
    constants: tuple[Constant, ...] = ()


def text(structure: Structure) -> str:
    """Return a structure as JSON in canonical form."""
    graphs = [
        {"inputs": list(g.inputs), "outputs": list(g.outputs), "nodes": [_node(n) for n in g.nodes]}
        for g in structure.graphs
    ]
    weights = [{**vars(weight), "shape": list(weight.shape)} for weight in structure.weights]
    constants = [
        {**vars(c), "shape": list(c.shape), "data": [number_to_json(n) for n in c.data]}
        for c in structure.constants
    ]
    whole = {"version": VERSION, "graphs": graphs, "tensors": weights, "constants": constants}
    return encode(whole).decode().rstrip("\n")


def _node(node: Node) -> dict[str, Any]:
    said: dict[str, Any] = {
        "op": node.operator,
        "domain": node.domain,
        "opset": node.version,
        "name": node.name,
        "in": list(node.inputs),
        "out": list(node.outputs),
        "attributes": dict(node.attributes),
    }
    return {key: value for key, value in said.items() if value or key == "out"}


def number_to_json(number: Any) -> Any:
    """Return a number as canonical JSON can say it."""
    if isinstance(number, float) and (not math.isfinite(number) or str(number) == "-0.0"):
        return {"float": repr(number)}
    return number


def number_from_json(said: Any) -> Any:
    """Return the number that `number_to_json` wrote.

    Raises:
        FormatError: it is none.
    """
    if isinstance(said, dict) and said.get("float") in {"inf", "-inf", "nan", "-0.0"}:
        return float(said["float"])
    if isinstance(said, (bool, int, float)):
        return said
    raise _fault("a number is expected")


def parse(said: str) -> Structure:
    """Return the structure that a text says, held to its laws.

    Raises:
        FormatError: it breaks one, or is larger than a well-meant one.
    """
    whole = parse_json(said.encode(), _WHERE, code=Code.GRAPH_INVALID, limit=SIZE_LIMIT)
    if whole.get("version") != VERSION:
        raise _fault(f"version {whole.get('version')!r}; this release reads {VERSION}")
    try:
        structure = Structure(
            graphs=tuple(_graph(graph) for graph in whole["graphs"]),
            weights=tuple(_weight(item) for item in whole["tensors"]),
            constants=tuple(constant(item) for item in whole["constants"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as fault:
        raise _fault(f"a field is missing or malformed: {fault}") from fault
    from persistlib.graph_modules.soundness import require_sound

    require_sound(structure)
    return structure


def _graph(said: Any) -> Graph:
    nodes = tuple(
        Node(
            operator=_text(node["op"]),
            domain=_text(node.get("domain", "")),
            version=_int(node["opset"]),
            inputs=_texts(node.get("in", [])),
            outputs=_texts(node["out"]),
            attributes=dict(node.get("attributes", {})),
            name=_text(node.get("name", "")),
        )
        for node in said["nodes"]
    )
    return Graph(_texts(said["inputs"]), _texts(said["outputs"]), nodes)


def _weight(said: Any) -> Weight:
    shape = tuple(_int(extent) for extent in said["shape"])
    value, path, dtype, role = (_text(said[key]) for key in ("value", "path", "dtype", "role"))
    return Weight(value, path, dtype, shape, role)


def constant(said: Any, value: str | None = None) -> Constant:
    """Return a small tensor of a text.

    Raises:
        FormatError: its elements do not fit its shape.
    """
    shape = tuple(_int(extent) for extent in said["shape"])
    data = tuple(number_from_json(number) for number in said["data"])
    if any(extent < 0 for extent in shape) or math.prod(shape) != len(data):
        raise _fault("a constant's elements do not fit its shape")
    name = _text(said["value"]) if value is None else value
    return Constant(name, _text(said["dtype"]), shape, data)


def _texts(said: Any) -> tuple[str, ...]:
    if not isinstance(said, list):
        raise _fault("a list of names is expected")
    return tuple(_text(item) for item in said)


def _text(said: Any) -> str:
    if not isinstance(said, str):
        raise _fault("a name is expected")
    return said


def _int(said: Any) -> int:
    if not isinstance(said, int) or isinstance(said, bool):
        raise _fault("a whole number is expected")
    return said


def _fault(reason: str) -> PersistlibError:
    return error(Code.GRAPH_INVALID, _WHERE, reason, "convert the graph again")
