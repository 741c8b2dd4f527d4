"""Tables with what is to be told from each row: a class, numbers, or labels of 0 and 1.

Law: a table and the same table with its columns in another order, read for a model that names its
columns, give the same rows.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from blake3 import blake3

from persistlib.digests import PREFIX
from persistlib.training import splits
from persistlib.training.csv_files import Table, folded, is_missing, number_of, read_table
from persistlib.training.labelled import Survey, class_findings
from persistlib.training.raw_files import unusable
from persistlib.training.sample_digests import digest_of_labelled
from persistlib.training.tasks import CLASSIFICATION, MULTILABEL, REGRESSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from persistlib.errors import Finding
    from persistlib.training.labelled import Asked

# Whole numbers of no more kinds than this, each more than once, are taken for classes.
_FEW = 20
_WHOLE = re.compile(r"[+-]?\d{1,9}")
_SHOWN = 8
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableData(splits.Divisible):
    """Rows of numbers, and what is to be told from each; they come undivided.

    Attributes:
        columns: names of the numbers of a row.
        rows: of shape (rows, columns), float64, finite.
        targets: of shape (rows, target columns), float32; None where there are classes.
        target_names: the columns that are to be told.
        task: classification, regression or multilabel.
        is_prepared: whether the model takes rows as they are; otherwise they are standardized.
    """

    columns: tuple[str, ...]
    rows: NDArray[np.float64]
    targets: NDArray[np.float32] | None
    target_names: tuple[str, ...]
    task: str
    is_prepared: bool = False

    @property
    def answers(self) -> NDArray[np.int64] | NDArray[np.float32]:
        """What is to be told, a row each: classes of shape (rows,), or numbers."""
        return np.array(self.labels, np.int64) if self.targets is None else self.targets

    @property
    def digest(self) -> str:
        """The identity of columns, rows and targets in their order."""
        before = "\n".join((*self.columns, "", *self.target_names, "")).encode()
        if self.targets is None:
            return digest_of_labelled(self.digests, self.labels, self.classes, before)
        hasher = blake3(before)
        for row, numbers in zip(self.digests, self.targets, strict=True):
            hasher.update(row + numbers.astype("<f4").tobytes())
        return PREFIX + hasher.hexdigest()


def row_digests(rows: NDArray[np.float64]) -> tuple[bytes, ...]:
    """Return BLAKE3 of the numbers of each row, as little-endian float64."""
    return tuple(blake3(row.astype("<f8").tobytes()).digest() for row in rows)


def survey(path: str, asked: Asked) -> Survey:
    """Return a table, and all that is wrong with it.

    Raises:
        TrainingError: it cannot be read, or has no usable header.
    """
    table, findings = read_table(path)
    targets, features, faults = _columns(table, asked)
    findings += faults
    if faults:  # what cells should be is not known
        targets, features = [], []
    rows, faults = table.numbers(features)
    faults += _too_large(table, features, rows)
    task = asked.task or _likely(table, targets)
    labels: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    numbers: NDArray[np.float32] | None = None
    if task == CLASSIFICATION and len(targets) == 1:
        labels, classes, more = _labels(table, targets[0], asked.known)
    else:
        numbers, more = _numbers(table, targets, task)
    findings += folded([*faults, *more])
    data = TableData(
        name=os.path.basename(path),
        columns=tuple(features),
        rows=rows,
        labels=labels,
        classes=classes,
        targets=numbers,
        target_names=tuple(targets),
        task=task,
        digests=row_digests(rows),
    )
    if not findings:
        look = class_findings if classes else size_findings
        findings += look(data, asked, path)
    return Survey(data, tuple(findings))


def _columns(table: Table, asked: Asked) -> tuple[list[str], list[str], list[Finding]]:
    """Return the columns that are to be told, and those to tell them by."""
    if asked.target is not None:
        targets = [*asked.target]
    elif asked.columns is not None:
        targets = [name for name in table.columns if name not in asked.columns]
    else:
        targets = [table.columns[-1]]
    rest = [name for name in table.columns if name not in targets]
    features = rest if asked.columns is None else list(asked.columns)
    return targets, features, [*_column_faults(table, targets, rest, features)]


def _column_faults(
    table: Table, targets: Sequence[str], rest: Sequence[str], features: Sequence[str]
) -> Iterator[Finding]:
    shown = ", ".join(table.columns[:_SHOWN])
    for name in targets:
        if name not in table.columns:
            reason = f"no such column to be told; there are {shown}"
            yield unusable(f"{table.path}: {name}", reason, "name one of them (--target)")
    if len(set(targets)) != len(targets) or not targets:
        yield unusable(table.path, "no column to be told, or one twice", "name it once (--target)")
    for name in features:
        if name not in rest:
            reason = "the model takes this column, and the table has it not"
            yield unusable(f"{table.path}: {name}", reason, "give the columns of the training")
    for name in rest:
        if name not in features:
            reason = "the model takes no such column"
            yield unusable(f"{table.path}: {name}", reason, "leave it out")
    if not rest:
        yield unusable(table.path, "no column is left to tell by", "add columns")


def _likely(table: Table, targets: Sequence[str]) -> str:
    """Return what targets look like: texts, or few whole numbers, are classes.

    Several columns of nothing but 0 and 1 are labels.
    """
    columns = (table.column(name) for name in targets)
    counts = Counter(cell for column in columns for cell in column if not is_missing(cell))
    numbers = {number_of(cell) for cell in counts}
    if len(targets) != 1:
        return MULTILABEL if numbers == {0, 1} else REGRESSION
    if None in numbers:
        return CLASSIFICATION
    is_few = len(counts) <= _FEW and min(counts.values(), default=0) > 1
    return CLASSIFICATION if is_few and all(map(_WHOLE.fullmatch, counts)) else REGRESSION


def _labels(
    table: Table, column: str, known: Sequence[str] | None
) -> tuple[tuple[int, ...], tuple[str, ...], list[Finding]]:
    """Return the class of each row, the classes, and cells that name none.

    Classes come in the order of the model that has them, of numbers, or of code points.
    """
    cells = table.column(column)
    faults = [
        table.fault(row, column, "missing; a class is needed" if not cell else "no printable name")
        for row, cell in enumerate(cells)
        if is_missing(cell) or not cell.isprintable()
    ]
    occurring = {*cells}
    if known is not None and occurring <= {*known}:
        names = [*known]
    elif all(map(_WHOLE.fullmatch, occurring)):
        names = sorted(occurring, key=lambda cell: (int(cell), cell))
    else:
        names = sorted(occurring)
    places = {name: index for index, name in enumerate(names)}
    return tuple(places[cell] for cell in cells), tuple(names), faults


def _numbers(
    table: Table, targets: Sequence[str], task: str
) -> tuple[NDArray[np.float32], list[Finding]]:
    """Return targets as numbers, and cells that are none, or none of the task's."""
    values, faults = table.numbers(targets)
    faults += _too_large(table, targets, values)
    if task == CLASSIFICATION and targets:
        reason = f"{len(targets)} columns of classes"
        faults.append(unusable(table.path, reason, "name one (--target), or --task multilabel"))
    if task == MULTILABEL:
        strange = np.argwhere((values != 0) & (values != 1))
        reason = "a label is 0 or 1"
        faults += [table.fault(int(r), targets[int(c)], reason) for r, c in strange]
    with np.errstate(over="ignore"):
        return values.astype(np.float32), faults


def _too_large(table: Table, names: Sequence[str], values: NDArray[np.float64]) -> list[Finding]:
    places = np.argwhere(np.abs(values) > LARGEST)
    reason = "beyond what float32 holds"
    return [table.fault(int(row), names[int(column)], reason) for row, column in places]


def size_findings(data: TableData, asked: Asked, path: str) -> Iterator[Finding]:
    """Yield why rows with numbers to be told are too few, or say nothing."""
    if len(data) < asked.least:
        yield unusable(path, f"{splits.too_few(len(data), 'row')}", "add rows")
    if asked.is_to_train and data.targets is not None:
        for name, column in zip(data.target_names, data.targets.T, strict=True):
            if len(column) and (column == column[0]).all():
                reason = f"is {column[0]:g} in every row: there is nothing to learn"
                yield unusable(f"{path}: {name}", reason, "name another column (--target)")
