"""Folds that leak nothing, leave-one-out in one fit, intervals as their sources say them."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import persistlib
from command_line import invoke
from digit_images import RECORD
from persistlib.errors import PersistlibError, PersistlibWarning
from persistlib.evaluation import cross_validation, folds, leave_one_out
from persistlib.evaluation.cross_validation import Problem
from persistlib.training import classifiers
from persistlib.training.data import ImageData, open_data

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytest.importorskip("sklearn")


def net(width: int = 10) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, width)
        )


@pytest.fixture(scope="module")
def digits() -> ImageData:
    whole = open_data("sklearn:digits")
    chosen = range(0, len(whole), 6)
    return ImageData(
        name="some digits",
        images=tuple(whole.images[index] for index in chosen),
        labels=tuple(whole.labels[index] for index in chosen),
        classes=whole.classes,
        digests=tuple(whole.digests[index] for index in chosen),
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, digits: ImageData) -> Path:
    """A net whose last layer alone was trained, on these digits."""
    path = tmp_path_factory.mktemp("folds") / "bundle"
    split = digits.split()
    images = np.stack([np.asarray(image) for image in digits.images]).astype(np.float32)
    inputs = torch.from_numpy((images / 255 - 0.3) / 0.4)[:, None]
    persistlib.fit_classifier(
        net(),
        (inputs[list(split.train)], torch.tensor(digits.labels)[list(split.train)]),
        interface={"preprocessing": RECORD, "labels": digits.classes},
        data=digits.record(split),
        out=path,
    )
    return path


def samples(count: int, classes: int, seed: int, width: int = 5) -> Problem:
    """Return a problem with some copies among its samples."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, classes, count)
    rows = generator.normal(size=(count, width)) + truth[:, None]
    again = generator.integers(0, count, count // 4)
    rows = np.concatenate([rows, rows[again]])
    truth = np.concatenate([truth, truth[again]])
    digests = tuple(row.tobytes() for row in rows)
    names = tuple(map(str, range(classes)))
    return Problem(classifiers.estimator_of("ridge"), rows, truth, digests, names, classifiers.fit)


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 60), st.integers(1, 4), st.integers(2, 6), st.integers(0, 99))
def test_folds_follow_from_samples_and_seed_and_part_no_copies(
    count: int, classes: int, parts: int, seed: int
) -> None:
    made = samples(count, classes, seed)
    labels = made.truth.tolist()
    places = folds.divide(made.digests, labels, parts, seed)
    assert set(places) == set(range(parts))
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = folds.divide(
        [made.digests[i] for i in order], [labels[i] for i in order], parts, seed
    )
    assert (shuffled == places[order]).all()
    groups = folds.copies(made.digests)
    for group in range(groups.max() + 1):
        assert len(set(places[groups == group])) == 1
    first = [int(np.flatnonzero(groups == group)[0]) for group in range(groups.max() + 1)]
    for label in set(labels):
        own = [places[index] for index in first if labels[index] == label]
        sizes = np.bincount(own, minlength=parts)
        assert sizes.max() - sizes.min() <= 1
    sizes = np.bincount(places[first], minlength=parts)
    assert sizes.max() - sizes.min() <= 1


def test_another_seed_gives_other_folds_and_copies_of_two_classes_stay_together() -> None:
    made = samples(50, 3, 0)
    places = [folds.divide(made.digests, made.truth.tolist(), 5, seed) for seed in (0, 0, 1)]
    assert (places[0] == places[1]).all()
    assert (places[0] != places[2]).any()
    digests = [*made.digests, made.digests[0]]
    labels = [*made.truth.tolist(), (int(made.truth[0]) + 1) % 3]
    both = folds.divide(digests, labels, 5, 0)
    assert both[0] == both[-1]


@pytest.mark.parametrize(("count", "code"), [(1, "PL901"), (True, "PL901"), (99, "PL834")])
def test_folds_that_cannot_be_are_refused(count: int, code: str) -> None:
    made = samples(40, 3, 0)
    with pytest.raises(PersistlibError) as caught:
        folds.divide(made.digests, made.truth.tolist(), count, 0)
    assert caught.value.code == code


def each_fit(made: Problem) -> Iterator[tuple[Any, Any]]:
    """Yield the samples of each group, and a fit without them."""
    groups = folds.copies(made.digests)
    for group in range(groups.max() + 1):
        out = groups == group
        yield out, classifiers.fit(made.estimator, made.rows[~out], made.truth[~out])


def separately(made: Problem) -> Any:
    """Return what as many fits answer as there are distinct samples."""
    answers = np.empty_like(made.truth)
    for out, fitted in each_fit(made):
        answers[out] = fitted.predict(made.rows[out]).reshape(made.truth[out].shape)
    return answers


