"""A layer answers as the scikit-learn estimator that it was made of, or is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from persistlib.errors import PersistlibError
from persistlib.training import affine, classifiers
from persistlib.training.affine import SHARES
from persistlib.training.fused_layers import BOUNDS, fuse

pytest.importorskip("sklearn")

CLASSIFIERS = (
    "LogisticRegression",
    "LinearSVC",
    "SGDClassifier",
    "log SGDClassifier",
    "Perceptron",
    "RidgeClassifier",
    "LinearDiscriminantAnalysis",
    "each LogisticRegression",
    "each LinearSVC",
)
REGRESSORS = ("LinearRegression", "Ridge", "Lasso", "SGDRegressor", "LinearSVR")
SCALERS = ("", "StandardScaler", "uncentred", "MinMaxScaler", "MaxAbsScaler", "RobustScaler")

FEW: dict[str, Any] = {"max_iter": 5, "tol": None}


def estimator(name: str, scaler: str, weak: float) -> Any:
    from sklearn import (
        discriminant_analysis,
        linear_model,
        multiclass,
        pipeline,
        preprocessing,
        svm,
    )

    made: dict[str, Any] = {
        "LogisticRegression": linear_model.LogisticRegression(C=weak),
        "LinearSVC": svm.LinearSVC(C=weak),
        "SGDClassifier": linear_model.SGDClassifier(**FEW),
        "log SGDClassifier": linear_model.SGDClassifier(loss="log_loss", **FEW),
        "Perceptron": linear_model.Perceptron(**FEW),
        "RidgeClassifier": linear_model.RidgeClassifier(alpha=1 / weak),
        "LinearDiscriminantAnalysis": discriminant_analysis.LinearDiscriminantAnalysis(
            solver="lsqr", shrinkage=0.1
        ),
        "each LogisticRegression": multiclass.OneVsRestClassifier(
            linear_model.LogisticRegression(C=weak)
        ),
        "each LinearSVC": multiclass.OneVsRestClassifier(svm.LinearSVC(C=weak)),
        "LinearRegression": linear_model.LinearRegression(),
        "Ridge": linear_model.Ridge(alpha=1 / weak),
        "Lasso": linear_model.Lasso(alpha=0.01, max_iter=50),
        "SGDRegressor": linear_model.SGDRegressor(**FEW),
        "LinearSVR": svm.LinearSVR(C=weak),
    }
    steps: dict[str, Any] = {
        "StandardScaler": preprocessing.StandardScaler(),
        "uncentred": preprocessing.StandardScaler(with_mean=False),
        "MinMaxScaler": preprocessing.MinMaxScaler((-1, 2)),
        "MaxAbsScaler": preprocessing.MaxAbsScaler(),
        "RobustScaler": preprocessing.RobustScaler(),
    }
    return pipeline.make_pipeline(steps[scaler], made[name]) if scaler else made[name]


def samples(
    count: int, width: int, classes: int, seed: int, spread: float
) -> tuple[torch.Tensor, Any]:
    """Return features whose first rows are near every class's border, and a class each."""
    generator = np.random.default_rng(seed)
    truth = np.arange(count) % classes
    centres = generator.normal(size=(classes, width))
    rows = centres[truth] * spread + generator.normal(size=(count, width))
    rows[: count // 4] = np.round(rows[: count // 4])
    rows[0] = 0
    return torch.from_numpy(rows), truth


def margin(made: Any, rows: torch.Tensor, link: str | None) -> float:
    """Return how near the nearest answer is to another, in the measure of what the layer gives.

    Of two scores that are both large, the logarithms of their sigmoids are 0.
    """
    scores = made.decision_function(rows.double().numpy())
    if scores.ndim == 1:
        scores = np.stack([np.zeros_like(scores), scores], 1)
    if link == SHARES:
        scores = -np.logaddexp(0, -scores)
    best = np.sort(scores, 1)
    gap = (best[:, -1] - best[:, -2]) / np.maximum(np.abs(scores).max(1), 1e-300)
    return float(gap.min())


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(CLASSIFIERS),
    scaler=st.sampled_from(SCALERS),
    classes=st.integers(2, 5),
    width=st.integers(1, 12),
    seed=st.integers(0, 999),
    spread=st.sampled_from([0.0, 1.0, 30.0]),
    weak=st.sampled_from([1e-3, 1.0, 1e3]),
    kind=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    labels=st.sampled_from(["numbers", "texts", "odd"]),
)
@example(  # scores of some hundreds: no probability tells them apart
    name="log SGDClassifier",
    scaler="",
    classes=3,
    width=2,
    seed=1,
    spread=30.0,
    weak=0.001,
    kind=torch.float32,
    labels="numbers",
)
@pytest.mark.filterwarnings("ignore::persistlib.errors.PersistlibWarning")
def test_a_layer_answers_as_its_classifier_or_is_refused(  # noqa: PLR0917 - a law's variables
    name: str,
    scaler: str,
    classes: int,
    width: int,
    seed: int,
    spread: float,
    weak: float,
    kind: torch.dtype,
    labels: str,
) -> None:
    rows, truth = samples(40, width, classes, seed, spread)
    rows = rows.to(kind)
    names = {"numbers": truth, "texts": np.array([*"abcde"])[truth], "odd": 7 * truth - 3}[labels]
    made = classifiers.fit(estimator(name, scaler, weak), rows.double().numpy(), names)
    form = affine.affine_of(made, width)
    try:
        fused = fuse(made, form, rows, pooled=False)
    except PersistlibError as fault:
        assert fault.code == "PL832"  # noqa: PT017 - either outcome is right
        assert margin(made, rows, form.link) < 1e-9
        return
    with torch.no_grad():
        outputs = fused.layer(rows)
    wide = rows.double().numpy()
    answers = np.array(form.classes)[outputs.argmax(1).numpy()]
    assert (answers == made.predict(wide)).all()
    assert form.classes == tuple(made.classes_.tolist())
    if form.link is not None:
        bound = BOUNDS.get(outputs.dtype, 1e-5)
        shares = outputs.double().softmax(1).numpy()
        assert np.abs(shares - made.predict_proba(wide)).max() <= bound
    assert (form.link is not None) == hasattr(made, "predict_proba")


