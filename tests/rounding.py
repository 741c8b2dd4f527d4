"""Rounding by comparison with midpoints: another way to the nearest value than the code's own."""

from __future__ import annotations

from functools import cache

import numpy as np

from persistlib.dtypes import DType

# Those whose every value can be listed.
SMALL = tuple(d for d in DType if d.is_float and 8 <= d.value.bits <= 16)
# Where a value as far from two others goes up whatever its code: there is no bit but the leading 1.
_TIES_UP = {DType.F8_E8M0}


@cache
def steps(dtype: DType) -> np.ndarray:
    """Return the finite values from the least up as doubles, and what would follow the last."""
    width = np.dtype(f"u{dtype.itemsize}")
    codes = np.arange(1 << (dtype.value.bits - (dtype is not DType.F8_E8M0)), dtype=width)
    with np.errstate(invalid="ignore"):
        values = codes.view(dtype.numpy).astype(np.float64)
    values = values[np.isfinite(values)]
    assert (np.diff(values) > 0).all()
    following = values[-1] * 2 if dtype in _TIES_UP else 2 * values[-1] - values[-2]
    return np.append(values, following)


def nearest(values: np.ndarray, dtype: DType) -> np.ndarray:
    """Return doubles rounded to a dtype's values, as doubles; what is beyond them is infinite."""
    known = steps(dtype)
    size = np.abs(values)
    middles = (known[:-1] + known[1:]) / 2  # exact: a value has few bits
    index = np.searchsorted(middles, size, "left")
    is_tie = size == middles[np.minimum(index, len(middles) - 1)]
    index += is_tie & ((index % 2 == 1) | (dtype in _TIES_UP))
    found = known[np.minimum(index, len(known) - 1)]
    found[index >= len(known) - 1] = np.inf
    found[np.isnan(values)] = np.nan
    signed: np.ndarray = np.copysign(found, values)
    return signed
