"""Nodes in an order in which each stands behind what it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx


def in_order(nodes: Sequence[onnx.NodeProto], known: set[str]) -> Iterator[onnx.NodeProto]:
    """Yield nodes in the file's order, each put off until its inputs are there.

    What is never there is yielded at the end. `known` grows while this is read: whoever reads adds
    what the last node puts out.
    """
    made = {name for node in nodes for name in node.output if name}
    waiting: dict[str, list[int]] = {}
    missing: dict[int, int] = {}
    for start, first in enumerate(nodes):
        lacks = {n for n in first.input if n and n not in known and n in made}
        if lacks:
            missing[start] = len(lacks)
            for name in lacks:
                waiting.setdefault(name, []).append(start)
            continue
        ready = [start]
        while ready:
            node = nodes[ready.pop()]
            yield node
            for name in node.output:
                for place in waiting.pop(name, ()):
                    missing[place] -= 1
                    if not missing[place]:
                        del missing[place]
                        ready.append(place)
    yield from (nodes[place] for place in missing)
