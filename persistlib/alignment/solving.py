"""A module's tensors from a graph's constants, copied, or an equivalent where steps differ.

Law: the steps that are returned have the factor and the summand of the graph's chain
(`steps.affine`), to rounding. A BatchNorm that an exporter folded away becomes one that adds what
was folded and multiplies by one: mean 0, variance `1 - epsilon`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from persistlib.alignment import steps
from persistlib.alignment.foreign import CONVOLUTION, PRODUCT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from persistlib.alignment.own import OwnBlock, OwnStep
    from persistlib.alignment.steps import Constants
    from persistlib.alignment.tape import Ref

    Array = NDArray[Any]

_SCALES = frozenset({steps.NORMALISE, steps.MULTIPLY, steps.DIVIDE})
_SHIFTS = frozenset({steps.NORMALISE, steps.ADD, steps.SUBTRACT})
_WEIGHT, _BIAS, _MEAN, _VARIANCE = range(4)
_EPSILONS = 1e-6  # relative; a file holds epsilon as float32
_MATRIX = 2


class Write(NamedTuple):
    """A value to be written: where, what, and whether it is the graph's own numbers."""

    ref: Ref
    array: Array
    is_exact: bool


def weight_for(own: OwnBlock, shape: Sequence[int], kind: str, array: Array) -> Array | None:
    """Return a graph's weight in the axes and the shape of a module's, None where it cannot be.

    Args:
        own: the module's operator.
        shape: of its weight.
        kind: of the graph's operator.
        array: its weight; of a product the matrix with inputs first.
    """
    if own.kind == kind == PRODUCT and len(shape) > _MATRIX:  # the same matrix for a whole batch
        return np.broadcast_to(array, shape) if shape[1:] == array.shape else None
    if own.kind == PRODUCT and kind == CONVOLUTION:
        if any(extent != 1 for extent in array.shape[2:]):
            return None
        array = array.reshape(array.shape[:2]).T
    elif own.kind == CONVOLUTION and kind == PRODUCT:
        array = array.T
    elif own.kind != kind:
        return None
    if tuple(shape) == array.shape:
        return array
    if own.kind == CONVOLUTION and tuple(shape[:2]) == array.shape[:2]:
        trimmed = [[e for e in extents[2:] if e != 1] for extents in (shape, array.shape)]
        return array.reshape(shape) if trimmed[0] == trimmed[1] else None
    return None


def solve(
    own: OwnBlock,
    shape_of: Callable[[Ref], tuple[int, ...]],
    weight: Array | None,
    chain: Sequence[Constants],
) -> list[Write] | None:
    """Return what to write so that a module's operator does what a graph's does.

    Args:
        own: the module's operator.
        shape_of: shape of a value on the tape.
        weight: for the operator, as `weight_for` gives it.
        chain: the graph's steps.

    Returns:
        The writes; None where the module's steps cannot say what the graph's do.
    """
    copied = _copied(own, shape_of, chain)
    if copied is not None:
        first = [] if own.weight is None or weight is None else [Write(own.weight, weight, True)]
        return first + copied
    return _equivalent(own, shape_of, weight, chain)


def _copied(
    own: OwnBlock, shape_of: Callable[[Ref], tuple[int, ...]], chain: Sequence[Constants]
) -> list[Write] | None:
    """Return the writes where both sides have the same steps, one by one."""
    if [step.kind for step in own.chain] != [step.kind for step in chain]:
        return None
    writes: list[Write] = []
    for step, given in zip(own.chain, chain, strict=True):
        if abs(step.epsilon - given.epsilon) > _EPSILONS * abs(step.epsilon):
            return None
        for place, (ref, array) in enumerate(zip(step.numbers, given.arrays, strict=True)):
            if ref is None:
                neutral = 1.0 if place in {_WEIGHT, _VARIANCE} else 0.0
                if not np.all(array == neutral):
                    return None
                continue
            shape = shape_of(ref)
            if array.size == np.prod(shape, dtype=np.int64):
                writes.append(Write(ref, array.reshape(shape), True))
            elif array.size == 1:
                writes.append(Write(ref, np.broadcast_to(array.reshape(()), shape), False))
            elif _spreads(array.shape, shape):
                writes.append(Write(ref, np.broadcast_to(array, shape), True))
            else:
                return None
    return writes