def margins(made: Problem) -> Any:
    """Return how far the answer to each sample is from another."""
    found = np.empty(len(made.truth))
    for out, fitted in each_fit(made):
        scores = fitted.decision_function(made.rows[out])
        if scores.ndim == 1:
            scores = np.stack([-scores, scores], 1)
        best = np.sort(scores, 1)
        found[out] = best[:, -1] - best[:, -2]
    return found


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(10, 40),
    classes=st.integers(2, 4),
    width=st.sampled_from([1, 5, 60]),
    alpha=st.sampled_from([1e-2, 1.0, 1e3]),
    intercept=st.booleans(),
    seed=st.integers(0, 99),
)
def test_leave_one_out_in_one_fit_answers_as_a_fit_a_sample(  # noqa: PLR0917 - a law's variables
    count: int, classes: int, width: int, alpha: float, intercept: bool, seed: int
) -> None:
    from sklearn.linear_model import Ridge, RidgeClassifier

    made = samples(count, classes, seed, width)
    held = np.unique(made.truth, return_counts=True)[1]
    assume(len(held) > 1 and held.min() > 1)
    how = {"alpha": alpha, "fit_intercept": intercept}
    groups = folds.copies(made.digests)
    problem = made._replace(estimator=RidgeClassifier(**how))
    assert leave_one_out.is_ridge(problem.estimator)
    one = leave_one_out.ridge_answers(problem.estimator, made.rows, made.truth, groups)
    is_same = one == separately(problem)
    assert (is_same | (margins(problem) < 1e-9)).all()
    numbers = np.stack([made.truth * 2.5, made.rows[:, 0] ** 2], 1)
    problem = made._replace(estimator=Ridge(**how), truth=numbers)
    one = leave_one_out.ridge_answers(problem.estimator, made.rows, numbers, groups)
    assert np.allclose(one, separately(problem), rtol=1e-6, atol=1e-8 * np.abs(numbers).max())


def test_leave_one_out_is_what_scikit_learn_gives_where_nothing_is_copied() -> None:
    from sklearn.model_selection import LeaveOneOut, cross_val_predict

    made = samples(60, 4, 3)
    rows, truth = made.rows[:60], made.truth[:60]
    wanted: Any = cross_val_predict(made.estimator, rows, truth, cv=LeaveOneOut())
    found = cross_validation.leaving_one_out(
        made._replace(rows=rows, truth=truth, digests=made.digests[:60])
    )
    assert (found.outcomes.answers == wanted).all()
    assert 0.3 < np.mean(wanted == truth) < 1
    assert found.fits == 1
    assert found["accuracy"].mean == np.mean(wanted == truth)


def test_a_classifier_that_scales_is_fitted_once_a_sample() -> None:
    made = samples(24, 2, 1)._replace(estimator=classifiers.estimator_of("svm"))
    told: list[tuple[str, int, int]] = []
    found = cross_validation.leaving_one_out(
        made._replace(progress=lambda *step: told.append(step))
    )
    assert (found.outcomes.answers == separately(made)).all()
    assert found.fits == 24
    assert told[-1] == ("fitting", 24, 24)


def test_each_sample_is_answered_by_a_fit_that_did_not_see_it_and_scaled_without_it() -> None:
    seen: list[Any] = []

    def fit(estimator: Any, rows: Any, truth: Any) -> Any:
        seen.append(rows)
        return classifiers.fit(estimator, rows, truth)

    made = samples(50, 3, 2)._replace(estimator=classifiers.estimator_of("logistic"), fit=fit)
    found = cross_validation.in_folds(made, 5, seed=0)
    places = folds.divide(made.digests, made.truth.tolist(), 5, 0)
    for fold, rows in enumerate(seen):
        assert rows.shape == made.rows[places != fold].shape
        fitted = classifiers.fit(made.estimator, rows, made.truth[places != fold])
        wanted = fitted.predict(made.rows[places == fold])
        assert (found.outcomes.answers[places == fold] == wanted).all()
        assert fitted[0].mean_ == pytest.approx(made.rows[places != fold].mean(0))
        assert {row.tobytes() for row in rows}.isdisjoint(
            row.tobytes() for row in made.rows[places == fold]
        )
    assert [fold.tested for fold in found.folds] == np.bincount(places).tolist()


