"""Whether two models are right equally often on the same samples: McNemar's test, exact.

Samples on which both are right, or both wrong, say nothing of which is better. Of the others either
half would be the first's by chance alone: the counts are held against a fair coin.

Laws: the p-value is the same whichever model comes first, in whatever order samples come, and
however many samples both have right or both have wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from persistlib.evaluation.intervals import paired_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from pydantic import JsonValue

    from persistlib.evaluation.intervals import Interval


@dataclass(frozen=True, slots=True)
class Pairs:
    """How often two models are right on the same samples.

    Attributes:
        both: samples that both have right.
        first: that the first alone has right.
        second: that the second alone has right.
        neither: that both have wrong.
    """

    both: int
    first: int
    second: int
    neither: int

    @classmethod
    def of(cls, first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Pairs:
        """Count from who is right on each sample."""
        counts = (first & second, first & ~second, ~first & second, ~first & ~second)
        return cls(*(int(np.count_nonzero(found)) for found in counts))

    @property
    def count(self) -> int:
        """All samples."""
        return self.both + self.first + self.second + self.neither

    @property
    def difference(self) -> float:
        """The first's share of right answers less the second's."""
        return (self.first - self.second) / self.count

    @property
    def interval(self) -> Interval:
        """Tango's interval of the difference."""
        return paired_interval(self.first, self.second, self.count)

    @property
    def p_value(self) -> float | None:
        """McNemar's exact p-value, two-sided (Psychometrika 12, 1947, p. 153).

        None where both are right on the same samples: there is no difference to test.
        """
        if not self.first + self.second:
            return None
        return min(1.0, 2 * self._at_most(min(self.first, self.second)))

    @property
    def mid_p(self) -> float | None:
        """The mid-p-value, which is less cautious: half of what was seen counts against chance.

        Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13:91, 2013.
        """
        if not self.first + self.second:
            return None
        least = min(self.first, self.second)
        return min(1.0, self._at_most(least) + self._at_most(least - 1))

    def _at_most(self, times: int) -> float:
        """Return how likely a fair coin falls on one side so seldom."""
        from scipy.special import bdtr

        return float(bdtr(times, self.first + self.second, 0.5)) if times >= 0 else 0.0

    def to_dict(self) -> dict[str, JsonValue]:
        """Return counts, difference and test as plain JSON."""
        return {
            "both": self.both,
            "first": self.first,
            "second": self.second,
            "neither": self.neither,
            "difference": self.difference,
            "interval": [*self.interval],
            "p_value": self.p_value,
            "mid_p": self.mid_p,
        }


def holm(p_values: Sequence[float | None]) -> tuple[float | None, ...]:
    """Return p-values that allow for how many tests there are.

    Holm, Scandinavian Journal of Statistics 6, 1979, p. 65: the chance that any of them is taken
    for a difference where there is none stays below the level that each is held to.

    Args:
        p_values: None where nothing was tested, which stays so and does not count.
    """
    tested = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(tested):
        highest = max(highest, min(1.0, p * (len(tested) - rank)))
        adjusted[place] = highest
    return tuple(adjusted)
