"""What the words of `persistlib run` name: images, or rows of tables in files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from persistlib import preparing
from persistlib.cli.text import listing
from persistlib.errors import Code, error
from persistlib.table_rows import TablePreprocessing
from persistlib.training.data_sources import is_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from persistlib.manifest.schema import Interface

_ARRAY = ".npy"


class Given(NamedTuple):
    """What a model shall tell of.

    Attributes:
        items: as `Session.predict` takes them.
        names: of each.
        what: they are, "image" or "row".
        notes: what should be known of them.
    """

    items: Any
    names: tuple[str, ...]
    what: str = "image"
    notes: tuple[str, ...] = ()


def read(words: Sequence[str], interface: Interface | None) -> Given:
    """Return what words name for a model: images, or the rows of each file.

    Raises:
        SessionError: a table is given to a model that takes none, or what is no table to one that
            does.
        TrainingError: a table cannot be read, or lacks a column; every fault of it is reported.
    """
    record = table_of(interface)
    if record is None:
        if tables := [word for word in words if is_table(word)]:
            reason = "a table, and the manifest names no columns that the model takes"
            remedy = "give images; or arrays as the model takes them, with --input FILE.npy"
            raise error(Code.PREPROCESSING, tables[0], reason, remedy)
        return Given(words, tuple(words))
    parts = [_rows(word, record) for word in words]
    return Given(
        items=[row for part in parts for row in part.items],
        names=tuple(name for part in parts for name in part.names),
        what="row",
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def table_of(interface: Interface | None) -> TablePreprocessing | None:
    """Return how a model's rows are prepared; None where it takes no rows of a table."""
    if interface is None or interface.preprocessing is None:
        return None
    record = preparing.parse(interface.preprocessing)
    return record if isinstance(record, TablePreprocessing) else None


def _rows(path: str, record: TablePreprocessing) -> Given:
    from persistlib.runtime.array_files import read_file
    from persistlib.training.row_files import read_rows

    if is_table(path):
        rows = read_rows(path, record)
        note = f"columns passed over: {listing(rows.passed_over)}"
        return Given(rows.values, rows.names, "row", (note,) if rows.passed_over else ())
    if not path.lower().endswith(_ARRAY):
        reason = "the model takes rows of a table"
        raise error(Code.PREPROCESSING, path, reason, "give a .csv, .tsv or .npy file of rows")
    array: Any = read_file(path)
    items = array if array.ndim != 1 else array[None]  # one row
    return Given(items, tuple(f"{path}: row {number}" for number in range(len(items))), "row")
