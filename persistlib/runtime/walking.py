"""Every node and every graph of an ONNX model, those in the attributes of nodes among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import onnx


def nodes_within(*bodies: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of some bodies, the last body first, and those of the graphs within."""
    waiting = [*bodies]
    while waiting:
        for node in waiting.pop():
            yield node
            waiting.extend(graph.node for graph in _inner(node))


def graphs_within(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield the graph and every graph in its nodes' attributes."""
    waiting = [graph]
    while waiting:
        yield (current := waiting.pop())
        for node in current.node:
            waiting.extend(_inner(node))


def captured(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that the graphs in a node's attributes take from outside."""
    for graph in _inner(node):
        own = {value.name for value in graph.input}
        own |= {tensor.name for tensor in graph.initializer}
        own |= {name for inner in graph.node for name in inner.output}
        read = [value.name for value in graph.output]
        for inner in graph.node:
            read += [*inner.input, *captured(inner)]
        yield from (name for name in read if name and name not in own)


def _inner(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs in a node's own attributes; an absent one is empty."""
    for attribute in node.attribute:
        yield from (attribute.g, *attribute.graphs)
