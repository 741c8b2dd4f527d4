"""Inputs for a proof, drawn from the example inputs by a seed.

Whole numbers are taken from the example: what else they may be (a vocabulary's size, a class, a
length) nobody said. The random state is nobody's but ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from persistlib.manifest.schema import TensorSpec

# Ways to draw, the more telling first; the second stays so close to the examples that a module
# takes it whatever it asks of its inputs.
SPREAD, CLOSE = "spread", "close"
DRAWS = (SPREAD, CLOSE)
_JITTER = 0.1


def draw(
    examples: Sequence[torch.Tensor],
    specs: Sequence[TensorSpec],
    *,
    kind: str,
    size: int | None,
    seed: Sequence[int],
) -> tuple[torch.Tensor, ...]:
    """Return one tensor for each example, of its dtype and extents.

    Args:
        examples: what the module is known to take.
        specs: which of them have a free first axis.
        kind: `SPREAD`: floats from a normal distribution of the example's mean and deviation,
            other numbers of a row in random order. `CLOSE`: rows of the example in random order,
            floats changed by up to a tenth.
        size: extent of the free axes.
        seed: any whole numbers.
    """
    generator = np.random.default_rng([number % (1 << 63) for number in seed])
    drawn: list[torch.Tensor] = []
    for example, spec in zip(examples, specs, strict=True):
        is_free = bool(spec.shape) and isinstance(spec.shape[0], str)
        rows = example if is_free else example[None]
        count = size if is_free and size is not None else rows.shape[0]
        made = _rows(rows, count, kind, generator).to(example.dtype)
        drawn.append(made if is_free else made[0])
    return tuple(drawn)


def _rows(
    example: torch.Tensor, count: int, kind: str, generator: np.random.Generator
) -> torch.Tensor:
    """Return `count` rows like those of the example, with floats in double precision."""
    taken = example[torch.from_numpy(generator.integers(0, max(len(example), 1), count))]
    shape = tuple(taken.shape)
    if example.dtype.is_floating_point:
        if kind == SPREAD:
            centre, deviation = _moments(example)
            return torch.from_numpy(centre + deviation * generator.standard_normal(shape))
        return taken.double() * torch.from_numpy(1 + _JITTER * generator.uniform(-1, 1, shape))
    if kind == SPREAD:
        flat: NDArray[Any] = taken.reshape(count, -1).numpy()
        return torch.from_numpy(generator.permuted(flat, axis=1)).reshape(shape)
    return taken


def _moments(example: torch.Tensor) -> tuple[float, float]:
    """Return mean and deviation of an example; a deviation of 1 for one that tells none."""
    values = example.double().flatten()
    if not values.numel():
        return 0.0, 1.0
    return float(values.mean()), float(values.std(correction=0)) or 1.0
