"""How right answers are: scikit-learn's metrics, with what is not defined left undefined.

Precision is not defined for a class that was never answered, recall for one that never occurs. Such
a figure is None in its class's row, and counts as 0 in the averages, as scikit-learn does; averages
are over the classes that occur or were answered.

Every figure has its 95 % interval: shares Wilson's, averages that of the bootstrap, which is None
where no draw of the samples changes the figure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from persistlib.errors import PersistlibError, missing_extra
from persistlib.evaluation.averages import average_intervals
from persistlib.evaluation.bootstrap import METHOD
from persistlib.evaluation.intervals import f1_interval, share_interval, wilson
from persistlib.installed import is_importable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from pydantic import JsonValue

    from persistlib.evaluation.intervals import Interval

# Above this many classes the matrix and the classes' intervals are left out of JSON: the pairs and
# the counts say the same.
CONFUSION_SHOWN = 100


@dataclass(frozen=True, slots=True)
class ClassScore:
    """How one class fared; None is what is not defined.

    Attributes:
        name: the class.
        images: how many samples are of it.
        precision: of the answers that named it, the share that is right.
        recall: of its samples, the share that was named so.
        f1: the harmonic mean of both.
        intervals: of these three, by name.
    """

    name: str
    images: int
    precision: float | None
    recall: float | None
    f1: float | None
    intervals: Mapping[str, Interval | None] = field(kw_only=True, default_factory=dict)


@dataclass(frozen=True, slots=True)
class Average:
    """Precision, recall and F1 over the classes that occur or were answered.

    Attributes:
        intervals: of these three, by name.
    """

    precision: float
    recall: float
    f1: float
    intervals: Mapping[str, Interval | None] = field(kw_only=True, default_factory=dict)


@dataclass(frozen=True, slots=True)
class Metrics:
    """What answers are worth.

    Attributes:
        accuracy: share of right answers.
        interval: of the accuracy, at 95 % (Wilson's).
        macro: each class counts the same.
        weighted: each class counts as often as it occurs.
        classes: a row a class, in the order of the scores.
        confusion: counts, int64, rows the true class, columns the answer.
        averaged: how many classes the averages are over.
    """

    accuracy: float
    interval: tuple[float, float]
    macro: Average
    weighted: Average
    classes: tuple[ClassScore, ...]
    confusion: NDArray[np.int64]
    averaged: int

    @property
    def unanswered(self) -> tuple[str, ...]:
        """The classes that occur and were never answered: their precision counts as 0."""
        return tuple(row.name for row in self.classes if row.images and row.precision is None)

    def confused(self) -> list[tuple[str, str, int]]:
        """Return true class, answer and count of every kind of mistake, the most frequent first."""
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        pairs = np.argwhere(wrong)
        rows = [(int(wrong[t, p]), int(t), int(p)) for t, p in pairs]
        rows.sort(key=lambda row: (-row[0], row[1], row[2]))
        names = [row.name for row in self.classes]
        return [(names[t], names[p], count) for count, t, p in rows]

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the metrics as plain JSON; above 100 classes less: see `CONFUSION_SHOWN`."""
        is_whole = len(self.classes) <= CONFUSION_SHOWN
        matrix: JsonValue = None
        if is_whole:
            matrix = [[int(count) for count in row] for row in self.confusion]
        return {
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "macro": average_data(self.macro),
            "weighted": average_data(self.weighted),
            "bootstrap": {**METHOD},
            "averaged": self.averaged,
            "classes": [class_data(row, with_intervals=is_whole) for row in self.classes],
            "confusion": matrix,
            "confused": [
                {"class": truth, "answer": answer, "images": count}
                for truth, answer, count in self.confused()
            ],
        }


def measure(truth: NDArray[np.int64], answers: NDArray[np.int64], names: Sequence[str]) -> Metrics:
    """Return what answers are worth.

    Args:
        truth: the true class of each sample, at least one.
        answers: the class that was answered.
        names: of all classes.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    sklearn = sklearn_metrics()
    labels = np.arange(len(names))
    right = int(np.sum(truth == answers))
    confusion = sklearn.confusion_matrix(truth, answers, labels=labels).astype(np.int64)
    rows = sklearn.precision_recall_fscore_support(
        truth, answers, labels=labels, zero_division=np.nan
    )
    interval = wilson(right, len(truth))
    intervals = average_intervals(confusion)
    intervals["weighted"]["recall"] = interval  # the same figure as the accuracy
    return Metrics(
        accuracy=right / len(truth),
        interval=interval,
        macro=_averaged(sklearn, truth, answers, "macro", intervals),
        weighted=_averaged(sklearn, truth, answers, "weighted", intervals),
        classes=tuple(
            ClassScore(name, int(images), *map(defined, scores), intervals=bounds)
            for name, *scores, images, bounds in zip(
                names, *rows, _class_intervals(confusion), strict=True
            )
        ),
        confusion=confusion,
        averaged=len(np.union1d(truth, answers)),
    )


def require_metrics() -> None:
    """Fail now, not after everything ran, where scikit-learn is not installed.

    Raises:
        MissingExtra: it is not.
    """
    if not is_importable("sklearn"):
        raise _missing()


def sklearn_metrics() -> Any:
    """Return scikit-learn's metrics.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        from sklearn import metrics
    except ImportError as fault:
        raise _missing() from fault
    return metrics


def _missing() -> PersistlibError:
    return missing_extra("scikit-learn", "evaluate", "evaluating")


def _averaged(
    sklearn: Any,
    truth: NDArray[np.int64],
    answers: NDArray[np.int64],
    how: str,
    intervals: Mapping[str, Mapping[str, Interval | None]],
) -> Average:
    values = sklearn.precision_recall_fscore_support(truth, answers, average=how, zero_division=0)
    return Average(*map(float, values[:3]), intervals=intervals[how])


def _class_intervals(confusion: NDArray[np.int64]) -> Iterator[dict[str, Interval | None]]:
    occurs, answered = confusion.sum(axis=1), confusion.sum(axis=0)
    for counts in zip(confusion.diagonal(), occurs, answered, strict=True):
        yield class_intervals(*map(int, counts))


def class_intervals(right: int, images: int, answers: int) -> dict[str, Interval | None]:
    """Return the intervals of a class' precision, recall and F1.

    Args:
        right: samples of it that were answered so.
        images: samples of it.
        answers: samples that were answered so.
    """
    return {
        "precision": share_interval(right, answers),
        "recall": share_interval(right, images),
        "f1": f1_interval(right, images + answers - right),
    }


def average_data(average: Average) -> JsonValue:
    """Return an average as plain JSON."""
    return {
        "precision": average.precision,
        "recall": average.recall,
        "f1": average.f1,
        "intervals": bounds_data(average.intervals),
    }


def class_data(row: ClassScore, *, with_intervals: bool) -> JsonValue:
    """Return how a class fared as plain JSON."""
    return {
        "name": row.name,
        "images": row.images,
        "precision": row.precision,
        "recall": row.recall,
        "f1": row.f1,
        "intervals": bounds_data(row.intervals) if with_intervals else None,
    }


def bounds_data(intervals: Mapping[str, Interval | None]) -> JsonValue:
    """Return intervals by name as plain JSON."""
    return {name: None if pair is None else [*pair] for name, pair in intervals.items()}


def defined(value: float) -> float | None:
    """Return a figure, None for what is not a number."""
    return None if math.isnan(value) else float(value)
