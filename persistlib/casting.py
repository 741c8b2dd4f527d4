"""Casts of floating-point tensors on their way from one file to another, with a ledger.

Law: a cast tensor holds `x.astype(dtype)` for every element x, rounded once, to the nearest value
and of two that are as near to the even one; no finite value becomes infinite or NaN, no infinity
becomes anything else, and integers, booleans and complex numbers pass as they are.

NaN stays NaN, though not its payload; the sign of zero stays where the dtype has one.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persistlib.blocks import arrays
from persistlib.checkpoint import CheckpointReader, Entry, joined
from persistlib.dtypes import DType, by_name
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

# These are rounded from a double in one step; the others go by way of a float.
_ROUNDED_ONCE = {DType.F64, DType.F32, DType.F16}
# F8_E8M0 is an exponent alone: powers of two, no zero and no sign.
_E8M0_BIAS, _E8M0_NAN = 127, 255
# Elements whose doubles stay in a core's cache; larger arrays cost a page fault every 4 kB.
_STEP = 1 << 13
_LEAST = 5e-324
_WIDER = (DType.F16, DType.BF16, DType.F32, DType.F64)
_FLOATS = {dtype.name.lower(): dtype for dtype in DType if dtype.is_float and not dtype.is_packed}


@dataclass(frozen=True)
class CastError:
    """What a cast changed in one tensor.

    Attributes:
        before: the dtype that it had.
        after: the dtype that it has.
        absolute: the largest absolute difference of an element.
        relative: the largest difference relative to the element that it was; 0 for 0.
    """

    before: str
    after: str
    absolute: float
    relative: float


def cast_target(name: str) -> DType:
    """Return the dtype called `name`, as safetensors spells it in any case, or as numpy does.

    Raises:
        UsageError: it is no floating-point dtype of whole bytes.
    """
    word = name.lower().removeprefix("torch.")
    found = DType.__members__.get(word.upper()) or by_name("numpy", word)
    if found is not None and found.name.lower() in _FLOATS:
        return found
    if found is None:
        spellings = {d.value.numpy: n for n, d in _FLOATS.items()} | {n: n for n in _FLOATS}
        near = difflib.get_close_matches(word, spellings, 1)
        reason = "is no dtype" + (f"; did you mean {spellings[near[0]]}?" if near else "")
    elif found.is_packed:
        reason = "is narrower than a byte: nothing is cast to it"
    else:
        reason = "holds no real numbers: floating-point tensors are cast to floating-point dtypes"
    raise error(Code.USAGE, f"dtype={name}", reason, f"use {', '.join(_FLOATS)}")


class Cast(CheckpointReader):
    """Another checkpoint with its floating-point tensors in another dtype.

    Attributes:
        ledger: of each entry that was cast and has passed, what the cast changed.
    """

    def __init__(self, source: CheckpointReader, dtype: DType, place: str = "") -> None:
        """See another checkpoint through a cast.

        Args:
            source: the other checkpoint; it is not closed by this one.
            dtype: of every floating-point tensor.
            place: the file to name in an error.
        """
        super().__init__(
            tuple(
                Entry(e.name, dtype if e.dtype.is_float else e.dtype, e.shape)
                for e in source.entries
            ),
            source.aliases,
            source.metadata,
        )
        self.format, self.container = source.format, source.container
        self.losses, self.notes = source.losses, source.notes
        self._source, self._place = source, place
        self.ledger: dict[str, CastError] = {}

    def read_bytes(self, name: str) -> memoryview:
        """Return the bytes of an entry.

        Raises:
            LossError: a value has no place in the dtype.
        """
        return joined(self.windows(name))

    def windows(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of an entry, cast.

        Raises:
            LossError: a value has no place in the dtype.
        """
        before, after = self._source.tensors[name].dtype, self.tensors[name].dtype
        if before is after:
            yield from self._source.windows(name)
            return
        location = f"{self._place}: {name}" if self._place else name
        absolute = relative = 0.0
        for values in arrays(self._source.windows(name), self._source.tensors[name]):
            made, *worst = cast(values, after, location)
            absolute, relative = max(absolute, worst[0]), max(relative, worst[1])
            yield after.pack(made)
        self.ledger[name] = CastError(before.name, after.name, absolute, relative)


