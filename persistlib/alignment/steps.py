"""Multiplying and adding one number a channel: what stands behind an operator, on either side.

Law: a chain of such steps is one factor and one summand a channel (`affine`), whichever steps
exporters merged, split, or turned into BatchNorm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

ADD, SUBTRACT, MULTIPLY, DIVIDE, NORMALISE = "add", "subtract", "multiply", "divide", "normalise"


@dataclass(frozen=True, slots=True)
class Constants:
    """A step with its numbers.

    Attributes:
        kind: one of this module's words.
        arrays: one array; of `NORMALISE` weight, bias, mean and variance.
        epsilon: of `NORMALISE`.
    """

    kind: str
    arrays: tuple[NDArray[Any], ...]
    epsilon: float = 0.0

    @property
    def size(self) -> int:
        """How many numbers it has, one a channel, or 1 for all."""
        return int(self.arrays[0].size)


def affine(steps: Iterable[Constants], size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return factor and summand of a chain, float64 of shape (size,)."""
    factor, summand = np.ones(size), np.zeros(size)
    for step in steps:
        flat = [array.astype(np.float64).reshape(-1) for array in step.arrays]
        if step.kind == ADD:
            summand = summand + flat[0]
        elif step.kind == SUBTRACT:
            summand = summand - flat[0]
        elif step.kind == MULTIPLY:
            factor, summand = factor * flat[0], summand * flat[0]
        elif step.kind == DIVIDE:
            factor, summand = factor / flat[0], summand / flat[0]
        else:
            weight, bias, mean, variance = flat
            scale = weight / np.sqrt(variance + step.epsilon)
            factor, summand = factor * scale, (summand - mean) * scale + bias
    return factor, summand
