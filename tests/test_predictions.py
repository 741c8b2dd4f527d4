"""What is told of images and rows: by the task of the model, in both runtimes and at the prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import persistlib
from command_line import invoke
from persistlib import preparing
from persistlib.errors import PersistlibError
from persistlib.runtime import torch_predictions
from persistlib.runtime.predictions import Labels, Numbers, Prediction, heads_for, told
from persistlib.training.tasks import heads_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

COLUMNS = ("alpha", "beta", "gämma")
RECORD: dict[str, Any] = {
    "kind": "table",
    "columns": [*COLUMNS],
    "mean": [3.0, -50.0, 0.25],
    "std": [2.0, 20.0, 0.125],
}
ROWS = np.random.default_rng(5).normal([3, -50, 0.25], [2, 20, 0.125], (40, 3))
HEADS: Any = {"kind": "classification", "size": "regression"}


def trained(path: Path, task: Any, targets: Any, builder: str, **arguments: Any) -> Path:
    """Save a model of rows that was trained a little, with a graph, and return its folder."""
    model = persistlib.build(f"task_models:{builder}", trust={"task_models"}, **arguments)
    inputs = torch.from_numpy(preparing.apply(ROWS, RECORD))
    how: dict[str, Any] = {"epochs": 1, "lr": 0.05, "out": path, "onnx": True, "task": task}
    interface: dict[str, Any] = {"preprocessing": RECORD}
    if builder == "Perceptron":
        interface["labels"] = [f"label {place}" for place in range(arguments["outputs"])]
    how["interface"] = interface
    persistlib.finetune(model, (inputs, targets), **how)
    return path


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("told")
    numbers = torch.from_numpy(ROWS[:, :2].astype(np.float32))
    some = (numbers > numbers.mean(0)).float()
    kinds = torch.arange(len(ROWS)) % 3
    wide = {"inputs": 3}
    return {
        "number": trained(top / "n", "regression", numbers[:, :1], "Perceptron", **wide, outputs=1),
        "numbers": trained(top / "r", "regression", numbers, "Perceptron", **wide, outputs=2),
        "labels": trained(top / "m", "multilabel", some, "Perceptron", **wide, outputs=2),
        "heads": trained(top / "h", HEADS, {"kind": kinds, "size": numbers}, "TwoHeads", **wide),
        "classes": trained(top / "c", None, kinds, "Perceptron", **wide, outputs=3),
    }


def outputs_of(bundle: Path) -> Any:
    """Return what the module gives for the rows."""
    model = persistlib.load(bundle, trust={"task_models"})
    with torch.no_grad():
        return model.eval()(torch.from_numpy(preparing.apply(ROWS, RECORD)))


def predicted(bundle: Path, runtime: str) -> list[Any]:
    if runtime == "onnxruntime":
        return persistlib.load(bundle, runtime="onnxruntime").predict(ROWS, top=9)
    manifest = persistlib.inspect(bundle).manifest
    assert manifest.training is not None
    model = persistlib.load(bundle, trust={"task_models"}).eval()
    task = manifest.training.strategy["task"]
    return torch_predictions.predict(model, ROWS, manifest.interface, task=task, top=9)


def test_what_is_told_follows_from_the_task(bundles: dict[str, Path], runtime: str) -> None:
    for name, count in (("number", 1), ("numbers", 2)):
        found = predicted(bundles[name], runtime)
        names = [f"label {place}" for place in range(count)]
        assert all(isinstance(one, Numbers) and [*one.values] == names for one in found)
        values = np.array([[*one.values.values()] for one in found])
        assert np.ptp(values, axis=0).min() > 1e-3
        np.testing.assert_allclose(values, outputs_of(bundles[name]), rtol=1e-4, atol=1e-5)
    found = predicted(bundles["labels"], runtime)
    shares = torch.sigmoid(outputs_of(bundles["labels"]).double()).numpy()
    assert len({one.labels for one in found}) > 1
    for one, row in zip(found, shares, strict=True):
        assert isinstance(one, Labels)
        assert one.top == tuple(sorted(one.top, key=lambda pair: -pair[1]))
        assert dict(one.top) == pytest.approx({f"label {k}": row[k] for k in range(2)}, rel=1e-4)
        assert {*one.labels} == {f"label {k}" for k in range(2) if row[k] > 0.5}
    given = outputs_of(bundles["heads"])
    for place, row in enumerate(predicted(bundles["heads"], runtime)):
        assert [*row] == ["kind", "size"]
        assert isinstance(row["kind"], Prediction)
        assert row["kind"].index == int(given["kind"][place].argmax())
        told_sizes = [*row["size"].values.values()]
        np.testing.assert_allclose(told_sizes, given["size"][place], rtol=1e-4, atol=1e-5)
    classes = predicted(bundles["classes"], runtime)
    assert [one.index for one in classes] == outputs_of(bundles["classes"]).argmax(1).tolist()


@pytest.fixture(params=["onnxruntime", "torch"])
def runtime(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


def test_a_class_of_each_pixel_is_refused_in_plain_words() -> None:
    with pytest.raises(PersistlibError, match="a class of each pixel") as caught:
        told([np.zeros((2, 3, 4, 4))], heads_of("segmentation"), None)
    assert "run()" in caught.value.findings[0].remedy


def test_without_a_task_a_lone_number_is_no_certain_class() -> None:
    assert heads_for(None, (7, 1))[0].task == "regression"
    assert heads_for("custom", (7, 1, 1))[0].task == "regression"
    assert heads_for(None, (7, 3))[0].task == "classification"
    assert heads_for("classification", (7, 1))[0].task == "classification"


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_outputs_that_do_not_fit_are_refused(task: str) -> None:
    heads = heads_of(task)
    for scores, labels in (
        (np.array([[np.nan, 0.0]]), None),
        (np.array([[1.0, 0.0]]), ("one",)),
        (np.zeros((2, 3, 4)), None),
        (np.zeros((2, 0)), None),
    ):
        with pytest.raises(PersistlibError):
            told([scores], heads, labels)


def test_one_path_or_row_is_one(bundles: dict[str, Path]) -> None:
    session = persistlib.load(bundles["number"], runtime="onnxruntime")
    row = dict(zip(COLUMNS, map(float, ROWS[0]), strict=True))
    (alone,) = session.predict(row)
    assert alone.values == pytest.approx(session.predict([row])[0].values)
    assert [one.values for one in session.predict(iter([row, row]))] == [alone.values] * 2
    with pytest.raises(PersistlibError, match=r"'rows\.csv' is no row"):
        session.predict("rows.csv")
    given: Any = Path("some/picture.png")
    assert preparing.items_of("a/picture.png") == ["a/picture.png"]
    assert preparing.items_of(given) == [given]
    image = pytest.importorskip("PIL.Image").new("RGB", (4, 4))
    assert preparing.items_of(image) == [image]


# -- rows of a file ------------------------------------------------------------------------------


def write_rows(path: Path, columns: list[str], rows: NDArray[Any]) -> Path:
    lines = [",".join(columns), *(",".join(map(repr, row)) for row in rows.tolist())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["number", "numbers", "labels", "heads", "classes"])
def test_rows_of_a_table_are_answered_one_by_one(
    bundles: dict[str, Path], tmp_path: Path, runtime: str, name: str
) -> None:
    mixed = np.column_stack([ROWS[:, 2], np.arange(len(ROWS)), ROWS[:, 0], ROWS[:, 1]])
    path = write_rows(tmp_path / "rows.csv", ["gämma", "price", "alpha", "beta"], mixed)
    words = ("run", bundles[name], path, "--runtime", runtime, "--trust", "task_models")
    result = invoke(*words, "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)["data"]
    assert data["notes"] == ["columns passed over: price"]
    rows = data["predictions"]
    assert [row["row"] for row in rows] == [f"{path}:{line}" for line in range(2, len(ROWS) + 2)]
    for row, wanted in zip(rows, predicted(bundles[name], runtime), strict=True):
        match wanted:
            case Numbers():
                assert row["values"] == pytest.approx(wanted.values, rel=1e-5)
            case Labels():
                assert row["labels"] == [*wanted.labels]
                assert [pair["label"] for pair in row["top"]] == [name for name, _ in wanted.top]
            case dict():
                assert row["heads"]["kind"]["label"] == wanted["kind"].label
                assert row["heads"]["size"]["values"] == pytest.approx(wanted["size"].values)
            case _:
                assert (row["label"], row["index"]) == (wanted.label, wanted.index)
    report = invoke(*words).output
    assert "columns passed over: price" in report
    assert f"{path}:2"[-12:] in report
    assert len(invoke(*words, "-q").stdout.splitlines()) == len(ROWS)


def test_an_array_of_raw_rows_is_prepared_and_an_input_is_not(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    raw, prepared = tmp_path / "raw.npy", tmp_path / "prepared.npy"
    np.save(raw, ROWS)
    np.save(prepared, preparing.apply(ROWS, RECORD))
    result = json.loads(invoke("run", bundles["number"], raw, "--json").stdout)["data"]
    values = [row["values"]["label 0"] for row in result["predictions"]]
    given = json.loads(invoke("run", bundles["number"], "--input", prepared, "--json").stdout)
    found = given["data"]["outputs"][0]["values"]
    np.testing.assert_allclose(values, np.ravel(found), rtol=1e-5)
    (note,) = given["data"]["notes"]
    assert "standardization that the manifest records for 3 columns" in note


def test_a_table_that_does_not_fit_is_refused_with_every_fault(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("alpha,beta\n1,2\nx,3\n4\n", encoding="utf-8")
    result = invoke("run", bundles["number"], path, "--json")
    places = {item["location"] for item in json.loads(result.stdout)["findings"]}
    assert places == {f"{path}: gämma", f"{path}:3: alpha", f"{path}:4"}
    for word in (path, tmp_path / "picture.png"):
        result = invoke("run", bundles["number"], "--input", word, "--json")
        assert "pickle" not in result.output
    text = invoke("run", bundles["number"], "--input", path).output
    assert "no .npy and no .npz file" in text
    text = invoke("run", bundles["number"], tmp_path / "picture.png").output
    assert "rows of a table" in text


def test_one_column_is_a_table_too(tmp_path: Path) -> None:
    record = RECORD | {"columns": ["alpha"], "mean": [0.0], "std": [1.0]}
    model = persistlib.build("torch.nn:Linear", in_features=1, out_features=1)
    model.load_state_dict({"weight": torch.tensor([[2.0]]), "bias": torch.tensor([0.0])})
    out = tmp_path / "bundle"
    interface = {"preprocessing": record, "labels": ["price"]}
    persistlib.save(model, out, interface=interface, example_inputs=torch.zeros(1, 1))
    path = write_rows(tmp_path / "rows.csv", ["alpha"], np.array([[1.5], [-4.0]]))
    result = invoke("run", out, path, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["data"]["predictions"]
    assert [row["values"] for row in rows] == [{"price": 3.0}, {"price": -8.0}]


def test_a_model_of_images_takes_no_table(tmp_path: Path) -> None:
    model = persistlib.build("torch.nn:Linear", in_features=1, out_features=1)
    persistlib.save(model, tmp_path / "bundle", example_inputs=torch.zeros(1, 1))
    path = write_rows(tmp_path / "rows.csv", ["alpha"], np.array([[1.5]]))
    result = invoke("run", tmp_path / "bundle", path)
    assert result.exit_code == 1
    assert "names no columns" in result.output
