"""How far two graphs agree where parts of one output have sizes of their own.

A detector's output holds coordinates in hundreds of pixels beside scores below 1. Measured by the
whole output's spread, or by a cosine of its rows, the scores may be lost and nothing shows. So of
each axis every index is scaled to its own size before the two are compared.

Law: `cosine` does not change when an index of the source's output and the derived one's are
multiplied by the same number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ONE = 1e-3  # how far the sum of a distribution may be from 1


@dataclass
class Columns:
    """What was seen of one output over every run.

    Attributes:
        sums: of each axis but the first, for each index: sums of products of both, of the source's
            own, of the derived one's own; None where the axis has not one extent, or its values are
            a distribution, which have one scale.
    """

    sums: dict[int, NDArray[np.float64] | None] = field(default_factory=dict)

    def add(self, one: NDArray[np.float64], other: NDArray[np.float64]) -> None:
        """Take in one run: the source's values, and the derived graph's of the same shape."""
        for axis in range(1, one.ndim):
            rest = tuple(index for index in range(one.ndim) if index != axis)
            found = np.stack(
                [(a * b).sum(rest) for a, b in ((one, other), (one, one), (other, other))]
            )
            known = self.sums.get(axis, np.zeros_like(found))
            fits = known is not None and known.shape == found.shape
            self.sums[axis] = known + found if fits and not _is_distribution(one, axis) else None

    @property
    def cosine(self) -> float | None:
        """The least cosine of an axis whose indices are scaled; None where there is none."""
        found = [_cosine(*sums) for sums in self.sums.values() if sums is not None]
        return min((cosine for cosine in found if cosine is not None), default=None)


def _cosine(both: Any, own: Any, other: Any) -> float | None:
    """Return the cosine of values that are scaled so that the source's indices are of one size."""
    told = own > 0
    if not told.any():
        return None
    product, square = (both[told] / own[told]).sum(), (other[told] / own[told]).sum()
    return float(product / math.sqrt(told.sum() * square)) if square else 0.0


def _is_distribution(values: NDArray[np.float64], axis: int) -> bool:
    return bool((values >= 0).all() and (np.abs(values.sum(axis) - 1) <= _ONE).all())