def test_the_interval_of_a_mean_over_folds_is_nadeaus_and_bengios() -> None:
    from scipy import stats

    found = cross_validation.in_folds(samples(100, 3, 5), 5, seed=1)
    values = [fold.figures["accuracy"] for fold in found.folds]
    ratio = np.mean([fold.tested / fold.fitted for fold in found.folds])
    mean = sum(values) / 5
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / 4)
    half = stats.t.ppf(0.975, 4) * spread * math.sqrt(1 / 5 + ratio)
    figure = found["accuracy"]
    assert figure.mean == pytest.approx(mean)
    assert figure.interval == pytest.approx((mean - half, min(mean + half, 1)))
    assert figure.method == cross_validation.CORRECTED
    assert spread > 0


def test_numbers_have_squared_and_absolute_errors() -> None:
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import PredefinedSplit, cross_val_predict

    made = samples(80, 3, 4)
    numbers = made.rows @ np.arange(1.0, 6.0)[:, None] + 3
    problem = made._replace(estimator=Ridge(), truth=numbers, names=("0",))
    found = cross_validation.in_folds(problem, 4, seed=0)
    places = folds.divide(made.digests, None, 4, 0)
    wanted: Any = cross_val_predict(Ridge(), made.rows, numbers, cv=PredefinedSplit(places))
    assert np.allclose(found.outcomes.answers, wanted.reshape(-1, 1))
    assert found.metrics is None
    alone = cross_validation.leaving_one_out(problem)
    off = alone.outcomes.answers - numbers
    assert alone["mse"].mean == pytest.approx(np.mean(off**2))
    assert alone["mae"].mean == pytest.approx(np.mean(np.abs(off)))
    low, high = alone["mse"].interval
    assert 0 <= low < alone["mse"].mean < high


def test_what_leaves_one_class_is_refused_and_a_lone_sample_is_told() -> None:
    made = samples(20, 1, 0)
    with pytest.raises(PersistlibError) as caught:
        cross_validation.in_folds(made, 4, seed=0)
    assert caught.value.code == "PL834"
    truth = made.truth.copy()
    truth[0] = 1
    lone = made._replace(truth=truth, digests=tuple(map(str.encode, map(str, range(len(truth))))))
    with pytest.raises(PersistlibError), pytest.warns(PersistlibWarning, match="one distinct"):
        cross_validation.leaving_one_out(lone._replace(names=("a", "b")))
    truth[1:4] = 2
    with pytest.warns(PersistlibWarning, match="one distinct sample of b"):
        cross_validation.leaving_one_out(lone._replace(names=("a", "b", "c")))


def test_a_bundle_is_cross_validated_and_keeps_the_result(bundle: Path, digits: ImageData) -> None:
    before = persistlib.inspect(bundle).manifest
    found = persistlib.cross_validate(bundle, digits, folds=4, classifier="ridge", save=True)
    assert found["accuracy"].mean > 0.8
    assert found.metrics is not None
    assert found.metrics.accuracy == np.mean(found.outcomes.truth == found.outcomes.answers)
    after = persistlib.inspect(bundle).manifest
    assert after.weights == before.weights
    kept: Any = after.evaluations[-1]
    assert kept["cross_validation"]["data"]["digest"] == digits.digest
    assert kept["cross_validation"]["figures"]["accuracy"]["mean"] == found["accuracy"].mean
    assert kept["cross_validation"]["layer"] == "4"
    again = persistlib.cross_validate(bundle, digits, folds=4, classifier="ridge")
    assert again.to_dict() == found.to_dict()
    alone = persistlib.cross_validate(bundle, digits, leave_one_out=True)
    assert alone.fits == 1
    assert alone["accuracy"].method == "Wilson"
    assert abs(alone["accuracy"].mean - found["accuracy"].mean) < 0.05


@pytest.mark.filterwarnings("error")
def test_a_model_whose_front_saw_the_samples_is_told_and_one_whose_head_did_is_not(
    bundle: Path, digits: ImageData, tmp_path: Path
) -> None:
    persistlib.cross_validate(bundle, digits, folds=2, classifier="ridge")
    images = np.stack([np.asarray(image) for image in digits.images]).astype(np.float32)
    inputs = torch.from_numpy((images / 255 - 0.3) / 0.4)[:, None]
    persistlib.finetune(
        net(),
        (inputs, torch.tensor(digits.labels)),
        epochs=1,
        lr=0.01,
        interface={"preprocessing": RECORD, "labels": digits.classes},
        data=digits.record(digits.split()),
        out=tmp_path / "whole",
    )
    with pytest.warns(PersistlibWarning, match="before 4 were trained on these very samples"):
        persistlib.cross_validate(tmp_path / "whole", digits, folds=2, classifier="ridge")


