"""Inputs for a proof, drawn from the example inputs by a seed.

Whole numbers are taken from the example: what else they may be (a vocabulary's size, a class, a
length) nobody said. The random state is nobody's but ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from persistlib.errors import Code, error
from persistlib.examples import BATCH

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

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
    extents: Mapping[str, int],
    seed: Sequence[int],
) -> tuple[torch.Tensor, ...]:
    """Return one tensor for each example, of its dtype and, where an axis is not free, its extent.

    Args:
        examples: what the module is known to take.
        specs: which axes of them are free, and under which names.
        kind: `SPREAD`: floats from a normal distribution of the example's mean and deviation,
            other numbers of a row in random order. `CLOSE`: rows of the example in random order,
            floats changed by up to a tenth.
        extents: of the free axes by name; the example's where none is given.
        seed: any whole numbers.
    """
    generator = np.random.default_rng([number % (1 << 63) for number in seed])
    drawn: list[torch.Tensor] = []
    for example, spec in zip(examples, specs, strict=True):
        free = {
            axis: extents.get(name, example.shape[axis])
            for axis, name in enumerate(spec.shape)
            if isinstance(name, str)
        }
        count = free.pop(0, None)
        longer = _resized(example, free)
        rows = longer[None] if count is None else longer
        made = _rows(rows, 1 if count is None else count, kind, generator).to(example.dtype)
        drawn.append(made[0] if count is None else made)
    return tuple(drawn)


def extents_of_runs(
    examples: Sequence[torch.Tensor],
    specs: Sequence[TensorSpec],
    sizes: Sequence[int],
    attempt: Callable[[Mapping[str, int]], object],
) -> list[dict[str, int]]:
    """Return the extents of the free axes in each run of a proof, the batch first.

    The batch has one size after another, every other axis the example's extent and another one in
    turn. The batch is the axis so called; where none is, the first axis of the first input that has
    a free one there.

    Args:
        examples: what the module is known to take.
        specs: which axes of them are free, and under which names.
        sizes: of the batch.
        attempt: calls the module with inputs of some extents, and raises where it takes none such.

    Raises:
        ExportError: an axis that is to be free has one extent alone.
    """
    known = _known(examples, specs)
    batch, *free = known or ("",)
    pairs = {name: (known[name], _other(known, name, attempt)) for name in free}
    return [
        ({batch: sizes[index % len(sizes)]} if known else {})
        | {name: pair[index % _EXTENTS] for name, pair in pairs.items()}
        for index in range(max(len(sizes), _EXTENTS) if known else 1)
    ]


_EXTENTS = 2


def _known(examples: Sequence[torch.Tensor], specs: Sequence[TensorSpec]) -> dict[str, int]:
    """Return the free axes by name, the batch first, each with its extent in the examples."""
    found: dict[str, int] = {}
    leading: list[str] = []
    for example, spec in zip(examples, specs, strict=True):
        for axis, name in enumerate(spec.shape):
            if isinstance(name, str):
                found.setdefault(name, example.shape[axis])
                leading += [name] if axis == 0 else []
    batch = BATCH if BATCH in found else next(iter(leading), None)
    return {name: found[name] for name in sorted(found, key=lambda name: name != batch)}


def _other(
    known: Mapping[str, int], name: str, attempt: Callable[[Mapping[str, int]], object]
) -> int:
    """Return another extent that the module takes of an axis, the closest first."""
    extent = known[name]
    faults: list[Exception] = []
    for other in (extent + 1, extent - 1, 2 * extent, extent // 2, extent + 32, extent - 32):
        if other > 0 and other != extent:
            try:
                attempt({**known, name: other})
            except Exception as fault:  # noqa: BLE001 - a module may raise anything; it is told
                faults.append(fault)
            else:
                return other
    reason = f"the module takes it {extent} long alone: {faults[0]}"
    raise error(Code.EXPORT_FAILED, name, reason, "leave the axis fixed") from faults[0]


def _resized(example: torch.Tensor, extents: Mapping[int, int]) -> torch.Tensor:
    """Return an example of other extents: its front, or itself again from the start."""
    for axis, extent in extents.items():
        if extent != example.shape[axis]:
            places = torch.arange(extent) % max(example.shape[axis], 1)
            example = example.index_select(axis, places)
    return example


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
