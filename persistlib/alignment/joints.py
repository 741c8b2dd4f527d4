"""Partners that are no single operator: a tensor put beside values, a matrix in parts."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from persistlib.alignment import steps
from persistlib.alignment.foreign import JOINING, PRODUCT
from persistlib.alignment.own import NORMS
from persistlib.alignment.progress import Option
from persistlib.alignment.solving import Write, solve
from persistlib.alignment.steps import Constants
from persistlib.alignment.values import NEAR, distance

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from persistlib.alignment.foreign import Block
    from persistlib.alignment.graph_side import GraphSide
    from persistlib.alignment.own import OwnBlock, Skeleton
    from persistlib.alignment.progress import Progress


def normalised(block: OwnBlock, value: torch.Tensor) -> torch.Tensor:
    """Return what a norm makes of a value before its weight and bias."""
    plain = list(block.op.args)
    for place in NORMS[block.op.name]:
        if place >= 0:
            plain[place] = None
    plain[0] = value
    with torch.no_grad():
        result = block.op.function(*plain, **block.op.kwargs)
    found: torch.Tensor = result[0] if isinstance(result, tuple) else result
    return found


def reshaped(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any] | None:
    """Return an array in a shape, None where it has another number of elements."""
    return array.reshape(shape) if array.size == np.prod(shape, dtype=np.int64) else None


def options(
    block: OwnBlock, skeleton: Skeleton, graph: GraphSide, progress: Progress
) -> Iterator[Option]:
    """Yield the places of a graph that put constants beside values as an operator does."""
    for other in graph.blocks:
        if other.kind != JOINING or other.index in progress.used:
            continue
        if len(other.inputs) != len(block.inputs):
            continue
        writes: list[Write] = []
        for ref, name in zip(block.inputs, other.inputs, strict=True):
            theirs = graph.arrays.get(name)
            if theirs is None:
                break
            if skeleton.is_weight(ref):
                array = reshaped(theirs, progress.state.shape(ref))
                if array is None:
                    break
                writes.append(Write(ref, array, True))
            elif distance(progress.replay.values[ref].numpy(), theirs) > NEAR:
                break
        else:
            marks = frozenset({other.index})
            yield Option((other,), marks, writes, graph.arrays[other.node.outputs[0]])


def split(block: OwnBlock, graph: GraphSide, progress: Progress) -> Iterator[Option]:
    """Yield the ways to read a module's matrix from several in the graph, or from a part of one.

    Attention keeps query, key and value in one matrix or in three.
    """
    if block.kind != PRODUCT or block.weight is None:
        return
    shape = progress.state.shape(block.weight)
    ours = progress.replay.values[block.inputs[0]].numpy()
    near: dict[str, list[Block]] = {}
    for other in graph.blocks:
        weight = graph.weight(other) if other.kind == PRODUCT else None
        theirs = graph.arrays.get(other.inputs[0])
        if weight is None or theirs is None or weight.shape[0] != shape[0]:
            continue
        if other.index not in progress.used and distance(ours, theirs) <= NEAR:
            near.setdefault(graph.network.root(other.inputs[0]), []).append(other)
    for group in near.values():
        yield from _joined(block, group, shape, graph, progress)
        for other in group:
            yield from _cut(block, other, shape, graph, progress)


def _joined(
    block: OwnBlock,
    group: list[Block],
    shape: tuple[int, ...],
    graph: GraphSide,
    progress: Progress,
) -> Iterator[Option]:
    """Yield the orders in which several matrices on one input make one."""
    widths = [graph.outputs(other) for other in group]
    if not 1 < len(group) <= _PARTS or sum(widths) != shape[1]:
        return
    count = len(block.chain)
    if any(len(other.chain) < count for other in group):
        return
    for parts in permutations(group):
        weight = np.concatenate([graph.matrix(other) for other in parts], axis=1)
        chains = [graph.constants(other.chain[:count]) or [] for other in parts]
        results = [graph.after(other, count) for other in parts]
        chain = _beside(chains)
        if chain is None or any(result is None for result in results):
            return
        expected = np.concatenate([r for r in results if r is not None], axis=-1)
        writes = solve(block, progress.state.shape, weight, chain)
        if writes is not None:
            marks = frozenset(other.index for other in parts)
            yield Option(parts, marks, writes, expected)


def _beside(chains: list[list[Constants]]) -> list[Constants] | None:
    """Return several chains of the same steps as one over all their channels."""
    joined: list[Constants] = []
    for row in zip(*chains, strict=True):
        if len({step.kind for step in row}) != 1 or row[0].kind == steps.NORMALISE:
            return None
        arrays = np.concatenate([step.arrays[0].reshape(-1) for step in row])
        joined.append(Constants(row[0].kind, (arrays,)))
    return joined


def _cut(
    block: OwnBlock,
    other: Block,
    shape: tuple[int, ...],
    graph: GraphSide,
    progress: Progress,
) -> Iterator[Option]:
    """Yield the equal parts of a wider matrix that have the size of the module's."""
    width, count = shape[1], len(block.chain)
    matrix, result = graph.matrix(other), graph.after(other, count)
    chain = graph.constants(other.chain[:count])
    if result is None or chain is None or matrix.shape[1] <= width or matrix.shape[1] % width:
        return
    if any(step.size != matrix.shape[1] or step.kind == steps.NORMALISE for step in chain):
        return
    for number in range(matrix.shape[1] // width):
        mark = (other.index, number)
        part = slice(number * width, (number + 1) * width)
        cut = [Constants(s.kind, (s.arrays[0].reshape(-1)[part],)) for s in chain]
        writes = solve(block, progress.state.shape, matrix[:, part], cut)
        if mark not in progress.used and writes is not None:
            yield Option((other,), frozenset({mark}), writes, result[..., part])


_PARTS = 4  # matrices that are tried as one, in every order
