"""The classifiers of scikit-learn that are fitted on features, by their short names.

| name | what it is |
| --- | --- |
| logistic | `StandardScaler`, then `LogisticRegression(C=C)` |
| svm | `StandardScaler`, then `LinearSVC(C=C, dual=True)` |
| ridge | `RidgeClassifier(alpha=1/(2 C))`, of numbers `Ridge`; scikit-learn's own measure of C |

Whatever is fitted is given rows in float64, so that what it answers does not depend on the dtype
that a model computes in.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from persistlib.errors import Code, error, missing_extra, warn
from persistlib.installed import is_importable
from persistlib.training import affine
from persistlib.wording import first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOGISTIC, SVM, RIDGE = NAMES = ("logistic", "svm", "ridge")
# Steps that lbfgs may take: scikit-learn's 100 are few for hundreds of numbers a sample.
_STEPS = 1000


def require_sklearn(purpose: str) -> None:
    """Fail before anything is computed where scikit-learn is not installed.

    Raises:
        MissingExtra: it is not.
    """
    if not is_importable("sklearn"):
        raise missing_extra("scikit-learn", "evaluate", purpose)


def estimator_of(
    classifier: Any,
    *,
    C: float = 1.0,  # noqa: N803 - scikit-learn's word
    seed: int = 0,
    numbers: bool = False,
) -> Any:
    """Return the estimator that a name stands for, or the one that was given.

    Args:
        classifier: logistic, svm, ridge; or an estimator of scikit-learn's, fitted or not.
        C: of a name: the inverse of how strongly large weights are held back.
        seed: of what it draws.
        numbers: whether numbers are predicted, not classes.

    Raises:
        UsageError: no such name, or C is no number above 0.
        TrainingError: no linear layer is exactly what the estimator computes.
        MissingExtra: scikit-learn is not installed.
    """
    require_sklearn("fitting a classifier on features")
    given: Any = C
    if not isinstance(given, (int, float)) or isinstance(given, bool) or not 0 < given < math.inf:
        raise error(Code.USAGE, "C", f"{given!r} is not a number above 0")
    if not isinstance(classifier, str):
        affine.require_supported(classifier)
        return classifier
    if classifier not in NAMES:
        remedy = f"use {', '.join(NAMES)}, or an estimator of scikit-learn's"
        raise error(Code.USAGE, "classifier", f"{classifier!r} is none", remedy)
    from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    if classifier == RIDGE:
        return (Ridge if numbers else RidgeClassifier)(alpha=1 / (2 * C))
    draws: dict[str, Any] = {"C": C, "random_state": seed % (1 << 32)}
    if classifier == SVM:
        # On 1,438 samples of 1,280 features the primal, which "auto" takes, was 15 times slower and
        # had not converged.
        draws["dual"] = True
        return make_pipeline(StandardScaler(), LinearSVC(**draws))
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=_STEPS, **draws))


def is_fitted(estimator: Any) -> bool:
    """Return whether an estimator was fitted."""
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(affine.steps_of(estimator)[-1])
    except NotFittedError:
        return False
    return True


def is_regressor(estimator: Any) -> bool:
    """Return whether an estimator predicts numbers, not classes."""
    from sklearn.base import is_regressor as is_one

    return bool(is_one(estimator))


def fit(estimator: Any, rows: NDArray[Any], truth: NDArray[Any]) -> Any:
    """Return a copy of an estimator, fitted.

    A fit that ends before it has converged is a warning of ours.

    Args:
        estimator: not fitted, or to be fitted anew; left as it is.
        rows: (samples, numbers), finite.
        truth: a class each, or numbers.

    Raises:
        TrainingError: it refuses the samples.
    """
    from sklearn.base import clone
    from sklearn.exceptions import ConvergenceWarning

    fresh: Any = clone(estimator)
    name = affine.named(fresh)
    wide = np.asarray(rows, np.float64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ConvergenceWarning)
        try:
            fresh.fit(wide, truth)
        except (ValueError, ArithmeticError, np.linalg.LinAlgError) as fault:
            text = first_line(fault)
            remedy = "compare the targets with what it is for, and look for values not finite"
            raise error(Code.DATA_INVALID, name, f"it refuses them: {text}", remedy) from fault
    if caught:
        remedy = "give a smaller C, or an estimator with a larger max_iter"
        reason = "ended before it had converged: its answers may be worse than it could give"
        warn(Code.CLASSIFIER_ENDED, name, reason, remedy)
    return fresh
