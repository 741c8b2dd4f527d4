"""The figures of a task as functions of how often each sample was drawn.

What a figure needs of a sample stands in a row of numbers, and the figure follows from the sums of
the rows: so thousands of draws are one product of matrices. Of two models the rows of both stand
side by side, since a sample is drawn for both or for neither.

| task | figures |
|---|---|
| classification | macro F1, weighted F1 |
| regression | MSE, MAE; R2 of the outputs that vary; means over the outputs |
| multilabel | subset accuracy, micro F1, macro F1 |
| segmentation | pixel accuracy, mean IoU over the classes that occur or were answered |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from persistlib.evaluation.averages import averages
from persistlib.evaluation.bootstrap import bootstrap
from persistlib.training.tasks import CLASSIFICATION, MULTILABEL, REGRESSION, SEGMENTATION

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from persistlib.evaluation.bootstrap import Statistic
    from persistlib.evaluation.intervals import Interval
    from persistlib.evaluation.outcomes import Outcomes

NAMES: dict[str, tuple[str, ...]] = {
    CLASSIFICATION: ("macro F1", "weighted F1"),
    REGRESSION: ("MSE", "MAE", "R2"),
    MULTILABEL: ("subset accuracy", "micro F1", "macro F1"),
    SEGMENTATION: ("pixel accuracy", "mean IoU"),
}
# Places of macro and weighted F1 among what `averages` computes.
_F1 = (2, 5)


class Bounded(NamedTuple):
    """A figure, or the difference of two, and its interval.

    Attributes:
        name: of the figure.
        values: the figure, of one model or of two; NaN where it is not defined.
        interval: of the figure, or of the first less the second.
    """

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
    width = len(NAMES[outcomes[0].task])
    intervals = bootstrap(counts, statistic if len(outcomes) == 1 else _difference(statistic))
    return tuple(
        Bounded(name, tuple(float(value) for value in values[place::width]), interval)
        for place, (name, interval) in enumerate(
            zip(NAMES[outcomes[0].task], intervals, strict=True)
        )
    )


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
    with np.errstate(divide="ignore", invalid="ignore"):
        explained = np.where(spread > 0, 1 - squared / spread, np.nan)
    known = np.count_nonzero(~np.isnan(explained), axis=1)
    shares = _share(np.nan_to_num(explained).sum(axis=1), known)
    errors = [part.mean(axis=1) for part in (squared / count, absolute / count)]
    return np.stack([*errors, shares], axis=1)


def _multilabel_rows(found: Outcomes) -> NDArray[np.float64]:
    truth, answers = (_wide(side) for side in (found.truth, found.answers))
    whole = np.all(truth == answers, axis=1, keepdims=True)
    return np.concatenate([np.ones_like(whole), whole, truth * answers, truth + answers], axis=1)


def _multilabel(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    right, both = np.split(sums[:, 2:], 2, axis=1)
    micro = _share(2 * right.sum(axis=1), both.sum(axis=1))
    macro = np.nan_to_num(_share(2 * right, both)).mean(axis=1)
    return np.stack([sums[:, 1] / sums[:, 0], np.nan_to_num(micro), macro], axis=1)


def _segmentation_rows(found: Outcomes) -> NDArray[np.float64]:
    if found.right is None:
        raise AssertionError("outcomes of a segmentation say which pixels are right")
    sides = (found.truth, found.answers, found.right)
    return np.concatenate([_wide(side) for side in sides], axis=1)


def _segmentation(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    truth, answers, right = np.split(sums, 3, axis=1)
    shares = _share(right, truth + answers - right)
    present = np.count_nonzero(~np.isnan(shares), axis=1)
    pixels = _share(right.sum(axis=1), truth.sum(axis=1))
    return np.stack([pixels, _share(np.nan_to_num(shares).sum(axis=1), present)], axis=1)


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
