"""CIFAR-10 and CIFAR-100 in their own files: the binary version, and the one for Python.

A binary batch is records of one label (CIFAR-100: a coarse and a fine one), then 1,024 bytes of
red, of green and of blue, row by row (https://www.cs.toronto.edu/~kriz/cifar.html). The version
for Python is pickles: these are read as data (`cifar_pickles`), and never executed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from persistlib.errors import Code, Finding, Severity, error, finding
from persistlib.training import cifar_pickles, splits
from persistlib.training.array_images import image_data
from persistlib.training.labelled import Survey, class_findings
from persistlib.training.raw_files import read_bytes, text_of, unusable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from persistlib.training.labelled import Asked

_PIXELS = 3 * 32 * 32
_SHAPE = (-1, 3, 32, 32)
BY = "the data set says"
_MOST = 256 << 20  # of a batch; the largest has 182 MB
_META = 1 << 20


class _Layout(NamedTuple):
    """Where a version of a data set has what.

    Attributes:
        folders: that it unpacks to; the first is the binary version's.
        train: names of the training batches, without the ending.
        test: name of the test batch.
        meta: files of the classes' names, binary and for Python, and the names' key in the latter.
        labels: bytes before the pixels of a binary record; the last one is the label.
        key: of the labels in the version for Python.
        classes: how many.
    """

    folders: tuple[str, str]
    train: tuple[str, ...]
    test: str
    meta: tuple[str, str, str]
    labels: int
    key: str
    classes: int


_TEN = _Layout(
    ("cifar-10-batches-bin", "cifar-10-batches-py"),
    tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test_batch",
    ("batches.meta.txt", "batches.meta", "label_names"),
    1,
    "labels",
    10,
)
_HUNDRED = _Layout(
    ("cifar-100-binary", "cifar-100-python"),
    ("train",),
    "test",
    ("fine_label_names.txt", "meta", "fine_label_names"),
    2,
    "fine_labels",
    100,
)


class _Batch(NamedTuple):
    """Pixels of shape (images, 32, 32, 3), uint8, and the label of each."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


def ten(path: str, asked: Asked) -> Survey:
    """Return CIFAR-10 from a folder that has its batches, or the folder that they unpack to.

    Raises:
        TrainingError: there are no batches, or one cannot be used; every fault is reported.
    """
    return _survey(path, _TEN, asked)


def hundred(path: str, asked: Asked) -> Survey:
    """Return CIFAR-100, with its fine labels.

    Raises:
        TrainingError: as `ten`.
    """
    return _survey(path, _HUNDRED, asked)


def _survey(path: str, layout: _Layout, asked: Asked) -> Survey:
    folder, ending = _place(path, layout)
    findings: list[Finding] = []
    batches: list[_Batch] = []
    parts: list[str] = []
    absent: list[str] = []
    for name in (*layout.train, layout.test):
        file = os.path.join(folder, name + ending)
        if not os.path.lexists(file):
            absent.append(name + ending)
            continue
        batch, faults = _batch(file, layout)
        findings += faults
        batches.append(batch)
        parts += [splits.TEST if name == layout.test else splits.TRAIN] * len(batch.labels)
    if absent:
        reason = f"{', '.join(absent)} missing: the data set is not whole"
        findings.append(finding(Code.DATA_INVALID, folder, reason, severity=Severity.WARNING))
    labels = np.concatenate([batch.labels for batch in batches])
    data = image_data(
        os.path.basename(os.path.abspath(folder)),
        np.concatenate([batch.pixels for batch in batches]),
        labels,
        _classes(folder, layout, ending),
        splits.Division(tuple(parts), BY) if len(set(parts)) > 1 else None,
    )
    if all(item.severity != "error" for item in findings):
        findings += class_findings(data, asked, path)
    return Survey(data, tuple(findings))


def _place(path: str, layout: _Layout) -> tuple[str, str]:
    """Return the folder that has the batches, and what their names end with.

    Raises:
        TrainingError: no batch is there.
    """
    for folder in (path, *(os.path.join(path, name) for name in layout.folders)):
        for ending in (".bin", ""):
            names = (name + ending for name in (*layout.train, layout.test))
            if any(os.path.isfile(os.path.join(folder, name)) for name in names):
                return folder, ending
    reason = f"neither {layout.train[0]}.bin nor {layout.train[0]} is there"
    remedy = f"name the folder that holds {layout.folders[0]}"
    raise error(Code.DATA_MISSING, path, reason, remedy)


def _batch(path: str, layout: _Layout) -> tuple[_Batch, list[Finding]]:
    """Return the images of a batch, none where it has faults, and these faults."""
    data = read_bytes(path, _MOST)
    if path.endswith(".bin"):
        size = layout.labels + _PIXELS
        records, rest = divmod(len(data), size)
        if rest or not records:
            reason = f"{len(data):,} bytes are no whole number of records of {size:,}"
            return _nothing(), [unusable(path, reason, "fetch it again")]
        rows = np.frombuffer(data, np.uint8).reshape(records, size)
        flat, labels = rows[:, layout.labels :], rows[:, layout.labels - 1].astype(np.int64)
    else:
        flat, labels = cifar_pickles.read_batch(data, path, layout.key)
        if flat.ndim != 2 or flat.shape[1] != _PIXELS or len(flat) != len(labels):
            reason = f"pixels of shape {flat.shape} for {len(labels)} labels"
            return _nothing(), [unusable(path, reason, "fetch it again")]
    if bad := np.count_nonzero((labels < 0) | (labels >= layout.classes)):
        reason = f"{bad} labels are not 0 to {layout.classes - 1}"
        return _nothing(), [unusable(path, reason, "fetch it again; is it the right data set?")]
    return _Batch(flat.reshape(_SHAPE).transpose(0, 2, 3, 1), labels), []


def _nothing() -> _Batch:
    return _Batch(np.empty((0, 32, 32, 3), np.uint8), np.empty(0, np.int64))


def _classes(folder: str, layout: _Layout, ending: str) -> Sequence[str]:
    """Return the names of the classes; their numbers where the folder does not say them."""
    path = os.path.join(folder, layout.meta[0 if ending else 1])
    if not os.path.isfile(path):
        return [*map(str, range(layout.classes))]
    if ending:
        names = [line.strip() for line in text_of(path, _META).splitlines() if line.strip()]
    else:
        names = cifar_pickles.read_names(read_bytes(path, _META), path, layout.meta[2])
    if len(names) != layout.classes or len(set(names)) != len(names):
        reason = f"{len(set(names))} names for {layout.classes} classes"
        raise error(Code.DATA_INVALID, path, reason, "fetch it again")
    return names
