"""Intervals of figures that have no formula: what other draws of samples would have given.

Samples are drawn with replacement, as many as there are, over and over (Efron's bootstrap). Samples
that count alike are one kind, and a draw is how often each kind came: drawing these counts at once
is the same as drawing samples one by one. A figure is a function of the counts, computed for
many draws together.

Bounds are those of BCa (bias-corrected and accelerated: Efron, JASA 82, 1987, p. 171; DiCiccio and
Efron, Statistical Science 11, 1996, p. 189).

Laws: the same kinds, counts and seed give the same bounds, whatever order samples came in; an
interval holds the figure. A figure that no draw changes has no interval: resampling cannot tell how
seldom a mistake is that never occurred.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from persistlib.evaluation.intervals import DRAWS, LEVEL, QUANTILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from pydantic import JsonValue

    from persistlib.evaluation.intervals import Interval

    # Counts of the kinds (draws, kinds), whole numbers in float64, to figures (draws, figures),
    # NaN where one is not defined.
    Statistic: TypeAlias = Callable[[NDArray[np.float64]], NDArray[np.float64]]

SEED = 0
# What a manifest and a program are told of how the intervals came about.
METHOD: dict[str, JsonValue] = {"method": "BCa", "level": LEVEL, "draws": DRAWS, "seed": SEED}
_CELLS = 1 << 22  # counts that are held at once
_LEFT_OUT = 1000  # evaluations that tell the acceleration
_KINDS_DRAWN = 5  # samples that are drawn one by one in the time of one kind
_NORMAL = NormalDist()


def bootstrap(
    counts: NDArray[np.int64], statistic: Statistic, *, draws: int = DRAWS, seed: int = SEED
) -> tuple[Interval | None, ...]:
    """Return the interval of each figure; None where draws tell nothing.

    Args:
        counts: how many samples are of each kind, each at least one.
        statistic: the figures of many draws.
        draws: how many.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    found = statistic(counts[None].astype(np.float64))[0]
    if counts.sum() == 1:
        return (None,) * len(found)
    drawn = np.concatenate([statistic(block) for block in _drawn(counts, draws, generator)])
    weights, left_out = _left_out(counts, statistic, generator)
    return tuple(
        _interval(float(figure), drawn[:, place], weights, left_out[:, place])
        for place, figure in enumerate(found)
    )


def _interval(
    figure: float,
    drawn: NDArray[np.float64],
    weights: NDArray[np.float64],
    left_out: NDArray[np.float64],
) -> Interval | None:
    drawn = drawn[np.isfinite(drawn)]
    if not np.isfinite(figure) or not len(drawn) or drawn.min() == drawn.max():
        return None
    below = float(np.mean(drawn < figure) + np.mean(drawn == figure) / 2)
    edge = 0.5 / len(drawn)
    bias = _NORMAL.inv_cdf(min(max(below, edge), 1 - edge))
    acceleration = _acceleration(weights, left_out)
    shares: list[float] = []
    for quantile in (-QUANTILE, QUANTILE):
        moved = bias + quantile
        shares.append(_NORMAL.cdf(bias + moved / max(1 - acceleration * moved, 1e-9)))
    low, high = (float(bound) for bound in np.quantile(drawn, shares))
    return min(low, figure), max(high, figure)


def _acceleration(weights: NDArray[np.float64], left_out: NDArray[np.float64]) -> float:
    """Return how fast the spread of a figure changes with it, by the jackknife."""
    is_known = np.isfinite(left_out)
    weights, left_out = weights[is_known], left_out[is_known]
    if not len(left_out):
        return 0.0
    away = np.average(left_out, weights=weights) - left_out
    spread = float(np.sum(weights * away**2))
    return float(np.sum(weights * away**3)) / (6 * spread**1.5) if spread > 0 else 0.0


def _drawn(
    counts: NDArray[np.int64], draws: int, generator: np.random.Generator
) -> Iterator[NDArray[np.float64]]:
    """Yield draws, in blocks of (some, kinds)."""
    total, kinds = int(counts.sum()), len(counts)
    one_by_one = total < _KINDS_DRAWN * kinds
    samples = np.repeat(np.arange(kinds), counts) if one_by_one else counts
    step = max(1, _CELLS // (total if one_by_one else kinds))
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        if one_by_one:
            chosen = samples[generator.integers(total, size=(rows, total))]
            chosen += kinds * np.arange(rows)[:, None]
            times = np.bincount(chosen.ravel(), minlength=rows * kinds).reshape(rows, kinds)
        else:
            times = generator.multinomial(total, counts / total, size=rows)
        yield times.astype(np.float64)


def _left_out(
    counts: NDArray[np.int64], statistic: Statistic, generator: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how often each case of one sample less occurs, and the figures without it.

    Of very many kinds, samples are left out in as many groups as are tried, each drawn at random:
    the acceleration that follows is that of the samples themselves, up to chance.
    """
    kinds = len(counts)
    if kinds <= _LEFT_OUT:
        weights, less = counts.astype(np.float64), iter([counts - np.eye(kinds, dtype=np.int64)])
    else:
        weights, less = np.ones(_LEFT_OUT), _without_groups(counts, generator)
    return weights, np.concatenate([statistic(block.astype(np.float64)) for block in less])


def _without_groups(
    counts: NDArray[np.int64], generator: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield the counts without each group of samples, in blocks of (some, kinds)."""
    kinds = len(counts)
    groups = np.array_split(generator.permutation(np.repeat(np.arange(kinds), counts)), _LEFT_OUT)
    step = max(1, _CELLS // kinds)
    for start in range(0, _LEFT_OUT, step):
        block = groups[start : start + step]
        yield counts - np.array([np.bincount(group, minlength=kinds) for group in block])
