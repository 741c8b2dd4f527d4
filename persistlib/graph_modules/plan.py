"""A structure made ready to be run: each node with its function, and when a value is last used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from persistlib.errors import Code, PersistlibError, error
from persistlib.graph_modules.operators import OPERATORS
from persistlib.graph_modules.registry import Call
from persistlib.graph_modules.soundness import inner_graphs
from persistlib.graph_modules.structure import constant, number_from_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from persistlib.graph_modules.registry import Operator
    from persistlib.graph_modules.structure import Constant, Graph, Node, Structure

_SHOWN = 8


@dataclass(frozen=True)
class Step:
    """One node, ready to be run.

    Attributes:
        operator: what computes it.
        call: with which attributes.
        inputs: names of values.
        outputs: names of values.
        dead: values that nothing uses afterwards.
    """

    operator: Operator
    call: Call
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dead: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """All graphs of a structure.

    Attributes:
        graphs: steps, inputs and outputs of each.
        constants: small tensors by value.
    """

    graphs: tuple[tuple[tuple[Step, ...], Graph], ...]
    constants: dict[str, torch.Tensor]


def plan(structure: Structure) -> Plan:
    """Return the plan of a structure.

    Raises:
        FormatError: it has operators that no torch function stands for.
    """
    require_operators(node for graph in structure.graphs for node in graph.nodes)
    graphs = tuple((_steps(structure, at), graph) for at, graph in enumerate(structure.graphs))
    return Plan(graphs, {c.value: tensor_of(c) for c in structure.constants})


def require_operators(nodes: Iterable[Node]) -> None:
    """Raise where an operator is not in the table.

    Raises:
        FormatError: naming the first such node, and how many other operators there are.
    """
    missing: dict[tuple[str, str], Node] = {}
    for node in nodes:
        if (node.domain, node.operator) not in OPERATORS:
            missing.setdefault((node.domain, node.operator), node)
    if not missing:
        return
    first, *others = missing.values()
    also = ", ".join(f"{n.domain or 'ai.onnx'}:{n.operator}" for n in others[:_SHOWN])
    more = f"; {len(others)} other operators are missing too: {also}" if others else ""
    raise error(
        Code.GRAPH_OPERATOR,
        location(first),
        f"no torch form of {first.domain or 'ai.onnx'}:{first.operator} "
        f"(operator set {first.version}){more}",
        "run the file with ONNX Runtime, or name its architecture (--architecture)",
    )


def location(node: Node) -> str:
    """Return what an error calls a node."""
    name = node.name or ", ".join(name for name in node.outputs if name)
    return f"{node.operator} {name}".strip()


def tensor_of(said: Constant) -> torch.Tensor:
    """Return a small tensor.

    Raises:
        FormatError: no dtype, or elements that it cannot hold.
    """
    dtype = dtype_of(said.dtype)
    try:
        return torch.tensor(said.data, dtype=dtype).reshape(said.shape)
    except (TypeError, ValueError, RuntimeError, OverflowError) as fault:
        raise _fault(f"{said.value}: {fault}") from fault


def dtype_of(name: str) -> torch.dtype:
    """Return torch's dtype of a name.

    Raises:
        FormatError: it has none.
    """
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise _fault(f"{name!r} is no dtype")
    return found


def _steps(structure: Structure, at: int) -> tuple[Step, ...]:
    graph = structure.graphs[at]
    last: dict[str, int] = {}
    for index, node in enumerate(graph.nodes):
        for name in (*node.inputs, *_used_inside(structure, node)):
            last[name] = index
    # Values of a graph inside the graph live until its outer node is done.
    is_whole = at == 0
    kept = set(graph.outputs)
    dead: dict[int, list[str]] = {}
    for name, index in last.items():
        if is_whole and name and name not in kept:
            dead.setdefault(index, []).append(name)
    return tuple(
        Step(
            OPERATORS[node.domain, node.operator],
            Call(node.operator, node.version, _attributes(node), node.outputs, location(node)),
            node.inputs,
            node.outputs,
            tuple(dead.get(index, ())),
        )
        for index, node in enumerate(graph.nodes)
    )


def _used_inside(structure: Structure, node: Node) -> set[str]:
    """Return what the graphs in a node's attributes use."""
    used: set[str] = set()
    waiting = list(inner_graphs(node))
    while waiting:
        graph = structure.graphs[waiting.pop()]
        used |= set(graph.outputs)
        for inner in graph.nodes:
            used |= set(inner.inputs)
            waiting += inner_graphs(inner)
    return used


def _attributes(node: Node) -> dict[str, Any]:
    return {name: _attribute(value) for name, value in node.attributes.items()}


def _attribute(said: Any) -> Any:
    if isinstance(said, dict):
        if "graph" in said:
            return said["graph"]
        if "tensor" in said:
            return tensor_of(constant(said["tensor"], "attribute"))
        return number_from_json(said)
    if isinstance(said, list):
        return [item if isinstance(item, str) else number_from_json(item) for item in said]
    return said if isinstance(said, str) else number_from_json(said)


def _fault(reason: str) -> PersistlibError:
    return error(Code.GRAPH_INVALID, "config", reason, "convert the graph again")
