"""Rows in a file that are to be answered: of a CSV file by the names of columns, or of an array.

Law: a file's rows give what the same rows give as mappings of names to numbers
(`table_rows.apply`); columns that the model does not take have no part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from persistlib.errors import Code, error_of, finding
from persistlib.training.csv_files import folded, read_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from persistlib.table_rows import TablePreprocessing


class Rows(NamedTuple):
    """The rows of a file.

    Attributes:
        names: of each, the file and the line on which it ends.
        values: of shape (rows, columns), float64, in the order in which the model takes them.
        passed_over: columns that the model does not take, such as the target.
    """

    names: tuple[str, ...]
    values: NDArray[Any]
    passed_over: tuple[str, ...]


def read_rows(path: str, record: TablePreprocessing) -> Rows:
    """Return the rows of a `.csv` or `.tsv` file, not yet prepared.

    Raises:
        TrainingError: it cannot be read, lacks a column that the model takes, or has a bad cell or
            row; every fault is reported.
    """
    table, faults = read_table(path, least=1)
    missing = [name for name in record.columns if name not in table.columns]
    faults += [
        finding(
            *(Code.DATA_MISSING, f"{path}: {name}", "there is no such column"),
            f"add it; the file has {', '.join(table.columns[:8])}",
        )
        for name in missing
    ]
    values, bad = table.numbers([name for name in record.columns if name not in missing])
    if faults := [*faults, *bad]:
        raise error_of(folded(faults))
    return Rows(
        names=tuple(f"{path}:{line}" for line in table.lines),
        values=values,
        passed_over=tuple(name for name in table.columns if name not in record.columns),
    )