def cast(values: np.ndarray, dtype: DType, location: str) -> tuple[np.ndarray, float, float]:
    """Return values in a dtype, and the largest absolute and relative difference.

    Raises:
        LossError: a value has no place in the dtype.
    """
    import numpy as np

    made: np.ndarray = np.empty(values.size, dtype.numpy)
    absolute = relative = 0.0
    for start in range(0, values.size, _STEP):
        part = slice(start, start + _STEP)
        made[part] = rounded(values[part], dtype)
        exact, found = _doubles(values[part]), _doubles(made[part])
        _require_a_place(exact, found, dtype, location)
        worst = _errors(exact, found)
        absolute, relative = max(absolute, worst[0]), max(relative, worst[1])
    return made, absolute, relative


def rounded(values: np.ndarray, dtype: DType) -> np.ndarray:
    """Return floating-point values in a dtype, each the nearest; what has no place is not judged.

    ml_dtypes takes a double to its own dtypes by way of a float and so rounds twice: 1 + 2**-8 +
    2**-40 would become 1 in BF16. A float whose last bit says that something was cut off keeps
    enough of the double for the second rounding to be the only one.
    """
    import numpy as np

    if dtype is DType.F8_E8M0:
        return _powers_of_two(_doubles(values))
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if values.dtype.type is not np.float64:  # ml_dtypes lacks some ways between its own
            values = values.astype(np.float32)
        elif dtype not in _ROUNDED_ONCE:
            values = _to_odd(values)
        return values.astype(dtype.numpy)


def _to_odd(values: np.ndarray) -> np.ndarray:
    """Return doubles as floats: exact where that can be, else the neighbour whose last bit is 1."""
    import numpy as np

    nearest = values.astype(np.float32)
    back = nearest.astype(np.float64)
    bits = nearest.view(np.int32)
    is_even = (back != values) & ~np.isnan(values) & (bits & 1 == 0)
    # Of the two neighbours the nearest was even; the other lies on the value's side.
    return (
        np.where(is_even, bits + np.where(abs(back) > abs(values), -1, 1), bits)
        .astype(np.int32)
        .view(np.float32)
    )


def _powers_of_two(values: np.ndarray) -> np.ndarray:
    """Return doubles as F8_E8M0, of two that are as near the greater.

    ml_dtypes takes what lies a little above the least power of two to the next one.
    """
    import numpy as np

    fraction, exponent = np.frexp(values)  # fractions from a half to 1
    codes = np.maximum(exponent - (fraction < 0.75) + _E8M0_BIAS, 0)
    is_held = np.isfinite(values) & (values > 2.0 ** -(_E8M0_BIAS + 1)) & (codes < _E8M0_NAN)
    codes[~is_held] = _E8M0_NAN
    held: np.ndarray = codes.astype(np.uint8).view(DType.F8_E8M0.numpy)
    return held


def _doubles(values: np.ndarray) -> np.ndarray:
    import numpy as np

    with np.errstate(invalid="ignore"):  # a signalling NaN
        return values.astype(np.float64)


def _require_a_place(exact: np.ndarray, found: np.ndarray, dtype: DType, location: str) -> None:
    """Refuse what is no NaN and became one, what became infinite, and infinities that ceased.

    Raises:
        LossError: there is such a value.
    """
    import numpy as np

    lost = np.isinf(exact) != np.isinf(found)
    lost |= np.isnan(exact) != np.isnan(found)
    if not lost.any():
        return
    value = float(exact[lost][0])
    raise error(
        Code.LOSS,
        location,
        f"{value!r} has no place in {dtype.name}",
        f"cast to {_wider(value)}, or leave the tensor out (--only)",
    )


def _wider(value: float) -> str:
    """Return what to cast to instead: the narrowest dtype in which the value stays what it is."""
    import numpy as np

    for dtype in _WIDER:
        if np.isfinite(_doubles(rounded(np.array([value]), dtype))).all() == np.isfinite(value):
            return dtype.name.lower()
    return DType.F64.name.lower()


def _errors(exact: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Return the largest absolute and relative difference of values that are finite."""
    import numpy as np

    gap = np.subtract(found, exact, where=np.isfinite(exact), out=np.zeros_like(exact))
    np.abs(gap, out=gap)
    if not gap.any():
        return 0.0, 0.0
    size = np.maximum(np.abs(exact), _LEAST)  # of zeros, which no cast moves
    with np.errstate(invalid="ignore"):  # NaN, which moves neither
        return float(gap.max()), float(np.nanmax(gap / size))
