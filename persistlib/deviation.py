"""How far the values of two tensors of one shape lie apart.

Law: `deviation(x, x)` is nothing, and integers are compared as integers, never as doubles.

Floating-point values are compared as doubles, which hold every smaller one exactly. A pair of which
one is NaN or infinite is counted and has no part in the distances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np

# Elements that are compared at a time: their doubles fill 64 kB, which malloc does not give back to
# the system each time (twice as many take twice the time).
COUNT = 1 << 13
# Integers of so many bytes are doubles without loss.
_EXACT_BYTES = 4
_LEAST = 5e-324


@dataclass(frozen=True)
class Deviation:
    """How far two tensors lie apart.

    Attributes:
        differing: elements whose values differ, NaN beside a number among them.
        bits: elements of equal value whose bits differ: the sign of zero, another NaN.
        nan: differing elements that are NaN on one side.
        infinite: differing elements that are infinite, none of them NaN.
        absolute: the largest absolute difference of finite elements; exact for integers.
        relative: the largest difference relative to the larger of the two, from 0 to 2.
        change: the norm of the difference relative to that of the first tensor; None where that is
            zero or beyond a double.
        cosine: of the angle between the two as vectors; None as for `change`, of either.
        at: the index of the largest absolute difference, or of the first differing element where no
            finite ones differ; None where none does.
    """

    differing: int = 0
    bits: int = 0
    nan: int = 0
    infinite: int = 0
    absolute: float = 0.0
    relative: float = 0.0
    change: float | None = 0.0
    cosine: float | None = 1.0
    at: tuple[int, ...] | None = None


def deviation(
    before: Iterable[np.ndarray], after: Iterable[np.ndarray], shape: tuple[int, ...]
) -> Deviation:
    """Return how far two tensors lie apart, each given as flat arrays of equal lengths.

    Args:
        before: the first one's elements.
        after: the second one's.
        shape: of both.
    """
    sums = _Sums()
    for x, y in zip(before, after, strict=True):
        sums.add(x, y)
    return sums.total(shape)


@dataclass
class _Sums:
    """What is known of the elements so far."""

    seen: int = 0
    differing: int = 0
    bits: int = 0
    nan: int = 0
    infinite: int = 0
    absolute: float = 0
    relative: float = 0.0
    largest: int | None = None
    first: int | None = None
    squares: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0, 0.0])

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Add elements of both tensors."""
        import numpy as np

        differing = self.differing
        exact = _exact(x, y)
        doubles = exact if exact.kind in "fc" else np.dtype(np.float64)
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            if x.dtype == y.dtype:
                self.bits += _different_bits(x, y)
            pairs = _as(x, exact), _as(y, exact)
            shown = pairs if exact == doubles else (x.astype(doubles), y.astype(doubles))
            squares = _squares(*shown)
            if not all(map(math.isfinite, squares)):
                pairs, shown = self._set_apart(pairs, shown)
                squares = _squares(*shown)
            self._measure(pairs, shown, squares)
        if x.dtype == y.dtype:
            self.bits -= self.differing - differing
        self.seen += x.size

    def total(self, shape: tuple[int, ...]) -> Deviation:
        """Return what is known in the end."""
        import numpy as np

        first, second, both, gap = self.squares
        norms = math.sqrt(first), math.sqrt(second)
        cosine = _ratio(both, norms[0] * norms[1])
        at = self.first if self.largest is None else self.largest
        is_nothing = not self.differing
        return Deviation(
            differing=self.differing,
            bits=self.bits,
            nan=self.nan,
            infinite=self.infinite,
            absolute=self.absolute,
            relative=self.relative,
            change=0.0 if is_nothing else _ratio(math.sqrt(gap), norms[0]),
            cosine=1.0 if is_nothing else None if cosine is None else max(-1.0, min(cosine, 1.0)),
            at=None if at is None else tuple(int(i) for i in np.unravel_index(at, shape)),
        )

    def _set_apart(
        self, pairs: tuple[np.ndarray, np.ndarray], shown: tuple[np.ndarray, np.ndarray]
    ) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Count the pairs that are not finite, and return all with zeros in their places."""
        import numpy as np

        x, y = shown
        is_finite = np.isfinite(x) & np.isfinite(y)
        nan = np.isnan(x), np.isnan(y)
        apart = ~is_finite & (x != y) & ~(nan[0] & nan[1])
        has_nan = apart & (nan[0] | nan[1])
        self.differing += int(np.count_nonzero(apart))
        self.nan += int(np.count_nonzero(has_nan))
        self.infinite += int(np.count_nonzero(apart & ~has_nan))
        if self.first is None and apart.any():
            self.first = self.seen + int(np.argmax(apart))
        kept = [np.where(is_finite, part, part.dtype.type(0)) for part in (*pairs, *shown)]
        return (kept[0], kept[1]), (kept[2], kept[3])

    def _measure(
        self,
        pairs: tuple[np.ndarray, np.ndarray],
        shown: tuple[np.ndarray, np.ndarray],
        squares: tuple[float, float, float],
    ) -> None:
        """Add finite pairs: as they are compared, and as doubles."""
        import numpy as np

        gap = _gap(*pairs)
        distance = np.abs(shown[1] - shown[0]) if gap.dtype != np.float64 else gap
        added = (*squares, _product(distance, distance))
        self.squares = [old + new for old, new in zip(self.squares, added, strict=True)]
        index = int(np.argmax(gap)) if gap.size else 0
        if not gap.size or not gap[index]:
            return
        self.differing += int(np.count_nonzero(gap))
        worst = gap[index] if gap.dtype.kind == "O" else gap[index].item()
        worst = float(worst) if isinstance(worst, Fraction) else worst
        if worst > self.absolute:
            self.absolute, self.largest = worst, self.seen + index
        size = np.maximum(np.abs(shown[0]), np.abs(shown[1]))
        np.maximum(size, _LEAST, out=size)  # of two zeros, whose gap is none
        ratios = gap.astype(np.float64, copy=False) / size
        # A difference beyond any double is less than twice the larger value.
        self.relative = max(self.relative, min(float(ratios.max()), 2.0))


def _exact(x: np.ndarray, y: np.ndarray) -> np.dtype:
    """Return in what the elements of both can be compared without loss."""
    import numpy as np

    kinds = {_kind(x), _kind(y)}
    if "c" in kinds:
        return np.dtype(np.complex128)
    if kinds == {"f"}:
        return np.dtype(np.float64)
    if kinds == {"u"}:
        return np.dtype(np.uint64)
    integers = {part.dtype for part in (x, y) if _kind(part) != "f"}
    wide = {dtype for dtype in integers if dtype.itemsize > _EXACT_BYTES}
    if "f" in kinds:
        return np.dtype(object if wide else np.float64)
    return np.dtype(object if np.dtype(np.uint64) in wide else np.int64)


def _as(array: np.ndarray, exact: np.dtype) -> np.ndarray:
    """Return the elements as what they are compared in."""
    import numpy as np

    if exact.kind == "O" and _kind(array) == "f":  # 64-bit integers beside it are no doubles
        doubles = array.astype(np.float64)
        known = np.where(np.isfinite(doubles), doubles, 0).tolist()
        return np.array([Fraction(value) for value in known], exact)
    return array.astype(exact, copy=False)


def _kind(array: np.ndarray) -> str:
    """Return "c", "f", "i" or "u" for what the elements are; ml_dtypes hides it."""
    if array.dtype.kind in "cfiu":
        return array.dtype.kind
    name = array.dtype.name
    return "i" if name.startswith("int") else "u" if name.startswith(("uint", "bool")) else "f"


def _different_bits(x: np.ndarray, y: np.ndarray) -> int:
    """Return how many elements differ in some bit."""
    import numpy as np

    word = np.dtype(f"u{min(x.itemsize, 8)}")
    apart = x.view(word) != y.view(word)
    if x.itemsize > word.itemsize:
        apart = apart.reshape(x.size, -1).any(axis=1)
    return int(np.count_nonzero(apart))


def _gap(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance of each pair; of integers as unsigned ones, so that none is too far."""
    import numpy as np

    if x.dtype.kind in "iu":
        gap: np.ndarray = np.where(x > y, x - y, y - x).view(np.uint64)
        return gap
    gap = y - x
    return np.abs(gap, out=gap) if gap.dtype.kind == "f" else abs(gap)


def _squares(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Return the sums of the squares of both, and of their products."""
    return _product(x, x), _product(y, y), _product(x, y)


def _product(x: np.ndarray, y: np.ndarray) -> float:
    """Return the inner product, its real part; BLAS' threads would stand in each other's way."""
    import numpy as np

    if x.dtype.kind == "c":
        x, y = x.view(np.float64), y.view(np.float64)
    return float(np.einsum("i,i->", x, y))


def _ratio(part: float, whole: float) -> float | None:
    """Return a share of what is neither zero nor beyond a double."""
    return part / whole if math.isfinite(part) and math.isfinite(whole) and whole > 0 else None
