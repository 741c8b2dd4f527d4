"""Judging what is no classifier: scikit-learn's figures, both runtimes, every fault of the data."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from torch import nn

import persistlib
from command_line import invoke
from persistlib.errors import PersistlibError, PersistlibWarning
from persistlib.evaluation.collecting import collector
from persistlib.evaluation.outcomes import Outcomes
from persistlib.evaluation.task_metrics import measure_labels, measure_numbers
from persistlib.training.batches import Batches
from persistlib.training.tasks import Head
from task_models import built, headed, labelled, numbers, scenes, sentences

if TYPE_CHECKING:
    from pathlib import Path

QUICK: dict[str, Any] = {"calls": 0, "threads": 1, "trust": {"task_models"}}
HEADS = {"kind": "classification", "size": "regression"}


def trained(path: Path, builder: str, data: Any, *, task: Any, **arguments: Any) -> Path:
    model = built(builder, **arguments)
    how: dict[str, Any] = {"epochs": 4, "lr": 0.02, "out": path, "onnx": True}
    persistlib.finetune(model, data(80), task=task, **how)
    return path


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trained model of each task, with a graph."""
    top = tmp_path_factory.mktemp("tasks")
    wide: dict[str, Any] = {"inputs": 6}
    return {
        "regression": trained(
            top / "r", "Perceptron", numbers, task="regression", **wide, outputs=2
        ),
        "multilabel": trained(
            top / "m", "Perceptron", labelled, task="multilabel", **wide, outputs=3
        ),
        "heads": trained(top / "h", "TwoHeads", headed, task=HEADS),
    }


def answers(bundle: Path, inputs: Any) -> Any:
    model = persistlib.load(bundle, trust={"task_models"})
    with torch.no_grad():
        return model(inputs)


def test_numbers_are_measured_as_scikit_learn_measures_them(bundles: dict[str, Path]) -> None:
    inputs, truth = numbers(50, 1)
    found = persistlib.evaluate(bundles["regression"], (inputs, truth), **QUICK)
    assert [result.runtime for result in found.results] == ["torch", "onnxruntime"]
    said = answers(bundles["regression"], inputs).double().numpy()
    wanted = truth.double().numpy()
    each: dict[str, Any] = {"multioutput": "raw_values"}
    rows = found.metrics.outputs
    assert [row.mse for row in rows] == pytest.approx(
        metrics.mean_squared_error(wanted, said, **each)
    )
    assert [row.mae for row in rows] == pytest.approx(
        metrics.mean_absolute_error(wanted, said, **each)
    )
    assert [row.rmse for row in rows] == pytest.approx([row.mse**0.5 for row in rows])
    assert [row.r2 for row in rows] == pytest.approx(metrics.r2_score(wanted, said, **each))
    mean = found.metrics.mean
    assert mean.mse == pytest.approx(metrics.mean_squared_error(wanted, said))
    assert mean.rmse == pytest.approx(metrics.mean_squared_error(wanted, said) ** 0.5)
    assert mean.r2 == pytest.approx(metrics.r2_score(wanted, said))
    outcomes = found.results[0].outcomes
    assert np.array_equal(outcomes.truth, wanted)
    assert np.allclose(outcomes.answers, said, atol=1e-6)
    (agreement,) = found.agreements
    assert agreement.same is None
    assert 0 < agreement.difference < 1e-5


def test_labels_are_measured_as_scikit_learn_measures_them(bundles: dict[str, Path]) -> None:
    inputs, truth = labelled(50, 1)
    found = persistlib.evaluate(bundles["multilabel"], (inputs, truth), **QUICK)
    said = (answers(bundles["multilabel"], inputs) > 0).long().numpy()
    known = metrics.precision_recall_fscore_support(truth.numpy(), said)
    rows = found.metrics.labels
    shown = [[row.precision, row.recall, row.f1, row.images] for row in rows]
    assert pytest.approx(np.array(known)) == np.array(shown, np.float64).T
    for kind in ("micro", "macro"):
        average = getattr(found.metrics, kind)
        whole = metrics.precision_recall_fscore_support(truth.numpy(), said, average=kind)[:3]
        assert (average.precision, average.recall, average.f1) == pytest.approx(whole)
    assert found.accuracy == metrics.accuracy_score(truth.numpy(), said)
    assert found.agreements[0].same == 50
    assert np.array_equal(found.results[0].answers, said.astype(bool))


