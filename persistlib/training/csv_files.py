"""Tables in CSV files: a header, then rows of as many fields; nothing is guessed of a bad cell.

Law: every bad cell is reported with its line and column, all of them together; memory is
proportional to the file.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from persistlib.errors import Code, Finding, finding
from persistlib.training.labelled import place_of
from persistlib.training.raw_files import invalid, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_MOST = 256 << 20
_MOST_COLUMNS = 1 << 16
_SHOWN = 50  # faults; the rest are counted
_TEXT = 60  # characters of a cell in a message
_NAMED = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}


class Table(NamedTuple):
    """The cells of a file.

    Attributes:
        path: of the file.
        columns: names, each once.
        rows: the fields of each row, as many as there are columns.
        lines: the line on which each row ends, for messages.
    """

    path: str
    columns: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]

    def column(self, name: str) -> list[str]:
        """Return the cells of a column, without blanks around them."""
        place = self.columns.index(name)
        return [row[place].strip() for row in self.rows]

    def numbers(self, names: Sequence[str]) -> tuple[NDArray[np.float64], list[Finding]]:
        """Return columns as numbers of shape (rows, columns), and each cell that is none."""
        values = np.zeros((len(self.rows), len(names)))
        faults: list[Finding] = []
        for place, name in enumerate(names):
            for row, cell in enumerate(self.column(name)):
                value = number_of(cell)
                if value is None:
                    faults.append(self.fault(row, name, f"{_told(cell)}; a number is needed"))
                else:
                    values[row, place] = value
        return values, faults

    def fault(self, row: int, column: str, reason: str) -> Finding:
        """Return a finding of a cell."""
        where = f"{self.path}:{self.lines[row]}: {column}"
        return finding(Code.DATA_INVALID, where, reason, "correct the cell, or leave the row out")


def read_table(path: str, least: int = 2) -> tuple[Table, list[Finding]]:
    """Return the cells of a file whose name says what parts them, and what rows are malformed.

    Fields are parted by commas, in a `.tsv` file by tabs; quoted as RFC 4180 says.

    Args:
        path: the file.
        least: columns; a target and what it is told by.

    Raises:
        TrainingError: it cannot be read, is no UTF-8, or has no usable header.
    """
    text = text_of(path, _MOST)
    delimiter = "\t" if path.lower().endswith(".tsv") else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    faults: list[Finding] = []
    try:
        columns = tuple(name.strip() for name in next(reader, []))
        _require_header(columns, path, least, text=text, delimiter=delimiter)
        for row in reader:
            if not row:
                continue
            if len(row) != len(columns):
                reason = f"{len(row)} fields, where the header has {len(columns)}"
                where = f"{path}:{reader.line_num}"
                faults.append(finding(Code.DATA_INVALID, where, reason, "correct the row"))
                continue
            rows.append(row)
            lines.append(reader.line_num)
    except csv.Error as fault:
        # Quotes without an end, or a field of more than 128 KiB.
        where = f"{path}:{reader.line_num}"
        raise invalid(where, f"{fault}", "write it as RFC 4180 says") from fault
    if not rows and not faults:
        faults.append(finding(Code.DATA_INVALID, path, "holds no row", "add rows"))
    return Table(path, columns, rows, lines), faults


def _require_header(
    columns: tuple[str, ...], path: str, least: int, *, text: str, delimiter: str
) -> None:
    """Refuse a file whose columns cannot be told apart by name.

    Raises:
        TrainingError: so it is.
    """
    remedy = "give each column a name of its own, in the first line"
    if 0 < len(columns) < least and (other := _parted_by(text, delimiter)):
        reason = f"one column, parted by {_NAMED[delimiter]}; its first line looks parted by "
        remedy = "write it with commas and decimal points, or as .tsv with tabs"
        raise invalid(path, f"{reason}{_NAMED[other]}", remedy)
    if len(columns) < least or len(columns) > _MOST_COLUMNS:
        count = "one column" if len(columns) == 1 else f"{len(columns)} columns"
        raise invalid(path, f"{count}; a target and what it is told by are needed", remedy)
    if twice := sorted(name for name, count in Counter(columns).items() if count > 1)[:_SHOWN]:
        raise invalid(path, f"columns of one name: {', '.join(map(repr, twice))}", remedy)
    if "" in columns or not all(name.isprintable() for name in columns):
        raise invalid(path, "a column without a printable name", remedy)
    if all(number_of(name) is not None for name in columns):
        raise invalid(path, "no header: the first line is numbers", remedy)


def _parted_by(text: str, delimiter: str) -> str:
    """Return what else parts the first line, most often; empty for nothing."""
    line = text.partition("\n")[0]
    counts = {other: line.count(other) for other in _NAMED if other != delimiter}
    most = max(counts, key=lambda other: counts[other])
    return most if counts[most] else ""


def number_of(cell: str) -> float | None:
    """Return the finite number that a cell spells; None where it spells none."""
    try:
        value = float(cell)
    except ValueError:
        return None
    # Python reads more than people write: 1_000 would be a number.
    return value if math.isfinite(value) and "_" not in cell else None


def folded(faults: Sequence[Finding]) -> Iterator[Finding]:
    """Yield faults of a table by line, of very many the first ones and where the others begin."""
    ordered = sorted(faults, key=place_of)
    yield from ordered[:_SHOWN]
    if more := ordered[_SHOWN:]:
        reason = f"{len(more):,} more such faults from here on, {len(faults):,} in all"
        yield finding(Code.DATA_INVALID, more[0].location, reason, "correct them")


def is_missing(cell: str) -> bool:
    """Return whether a cell says that there is no value."""
    return cell.lower() in _MISSING


def _told(cell: str) -> str:
    if is_missing(cell):
        return f"missing ({cell!r})" if cell else "missing"
    return repr(cell if len(cell) <= _TEXT else f"{cell[:_TEXT]}...")
