"""What a head of a model answers in one runtime, batch by batch, task by task.

Law: what is kept does not depend on how samples are divided into batches. Of a segmentation counts
are kept, and no pixel.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from persistlib.errors import Code, PersistlibError, error
from persistlib.evaluation import task_metrics
from persistlib.evaluation.metrics import measure
from persistlib.evaluation.outcomes import Outcomes
from persistlib.training.tasks import (
    CLASSIFICATION,
    IGNORED,
    MULTILABEL,
    REGRESSION,
    SEGMENTATION,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from persistlib.evaluation.task_metrics import Measured
    from persistlib.training.tasks import Head

_TOP = 5
_RANK = 2  # (samples, classes)


class Found(NamedTuple):
    """How a head did: the members of `judging.HeadResult`."""

    outcomes: Outcomes
    metrics: Measured
    top5: float | None = None


class Collector:
    """What one head answers in one runtime.

    Args:
        head: which.
        where: the runtime's name, to be named in an error.
        data: what the samples are called.
        names: of classes, labels or outputs; empty for their numbers.

    Attributes:
        same: samples that this runtime and the first answer alike; None where answers are numbers.
        width: how many classes, labels or outputs there are.
    """

    _chooses = True

    def __init__(self, head: Head, where: str, data: str, names: tuple[str, ...]) -> None:
        self.head = head
        self.same: int | None = 0 if self._chooses else None
        self._where = f"{where}: output {head.name}" if head.name else f"{where}: outputs"
        self._data = data
        self._names = names
        self._off, self._low, self._high = 0.0, math.inf, -math.inf
        self.width = 0

    def add(
        self, scores: NDArray[Any], truth: NDArray[Any], first: NDArray[Any] | None = None
    ) -> NDArray[np.float64]:
        """Take in a batch.

        Args:
            scores: what the head gave.
            truth: the targets, a row a sample.
            first: what `add` returned of the first runtime, for another one.

        Returns:
            The scores in float64.

        Raises:
            TrainingError: the outputs are none of the head's task, or do not fit the targets.
            SessionError: a score is not finite.
        """
        self._require(scores, truth)
        wide = scores.astype(np.float64)
        if not np.isfinite(wide).all():
            remedy = "look at the weights"
            raise error(Code.RUN_FAILED, self._where, "a score is not finite", remedy)
        self.width = scores.shape[1] if scores.ndim > 1 else 1
        base = wide if first is None else first
        if base.shape != wide.shape:
            reason = f"shape {wide.shape}, and {base.shape} in the first runtime"
            raise error(Code.NO_SCORES, self._where, reason, "export it again")
        self._off = max(self._off, float(np.abs(wide - base).max()))
        self._low, self._high = min(self._low, base.min()), max(self._high, base.max())
        if self.same is not None:
            alike = self._chosen(wide) == self._chosen(base)
            self.same += int(alike.reshape(len(wide), -1).all(axis=1).sum())
        self._take(wide, truth)
        return wide

    @property
    def difference(self) -> float:
        """The largest difference from the first runtime, relative to the spread of its scores."""
        spread = float(self._high - self._low)
        return self._off / spread if spread else (math.inf if self._off else 0.0)

    def result(self) -> Found:
        """Return how the head did."""
        raise NotImplementedError

    def _require(self, scores: NDArray[Any], truth: NDArray[Any]) -> None:
        """Raise where scores are none of the task, or do not fit the targets."""
        raise NotImplementedError

    def _take(self, scores: NDArray[np.float64], truth: NDArray[Any]) -> None:
        """Keep what the figures are made of."""
        raise NotImplementedError

    def _chosen(self, scores: NDArray[np.float64]) -> NDArray[Any]:
        """Return what scores stand for, where they are not the answer themselves."""
        raise NotImplementedError

    def _outcomes(self, truth: NDArray[Any], answers: NDArray[Any]) -> Outcomes:
        return Outcomes(self.head.name, self.head.task, self.names, truth, answers)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of classes, labels or outputs."""
        return self._names or tuple(map(str, range(self.width)))

    def _no_scores(self, reason: str, remedy: str) -> PersistlibError:
        return error(Code.NO_SCORES, self._where, reason, remedy)

    def _require_names(self, width: int, what: str) -> None:
        if self._names and len(self._names) != width:
            reason = f"{width} {what} for {len(self._names)} labels"
            raise self._no_scores(reason, "correct the labels of the interface")

    def _require_classes(self, truth: NDArray[Any], classes: int) -> None:
        if truth.size and (beyond := int(truth.max())) >= classes:
            reason = f"label {beyond}; the model has {classes} classes, from 0 on"
            raise error(Code.DATA_CLASSES, self._data, reason, "correct the labels")


class _Classes(Collector):
    """The class of each sample."""

    def __init__(self, head: Head, where: str, data: str, names: tuple[str, ...]) -> None:
        super().__init__(head, where, data, names)
        self._best: list[NDArray[np.int64]] = []
        self._truth: list[NDArray[np.int64]] = []
        self._among_top = 0

    def _require(self, scores: NDArray[Any], truth: NDArray[Any]) -> None:
        if scores.ndim != _RANK or len(scores) != len(truth) or scores.shape[1] < _RANK:
            reason = f"shape {scores.shape} for {len(truth)} inputs, not (inputs, classes)"
            raise self._no_scores(reason, "evaluate a classifier, or say its task (--task)")
        self._require_names(scores.shape[1], "scores")
        self._require_classes(truth, scores.shape[1])

    def _take(self, scores: NDArray[np.float64], truth: NDArray[Any]) -> None:
        order = np.argsort(-scores, axis=1, kind="stable")[:, :_TOP]
        self._best.append(order[:, 0].astype(np.int64))
        self._truth.append(truth)
        self._among_top += int(np.sum(order == truth[:, None]))

    def _chosen(self, scores: NDArray[np.float64]) -> NDArray[Any]:
        chosen: NDArray[np.int64] = scores.argmax(axis=1)
        return chosen

    def result(self) -> Found:
        truth, best = np.concatenate(self._truth), np.concatenate(self._best)
        top = self._among_top / len(truth) if len(self.names) > _TOP else None
        return Found(self._outcomes(truth, best), measure(truth, best, self.names), top)