def test_a_module_is_cross_validated_on_numbers_and_left_as_it_is() -> None:
    model = net(1).train()
    inputs = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)).numpy()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    numbers = inputs.mean((1, 2, 3)) * 10
    ways: tuple[dict[str, Any], ...] = ({"folds": 4}, {"leave_one_out": True})
    for how in ways:
        found = persistlib.cross_validate(model, (inputs, numbers), **how)
        assert {figure.name for figure in found.figures} == {"mse", "mae"}
        assert found["mse"].mean < 2 * np.var(numbers)
    assert model.training
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    with pytest.raises(PersistlibError) as caught:
        persistlib.cross_validate(model, (inputs, numbers * np.nan))
    assert caught.value.code == "PL802"
    with pytest.raises(PersistlibError) as caught:
        persistlib.cross_validate(model, (inputs, numbers), save=True)
    assert caught.value.code == "PL901"


def test_a_bundle_that_predicts_numbers_is_cross_validated_on_a_file(tmp_path: Path) -> None:
    from sklearn.linear_model import Ridge

    generator = torch.Generator().manual_seed(0)
    levels = torch.randn(50, 1, 1, 1, generator=generator)
    inputs = levels + 0.3 * torch.randn(50, 1, 8, 8, generator=generator)
    targets = torch.stack([levels.flatten(), levels.flatten() * 3 + 1], 1).double()
    persistlib.fit_classifier(net(2), (inputs, targets), classifier=Ridge(), out=tmp_path / "m")
    np.savez(tmp_path / "d.npz", inputs=inputs.numpy(), targets=targets.numpy())
    shown = invoke("evaluate", tmp_path / "m", "--data", tmp_path / "d.npz", "--folds", 5)
    assert shown.exit_code == 0, shown.output
    assert "MSE" in shown.stdout.splitlines()[0]
    assert "Ridge; on 36 numbers a sample that go into 4" in shown.stdout
    found = persistlib.cross_validate(tmp_path / "m", tmp_path / "d.npz", leave_one_out=True)
    assert found.fits == 1
    assert found.outcomes.truth.shape == (50, 2)
    assert 0 < found["mse"].mean < np.var(targets.numpy(), axis=0).mean()


def test_the_command_line_shows_folds_and_keeps_them(bundle: Path, tmp_path: Path) -> None:
    how = ("--folds", 3, "--classifier", "ridge", "--cache", tmp_path)
    shown = invoke("evaluate", bundle, "--data", "sklearn:digits", *how)
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert "right on samples that no fit had seen: 3 folds" in lines[0]
    assert any(line.split()[:1] == ["3"] for line in lines)
    assert "Nadeau-Bengio" in shown.stdout
    assert "RidgeClassifier; on 36 numbers a sample that go into 4" in shown.stdout
    told = json.loads(invoke("evaluate", bundle, "--data", "sklearn:digits", *how, "--json").stdout)
    assert len(told["data"]["folds"]) == 3
    assert told["data"]["metrics"]["confusion"]
    brief = invoke(
        "evaluate", bundle, "--data", "sklearn:digits", "--leave-one-out", "-q", "--save"
    )
    assert brief.exit_code == 0, brief.output
    kept: Any = persistlib.inspect(bundle).manifest.evaluations[-1]
    accuracy = kept["cross_validation"]["figures"]["accuracy"]["mean"]
    assert brief.stdout == f"accuracy {accuracy:.4f}\n"


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("--folds", "3", "--held-out"), "--held-out means nothing with --folds"),
        (("--leave-one-out", "--folds", "3"), "not both"),
        (("--C", "3"), "--C means nothing without --folds"),
        (("--folds", "1"), "--folds"),
    ],
)
def test_what_means_nothing_with_folds_is_refused(
    words: tuple[str, ...], meant: str, bundle: Path
) -> None:
    result = invoke("evaluate", bundle, "--data", "sklearn:digits", *words)
    assert result.exit_code == 2
    assert meant in result.stderr


def test_more_folds_than_a_class_has_distinct_samples_are_told_and_beyond_all_refused() -> None:
    labels = [0] * 6 + [1] * 3 + [2]
    groups = np.array([0, 1, 2, 3, 4, 4, 5, 6, 7, 8])  # two of the first class are copies
    names = ("many", "few", "rare")
    with pytest.warns(PersistlibWarning, match="PL834") as told:
        folds.require_members(labels, groups, names, 5)
    assert len(told) == 2
    assert "one distinct sample of rare" in str(told[0].message)
    assert "some of the 5 folds have no sample of few (3)" in str(told[1].message)
    with pytest.raises(PersistlibError, match="no class has more than 5 distinct") as caught:
        folds.require_members(labels, groups, names, 6)
    assert caught.value.code == "PL834"
    folds.require_members(labels[:9], groups[:9], names, 3)  # nothing is warned of
