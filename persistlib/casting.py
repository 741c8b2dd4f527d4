"""Casts of floating-point tensors on their way from one file to another, with a ledger.

Law: a cast tensor holds `x.astype(dtype)` for every element x, rounded to nearest even; no finite
value becomes infinite or NaN, and integers, booleans and complex numbers pass as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from persistlib.checkpoint import CheckpointReader, Entry
from persistlib.dtypes import DType, by_name
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

_BYTE = 8


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
    known = {dtype.name.lower(): dtype for dtype in DType if dtype.is_float}
    found = known.get(name.lower()) or by_name("numpy", name.lower())
    if found is None or not found.is_float or found.is_packed:
        names = [n for n, dtype in known.items() if not dtype.is_packed]
        raise error(
            Code.USAGE, f"dtype={name}", "is no dtype to cast to", f"use {', '.join(names)}"
        )
    return found


class Cast(CheckpointReader):
    """Another checkpoint with its floating-point tensors in another dtype.

    Attributes:
        ledger: of each entry that was cast and has passed, what the cast changed.
    """

    def __init__(self, source: CheckpointReader, dtype: DType) -> None:
        super().__init__(
            tuple(
                Entry(e.name, dtype if e.dtype.is_float else e.dtype, e.shape)
                for e in source.entries
            ),
            source.aliases,
            source.metadata,
        )
        self._source = source
        self.ledger: dict[str, CastError] = {}

    def read_bytes(self, name: str) -> memoryview:
        """Return the bytes of an entry.

        Raises:
            LossError: a finite value would become infinite or NaN.
        """
        return memoryview(b"".join(self.windows(name)))

    def windows(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of an entry, cast.

        Raises:
            LossError: a finite value would become infinite or NaN.
        """
        before, after = self._source.tensors[name].dtype, self.tensors[name].dtype
        if before is after:
            yield from self._source.windows(name)
            return
        absolute = relative = 0.0
        for window in self._source.windows(name):
            values = before.unpack(window, window.nbytes * _BYTE // before.value.bits)
            cast, worst = _cast(values, after, name)
            absolute, relative = max(absolute, worst[0]), max(relative, worst[1])
            yield after.pack(cast)
        self.ledger[name] = CastError(before.name, after.name, absolute, relative)


def _cast(values: np.ndarray, dtype: DType, name: str) -> tuple[np.ndarray, tuple[float, float]]:
    """Return the values in a dtype, and the largest absolute and relative difference."""
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        cast = values.astype(dtype.numpy)
        exact, found = values.astype(np.float64), cast.astype(np.float64)
        finite = np.isfinite(exact)
        if not np.isfinite(found[finite]).all():
            worst = exact[finite & ~np.isfinite(found)][0]
            reason = f"{worst:g} is beyond {dtype.name} and would become infinite or NaN"
            raise error(Code.LOSS, name, reason, "cast to a wider dtype, such as bf16")
        gap = np.abs(found - exact)[finite]
        size = np.abs(exact)[finite]
    if not gap.size:
        return cast, (0.0, 0.0)
    ratio = np.divide(gap, size, out=np.zeros_like(gap), where=size > 0)
    return cast, (float(gap.max()), float(ratio.max()))
