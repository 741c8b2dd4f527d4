"""How good a last layer is on samples that it was not fitted on, told by fitting it many times.

Each sample is judged by a classifier that was fitted on samples of other folds, scaling included.
The figures of folds are not independent: any two share most of what they were fitted on. The
interval of their mean is that of Nadeau and Bengio (Machine Learning 52, 2003, p. 239), a t
interval whose variance is s^2 (1/k + tested/fitted) for k folds, at 95 %. Of leave-one-out, where
a fold is a sample, the interval of the accuracy is Wilson's, and that of an error a t interval over
the samples; neither knows that the fits depend on each other.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from persistlib.errors import Code, error
from persistlib.evaluation import folds as dividing
from persistlib.evaluation import leave_one_out
from persistlib.evaluation.intervals import LEVEL, wilson
from persistlib.evaluation.metrics import Metrics, measure, sklearn_metrics
from persistlib.evaluation.outcomes import Outcomes
from persistlib.training.tasks import CLASSIFICATION, REGRESSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from pydantic import JsonValue

CORRECTED, WILSON, STUDENT = "Nadeau-Bengio corrected t", "Wilson", "t over samples"


class Figure(NamedTuple):
    """A figure over all folds.

    Attributes:
        name: accuracy, f1 (macro), mse or mae.
        mean: over the folds; of leave-one-out, over the samples.
        interval: at 95 %.
        method: of the interval.
    """

    name: str
    mean: float
    interval: tuple[float, float]
    method: str


class Fold(NamedTuple):
    """One fit.

    Attributes:
        fitted: samples that it was fitted on.
        tested: samples that it was judged on.
        figures: by name.
    """

    fitted: int
    tested: int
    figures: dict[str, float]


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """What cross-validation found.

    Attributes:
        folds: a row a fold; empty for leave-one-out.
        figures: their means.
        outcomes: of every sample, answered by the fit that had not seen it.
        metrics: of these answers; None for numbers.
        fits: how many classifiers were fitted.
        seed: of the folds.
        about: the data, and what was fitted.
    """

    folds: tuple[Fold, ...]
    figures: tuple[Figure, ...]
    outcomes: Outcomes
    metrics: Metrics | None
    fits: int
    seed: int
    about: Mapping[str, JsonValue] = field(default_factory=dict)

    def __repr__(self) -> str:
        how = f"{len(self.folds)} folds" if self.folds else "leave-one-out"
        figures = (f"{figure.name}={figure.mean:.4g}" for figure in self.figures)
        samples = f"{len(self.outcomes):,} samples"
        return f"CrossValidation({', '.join((how, samples, *figures))})"

    def __getitem__(self, name: str) -> Figure:
        return next(figure for figure in self.figures if figure.name == name)

    def to_dict(self) -> dict[str, JsonValue]:
        """Return everything but the single answers as plain JSON."""
        return {
            **self.about,
            "method": "folds" if self.folds else "leave-one-out",
            "samples": len(self.outcomes),
            "fits": self.fits,
            "seed": self.seed,
            "figures": {
                figure.name: {
                    "mean": figure.mean,
                    "interval": list(figure.interval),
                    "method": figure.method,
                }
                for figure in self.figures
            },
            "folds": [
                {"fitted": fold.fitted, "tested": fold.tested, **fold.figures}
                for fold in self.folds
            ],
            "metrics": None if self.metrics is None else self.metrics.to_dict(),
        }


class Problem(NamedTuple):
    """What is fitted, and on what.

    Attributes:
        estimator: of scikit-learn's; a copy is fitted each time.
        rows: features, (samples, numbers), float64.
        truth: a class each, or numbers, one or several.
        digests: of the samples, by which copies are known.
        names: of the classes, or of the outputs.
        fit: fits a copy of an estimator on rows and truth (`training.classifiers.fit`).
        progress: called with what is being done, steps done, and all steps.
    """

    estimator: Any
    rows: NDArray[np.float64]
    truth: NDArray[Any]
    digests: Sequence[bytes]
    names: tuple[str, ...]
    fit: Callable[[Any, NDArray[Any], NDArray[Any]], Any]
    progress: Callable[[str, int, int], None] | None = None

    @property
    def has_classes(self) -> bool:
        """Whether classes are told apart; otherwise numbers are predicted."""
        return self.truth.dtype.kind in "iu"


def in_folds(problem: Problem, count: int, *, seed: int) -> CrossValidation:
    """Return how a classifier does in folds, which are stratified where there are classes.

    Raises:
        UsageError: `count` is below 2.
        TrainingError: the samples cannot be divided so, or cannot be fitted on.
    """
    labels = problem.truth.tolist() if problem.has_classes else None
    places = dividing.divide(problem.digests, labels, count, seed)
    groups = dividing.copies(problem.digests)
    if labels is not None:
        dividing.require_members(labels, groups, problem.names, count)
    answers = np.empty_like(problem.truth)
    rows: list[Fold] = []
    for number, tested in enumerate(_each(problem, places)):
        answers[tested] = _answers(problem, tested)
        found = _figures(problem, answers, tested)
        rows.append(Fold(len(places) - len(tested), len(tested), found))
        _tell(problem, number + 1, count)
    figures = tuple(
        Figure(name, *_corrected(name, rows, count), CORRECTED) for name in rows[0].figures
    )
    return _result(problem, answers, figures, tuple(rows), count, seed)


def leaving_one_out(problem: Problem) -> CrossValidation:
    """Return how a classifier does on each sample, fitted on all others but its copies.

    Ridge regression without scaling is fitted once (`leave_one_out`), others as often as there
    are samples.

    Raises:
        TrainingError: the samples cannot be fitted on.
    """
    groups = dividing.copies(problem.digests)
    count = int(groups.max()) + 1
    if problem.has_classes:
        dividing.tell_rare(problem.truth.tolist(), groups, problem.names)
    if leave_one_out.is_ridge(problem.estimator):
        _require_classes(problem, groups)
        answers = leave_one_out.ridge_answers(
            problem.estimator, problem.rows, problem.truth, groups
        )
        fits = 1
    else:
        answers, fits = np.empty_like(problem.truth), count
        for number, tested in enumerate(_each(problem, groups)):
            answers[tested] = _answers(problem, tested)
            _tell(problem, number + 1, count)
    every = np.arange(len(answers))
    figures = tuple(
        Figure(name, *_over_samples(problem, name, answers))
        for name in _figures(problem, answers, every)
        if name != "f1"
    )
    return _result(problem, answers, figures, (), fits, 0)


def _each(problem: Problem, places: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield the samples of each fold, which must leave two classes to be fitted on.

    Raises:
        TrainingError: there is but one.
    """
    _require_classes(problem, places)
    for place in range(int(places.max()) + 1):
        yield np.flatnonzero(places == place)


