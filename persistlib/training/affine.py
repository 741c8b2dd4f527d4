"""What a fitted scikit-learn estimator computes, as weights of one linear layer.

Law: for every row x, with `form = affine_of(estimator, width)`:

- of a classifier, `estimator.predict(x)` is `form.classes[argmax(form.weight @ x + form.bias)]`,
  the first of equals;
- `estimator.predict_proba(x)`, where `form.link` is "softmax", is the softmax of that; where it is
  "shares", its logistic function divided by the sum over the classes; where it is None, there are
  no probabilities;
- of a regressor, `estimator.predict(x)` is `form.weight @ x + form.bias`.

The equations are of real numbers: scaling is folded into the weights in float64. What rounding
makes of them is tried by whoever builds a layer (`fused_layers`). Nothing but attributes of
scikit-learn's own classes is read: a class of another package may predict as it likes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from persistlib.errors import Code, error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from persistlib.errors import PersistlibError

SOFTMAX, SHARES = "softmax", "shares"
_BY_LOSS = "by its loss"
_LOGISTIC = "log_loss"
# What makes probabilities, a class each.
_CLASSIFIERS: dict[str, str | None] = {
    "LogisticRegression": SOFTMAX,
    "LogisticRegressionCV": SOFTMAX,
    "LinearDiscriminantAnalysis": SOFTMAX,
    "LinearSVC": None,
    "SGDClassifier": _BY_LOSS,
    "Perceptron": None,
    "RidgeClassifier": None,
    "RidgeClassifierCV": None,
}
_REGRESSORS = (
    *("LinearRegression", "Ridge", "RidgeCV", "Lasso", "LassoCV", "ElasticNet", "ElasticNetCV"),
    *("MultiTaskLasso", "MultiTaskElasticNet", "HuberRegressor", "SGDRegressor", "LinearSVR"),
)
_SCALERS = ("StandardScaler", "MaxAbsScaler", "MinMaxScaler", "RobustScaler")
_EACH = "OneVsRestClassifier"
_PIPELINE = "Pipeline"
SUPPORTED = (*_CLASSIFIERS, _EACH, *_REGRESSORS)


class Affine(NamedTuple):
    """A linear layer and what its outputs mean.

    Attributes:
        weight: (outputs, numbers that go in), float64.
        bias: (outputs,), float64.
        classes: the estimator's own, in the order of the outputs; None of a regressor.
        link: how outputs become probabilities: "softmax", "shares", or None.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    classes: tuple[Any, ...] | None
    link: str | None


def named(estimator: Any) -> str:
    """Return the name of an estimator's class, of a pipeline that of its last step."""
    return type(steps_of(estimator)[-1]).__name__


def steps_of(estimator: Any) -> list[Any]:
    """Return an estimator with the steps before it, in order; what passes through is left out."""
    if type(estimator).__name__ != _PIPELINE or not _is_own(estimator):
        return [estimator]
    *before, (_, last) = estimator.steps
    return [*(s for _, s in before if s is not None and s != "passthrough"), last]


def require_supported(estimator: Any) -> None:
    """Refuse an estimator of which no linear layer is exact, before it is fitted.

    Raises:
        TrainingError: its class, or that of a step before it, is not among those that are known.
    """
    *scalers, last = steps_of(estimator)
    for step in scalers:
        is_known = _is_own(step) and type(step).__name__ in _SCALERS
        if not is_known or getattr(step, "clip", False):
            what = " that clips" if is_known else ""
            reason = f"no linear layer does what it does{what}"
            remedy = f"only these may stand before the estimator: {', '.join(_SCALERS)}"
            raise error(Code.CLASSIFIER, type(step).__name__, reason, remedy)
    name = type(last).__name__
    if not _is_own(last) or name not in SUPPORTED:
        raise _unsupported(name, "no linear layer is exactly that")
    if name == _EACH:
        inner = last.estimator
        if type(inner).__name__ not in _CLASSIFIERS or not _is_own(inner):
            raise _unsupported(f"{name} of {type(inner).__name__}", "no linear layer is that")
        last = inner
    if getattr(last, "loss", None) == "modified_huber":
        reason = "its probabilities under loss='modified_huber' are no function of a linear layer"
        remedy = "take loss='log_loss', or 'hinge', which has no probabilities"
        raise error(Code.CLASSIFIER, name, reason, remedy)


