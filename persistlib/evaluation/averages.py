"""Precision, recall and F1 averaged over classes, of many draws of the samples at once.

Law: of a draw they are what `metrics.measure` finds for its samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from persistlib.evaluation.bootstrap import bootstrap

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from persistlib.evaluation.intervals import Interval

KINDS = ("macro", "weighted")
FIGURES = ("precision", "recall", "f1")


def average_intervals(confusion: NDArray[np.int64]) -> dict[str, dict[str, Interval | None]]:
    """Return the interval of each average, by its kind and its name.

    Args:
        confusion: counts, rows the true class, columns the answer.
    """
    truth, answers = np.nonzero(confusion)
    found = bootstrap(confusion[truth, answers], averages(truth, answers))
    bounds = iter(found)
    return {kind: {name: next(bounds) for name in FIGURES} for kind in KINDS}


def averages(
    truth: NDArray[np.int64], answers: NDArray[np.int64]
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return what computes the averages of draws, as `bootstrap` asks for it.

    Args:
        truth: the true class of each kind of sample; kinds may agree in truth and answer, and
            differ in what another model answers.
        answers: what samples of each kind were taken for.

    Returns:
        Counts (draws, kinds) to figures (draws, 6): `FIGURES` of each of `KINDS`.
    """
    occurring, places = np.unique(np.concatenate([truth, answers]), return_inverse=True)
    rows, columns = np.split(places.reshape(-1), 2)
    right = np.flatnonzero(rows == columns)
    width = len(occurring)
    by_truth, by_answer = _summing(rows, width), _summing(columns, width)
    by_hit = _summing(rows[right], width)

    def figures(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        hits = by_hit(weights[:, right])
        occurs, answered = by_truth(weights), by_answer(weights)
        shares = (
            _ratio(hits, answered),
            _ratio(hits, occurs),
            _ratio(2 * hits, occurs + answered),
        )
        present = np.count_nonzero(occurs + answered, axis=1)
        total = occurs.sum(axis=1)
        macro = [share.sum(axis=1) / present for share in shares]
        weighted = [(share * occurs).sum(axis=1) / total for share in shares]
        return np.stack([*macro, *weighted], axis=1)

    return figures


def _summing(
    places: NDArray[np.int64], width: int
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return what sums counts (draws, kinds) by the kinds' places, to (draws, width)."""
    order = np.argsort(places, kind="stable")
    present, starts = np.unique(places[order], return_index=True)

    def sums(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        found = np.zeros((len(weights), width))
        if len(present):
            found[:, present] = np.add.reduceat(weights[:, order], starts, axis=1)
        return found

    return sums


def _ratio(over: NDArray[np.float64], under: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return shares, 0 where they are not defined."""
    return np.divide(over, under, out=np.zeros_like(over), where=under > 0)