def _spreads(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


def _equivalent(
    own: OwnBlock,
    shape_of: Callable[[Ref], tuple[int, ...]],
    weight: Array | None,
    chain: Sequence[Constants],
) -> list[Write] | None:
    """Return the writes that give a chain's factor and summand by the module's own steps."""
    shapes = [shape_of(ref) for step in own.chain for ref in step.numbers if ref is not None]
    sizes = {int(np.prod(shape, dtype=np.int64)) for shape in shapes}
    size = sizes.pop() if len(sizes) == 1 else _outputs(own, weight)
    if sizes or size is None or any(step.size not in {1, size} for step in chain):
        return None
    factor, summand = steps.affine(chain, size)
    scaling = _last(own.chain, _SCALES, _WEIGHT)
    shifting = _last(own.chain, _SHIFTS, _BIAS)
    is_scaled = bool(np.any(factor != 1))
    if shifting is None and np.any(summand != 0):
        return None
    if is_scaled and scaling is None:
        if weight is None or (scaled := _scaled(own, weight, factor)) is None:
            return None
        weight, factor = scaled, np.ones_like(factor)
    if scaling is not None and shifting is not None and scaling > shifting:
        if np.any(factor == 0):
            return None
        summand = summand / factor
    is_exact = not is_scaled and not any(step.kind in _SCALES for step in own.chain)
    writes = [] if own.weight is None or weight is None else [Write(own.weight, weight, is_exact)]
    for index, step in enumerate(own.chain):
        scale = factor if index == scaling else np.ones(size)
        shift = summand if index == shifting else np.zeros(size)
        writes += _numbers(step, shape_of, scale, shift)
    return writes


def _outputs(own: OwnBlock, weight: Array | None) -> int | None:
    """Return how many channels an operator without steps gives."""
    if weight is None or own.kind not in {CONVOLUTION, PRODUCT}:
        return None
    return int(weight.shape[_axis(own)])


def _axis(own: OwnBlock) -> int:
    """Return the axis of a weight that has an entry for each output channel."""
    is_transposed = own.kind == CONVOLUTION and bool(own.op.args[6])
    return 1 if is_transposed else (0 if own.kind == CONVOLUTION else -1)


def _scaled(own: OwnBlock, weight: Array, factor: Array) -> Array | None:
    if own.kind not in {CONVOLUTION, PRODUCT} or weight.shape[_axis(own)] != factor.size:
        return None
    shape = [1] * weight.ndim
    shape[_axis(own)] = -1
    scaled: Array = (weight.astype(np.float64) * factor.reshape(shape)).astype(weight.dtype)
    return scaled


def _last(chain: Sequence[OwnStep], kinds: frozenset[str], place: int) -> int | None:
    """Return the last step of some kinds that has a number there."""
    found = [
        index
        for index, step in enumerate(chain)
        if step.kind in kinds and (step.kind != steps.NORMALISE or step.numbers[place] is not None)
    ]
    return found[-1] if found else None


def _numbers(
    step: OwnStep, shape_of: Callable[[Ref], tuple[int, ...]], scale: Array, shift: Array
) -> list[Write]:
    """Return a step that multiplies and adds; it does one of both unless it normalises."""
    if step.kind == steps.NORMALISE:
        zeros, ones = np.zeros(scale.size), np.ones(scale.size)
        arrays = [scale, shift, zeros, ones - step.epsilon]
    elif step.kind in {steps.ADD, steps.SUBTRACT}:
        arrays = [shift if step.kind == steps.ADD else -shift]
    else:
        arrays = [scale if step.kind == steps.MULTIPLY else 1 / scale]
    pairs = zip(step.numbers, arrays, strict=True)
    return [Write(ref, a.reshape(shape_of(ref)), False) for ref, a in pairs if ref is not None]
