"""What answers are worth where a model is no classifier: scikit-learn's figures, task by task.

A figure that is not defined is None: R2 of an output that is always the same, precision of a label
that was never answered, IoU of a class that neither occurs nor was answered. Averages are over the
figures that are defined; those of labels count them as 0, as scikit-learn does.

Every figure has its 95 % interval: shares of samples Wilson's, all others that of the bootstrap
over samples (`figures`), since what the pixels or labels of one sample have in common is drawn with
it; None where no draw changes the figure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from persistlib.evaluation import figures
from persistlib.evaluation.bootstrap import METHOD
from persistlib.evaluation.intervals import wilson
from persistlib.evaluation.metrics import (
    CONFUSION_SHOWN,
    Average,
    ClassScore,
    Metrics,
    average_data,
    bounds_data,
    class_data,
    class_intervals,
    defined,
    sklearn_metrics,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from pydantic import JsonValue

    from persistlib.evaluation.intervals import Interval
    from persistlib.evaluation.outcomes import Outcomes


@dataclass(frozen=True, slots=True)
class OutputScore:
    """How far the numbers of one output are from the truth.

    Attributes:
        name: of the output; empty for the mean over all.
        mse: mean squared error.
        mae: mean absolute error.
        rmse: the root of `mse`, in the unit of the output.
        r2: the share of the variance that is explained; None where the truth has none.
        intervals: of these four, by name.
    """

    name: str
    mse: float
    mae: float
    rmse: float
    r2: float | None
    intervals: Mapping[str, Interval | None] = field(kw_only=True, default_factory=dict)

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the figures as plain JSON."""
        errors: dict[str, JsonValue] = {"mse": self.mse, "mae": self.mae, "rmse": self.rmse}
        return {**errors, "r2": self.r2, "intervals": bounds_data(self.intervals)}