def test_each_head_is_judged_by_its_task(bundles: dict[str, Path]) -> None:
    inputs, truth = headed(50, 1)
    found = persistlib.evaluate(bundles["heads"], (inputs, truth), **QUICK)
    said = answers(bundles["heads"], inputs)
    heads: Any = found.results[1].heads
    kind, size = heads
    assert (kind.outcomes.head, size.outcomes.head) == ("kind", "size")
    assert kind.metrics.accuracy == metrics.accuracy_score(truth["kind"], said["kind"].argmax(1))
    known = metrics.mean_squared_error(truth["size"], said["size"])
    assert size.metrics.mean.mse == pytest.approx(known, rel=1e-5)
    assert [(a.head, a.same is None) for a in found.agreements] == [("kind", False), ("size", True)]
    record = found.record()["results"]
    assert isinstance(record, list)
    kept: list[Any] = record
    assert [set(one["heads"]) for one in kept] == [{"kind", "size"}] * 2


class Scene(nn.Module):
    """A class for each pixel, and auxiliary scores that are no answer."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Conv2d(3, 3, 1)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = self.main(images)
        return {"aux": -scores, "out": scores}


def scene_model() -> Scene:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Scene()


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_pixels_are_measured_as_scikit_learn_measures_them_all_at_once(batch_size: int) -> None:
    model = scene_model()
    images, masks = scenes(10)
    how: dict[str, Any] = QUICK | {"batch_size": batch_size, "task": "segmentation"}
    found = persistlib.evaluate(model, (images, masks), **how)
    with torch.no_grad():
        said = model(images)["out"].argmax(1)
    counted = masks != 255
    truth, answered = masks[counted].numpy(), said[counted].numpy()
    labels: Any = [0, 1, 2]
    every: dict[str, Any] = {"average": None, "labels": labels, "zero_division": 0}
    overlap: Any = metrics.jaccard_score(truth, answered, **every)
    rows = found.metrics.classes
    union = [((truth == index) | (answered == index)).sum() for index in range(3)]
    for row, known, size in zip(rows, overlap, union, strict=True):
        assert row.iou == (pytest.approx(known) if size else None)
    assert found.metrics.iou == pytest.approx(overlap[np.array(union) > 0].mean())
    assert found.accuracy == pytest.approx(metrics.accuracy_score(truth, answered))
    matrix = metrics.confusion_matrix(truth, answered, labels=labels)
    assert np.array_equal(found.metrics.confusion, matrix)
    outcomes = found.results[0].outcomes
    assert outcomes.right is not None
    assert np.array_equal(outcomes.truth.sum(0), matrix.sum(1))
    assert np.array_equal(outcomes.answers.sum(0), matrix.sum(0))
    assert np.array_equal(outcomes.right.sum(0), matrix.diagonal())
    assert len(outcomes) == 10


def test_a_class_that_neither_occurs_nor_is_answered_has_no_figure() -> None:
    scores = np.zeros((2, 3, 4, 4))
    scores[:, 0] = 1
    one = collector(Head("", "segmentation"), "a", "data", ())
    one.add(scores, np.zeros((2, 4, 4), np.int64))
    found = one.result().metrics
    assert [row.iou for row in found.classes] == [1.0, None, None]  # type: ignore[union-attr]
    assert found.iou == 1.0  # type: ignore[union-attr]


def test_several_inputs_by_name_are_judged_in_both_runtimes(tmp_path: Path) -> None:
    model = built("TextClassifier")
    data, valid = sentences(100), sentences(60, 1)
    how: dict[str, Any] = {"epochs": 2, "lr": 0.01, "out": tmp_path / "b", "onnx": True}
    trained = persistlib.finetune(model, data, valid, **how)
    arrays: dict[str, Any] = {f"inputs.{name}": rows.numpy() for name, rows in valid[0].items()}
    np.savez(tmp_path / "d.npz", targets=valid[1].numpy(), **arrays)
    forms = ((valid[0], valid[1]), tmp_path / "d.npz")
    for form in forms:
        found = persistlib.evaluate(tmp_path / "b", form, task="classification", **QUICK)
        assert found.accuracy == pytest.approx(trained.metrics["accuracy"])
        assert found.agreements[0].same == 60


# -- forms of data -----------------------------------------------------------------------------


def test_files_and_arrays_of_the_same_samples_give_the_same_result(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    inputs, targets = headed(20, 1)
    plain = {name: rows.numpy() for name, rows in targets.items()}
    named: dict[str, Any] = {f"targets.{name}": rows for name, rows in plain.items()}
    np.savez(tmp_path / "d.npz", inputs=inputs.numpy(), **named)
    forms = ((inputs, targets), (inputs.numpy(), (plain["kind"], plain["size"])))
    records = [
        json.dumps(persistlib.evaluate(bundles["heads"], form, **QUICK).record()["results"])
        for form in (*forms, tmp_path / "d.npz")
    ]
    assert records[0] == records[1] == records[2]


def test_a_row_of_numbers_is_one_output() -> None:
    model = nn.Linear(6, 1)
    inputs, truth = numbers(20)
    how: dict[str, Any] = QUICK | {"task": "regression"}
    flat = persistlib.evaluate(model, (inputs, truth[:, 0]), **how)
    column = persistlib.evaluate(model, (inputs, truth[:, :1]), **how)
    assert flat.metrics == column.metrics
    assert len(flat.metrics.outputs) == 1


def test_data_that_was_trained_on_is_known_again(tmp_path: Path) -> None:
    inputs, truth = numbers(30)
    model = built("Perceptron", inputs=6, outputs=2)
    samples = Batches((inputs, truth), "train", 8, torch.device("cpu"))
    known = {"name": "rows", "digest": samples.digest()}
    training = {"data": known, "strategy": {"task": "regression"}}
    persistlib.save(model, tmp_path / "b", training=training, example_inputs=inputs[:2])
    with pytest.warns(PersistlibWarning, match="PL809"):
        found = persistlib.evaluate(tmp_path / "b", (inputs.numpy(), truth.numpy()), **QUICK)
    assert found.results[0].outcomes.task == "regression"


@pytest.mark.parametrize("said", [["regression"], 7, {"a": None}, {"a": {"loss": []}}, "ranking"])
def test_a_task_that_a_manifest_cannot_mean_is_refused_by_its_place(
    said: Any, tmp_path: Path
) -> None:
    inputs, truth = numbers(4)
    model = built("Perceptron", inputs=6, outputs=2)
    training = {"strategy": {"task": said}}
    persistlib.save(model, tmp_path / "b", training=training, example_inputs=inputs[:2])
    with pytest.raises(PersistlibError) as caught:
        persistlib.evaluate(tmp_path / "b", (inputs, truth), **QUICK)
    assert caught.value.code == "PL901"
    assert caught.value.location.startswith("training.strategy.task")
    found = persistlib.evaluate(tmp_path / "b", (inputs, truth), task="regression", **QUICK)
    assert found.results[0].outcomes.task == "regression"


def test_names_of_outputs_and_labels_are_those_of_the_interface() -> None:
    inputs, truth = numbers(20)
    interface = {"labels": ["width", "height"]}
    how: dict[str, Any] = QUICK | {"task": "regression"}
    found = persistlib.evaluate(nn.Linear(6, 2), (inputs, truth), interface=interface, **how)
    assert [row.name for row in found.metrics.outputs] == ["width", "height"]
    with pytest.raises(PersistlibError, match="2 outputs for 3 labels"):
        persistlib.evaluate(
            nn.Linear(6, 2), (inputs, truth), interface={"labels": list("abc")}, **how
        )


X = np.ones((4, 6), np.float32)
BAD: dict[str, tuple[Any, Any, str, str]] = {
    "fewer targets": ("regression", (X, np.ones((3, 2))), "PL802", "4 samples"),
    "texts": ("regression", (X, np.array(["a"] * 4)), "PL802", "give numbers"),
    "not finite": ("regression", (X, np.full((4, 2), np.nan)), "PL802", "not finite"),
    "inputs that are none": ("regression", (X * np.inf, X[:, :2]), "PL802", "finite numbers"),
    "another width": ("regression", (X, np.ones((4, 3))), "PL810", "(4, 3)"),
    "no labels": ("multilabel", (X, np.full((4, 2), 3)), "PL808", "not 0 or 1"),
    "labels of one": ("multilabel", (X, np.ones(4, np.int64)), "PL810", "(4,)"),
    "masks of rows": ("segmentation", (X, np.ones((4, 5), np.int64)), "PL802", "(samples, height"),
    "negative masks": ("segmentation", (X, np.full((4, 5, 5), -1)), "PL808", "class -1"),
    "rows for masks": ("segmentation", (X, np.zeros((4, 5, 5), np.int64)), "PL810", "(4, 2)"),
    "no pair": ("regression", 7, "PL802", "a int"),
    "a file that is none": ("regression", "no/such.npz", "PL801", "nothing stands"),
    "another head": ({"a": "regression", "b": "regression"}, (X, {"a": X}), "PL802", "none of b"),
    "heads of one": ({"a": "regression", "b": "regression"}, (X, {"a": X, "b": X}), "PL810", "'a'"),
    "an unknown task": ("ranking", (X, X), "PL901", "ranking"),
}


@pytest.mark.parametrize("name", BAD)
def test_data_that_does_not_fit_the_task_is_refused(name: str) -> None:
    task, data, code, text = BAD[name]
    with pytest.raises(PersistlibError) as caught:
        persistlib.evaluate(nn.Linear(6, 2), data, task=task, **QUICK)
    assert caught.value.code == code
    assert text in f"{caught.value.location} {caught.value.reason} {caught.value.remedy}"


def test_every_fault_is_reported_together() -> None:
    targets = {"kind": np.full(4, -1), "size": np.full((4, 2), np.inf)}
    with pytest.raises(PersistlibError) as caught:
        persistlib.evaluate(built("TwoHeads"), (X * np.nan, targets), task=HEADS, **QUICK)
    assert {item.location for item in caught.value.findings} == {
        "data: inputs",
        "data: targets.kind",
        "data: targets.size",
    }


def test_masks_of_other_classes_and_of_none_are_refused() -> None:
    images = scenes(2)[0]
    how: dict[str, Any] = QUICK | {"task": "segmentation"}
    with pytest.raises(PersistlibError, match="label 9; the model has 3 classes"):
        persistlib.evaluate(scene_model(), (images, np.full((2, 32, 32), 9)), **how)
    with pytest.raises(PersistlibError, match="every pixel is ignored"):
        persistlib.evaluate(scene_model(), (images, np.full((2, 32, 32), 255)), **how)


# -- figures that are not defined --------------------------------------------------------------


def test_an_output_that_is_always_the_same_has_no_r2() -> None:
    truth = np.stack([np.arange(5.0), np.ones(5)], 1)
    found = measure_numbers(Outcomes("", "regression", ("a", "b"), truth, truth + 1))
    assert [row.r2 for row in found.outputs] == [pytest.approx(0.5), None]
    assert found.mean.r2 == pytest.approx(0.5)
    lone = measure_numbers(Outcomes("", "regression", ("a",), truth[:1, :1], truth[:1, :1]))
    assert lone.mean.r2 is None


def label_rows(labels: int) -> st.SearchStrategy[list[Any]]:
    """Draw rows of pairs, what is true and what was said of each label."""
    pair = st.tuples(st.booleans(), st.booleans())
    return st.lists(st.tuples(*[pair] * labels), min_size=1, max_size=20)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4).flatmap(label_rows))
def test_labels_have_the_figures_of_their_definitions(rows: list[Any]) -> None:
    truth = np.array([[pair[0] for pair in row] for row in rows])
    said = np.array([[pair[1] for pair in row] for row in rows])
    names = tuple(map(str, range(truth.shape[1])))
    found = measure_labels(Outcomes("", "multilabel", names, truth, said))
    assert found.accuracy == np.mean((truth == said).all(axis=1))
    for index, row in enumerate(found.labels):
        hits = (truth & said)[:, index].sum()
        answered, occurs = said[:, index].sum(), truth[:, index].sum()
        assert row.precision == (pytest.approx(hits / answered) if answered else None)
        assert row.recall == (pytest.approx(hits / occurs) if occurs else None)
    both, either = (truth & said).sum(), truth.sum() + said.sum()
    assert found.micro.f1 == pytest.approx(2 * both / either if either else 0.0)


# -- kept, and shown ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "data", "shown"),
    [
        ("regression", numbers, ["R2", "RMSE", "outputs"]),
        ("multilabel", labelled, ["micro F1", "all labels right", "labels"]),
        ("heads", headed, ["kind: accuracy", "size: RMSE", "kind: classes", "size: outputs"]),
    ],
)
def test_the_command_line_shows_and_keeps_what_was_found(
    bundles: dict[str, Path], tmp_path: Path, task: str, data: Any, shown: list[str]
) -> None:
    inputs, targets = data(30, 1)
    named = targets if isinstance(targets, dict) else {"": targets}
    arrays: dict[str, Any] = {
        f"targets.{name}".rstrip("."): rows.numpy() for name, rows in named.items()
    }
    np.savez(tmp_path / "d.npz", inputs=inputs.numpy(), **arrays)
    words = (*("evaluate", bundles[task], "--data", tmp_path / "d.npz", "--calls", 1), "--trust")
    done = invoke(*words, "task_models", "--threads", 1)
    assert done.exit_code == 0, done.output
    for text in shown:
        assert text in done.stdout
    quiet = invoke(*words, "task_models", "-q")
    assert [line.split()[0] for line in quiet.stdout.splitlines()] == ["torch", "onnxruntime"]
    answer = json.loads(invoke(*words, "task_models", "--save", "--json").stdout)
    result = answer["data"]["results"][0]
    assert ("heads" in result) if task == "heads" else result["task"] == task
    kept = persistlib.inspect(bundles[task]).manifest.evaluations
    assert kept[-1]["data"] == answer["data"]["data"]
    assert "evaluated" in invoke("inspect", bundles[task]).stdout
    assert persistlib.verify(bundles[task]).ok


def test_heads_are_named_at_the_command_line(bundles: dict[str, Path], tmp_path: Path) -> None:
    inputs, targets = headed(30, 1)
    named: dict[str, Any] = {f"targets.{name}": rows.numpy() for name, rows in targets.items()}
    np.savez(tmp_path / "d.npz", inputs=inputs.numpy(), **named)
    persistlib.convert(bundles["heads"], tmp_path / "m.onnx", trust={"task_models"})
    words = ("evaluate", tmp_path / "m.onnx", "--data", tmp_path / "d.npz", "--calls", 0)
    assert invoke(*words).exit_code == 1
    done = invoke(*words, "--task", "kind=classification,size=regression")
    assert done.exit_code == 0, done.output
    assert "--task kind=classification,size=regression" in done.stderr


def test_models_of_a_task_are_held_against_each_other(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    other = trained(
        tmp_path / "o",
        "Perceptron",
        lambda count: numbers(count, 5),
        task="regression",
        inputs=6,
        outputs=2,
    )
    found = persistlib.evaluate(
        bundles["regression"], numbers(40, 1), against=other, runtime="torch", **QUICK
    )
    assert found.against is not None
    assert found.against.heads[0].task == "regression"
