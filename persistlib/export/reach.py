"""Outputs of a graph that its inputs cannot change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.runtime.walking import captured

if TYPE_CHECKING:
    import onnx


def out_of_reach(graph: onnx.GraphProto) -> frozenset[str]:
    """Return the outputs that no way through the graph leads to from an input.

    Args:
        graph: its nodes in the order of their use, as ONNX has it.
    """
    reached = {value.name for value in graph.input}
    for node in graph.node:
        if not reached.isdisjoint((*node.input, *captured(node))):
            reached.update(name for name in node.output if name)
    return frozenset(value.name for value in graph.output if value.name not in reached)
