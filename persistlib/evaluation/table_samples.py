"""The samples of a model that takes rows of a table: its columns, standardized as it says."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from persistlib import preparing
from persistlib.errors import Code, error
from persistlib.evaluation.samples import Samples, tell_absent, unprepared
from persistlib.evaluation.seen import tell_seen
from persistlib.table_rows import TablePreprocessing
from persistlib.training import array_rows, tables
from persistlib.training.arrays import is_archive, read_arrays
from persistlib.training.data_sources import is_table
from persistlib.training.labelled import Asked
from persistlib.training.splits import again
from persistlib.training.tables import TableData
from persistlib.training.tasks import CLASSIFICATION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from persistlib.manifest.schema import Data, Interface
    from persistlib.training.tasks import Head


def is_table_data(data: Any, interface: Interface, trained: Data | None) -> bool:
    """Return whether data are a table, open or in a file; or rows as those of the training were."""
    if not isinstance(data, (str, os.PathLike)):
        return isinstance(data, TableData)
    path = os.fspath(data)
    if is_table(path):
        return True
    was_rows = interface.preprocessing is None and trained is not None and "method" in trained.split
    return was_rows and is_archive(path) and array_rows.is_rows(read_arrays(path))


def open_table_samples(
    data: Any,
    interface: Interface,
    trained: Data | None,
    heads: tuple[Head, ...],
    choice: Mapping[str, Any],
) -> Samples:
    """Return the rows of a table with what should be told from each.

    Args:
        data: a `.csv` or `.tsv` file, an `.npz` file of `inputs`, or `TableData`.
        interface: names of classes or of target columns, and how a row becomes an input.
        trained: what the model was trained on.
        heads: what its outputs are for; one alone.
        choice: as `open_samples`; of it only what the training held out is known here.

    Raises:
        TrainingError: the table cannot be read, or does not fit the model; every fault is reported.
        SessionError: nothing says which columns the model takes.
    """
    record = preparing.parse(interface.preprocessing) if interface.preprocessing else None
    if record is not None and not isinstance(record, TablePreprocessing):
        raise unprepared()
    table = _table(data, record, interface.labels, heads)
    if table.is_prepared is not (record is None):
        raise unprepared()
    if asked := [word for word in ("part", "split") if choice.get(word)]:
        reason = f"a table comes undivided: {asked[0]} means nothing"
        raise error(Code.DATA_INVALID, table.name, reason, "leave it out, or say --held-out")
    samples = Samples(
        name=table.name,
        digest=table.digest,
        items=[*_items(table)],
        targets={heads[0].name: _answers(table, interface.labels)},
        classes=tuple(interface.labels or ()),
        preprocessing=record,
        heads=heads,
        source=table,
    )
    if choice.get("held_out"):
        return _held_out(samples, table, trained)
    tell_seen(samples, trained)
    if table.classes:
        tell_absent(samples)
    return samples


def _table(
    data: Any,
    record: TablePreprocessing | None,
    labels: Sequence[str] | None,
    heads: Sequence[Head],
) -> TableData:
    if isinstance(data, TableData):
        return data
    task = heads[0].task
    target = None if task == CLASSIFICATION else labels
    known = labels if task == CLASSIFICATION else None
    path, columns = os.fspath(data), None if record is None else record.columns
    asked = Asked(1, known, target=target, task=task, columns=columns)
    if record is None and not is_table(path):
        return array_rows.read(path, asked)
    table = tables.survey(path, asked).require()
    assert isinstance(table, TableData)
    return table


def _items(table: TableData) -> Any:
    return table.rows.astype(np.float32) if table.is_prepared else table.rows


def _answers(table: TableData, known: Sequence[str] | None) -> Any:
    """Return targets, classes as indices into the model's."""
    if not table.classes or known is None:
        return table.answers
    places = np.array([known.index(name) if name in known else -1 for name in table.classes])
    return places[table.answers.astype(np.int64)]


def _held_out(samples: Samples, table: TableData, trained: Data | None) -> Samples:
    """Return what the training run held out.

    Raises:
        TrainingError: this is not the data it was trained on.
    """
    split = again(table, trained.split) if trained is not None else None
    if trained is None or split is None or trained.digest != samples.digest:
        reason = "not the rows that the model was trained on"
        remedy = "give the table of the training, or leave out --held-out"
        raise error(Code.DATA_INVALID, samples.name, reason, remedy)
    chosen = [*split.valid]
    targets = {name: rows[chosen] for name, rows in samples.targets.items()}
    return replace(
        samples,
        items=[*_items(table)[chosen]],
        targets=targets,
        held_out=True,
        places=split.valid,
    )
