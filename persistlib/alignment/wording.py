"""What is said where two graphs part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.errors import Code, PersistlibError, error

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from persistlib.alignment.foreign import Block
    from persistlib.alignment.graph_side import GraphSide
    from persistlib.alignment.own import OwnBlock, Skeleton
    from persistlib.alignment.tape import Op

_SHOWN = 3
_REMEDY = (
    "name the architecture that the file was exported from, with its arguments; or leave the"
    " architecture out, and the graph itself becomes the module"
)


def unsupported(op: Op, skeleton: Skeleton) -> PersistlibError:
    """Return the error for an operator that takes weights in a way that is not paired."""
    names = sorted(_weights(op.inputs, skeleton))
    reason = f"{op.name} takes {', '.join(names[:_SHOWN])}, and such operators are not paired"
    return error(Code.GRAPH_UNPAIRED, "architecture", reason, _REMEDY)


def unpaired(
    block: OwnBlock,
    skeleton: Skeleton,
    graph: GraphSide,
    used: Collection[int | tuple[int, int]],
    partners: Mapping[int, int],
) -> PersistlibError:
    """Return the error for the first operator that has no partner, with both neighbourhoods."""
    before = sorted(_before(block, skeleton))
    behind = f" after {', '.join(before[-_SHOWN:])}" if before else ", the first"
    next_ones = [_shown(other, graph) for other in _frontier(graph, used, partners)]
    there = "; ".join(next_ones[:_SHOWN]) or "no operator with weights"
    own = _described(block, skeleton)
    reason = f"{own}{behind} has no partner; there the file has {there}"
    return error(Code.GRAPH_UNPAIRED, own.partition(" ")[0], reason, _REMEDY)


def _described(block: OwnBlock, skeleton: Skeleton) -> str:
    refs = [*block.op.inputs, *(ref for step in block.chain for ref in step.op.inputs)]
    names = sorted(_weights(refs, skeleton), key=list(skeleton.tape.state).index)
    path = names[0].rpartition(".")[0] or names[0]
    shapes = [skeleton.shapes[name] for name in names[:1]]
    return f"{path} ({block.op.name} {'x'.join(map(str, shapes[0])) or 'scalar'})"


def _weights(refs: object, skeleton: Skeleton) -> set[str]:
    found: set[str] = set()
    for ref in refs:  # type: ignore[attr-defined]
        found |= skeleton.unknown.get(ref, frozenset())
    return found


def _before(block: OwnBlock, skeleton: Skeleton) -> Iterator[str]:
    """Yield the nearest operators with weights that a block's inputs come from."""
    waiting, seen = list(block.inputs), set[object]()
    while waiting:
        ref = waiting.pop()
        if ref in seen or ref in skeleton.fixed:
            continue
        seen.add(ref)
        op = skeleton.makers.get(ref)
        if op is None:
            continue
        names = _weights(op.inputs, skeleton)
        if names:
            name = min(names)
            yield name.rpartition(".")[0] or name
        else:
            waiting.extend(op.inputs)


def _frontier(
    graph: GraphSide, used: Collection[int | tuple[int, int]], partners: Mapping[int, int]
) -> Iterator[Block]:
    """Yield the blocks of a graph without partner that depend only on those that have one."""
    for other in graph.blocks:
        if other.index in used or not other.weight:
            continue
        if all(
            index in partners
            for index in range(other.above.bit_length())
            if other.above >> index & 1
        ):
            yield other


def _shown(block: Block, graph: GraphSide) -> str:
    weight = graph.arrays.get(block.weight)
    shape = "" if weight is None else f" {'x'.join(map(str, weight.shape))}"
    return f"{block.node.label}{shape} ({block.weight!r})"
