"""How a row of a table becomes a model's input: named columns, standardized as in the training.

A record such as `{"kind": "table", "columns": ["age", "bmi"], "mean": [...], "std": [...]}` stands
in the manifest. A row is numbers in the order of the columns, or a mapping of their names.

Laws: `parse(p.to_dict()) == p`; a row as a mapping gives what it gives as numbers in order.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from persistlib.errors import Code, PersistlibError, error, error_of, finding
from persistlib.wording import first_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from pydantic import JsonValue

KIND = "table"
_KEYS = ("kind", "columns", "mean", "std")
_SHOWN = 8
_RANK = 2  # (rows, columns)


@dataclass(frozen=True, slots=True)
class TablePreprocessing:
    """How a row becomes an array of shape (columns,).

    Attributes:
        columns: their names, in the order in which the model takes them.
        mean: subtracted from each, float64.
        std: divided by afterwards, above 0.
    """

    columns: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, columns: Sequence[str], rows: NDArray[np.float64]) -> TablePreprocessing:
        """Return what gives some rows mean 0 and standard deviation 1 in every column.

        A column whose values are all one keeps its extent.

        Args:
            columns: their names.
            rows: of shape (rows, columns), finite; those to train on.
        """
        spread = rows.std(axis=0)
        level = rows.mean(axis=0)
        # What rounding leaves of a constant is no spread.
        is_constant = spread <= np.finfo(np.float64).eps * 8 * np.abs(level)
        std = np.where(is_constant, 1.0, spread)
        return cls(tuple(columns), tuple(map(float, level)), tuple(map(float, std)))

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the record as a manifest holds it."""
        mean: list[JsonValue] = [*self.mean]
        std: list[JsonValue] = [*self.std]
        return {"kind": KIND, "columns": [*self.columns], "mean": mean, "std": std}


def parse(record: Mapping[str, JsonValue]) -> TablePreprocessing:
    """Return a record as a value.

    Raises:
        SessionError: a key is unknown or a value is malformed; every fault is reported.
    """
    faults = [*_faults(record)]
    if faults:
        remedy = "correct the interface's preprocessing (docs/manifest.md)"
        raise error_of(
            finding(Code.PREPROCESSING, f"preprocessing.{key}", reason, remedy)
            for key, reason in faults
        )
    columns, mean, std = (record[key] for key in _KEYS[1:])
    assert isinstance(columns, list)
    assert isinstance(mean, list)
    assert isinstance(std, list)
    return TablePreprocessing(tuple(map(str, columns)), _numbers(mean), _numbers(std))


def _numbers(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(map(float, values))


def _faults(record: Mapping[str, JsonValue]) -> Iterator[tuple[str, str]]:
    for key in record:
        if key not in _KEYS:
            yield key, "unknown"
    columns = record.get("columns")
    if not isinstance(columns, list) or not columns or not all(map(_is_name, columns)):
        yield "columns", "no list of names"
        return
    if len({*map(str, columns)}) != len(columns):
        yield "columns", "a name stands twice"
    for key in ("mean", "std"):
        values = record.get(key)
        if not isinstance(values, list) or not all(map(_is_finite, values)):
            yield key, "no list of finite numbers"
        elif len(values) != len(columns):
            yield key, f"{len(values)} numbers for {len(columns)} columns"
        elif key == "std" and not all(float(value) > 0 for value in values):  # type: ignore[arg-type]
            yield key, "must be above 0"


def _is_name(value: JsonValue) -> bool:
    return isinstance(value, str) and bool(value)


def _is_finite(value: JsonValue) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) < 1e308  # what a float holds, an integer of any length included
        and math.isfinite(value)
    )


def apply(rows: Any, record: TablePreprocessing) -> NDArray[np.float32]:
    """Return rows as one array of shape (rows, columns).

    Args:
        rows: an array of that shape, or a sequence of rows: numbers, or a mapping of names to
            numbers.
        record: the columns, and how they are standardized.

    Raises:
        SessionError: a row has other columns, or holds what is no finite number; every fault of
            the first rows is reported.
    """
    values = _array(rows, record)
    standardized = (values - np.array(record.mean)) / np.array(record.std)
    with np.errstate(over="ignore"):
        result: NDArray[np.float32] = standardized.astype(np.float32)
    if not np.isfinite(result).all():
        row, column = (int(place[0]) for place in np.nonzero(~np.isfinite(result)))
        reason = f"{record.columns[column]} is no number that the model can take"
        raise error(Code.PREPROCESSING, f"row {row}", reason, "look at how it was made")
    return result


def _array(rows: Any, record: TablePreprocessing) -> NDArray[np.float64]:
    width = len(record.columns)
    if not isinstance(rows, np.ndarray):
        rows = [_in_order(row, record, number) for number, row in enumerate(rows)]
    try:
        values: NDArray[np.float64] = np.asarray(rows, np.float64)
    except (TypeError, ValueError, OverflowError) as fault:
        raise _misfit("rows", f"not numbers: {fault}") from fault
    values = values.reshape(0, width) if not values.size and values.ndim < _RANK else values
    if values.ndim != _RANK or values.shape[1] != width:
        shown = first_of(record.columns, _SHOWN)
        raise _misfit("rows", f"of shape {values.shape}; {width} columns are expected: {shown}")
    return values


def _in_order(row: Any, record: TablePreprocessing, number: int) -> Any:
    if isinstance(row, (str, os.PathLike)):
        remedy = "give rows; persistlib run BUNDLE FILE.csv reads a file of them"
        raise error(Code.PREPROCESSING, f"row {number}", f"{str(row)!r} is no row", remedy)
    if not isinstance(row, Mapping):
        return row
    if reason := column_fault(list(row), record):
        raise _misfit(f"row {number}", reason)
    return [row[name] for name in record.columns]


def column_fault(names: Sequence[Any], record: TablePreprocessing) -> str | None:
    """Return how some columns differ from those of a record; None where they do not."""
    missing = [name for name in record.columns if name not in names]
    strange = [str(name) for name in names if name not in record.columns]
    lists = (("without", missing), ("with", strange))
    parts = [f"{word} {', '.join(some[:_SHOWN])}" for word, some in lists if some]
    return f"other columns than the model's: {'; '.join(parts)}" if parts else None


def _misfit(location: str, reason: str) -> PersistlibError:
    remedy = "give the columns that the model was trained on (persistlib inspect names them)"
    return error(Code.PREPROCESSING, location, reason, remedy)
