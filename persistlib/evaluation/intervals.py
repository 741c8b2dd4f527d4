"""Intervals of shares, at 95 %, each from its counts alone.

Laws: an interval lies within what the figure can be, holds the figure, and is never a point: what
was right every time in a few trials is not known to be right always.
"""

from __future__ import annotations

import math
from typing import TypeAlias

Interval: TypeAlias = tuple[float, float]

LEVEL = 0.95
# Of the samples, where counts alone do not tell: see `bootstrap`.
DRAWS = 2000
# The normal quantile of a two-sided 95 % interval.
QUANTILE = 1.959963984540054
_HALVINGS = 60  # of a length of at most 2: beyond what a float can tell apart


def wilson(right: int, count: int) -> Interval:
    """Return the interval of a share, from `right` of `count` (Wilson, 1927)."""
    share, z2 = right / count, QUANTILE**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    half *= QUANTILE
    # Rounding must not put the share itself outside.
    return max(min(middle - half, share), 0.0), min(max(middle + half, share), 1.0)


def share_interval(right: int, count: int) -> Interval | None:
    """Return Wilson's interval, or None for a share of nothing."""
    return wilson(right, count) if count else None


def f1_interval(right: int, union: int) -> Interval | None:
    """Return the interval of F1, or None where it is not defined.

    F1 is 2 J / (1 + J), where J, Jaccard's index, is the share `right / union`: its interval is
    Wilson's, and F1 grows with it.

    Args:
        right: samples of the class that were named so.
        union: samples that are of the class, or were named so, or both.
    """
    if not union:
        return None
    low, high = (2 * bound / (1 + bound) for bound in wilson(right, union))
    return low, high


def paired_interval(gained: int, lost: int, count: int) -> Interval:
    """Return the interval of the difference of two shares of the same samples.

    Tango's score interval (Statistics in Medicine 17, 1998, p. 891), which Fagerland, Lydersen and
    Laake recommend (Statistics in Medicine 33, 2014, p. 2850). Samples on which both agree count
    only in `count`.

    Args:
        gained: samples that the first alone has right.
        lost: samples that the second alone has right.
        count: all samples, at least one.

    Returns:
        Bounds of (gained - lost) / count, from -1 to 1.
    """
    found = (gained - lost) / count
    low = _bound(gained, lost, count, found, -1.0)
    high = _bound(gained, lost, count, found, 1.0)
    return low, high


def _bound(gained: int, lost: int, count: int, inside: float, outside: float) -> float:
    """Return where the score leaves the quantile, on the way from the figure to an end."""
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        if abs(_score(gained, lost, count, middle)) <= QUANTILE:
            inside = middle
        else:
            outside = middle
    return inside


def _score(gained: int, lost: int, count: int, difference: float) -> float:
    """Return how many standard deviations the counts lie from a difference of the shares."""
    # The likeliest share of what was lost, given the difference: a root of a x^2 + b x + c.
    a = 2 * count
    b = (2 * count - gained + lost) * difference - gained - lost
    c = -lost * difference * (1 - difference)
    share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = count * (2 * share + difference * (1 - difference))
    distance = gained - lost - count * difference
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)
