"""The figures of a task as functions of how often each sample was drawn.

What a figure needs of a sample stands in a row of numbers, and the figure follows from the sums of
the rows: so thousands of draws are one product of matrices. Of two models the rows of both stand
side by side, since a sample is drawn for both or for neither.

| task | figures | of each part |
|---|---|---|
| classification | macro F1, weighted F1 | |
| regression | MSE, MAE; R2 of the outputs that vary; means over the outputs | the same |
| multilabel | subset accuracy; precision, recall and F1, micro and macro | |
| segmentation | pixel accuracy, mean IoU of what occurs or was said | IoU, precision, recall |

What is the share of single samples has an interval of its own (`intervals`), and is not among the
figures of classes and labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from persistlib.evaluation.averages import FIGURES, averages
from persistlib.evaluation.bootstrap import bootstrap
from persistlib.training.tasks import CLASSIFICATION, MULTILABEL, REGRESSION, SEGMENTATION

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from persistlib.evaluation.bootstrap import Statistic
    from persistlib.evaluation.intervals import Interval
    from persistlib.evaluation.outcomes import Outcomes

MSE, MAE, R2 = ERRORS = ("MSE", "MAE", "R2")
PIXELS, MEAN_IOU = "pixel accuracy", "mean IoU"
IOU, PRECISION, RECALL, F1 = "IoU", "precision", "recall", "F1"
SUBSET = "subset accuracy"
_OVERALL: dict[str, tuple[str, ...]] = {
    CLASSIFICATION: (f"macro {F1}", f"weighted {F1}"),
    REGRESSION: ERRORS,
    MULTILABEL: (
        SUBSET,
        *(f"{kind} {name}" for kind in ("micro", "macro") for name in (PRECISION, RECALL, F1)),
    ),
    SEGMENTATION: (PIXELS, MEAN_IOU),
}
# Of each class or output, behind those of all samples.
_PARTS: dict[str, tuple[str, ...]] = {REGRESSION: ERRORS, SEGMENTATION: (IOU, PRECISION, RECALL)}
# Places of macro and weighted F1 among what `averages` computes.
_F1 = (FIGURES.index("f1"), len(FIGURES) + FIGURES.index("f1"))


class Bounded(NamedTuple):
    """A figure, or the difference of two, and its interval.

    Attributes:
        part: the class or output that it is about; empty for all samples.
        name: of the figure.
        values: the figure, of one model or of two; NaN where it is not defined.
        interval: of the figure, or of the first less the second.
    """

    part: str
    name: str
    values: tuple[float, ...]
    interval: Interval | None


def bounded(*outcomes: Outcomes) -> tuple[Bounded, ...]:
    """Return the figures of one model with their intervals, of two with those of the differences.

    Args:
        outcomes: of one model, or of two on the same samples, their names in the same order.
    """
    counts, statistic = _kinds(outcomes)
    values = statistic(counts[None].astype(np.float64))[0]
    intervals = bootstrap(counts, statistic if len(outcomes) == 1 else _difference(statistic))
    columns = values.reshape(len(outcomes), -1).T
    return tuple(
        Bounded(part, name, tuple(float(value) for value in column), interval)
        for (part, name), column, interval in zip(
            _named(outcomes[0]), columns, intervals, strict=True
        )
    )


def _named(outcomes: Outcomes) -> list[tuple[str, str]]:
    """Return what the figures are called, in their order."""
    parts = [(part, name) for name in _PARTS.get(outcomes.task, ()) for part in outcomes.names]
    return [*(("", name) for name in _OVERALL[outcomes.task]), *parts]


def _difference(statistic: Statistic) -> Statistic:
    def difference(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        first, second = np.split(statistic(weights), 2, axis=1)
        return first - second

    return difference


def _kinds(outcomes: tuple[Outcomes, ...]) -> tuple[NDArray[np.int64], Statistic]:
    """Return how many samples are of each kind, and what computes all models' figures of draws."""
    task = outcomes[0].task
    if task == CLASSIFICATION:
        columns = [outcomes[0].truth, *(found.answers for found in outcomes)]
        cells, counts = np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)
        parts = [averages(cells[:, 0], cells[:, 1 + place]) for place in range(len(outcomes))]

        def figures(weights: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.concatenate([part(weights)[:, _F1] for part in parts], axis=1)

        return counts, figures
    rows, compute = _ROWS[task]
    kinds, counts = np.unique(
        np.concatenate([rows(found) for found in outcomes], axis=1), axis=0, return_counts=True
    )
    tables = np.split(kinds, len(outcomes), axis=1)

    def of_sums(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([compute(weights @ table) for table in tables], axis=1)

    return counts, of_sums


def _regression_rows(found: Outcomes) -> NDArray[np.float64]:
    truth, answers = (_wide(side) for side in (found.truth, found.answers))
    off = answers - truth
    # About their mean, or the squares of large numbers would swallow how they spread.
    centred = truth - truth.mean(axis=0)
    ones = np.ones((len(truth), 1))
    return np.concatenate([ones, off**2, np.abs(off), centred, centred**2], axis=1)


def _regression(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    count = sums[:, :1]
    squared, absolute, total, squares = np.split(sums[:, 1:], 4, axis=1)
    spread = squares - total**2 / count
    # What is left of outputs that do not vary is rounding.
    varies = spread > 1e-12 * np.maximum(squares, np.finfo(np.float64).tiny)
    explained = np.where(varies, 1 - squared / np.where(varies, spread, 1.0), np.nan)
    errors = squared / count, absolute / count
    means = (*(part.mean(axis=1) for part in errors), _mean(explained))
    return np.concatenate([np.stack(means, axis=1), *errors, explained], axis=1)


def _multilabel_rows(found: Outcomes) -> NDArray[np.float64]:
    truth, answers = (_wide(side) for side in (found.truth, found.answers))
    whole = np.all(truth == answers, axis=1, keepdims=True)
    return np.concatenate([np.ones_like(whole), whole, truth * answers, answers, truth], axis=1)


def _multilabel(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    # What is not defined counts as 0, as scikit-learn does.
    hits, said, occurs = np.split(sums[:, 2:], 3, axis=1)
    pairs = (hits, said), (hits, occurs), (2 * hits, said + occurs)
    micro = (_share(over.sum(axis=1), under.sum(axis=1)) for over, under in pairs)
    macro = (np.nan_to_num(_share(over, under)).mean(axis=1) for over, under in pairs)
    return np.stack([sums[:, 1] / sums[:, 0], *map(np.nan_to_num, micro), *macro], axis=1)


def _segmentation_rows(found: Outcomes) -> NDArray[np.float64]:
    if found.right is None:
        raise AssertionError("outcomes of a segmentation say which pixels are right")
    sides = (found.truth, found.answers, found.right)
    return np.concatenate([_wide(side) for side in sides], axis=1)


def _segmentation(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    truth, answers, right = np.split(sums, 3, axis=1)
    overlap = _share(right, truth + answers - right)
    overall = _share(right.sum(axis=1), truth.sum(axis=1)), _mean(overlap)
    parts = overlap, _share(right, answers), _share(right, truth)
    return np.concatenate([np.stack(overall, axis=1), *parts], axis=1)


def _mean(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the columns that are defined, NaN where none is."""
    return _share(np.nan_to_num(shares).sum(axis=1), np.count_nonzero(~np.isnan(shares), axis=1))


def _share(over: NDArray[np.float64], under: NDArray[Any]) -> NDArray[np.float64]:
    """Return shares, NaN where they are not defined."""
    shares = np.full_like(over, np.nan)
    np.divide(over, under, out=shares, where=under > 0)
    return shares


def _wide(side: NDArray[Any]) -> NDArray[np.float64]:
    wide = side.astype(np.float64)
    return wide.reshape(len(wide), -1)


_ROWS: dict[
    str,
    tuple[
        Callable[[Outcomes], NDArray[np.float64]],
        Callable[[NDArray[np.float64]], NDArray[np.float64]],
    ],
] = {
    REGRESSION: (_regression_rows, _regression),
    MULTILABEL: (_multilabel_rows, _multilabel),
    SEGMENTATION: (_segmentation_rows, _segmentation),
}