class _Numbers(Collector):
    """The numbers of each sample."""

    _chooses = False

    def __init__(self, head: Head, where: str, data: str, names: tuple[str, ...]) -> None:
        super().__init__(head, where, data, names)
        self._rows: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []

    def _require(self, scores: NDArray[Any], truth: NDArray[Any]) -> None:
        given, wanted = (_as_rows(part).shape for part in (scores, truth))
        if not scores.ndim or given != wanted:
            reason = f"shape {scores.shape} for targets of shape {truth.shape}"
            raise self._no_scores(reason, "give a target for each output")
        self._require_names(given[1], "outputs")

    def _take(self, scores: NDArray[np.float64], truth: NDArray[Any]) -> None:
        self.width = _as_rows(scores).shape[1]
        self._rows.append((_as_rows(truth).astype(np.float64), _as_rows(scores)))

    def result(self) -> Found:
        truth, answers = (np.concatenate(part) for part in zip(*self._rows, strict=True))
        outcomes = self._outcomes(truth, answers)
        return Found(outcomes, task_metrics.measure_numbers(outcomes))


class _Labels(Collector):
    """The labels of each sample: those whose score, a logit, is above 0."""

    def __init__(self, head: Head, where: str, data: str, names: tuple[str, ...]) -> None:
        super().__init__(head, where, data, names)
        self._rows: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]] = []

    def _require(self, scores: NDArray[Any], truth: NDArray[Any]) -> None:
        if scores.ndim != _RANK or scores.shape != truth.shape:
            reason = f"shape {scores.shape} for labels of shape {truth.shape}"
            raise self._no_scores(reason, "give 0 or 1 for each label: (samples, labels)")
        self._require_names(scores.shape[1], "scores")

    def _take(self, scores: NDArray[np.float64], truth: NDArray[Any]) -> None:
        self._rows.append((truth.astype(np.bool_), self._chosen(scores)))

    def _chosen(self, scores: NDArray[np.float64]) -> NDArray[Any]:
        return scores > 0

    def result(self) -> Found:
        truth, answers = (np.concatenate(part) for part in zip(*self._rows, strict=True))
        outcomes = self._outcomes(truth, answers)
        return Found(outcomes, task_metrics.measure_labels(outcomes))


class _Pixels(Collector):
    """The class of each pixel, as counts."""

    def __init__(self, head: Head, where: str, data: str, names: tuple[str, ...]) -> None:
        super().__init__(head, where, data, names)
        self._counts: list[NDArray[np.int64]] = []
        self._confusion: NDArray[np.int64] | None = None

    def _require(self, scores: NDArray[Any], truth: NDArray[Any]) -> None:
        wanted = (len(truth), *truth.shape[1:])
        if scores.ndim != 4 or (len(scores), *scores.shape[2:]) != wanted or scores.shape[1] < 2:
            reason = f"shape {scores.shape} for masks of shape {truth.shape}"
            remedy = "give masks of (samples, height, width), as large as the outputs"
            raise self._no_scores(reason, remedy)
        self._require_names(scores.shape[1], "classes")
        self._require_classes(truth[truth != IGNORED], scores.shape[1])

    def _take(self, scores: NDArray[np.float64], truth: NDArray[Any]) -> None:
        classes = scores.shape[1]
        for mask, said in zip(truth, self._chosen(scores), strict=True):
            counted = mask != IGNORED
            cells = mask[counted].astype(np.int64) * classes + said[counted]
            counts = np.bincount(cells, minlength=classes**2).reshape(classes, classes)
            self._confusion = counts if self._confusion is None else self._confusion + counts
            self._counts.append(np.stack([counts.sum(1), counts.sum(0), counts.diagonal()]))

    def _chosen(self, scores: NDArray[np.float64]) -> NDArray[Any]:
        chosen: NDArray[np.int64] = scores.argmax(axis=1)
        return chosen

    def result(self) -> Found:
        assert self._confusion is not None
        if not self._confusion.any():
            reason, remedy = "every pixel is ignored", "give masks with classes"
            raise error(Code.DATA_INVALID, self._data, reason, remedy)
        truth, answers, right = np.stack(self._counts, axis=1)
        outcomes = Outcomes(self.head.name, self.head.task, self.names, truth, answers, right)
        return Found(outcomes, task_metrics.measure_pixels(outcomes, self._confusion))


_COLLECTORS: dict[str, type[Collector]] = {
    CLASSIFICATION: _Classes,
    REGRESSION: _Numbers,
    MULTILABEL: _Labels,
    SEGMENTATION: _Pixels,
}


def collector(head: Head, where: str, data: str, names: tuple[str, ...]) -> Collector:
    """Return what collects the answers of a head; see `Collector`."""
    return _COLLECTORS[head.task](head, where, data, names)


def _as_rows(array: NDArray[Any]) -> NDArray[Any]:
    """Return numbers as (samples, outputs): a lone number a sample is one output."""
    return array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1)
