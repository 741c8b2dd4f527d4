"""Judging one output: how far it is off, and whether that proves anything.

An output is compared by its largest error over its spread (its largest value less its smallest,
over every run). It proves something only if it moves visibly above the tolerance when the inputs
do: constants, zeros, and the 1e-15 that an untrained network of many layers gives, are refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from persistlib.errors import Code, PersistlibError, error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from persistlib.dtypes import DType

# Below this an output is underflow on its way to zero, whatever its relative precision.
FLOOR = 1e-10
# An output must move by this many tolerances when the inputs change.
RESPONSE = 5
# Largest error over the spread, by the coarser of the state's and the output's dtype. Measured:
# torchvision's float32 classifiers stay below 1e-5; the other dtypes scale with their own step.
TOLERANCE: Mapping[str, float] = {"F64": 1e-7, "F32": 1e-4, "F16": 1e-2, "BF16": 5e-2}
# Whole numbers made from floats, such as an argmax, may fall either way where two are level.
INTEGERS = 1e-3
# One unit in the last place of the largest value, halved by rounding in each of two runtimes.
_ROUNDING = 2
_TRAIN = "train the model first, or give example inputs that it was made for"


@dataclass
class Observed:
    """What was seen of one output over every run.

    Attributes:
        name: the output's.
        dtype: its element type.
        error: the largest difference between the runtimes; of whole numbers the share that differs.
        response: the largest change between two draws of the inputs; of whole numbers 1 or 0.
        low: the smallest value.
        high: the largest value.
    """

    name: str
    dtype: DType
    error: float = 0.0
    response: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    @property
    def is_float(self) -> bool:
        """Whether the values are compared by distance."""
        return self.dtype.name[0] in "FB" and self.dtype.name != "BOOL"

    @property
    def spread(self) -> float:
        """The largest value less the smallest."""
        return max(self.high - self.low, 0.0)

    @property
    def relative(self) -> float:
        """The error by which the output is judged."""
        if not self.is_float or not self.error:
            return self.error
        return self.error / self.spread if self.spread else math.inf

    def add(self, expected: NDArray[Any], other: NDArray[Any], given: NDArray[Any]) -> None:
        """Take in one run.

        Args:
            expected: the module's values.
            other: the module's values for other inputs of the same shapes.
            given: the graph's values for the first inputs.

        Raises:
            ExportError: dtype or shape differ.
        """
        if (given.dtype, given.shape) != (expected.dtype, expected.shape):
            reason = (
                f"the graph gives {given.dtype.name} of shape {given.shape}, "
                f"the module {expected.dtype.name} of shape {expected.shape}"
            )
            raise self._mismatch(reason)
        if not expected.size:
            return
        if self.is_float:
            expected, other, given = (a.astype(np.float64) for a in (expected, other, given))
            self.low = min(self.low, float(expected.min()))
            self.high = max(self.high, float(expected.max()))
            off = np.abs(expected - given).max()
            self.error = max(self.error, float(off) if np.isfinite(off) else math.inf)
        else:
            self.error = max(self.error, float(np.mean(expected != given)))
        self.response = max(self.response, self._moved(expected, other))

    def _moved(self, first: NDArray[Any], second: NDArray[Any]) -> float:
        if first.shape != second.shape:  # the values decide the shape: that is a response
            return math.inf
        if not self.is_float:
            return float(np.any(first != second))
        return float(np.abs(first - second).max())

    def judge(self, tolerance: float) -> None:
        """Raise where the output is off by more than the tolerance, or could hide it.

        Raises:
            ExportError: one of both.
        """
        if self.is_float and (fault := self.degeneracy(tolerance)):
            raise degenerate(self.name, fault)
        if self.relative > tolerance:
            of = "of its spread" if self.is_float else "of its values"
            raise self._mismatch(f"off by {self.relative:.2g} {of}, at most {tolerance:g} is")

    def degeneracy(self, tolerance: float) -> str | None:
        """Return why the values of the output would hide an error; None where they would not."""
        import ml_dtypes

        scale = max(abs(self.low), abs(self.high))
        step = float(ml_dtypes.finfo(self.dtype.numpy).eps)  # type: ignore[no-untyped-call] # has no types
        if not self.spread:
            return f"every value is {self.low:g}" if math.isfinite(self.low) else "it is empty"
        if self.spread < FLOOR:
            return f"its values differ by {self.spread:.2g}: nothing but underflow"
        if _ROUNDING * step * scale > tolerance * self.spread:
            return f"its values differ by {self.spread:.2g} at {scale:.2g}: rounding hides an error"
        if self.response < RESPONSE * tolerance * self.spread:
            return f"other inputs change it by {self.response:.2g} of {self.spread:.2g}"
        return None

    def _mismatch(self, reason: str) -> PersistlibError:
        remedy = "report this with the model; save it without a graph meanwhile"
        return error(Code.EXPORT_MISMATCH, self.name, reason, remedy)


def is_float(array: NDArray[Any]) -> bool:
    """Return whether values are compared by distance: not whole numbers or truth values."""
    return array.dtype.kind not in "iub" and "int" not in array.dtype.name


def deviation(expected: NDArray[Any], given: NDArray[Any]) -> float:
    """Return how far an array is off: of floats the largest difference over the spread expected.

    Floats may have another dtype than expected; what is infinite or NaN must be so in both. Of
    whole numbers it is the share that differs, of arrays of other shapes or kinds infinite.
    """
    if expected.shape != given.shape or is_float(expected) != is_float(given):
        return math.inf
    if not expected.size:
        return 0.0
    if not is_float(expected):
        return float(np.mean(expected != given))
    wanted, found = expected.astype(np.float64), given.astype(np.float64)
    with np.errstate(invalid="ignore"):
        differs = (wanted != found) & ~(np.isnan(wanted) & np.isnan(found))
        if not differs.any():
            return 0.0
        off = float(np.abs(wanted[differs] - found[differs]).max())
    finite = wanted[np.isfinite(wanted)]
    spread = float(np.ptp(finite)) if finite.size else 0.0
    scale = spread or float(np.abs(finite).max(initial=0.0))
    return off / scale if scale and math.isfinite(off) else math.inf


def degenerate(name: str, reason: str) -> PersistlibError:
    """Return the error for outputs that prove nothing."""
    return error(Code.EXPORT_DEGENERATE, name, reason, _TRAIN)