@dataclass(frozen=True, slots=True)
class Regression:
    """How far numbers are from the truth.

    Attributes:
        mean: over all outputs; its `rmse` is the root of the mean squared error.
        outputs: a row an output.
    """

    mean: OutputScore
    outputs: tuple[OutputScore, ...]

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the figures as plain JSON."""
        rows: list[JsonValue] = [{"name": row.name, **row.to_dict()} for row in self.outputs]
        return {**self.mean.to_dict(), "bootstrap": {**METHOD}, "outputs": rows}


@dataclass(frozen=True, slots=True)
class Multilabel:
    """What answers are worth where a sample may have any of the labels.

    Attributes:
        accuracy: share of samples with every label right.
        interval: of the accuracy, at 95 % (Wilson's).
        micro: all labels of all samples together.
        macro: each label counts the same.
        labels: a row a label; `images` are the samples that have it.
    """

    accuracy: float
    interval: Interval
    micro: Average
    macro: Average
    labels: tuple[ClassScore, ...]

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the figures as plain JSON."""
        return {
            "accuracy": self.accuracy,
            "interval": [*self.interval],
            "micro": average_data(self.micro),
            "macro": average_data(self.macro),
            "bootstrap": {**METHOD},
            "labels": [class_data(row, with_intervals=True) for row in self.labels],
        }


@dataclass(frozen=True, slots=True)
class Region:
    """How one class of a segmentation fared.

    Attributes:
        name: the class.
        pixels: that are of it.
        iou: pixels of it that were answered so, over those that are either (Jaccard's index).
        precision: of the pixels that were answered so, the share that is right.
        recall: of its pixels, the share that was answered so.
        intervals: of these three, by name.
    """

    name: str
    pixels: int
    iou: float | None
    precision: float | None
    recall: float | None
    intervals: Mapping[str, Interval | None] = field(kw_only=True, default_factory=dict)


@dataclass(frozen=True, slots=True)
class Segmentation:
    """What the classes of pixels are worth; ignored pixels count for nothing.

    Attributes:
        accuracy: share of right pixels.
        iou: the mean over the classes that occur or were answered.
        classes: a row a class.
        confusion: pixels, int64, rows the true class, columns the answer.
        intervals: of accuracy and iou, by name.
    """

    accuracy: float
    iou: float
    classes: tuple[Region, ...]
    confusion: NDArray[np.int64]
    intervals: Mapping[str, Interval | None] = field(kw_only=True, default_factory=dict)

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the figures as plain JSON; no `confusion` above 100 classes."""
        matrix: JsonValue = None
        if len(self.classes) <= CONFUSION_SHOWN:
            matrix = [[int(count) for count in row] for row in self.confusion]
        return {
            "accuracy": self.accuracy,
            "iou": self.iou,
            "intervals": bounds_data(self.intervals),
            "bootstrap": {**METHOD},
            "classes": [
                {
                    "name": row.name,
                    "pixels": row.pixels,
                    "iou": row.iou,
                    "precision": row.precision,
                    "recall": row.recall,
                    "intervals": bounds_data(row.intervals),
                }
                for row in self.classes
            ],
            "confusion": matrix,
        }


Measured: TypeAlias = Metrics | Regression | Multilabel | Segmentation


def measure_numbers(outcomes: Outcomes) -> Regression:
    """Return how far the answers of a regression are from the truth.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    sklearn = sklearn_metrics()
    truth, answers = outcomes.truth, outcomes.answers
    each: dict[str, Any] = {"multioutput": "raw_values"}
    squared = sklearn.mean_squared_error(truth, answers, **each)
    absolute = sklearn.mean_absolute_error(truth, answers, **each)
    varies = truth.max(axis=0) > truth.min(axis=0)
    explained = np.full(len(varies), np.nan)
    if varies.any():
        explained[varies] = sklearn.r2_score(truth[:, varies], answers[:, varies], **each)
    bounds = _bounds(outcomes)
    rows = tuple(
        OutputScore(
            name,
            *(float(mse), float(mae), math.sqrt(mse), defined(float(r2))),
            intervals=_number_bounds(bounds, name),
        )
        for name, mse, mae, r2 in zip(outcomes.names, squared, absolute, explained, strict=True)
    )
    mse, mae = float(np.mean(squared)), float(np.mean(absolute))
    r2 = float(np.mean(explained[varies])) if varies.any() else None
    whole = _number_bounds(bounds, "")
    return Regression(OutputScore("", mse, mae, math.sqrt(mse), r2, intervals=whole), rows)


def measure_labels(outcomes: Outcomes) -> Multilabel:
    """Return what the answers of a multi-label model are worth.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    sklearn = sklearn_metrics()
    truth, answers = outcomes.truth, outcomes.answers
    # A single label is no indicator matrix to scikit-learn, but a binary problem.
    columns = [*zip(outcomes.names, truth.T, answers.T, strict=True)]
    rows = tuple(_label(sklearn, name, *column) for name, *column in columns)
    whole = (truth == answers).all(axis=1)
    right, count, bounds = int(whole.sum()), len(whole), _bounds(outcomes)
    flat = sklearn.precision_recall_fscore_support(
        truth.ravel(), answers.ravel(), average="binary", zero_division=0
    )
    means = (
        float(np.mean([getattr(row, name) or 0.0 for row in rows]))
        for name in ("precision", "recall", "f1")
    )
    return Multilabel(
        accuracy=right / count,
        interval=wilson(right, count),
        micro=Average(*map(float, flat[:3]), intervals=_average_bounds(bounds, "micro")),
        macro=Average(*means, intervals=_average_bounds(bounds, "macro")),
        labels=rows,
    )


def measure_pixels(outcomes: Outcomes, confusion: NDArray[np.int64]) -> Segmentation:
    """Return what the answers of a segmentation are worth, from counts of pixels alone.

    Args:
        outcomes: of its images.
        confusion: of all of them; at least one pixel was not ignored.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    sklearn = sklearn_metrics()
    truth, answers = np.nonzero(confusion)
    labels = np.arange(len(confusion))
    # Every cell is a sample that counts as often as it occurs: the figures are those of the pixels.
    how: dict[str, Any] = {"labels": labels, "sample_weight": confusion[truth, answers]}
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - confusion.diagonal()
    overlap = sklearn.jaccard_score(truth, answers, average=None, zero_division=0, **how)
    overlap = np.where(union > 0, overlap, np.nan)
    precision, recall, _, _ = sklearn.precision_recall_fscore_support(
        truth, answers, zero_division=np.nan, **how
    )
    pixels, bounds = confusion.sum(axis=1), _bounds(outcomes)
    return Segmentation(
        accuracy=float(sklearn.accuracy_score(truth, answers, sample_weight=how["sample_weight"])),
        iou=float(np.nanmean(overlap)),
        classes=tuple(
            Region(
                name,
                int(count),
                *map(defined, map(float, scores)),
                intervals={
                    "iou": bounds[name, figures.IOU],
                    "precision": bounds[name, figures.PRECISION],
                    "recall": bounds[name, figures.RECALL],
                },
            )
            for name, count, *scores in zip(
                outcomes.names, pixels, overlap, precision, recall, strict=True
            )
        ),
        confusion=confusion,
        intervals={
            "accuracy": bounds["", figures.PIXELS],
            "iou": bounds["", figures.MEAN_IOU],
        },
    )


def _bounds(outcomes: Outcomes) -> dict[tuple[str, str], Interval | None]:
    """Return the bootstrap's intervals by class or output, empty for all samples, and figure."""
    return {(item.part, item.name): item.interval for item in figures.bounded(outcomes)}


def _number_bounds(
    bounds: Mapping[tuple[str, str], Interval | None], part: str
) -> dict[str, Interval | None]:
    squared = bounds[part, figures.MSE]
    # A root grows with its square.
    root = None if squared is None else (math.sqrt(squared[0]), math.sqrt(squared[1]))
    return {
        "mse": squared,
        "mae": bounds[part, figures.MAE],
        "rmse": root,
        "r2": bounds[part, figures.R2],
    }


def _average_bounds(
    bounds: Mapping[tuple[str, str], Interval | None], kind: str
) -> dict[str, Interval | None]:
    names = {"precision": figures.PRECISION, "recall": figures.RECALL, "f1": figures.F1}
    return {name: bounds["", f"{kind} {shown}"] for name, shown in names.items()}


def _label(
    sklearn: Any, name: str, truth: NDArray[np.bool_], answers: NDArray[np.bool_]
) -> ClassScore:
    precision, recall, f1, _ = sklearn.precision_recall_fscore_support(
        truth, answers, labels=[True], zero_division=np.nan
    )
    hits, images, said = (int(np.sum(part)) for part in (truth & answers, truth, answers))
    scores: Sequence[float] = (float(precision[0]), float(recall[0]), float(f1[0]))
    intervals = class_intervals(hits, images, said)
    return ClassScore(name, images, *map(defined, scores), intervals=intervals)
