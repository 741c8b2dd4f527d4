"""How far a derived graph is from its source, measured on the same inputs in the same runtime."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from persistlib.dtypes import by_name
from persistlib.errors import Code, error
from persistlib.export.comparison import INTEGERS, Observed
from persistlib.quantization.columns import Columns
from persistlib.quantization.samples import digest_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from pydantic import JsonValue

    from persistlib.quantization.samples import Labelled
    from persistlib.runtime.session import Session

_SCORES = 2  # the least rank, and the fewest classes, of scores of classes


@dataclass
class Agreement:
    """What was seen of one output over every run.

    Attributes:
        seen: its errors and its spread.
        dot: sums of products, of centred rows: both, the source's own, the derived one's own.
        columns: the same of each index of each axis.
        rows: how many rows of scores were compared.
        same: how many have the same best class.
        right: of labelled rows, how many the source gets right, and how many the derived graph.
        labelled: how many rows were labelled.
    """

    seen: Observed
    dot: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    columns: Columns = field(default_factory=Columns)
    rows: int = 0
    same: int = 0
    right: tuple[int, int] = (0, 0)
    labelled: int = 0

    @property
    def top1(self) -> float | None:
        """The share of rows with the same best class; None where the output has no scores."""
        return self.same / self.rows if self.rows else None

    @property
    def cosine(self) -> float:
        """The cosine between all values of the two, each row centred."""
        both, one, other = self.dot
        return float(both / math.sqrt(one * other)) if one and other else float(one == other)

    def add(self, expected: NDArray[Any], given: NDArray[Any], labels: Sequence[int]) -> None:
        """Take in one run; labels of its rows, when they are known."""
        if not self.seen.is_float or expected.shape != given.shape:
            return
        one, other = expected.astype(np.float64), given.astype(np.float64)
        self.columns.add(one, other)
        if one.ndim:
            one = one - one.mean(-1, keepdims=True)
            other = other - other.mean(-1, keepdims=True)
        self.dot += np.array([(one * other).sum(), (one * one).sum(), (other * other).sum()])
        if one.ndim >= _SCORES and one.shape[-1] >= _SCORES:
            best, found = one.argmax(-1), other.argmax(-1)
            self.rows += best.size
            self.same += int((best == found).sum())
            if best.ndim == 1 and len(labels) == len(best):
                right, derived = self.right
                self.right = (right + _hits(best, labels), derived + _hits(found, labels))
                self.labelled += len(labels)


def compare(source: Session, derived: Session, runs: Sequence[Labelled]) -> list[Agreement]:
    """Return what was seen of each output.

    Raises:
        ExportError: dtypes or shapes differ.
        SessionError: one of both fails.
    """
    expected = [source.run(dict(run.arrays)) for run in runs]
    found: dict[str, Agreement] = {}
    for index, run in enumerate(runs):
        given = derived.run(dict(run.arrays))
        other = expected[(index + 1) % len(runs)]
        for name, wanted in expected[index].items():
            dtype = by_name("numpy", wanted.dtype.name)
            assert dtype is not None
            one = found.setdefault(name, Agreement(Observed(name, dtype)))
            one.seen.add(wanted, other[name], given[name])
            one.add(wanted, given[name], run.labels)
    return list(found.values())


def rows_of(agreements: Sequence[Agreement], limit: float | None) -> dict[str, JsonValue]:
    """Return what a proof says of each output; the error to two digits, rounded up."""
    return {one.seen.name: _row(one, limit) for one in agreements}


def _row(one: Agreement, limit: float | None) -> dict[str, JsonValue]:
    row: dict[str, JsonValue] = {"error": _up(one.seen.relative), "dtype": one.seen.dtype.name}
    allowed = limit if one.seen.is_float else INTEGERS
    if allowed is not None:
        row["tolerance"] = allowed
    if one.seen.is_float:
        row["cosine"] = round(one.cosine, 6)
        if (scaled := one.columns.cosine) is not None:
            row["scaled_cosine"] = round(scaled, 6)
    if one.top1 is not None:
        row["top1"] = round(one.top1, 6)
    if one.labelled:
        row["accuracy"] = [round(hits / one.labelled, 6) for hits in one.right]
    return row


def record(
    runs: Sequence[Labelled], source: str, rows: dict[str, JsonValue], provider: str
) -> dict[str, JsonValue]:
    """Return a proof as the manifest holds it.

    Args:
        runs: what was compared with.
        source: BLAKE3 of the graph that it was compared with.
        rows: of the outputs.
        provider: that computed both.
    """
    arrays = [run.arrays for run in runs]
    sizes = [[len(array) for array in run.values() if array.ndim] for run in arrays]
    batches: list[JsonValue] = [*sorted({size for own in sizes for size in own})]
    return {
        "proved": True,
        "against": source,
        "inputs": {"digest": digest_of(arrays)},
        "batch_sizes": batches,
        "samples": sum(max(own, default=1) for own in sizes),
        "outputs": rows,
        "provider": provider,
        "versions": _versions(),
    }


def unproved(source: str, reason: str) -> dict[str, JsonValue]:
    """Return what stands in a proof's place.

    Args:
        source: BLAKE3 of the graph that it is derived from.
        reason: why there is none.
    """
    return {"proved": False, "against": source, "reason": reason, "versions": _versions()}


def _versions() -> dict[str, JsonValue]:
    return {package: version(package) for package in ("onnx", "onnxruntime")}


def require_telling_outputs(agreements: Sequence[Agreement], limit: float) -> None:
    """Refuse outputs of the source that would hide an error of the derived graph.

    Raises:
        ExportError: an output is constant or zero, or no output changes with the inputs.
    """
    for one in agreements:
        if one.seen.is_float and (fault := one.seen.degeneracy(limit)):
            remedy = "save the bundle with example inputs that the model was made for"
            raise error(Code.EXPORT_DEGENERATE, one.seen.name, fault, remedy)


def _hits(found: NDArray[Any], labels: Sequence[int]) -> int:
    return int((found == np.asarray(labels)).sum())


def _up(number: float) -> float:
    """Return a number rounded up to two digits: the ones below depend on the machine's mood."""
    if not number or not math.isfinite(number):
        return number if math.isfinite(number) else 1e308
    step = 10.0 ** (math.floor(math.log10(number)) - 1)
    return float(f"{math.ceil(number / step) * step:.2g}")