def affine_of(estimator: Any, width: int) -> Affine:
    """Return what a fitted estimator computes.

    Args:
        estimator: one of scikit-learn's linear ones, or a Pipeline of scalers and one.
        width: how many numbers go in.

    Raises:
        TrainingError: no linear layer is exact, or it was fitted on rows of another width.
    """
    require_supported(estimator)
    *scalers, last = steps_of(estimator)
    if (seen := getattr(last, "n_features_in_", width)) != width:
        reason = f"it was fitted on {seen} numbers a sample; {width} go into the last layer"
        raise error(Code.CLASSIFIER, named(estimator), reason, "fit it on the model's features")
    form = _each(last) if type(last).__name__ == _EACH else _plain(last)
    weight, bias = form.weight, form.bias
    for step in reversed(scalers):
        scale, offset = _scaling(step, width)
        bias = bias + weight @ offset
        weight = weight * scale
    return form._replace(weight=weight, bias=bias)


def _plain(last: Any) -> Affine:
    """Return what one estimator computes of its own inputs."""
    weight, bias = _rows(last)
    name = type(last).__name__
    if name in _REGRESSORS:
        return Affine(weight, bias, None, None)
    classes = _classes(last)
    link = _link(last)
    if len(weight) != 1:
        # One binary problem a class: the logistic functions are made to sum to one.
        return Affine(weight, bias, classes, SHARES if name == "SGDClassifier" and link else link)
    return _two(weight, bias, classes, link)


def _each(last: Any) -> Affine:
    """Return what one estimator a class computes together."""
    if last.multilabel_:
        raise _unsupported(_EACH, "it gives each sample several labels")
    if any(not hasattr(one, "coef_") for one in last.estimators_):
        raise _unsupported(_EACH, "a class of it occurs in all samples, or in none")
    parts = [_rows(one) for one in last.estimators_]
    weight = np.concatenate([rows for rows, _ in parts])
    bias = np.concatenate([some for _, some in parts])
    link = _link(last.estimators_[0])
    if len(weight) != 1:
        return Affine(weight, bias, _classes(last), SHARES if link else None)
    return _two(weight, bias, _classes(last), link)


def _two(
    weight: NDArray[np.float64],
    bias: NDArray[np.float64],
    classes: tuple[Any, ...],
    link: str | None,
) -> Affine:
    """Return two outputs for one score z: 0 and z, so that a tie is the first class's.

    The softmax of (0, z) is 1 less the logistic function of z, and that function.
    """
    return Affine(
        np.concatenate([np.zeros_like(weight), weight]),
        np.concatenate([np.zeros_like(bias), bias]),
        classes,
        SOFTMAX if link else None,
    )


def _rows(last: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    coefficients = last.coef_
    if not isinstance(coefficients, np.ndarray):
        raise _unsupported(type(last).__name__, "its coefficients are sparse; call densify()")
    weight = np.atleast_2d(coefficients).astype(np.float64)
    bias = np.broadcast_to(np.asarray(last.intercept_, np.float64).ravel(), (len(weight),))
    return weight, bias.copy()


def _classes(last: Any) -> tuple[Any, ...]:
    classes = last.classes_
    if not isinstance(classes, np.ndarray) or classes.ndim != 1 or len(classes) < 2:
        raise _unsupported(type(last).__name__, "it does not tell two classes apart, or several")
    return tuple(classes.tolist())


def _link(last: Any) -> str | None:
    link = _CLASSIFIERS[type(last).__name__]
    if link == _BY_LOSS:
        return SOFTMAX if last.loss == _LOGISTIC else None
    return link


def _scaling(step: Any, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return scale and offset of a scaler: it gives `x * scale + offset`."""
    name = type(step).__name__
    scale: Any
    divisor: Any = 1.0 if step.scale_ is None else np.asarray(step.scale_, np.float64)
    if name == "MinMaxScaler":
        scale, offset = divisor, np.asarray(step.min_, np.float64)
    else:
        # A StandardScaler knows the mean even where it does not take it off.
        is_centred = name != "StandardScaler" or step.with_mean
        middle = {"StandardScaler": "mean_", "RobustScaler": "center_"}.get(name)
        found = getattr(step, middle) if middle and is_centred else None
        scale = 1.0 / divisor
        offset = -(0.0 if found is None else np.asarray(found, np.float64)) * scale
    return np.broadcast_to(scale, (width,)), np.broadcast_to(offset, (width,))


def _is_own(estimator: Any) -> bool:
    """Return whether an estimator is of a class of scikit-learn's, and no class derived of it."""
    return type(estimator).__module__.partition(".")[0] == "sklearn"


def _unsupported(name: str, reason: str) -> PersistlibError:
    return error(Code.CLASSIFIER, name, reason, f"use one of {', '.join(SUPPORTED)}")