def _require_classes(problem: Problem, places: NDArray[np.int64]) -> None:
    """Refuse folds without one of which there is but one class left.

    Raises:
        TrainingError: there is such a fold.
    """
    if not problem.has_classes:
        return
    homes = [set(places[problem.truth == label].tolist()) for label in np.unique(problem.truth)]
    alone = Counter(min(home) for home in homes if len(home) == 1)
    if len(homes) - max(alone.values(), default=0) < 2:
        reason = "without the samples of a fold there is but one class"
        raise error(Code.FOLDS, "data", reason, "add samples of other classes")


def _answers(problem: Problem, tested: NDArray[np.int64]) -> NDArray[Any]:
    """Return what is answered to samples when all others were fitted on."""
    is_fitted = np.ones(len(problem.truth), dtype=bool)
    is_fitted[tested] = False
    made = problem.fit(problem.estimator, problem.rows[is_fitted], problem.truth[is_fitted])
    answers: NDArray[Any] = made.predict(problem.rows[tested])
    return answers.reshape(problem.truth[tested].shape)


def _figures(
    problem: Problem, answers: NDArray[Any], tested: NDArray[np.int64]
) -> dict[str, float]:
    """Return the figures of some samples by name."""
    metrics = sklearn_metrics()
    truth, given = problem.truth[tested], answers[tested]
    if problem.has_classes:
        f1 = metrics.f1_score(truth, given, average="macro", zero_division=0.0)
        return {"accuracy": float(np.mean(truth == given)), "f1": float(f1)}
    return {
        "mse": float(metrics.mean_squared_error(truth, given)),
        "mae": float(metrics.mean_absolute_error(truth, given)),
    }


def _corrected(name: str, rows: list[Fold], count: int) -> tuple[float, tuple[float, float]]:
    """Return the mean of a figure over folds and its interval."""
    values = np.array([fold.figures[name] for fold in rows])
    shares = [fold.tested / fold.fitted for fold in rows]
    variance = values.var(ddof=1) * (1 / count + float(np.mean(shares)))
    return float(values.mean()), _bounded(name, float(values.mean()), variance, count - 1)


def _over_samples(
    problem: Problem, name: str, answers: NDArray[Any]
) -> tuple[float, tuple[float, float], str]:
    """Return a figure over all samples, its interval, and how that was found."""
    if name == "accuracy":
        right = int(np.sum(problem.truth == answers))
        return right / len(answers), wilson(right, len(answers)), WILSON
    off = np.abs(problem.truth - answers).reshape(len(answers), -1)
    values = (off**2 if name == "mse" else off).mean(1)
    variance = values.var(ddof=1) / len(values)
    mean = float(values.mean())
    return mean, _bounded(name, mean, variance, len(off) - 1), STUDENT


def _bounded(name: str, mean: float, variance: float, freedom: int) -> tuple[float, float]:
    from scipy import stats

    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance)
    most = 1.0 if name in {"accuracy", "f1"} else math.inf
    return max(mean - half, 0.0), min(mean + half, most)


def _result(  # noqa: PLR0917 - what a result is made of
    problem: Problem,
    answers: NDArray[Any],
    figures: tuple[Figure, ...],
    rows: tuple[Fold, ...],
    fits: int,
    seed: int,
) -> CrossValidation:
    task = CLASSIFICATION if problem.has_classes else REGRESSION
    truth = problem.truth
    metrics = measure(truth, answers, problem.names) if problem.has_classes else None
    if not problem.has_classes:
        truth, answers = (item.reshape(len(item), -1) for item in (truth, answers))
    outcomes = Outcomes("", task, problem.names, truth, answers)
    return CrossValidation(rows, figures, outcomes, metrics, fits, seed)


def _tell(problem: Problem, done: int, total: int) -> None:
    if problem.progress is not None:
        problem.progress("fitting", done, total)
