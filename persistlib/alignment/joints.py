"""Partners that are no single operator: a tensor put beside values, a matrix in parts."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from persistlib.alignment import steps
from persistlib.alignment.foreign import CONVOLUTION, JOINING, PRODUCT
from persistlib.alignment.solving import Write, solve
from persistlib.alignment.steps import Constants
from persistlib.alignment.tape import Ref
from persistlib.alignment.values import NEAR, distance

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from persistlib.alignment.foreign import Block
    from persistlib.alignment.graph_side import GraphSide
    from persistlib.alignment.own import OwnBlock, Skeleton
    from persistlib.alignment.pairing import Option, Progress


def normalised(block: OwnBlock, value: torch.Tensor) -> torch.Tensor:
    """Return what a norm makes of a value before its weight and bias."""
    from persistlib.alignment.own import NORMS

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
    from persistlib.alignment.pairing import Option

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
            yield Option((other,), writes, graph.arrays[other.node.outputs[0]])


def split(
    block: OwnBlock, skeleton: Skeleton, graph: GraphSide, progress: Progress
) -> Iterator[Option]:
    """Yield the ways to read a module's matrix from several in the graph, or from a part of one."""
    return iter(())
