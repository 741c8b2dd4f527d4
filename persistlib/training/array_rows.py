"""Rows in an `.npz` file: `inputs` as a model takes them, with `labels` or `targets`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from persistlib.errors import Code, error_of, finding
from persistlib.training.arrays import label_samples, read_arrays
from persistlib.training.labelled import Survey, class_findings
from persistlib.training.raw_files import invalid
from persistlib.training.tables import LARGEST, TableData, row_digests, size_findings
from persistlib.training.tasks import CLASSIFICATION, MULTILABEL, REGRESSION
from persistlib.wording import first_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from persistlib.errors import Finding
    from persistlib.training.labelled import Asked

_RANK = 2  # (rows, columns)
_SHOWN = 5


def is_rows(arrays: Mapping[str, Any]) -> bool:
    """Return whether the arrays of a file are inputs, and no images."""
    return "inputs" in arrays and "images" not in arrays


def survey(arrays: Mapping[str, NDArray[Any]], path: str, asked: Asked) -> Survey:
    """Return rows, and all that is wrong with them.

    Args:
        arrays: `inputs` of shape (rows, columns); `labels` (and `classes`), or `targets` of shape
            (rows,) or (rows, numbers).
        path: the file.
        asked: how they are read.

    Raises:
        TrainingError: they do not fit each other.
    """
    inputs = arrays["inputs"]
    if inputs.ndim != _RANK or not inputs.shape[1]:
        reason = f"inputs of shape {inputs.shape}; (rows, columns) are expected"
        raise invalid(path, reason, "give rows, or pixels as `images`")
    if ("labels" in arrays) == ("targets" in arrays):
        reason = "neither labels nor targets, or both"
        raise invalid(path, reason, "store `labels` for classes, or `targets` for numbers")
    if "labels" in arrays:
        return _classes(inputs, arrays, path, asked)
    return _numbers(inputs, arrays["targets"], path, asked)


def read(path: str, asked: Asked) -> TableData:
    """Return the rows of a file.

    Raises:
        TrainingError: it is damaged, or its rows cannot be used; every fault is reported.
    """
    found = survey(read_arrays(path), path, asked).require()
    assert isinstance(found, TableData)
    return found


def _classes(
    inputs: NDArray[Any], arrays: Mapping[str, NDArray[Any]], path: str, asked: Asked
) -> Survey:
    given = label_samples(
        inputs,
        arrays["labels"],
        arrays.get("classes"),
        known=asked.known,
        is_prepared=True,
        location=path,
    )
    labels, classes = tuple(map(int, given.labels)), given.classes
    data = _data(inputs, path, CLASSIFICATION, labels=labels, classes=classes)
    return Survey(data, tuple(class_findings(data, asked, path)))


def _numbers(inputs: NDArray[Any], targets: NDArray[Any], path: str, asked: Asked) -> Survey:
    wide = targets[:, None] if targets.ndim == 1 else targets
    task = asked.task or REGRESSION
    if faults := [*_faults(inputs, wide, path, task)]:
        raise error_of(faults)
    names = asked.target or [f"target {place}" for place in range(wide.shape[1])]
    data = _data(inputs, path, task, targets=wide.astype(np.float32), target_names=tuple(names))
    return Survey(data, tuple(size_findings(data, asked, path)))


def _faults(inputs: NDArray[Any], targets: NDArray[Any], path: str, task: str) -> Iterator[Finding]:
    for name, array in (("inputs", inputs), ("targets", targets)):
        if array.dtype.kind not in "uifb":
            reason = f"{array.dtype} are no numbers"
            yield finding(Code.DATA_INVALID, f"{path}: {name}", reason, "give numbers")
        elif bad := np.argwhere(~(np.abs(array.astype(np.float64)) <= LARGEST)).tolist():
            places = first_of([*map(str, bad)], _SHOWN)
            reason = f"{len(bad):,} numbers that are not finite, or beyond float32, at {places}"
            yield finding(Code.DATA_INVALID, f"{path}: {name}", reason, "leave these rows out")
    if targets.ndim != _RANK or len(targets) != len(inputs) or not targets.size:
        reason = f"targets of shape {targets.shape} for {len(inputs)} rows"
        yield finding(Code.DATA_INVALID, path, reason, "give a row of targets for each")
    if task == CLASSIFICATION:
        remedy = "store classes as `labels`, or say --task regression"
        yield finding(Code.DATA_INVALID, path, "targets are numbers, and no classes", remedy)
    elif task == MULTILABEL and not np.isin(targets, (0, 1)).all():
        yield finding(Code.DATA_INVALID, path, "labels that are not 0 or 1", "give 0 or 1")


def _data(inputs: NDArray[Any], path: str, task: str, **told: Any) -> TableData:
    rows = np.ascontiguousarray(inputs, np.float64)
    empty: dict[str, Any] = {"labels": (), "classes": (), "targets": None, "target_names": ()}
    return TableData(
        name=os.path.basename(path),
        columns=tuple(f"input {place}" for place in range(rows.shape[1])),
        rows=rows,
        task=task,
        digests=row_digests(rows),
        is_prepared=True,
        **{**empty, **told},
    )
