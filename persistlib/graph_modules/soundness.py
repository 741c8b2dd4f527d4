"""What a structure must be before anything is made of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from persistlib.errors import Code, PersistlibError, error
from persistlib.graph_modules.structure import (
    BUFFER,
    DEPTH_LIMIT,
    NODES_LIMIT,
    PARAMETER,
    Node,
    Structure,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATH = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", re.ASCII)
_PARTS = 64
_RANK = 64


def require_sound(structure: Structure) -> None:
    """Raise where a structure is not sound.

    Raises:
        FormatError: too many nodes, names that are unknown or stand twice, graphs that are nowhere
            or in two places, tensors that cannot be.
    """
    if not structure.graphs:
        raise _fault("no graph")
    if sum(len(graph.nodes) for graph in structure.graphs) > NODES_LIMIT:
        raise error(
            Code.FORMAT_LIMIT, "config", f"more than {NODES_LIMIT} nodes", "use a smaller one"
        )
    for weight in structure.weights:
        if not _PATH.fullmatch(weight.path) or weight.path.count(".") > _PARTS:
            raise _fault(f"{weight.path!r} is no path of a tensor")
        if weight.role not in {PARAMETER, BUFFER} or len(weight.shape) > _RANK:
            raise _fault(f"{weight.path}: no tensor that a module can have")
        if any(extent < 0 for extent in weight.shape):
            raise _fault(f"{weight.path}: a negative extent")
    known: dict[str, tuple[object, ...]] = {}
    for weight in structure.weights:
        said = (weight.dtype, weight.shape, weight.role)
        if known.setdefault(weight.path, said) != said:
            raise _fault(f"{weight.path}: two tensors in one place")
    values = [w.value for w in structure.weights] + [c.value for c in structure.constants]
    if len(set(values)) != len(values):
        raise _fault("a value's name stands twice")
    _require_tree(structure)
    _require_order(structure, frozenset(values))


def inner_graphs(node: Node) -> Iterator[int]:
    """Yield the numbers of the graphs in a node's attributes."""
    for value in node.attributes.values():
        if isinstance(value, dict) and "graph" in value:
            number = value["graph"]
            if not isinstance(number, int) or isinstance(number, bool):
                raise _fault("a graph's number is expected")
            yield number


def _require_tree(structure: Structure) -> None:
    """Raise where a graph stands in two nodes, in none, inside itself, or too deep."""
    depths = {0: 0}
    for index, graph in enumerate(structure.graphs):
        for node in graph.nodes:
            for inner in inner_graphs(node):
                is_known = index < inner < len(structure.graphs) and index in depths
                if not is_known or inner in depths:
                    raise _fault(f"graph {inner} stands where it cannot")
                depths[inner] = depths[index] + 1
    if len(depths) != len(structure.graphs) or max(depths.values()) > DEPTH_LIMIT:
        raise _fault(f"graphs that stand nowhere, or inside each other deeper than {DEPTH_LIMIT}")


def _require_order(structure: Structure, known: frozenset[str]) -> None:
    """Raise where a value is used before it is made, or is made twice."""
    made = set(known)

    def visit(index: int) -> None:
        graph = structure.graphs[index]
        own = list(graph.inputs)
        made.update(own)
        for node in graph.nodes:
            for name in node.inputs:
                if name and name not in made:
                    raise _fault(f"{node.operator} uses {name!r}, which nothing makes before it")
            for inner in inner_graphs(node):
                visit(inner)
            own += node.outputs
            made.update(node.outputs)
        for name in graph.outputs:
            if name not in made:
                raise _fault(f"the output {name!r} is made by nothing")
        made.difference_update(own)

    visit(0)


def _fault(reason: str) -> PersistlibError:
    return error(Code.GRAPH_INVALID, "config", reason, "convert the graph again")