@settings(max_examples=30, deadline=None)
@example(  # its answers are 40, all but for rounding
    name="LinearSVR", scaler="StandardScaler", width=2, seed=0, outputs=0, kind=torch.float32
)
@given(
    name=st.sampled_from(REGRESSORS),
    scaler=st.sampled_from(SCALERS),
    width=st.integers(1, 12),
    seed=st.integers(0, 999),
    outputs=st.integers(0, 3),
    kind=st.sampled_from([torch.float32, torch.float64]),
)
@pytest.mark.filterwarnings("ignore::persistlib.errors.PersistlibWarning")
def test_a_layer_gives_the_numbers_of_its_regressor(  # noqa: PLR0917 - as above
    name: str, scaler: str, width: int, seed: int, outputs: int, kind: torch.dtype
) -> None:
    several = outputs if name in {"LinearRegression", "Ridge", "Lasso"} else 0
    rows, truth = samples(40, width, 4, seed, 1.0)
    rows = rows.to(kind)
    wanted = truth * 1.7 + 100
    if several:
        wanted = np.stack([wanted * (number + 1) for number in range(several)], 1)
    made = classifiers.fit(estimator(name, scaler, 1.0), rows.double().numpy(), wanted)
    fused = fuse(made, affine.affine_of(made, width), rows, pooled=False)
    with torch.no_grad():
        given = fused.layer(rows).double().numpy()
    expected = np.reshape(made.predict(rows.double().numpy()), given.shape)
    bound = 1e-9 if fused.dtype == "F64" else 1e-5
    spread = max(np.ptp(expected), 1e-5 * np.abs(expected).max())
    assert np.abs(given - expected).max() <= bound * spread
    assert given.shape == (40, max(several, 1))
