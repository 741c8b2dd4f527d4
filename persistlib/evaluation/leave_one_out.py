"""What ridge regression answers to each sample when it was fitted on all others, in one fit.

Law: `without_each(...)` gives, up to rounding, the scores of as many separate fits as there are
groups, each without the samples of its group.

A linear smoother whose answers are H y, with a penalty that does not depend on the samples, gives
to the samples of a group g, fitted without them, y_g - (1 - H_gg)^-1 (y_g - (H y)_g): the PRESS
formula (Allen, Technometrics 16, 1974, p. 125; of groups, Cook and Weisberg, Residuals and
Influence in Regression, 1982, section 3.6). The intercept is not held back: H is that of centred
rows, and 1/n.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from persistlib.training import affine

if TYPE_CHECKING:
    from numpy.typing import NDArray


def is_ridge(estimator: Any) -> bool:
    """Return whether an estimator is ridge regression, alone, with one penalty for all."""
    steps = affine.steps_of(estimator)
    given = estimator.get_params(deep=False)
    alpha = given.get("alpha")
    return (
        len(steps) == 1
        and type(estimator).__module__.startswith("sklearn.linear_model")
        and type(estimator).__name__ in {"Ridge", "RidgeClassifier"}
        and isinstance(alpha, (int, float))
        and alpha > 0
        and given.get("class_weight") is None
        and not given.get("positive")
    )


def ridge_answers(
    estimator: Any, rows: NDArray[np.float64], truth: NDArray[Any], groups: NDArray[np.int64]
) -> NDArray[Any]:
    """Return what an estimator answers to each sample, fitted without the samples of its group.

    Args:
        estimator: as `is_ridge`; of a classifier the classes are the numbers in `truth`.
        rows: (samples, numbers).
        truth: classes, or numbers, one or several a sample.
        groups: a number a sample.
    """
    how: dict[str, Any] = {
        "alpha": float(estimator.alpha),
        "intercept": bool(estimator.fit_intercept),
    }
    if type(estimator).__name__ == "Ridge":
        flat = truth.reshape(len(truth), -1).astype(np.float64)
        return without_each(rows, flat, groups, **how).reshape(truth.shape)
    classes, places = np.unique(truth, return_inverse=True)
    # As RidgeClassifier: 1 for its class, -1 for the others.
    is_own = places[:, None] == np.arange(len(classes))
    scores = without_each(rows, np.where(is_own, 1.0, -1.0), groups, **how)
    for column in range(len(classes)):
        # A fit that has no sample of a class does not know it.
        homes = np.unique(groups[is_own[:, column]])
        if len(homes) == 1:
            scores[groups == homes[0], column] = -np.inf
    # Of two classes a tie is the first's; the second score is the first's negative.
    chosen = scores[:, 1] > 0 if len(classes) == 2 else scores.argmax(1)
    answers: NDArray[Any] = classes[chosen.astype(np.int64)]
    return answers


def without_each(
    rows: NDArray[np.float64],
    targets: NDArray[np.float64],
    groups: NDArray[np.int64],
    *,
    alpha: float,
    intercept: bool,
) -> NDArray[np.float64]:
    """Return the scores of each sample, fitted without the samples of its group.

    Args:
        rows: (samples, numbers).
        targets: (samples, outputs).
        groups: a number a sample.
        alpha: the penalty, above 0.
        intercept: whether there is one.
    """
    count = len(rows)
    share = 1 / count if intercept else 0.0
    centred = rows - rows.mean(0) if intercept else rows
    offsets = targets.mean(0) if intercept else np.zeros(targets.shape[1])
    root = _root(centred, alpha)
    off = targets - offsets - root.T @ (root @ (targets - offsets))
    found = np.empty_like(targets)
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=groups[order][0] - 1))
    for members in np.split(order, starts[1:]):
        own = root[:, members]
        left = np.eye(len(members)) - own.T @ own - share
        found[members] = targets[members] - np.linalg.solve(left, off[members])
    return found


def _root(centred: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Return Z of which Z' Z is the matrix that gives the answers, the intercept apart."""
    from scipy.linalg import solve_triangular

    count, width = centred.shape
    if width <= count:
        lower = np.linalg.cholesky(centred.T @ centred + alpha * np.eye(width))
        return np.asarray(solve_triangular(lower, centred.T, lower=True))
    values, vectors = np.linalg.eigh(centred @ centred.T)
    values = np.maximum(values, 0.0)
    root: NDArray[np.float64] = np.sqrt(values / (values + alpha))[:, None] * vectors.T
    return root
