"""Tables: what a CSV file says, what is wrong with it, and models that learn from its rows."""

from __future__ import annotations

import json
import shlex
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import persistlib
from command_line import invoke
from persistlib import table_rows
from persistlib.errors import PersistlibError
from persistlib.training.beginnings import Saved
from persistlib.training.data_sources import open_data, survey_data
from persistlib.training.labelled import Asked
from persistlib.training.plan import plan
from persistlib.training.settings import Settings
from persistlib.training.splits import again
from persistlib.training.tables import TableData

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SETTINGS = Settings(epochs=25, lr=0.02, batch_size=16, label_smoothing=0.0)
QUICK: dict[str, Any] = {"calls": 0}
MLP = "torchvision.ops:MLP"


def read(path: Path, **asked: Any) -> TableData:
    found = survey_data(path, Asked(**asked)).require()
    assert isinstance(found, TableData)
    return found


def refused(path: Path, **asked: Any) -> PersistlibError:
    with pytest.raises(PersistlibError) as caught:
        read(path, **asked)
    return caught.value


def write_csv(path: Path, columns: list[str], rows: Any) -> Path:
    lines = [",".join(map(str, row)) for row in rows]
    path.write_text("\n".join([",".join(columns), *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Path:
    datasets = pytest.importorskip("sklearn.datasets")
    given = datasets.load_iris()
    rows = [
        [*row, given.target_names[label]]
        for row, label in zip(given.data, given.target, strict=True)
    ]
    path: Path = tmp_path_factory.mktemp("iris") / "iris.csv"
    return write_csv(
        path, ["sepal length", "sepal width", "petal length", "petal width", "kind"], rows
    )


@pytest.fixture(scope="module")
def diabetes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    datasets = pytest.importorskip("sklearn.datasets")
    given = datasets.load_diabetes(scaled=False)
    path: Path = tmp_path_factory.mktemp("diabetes") / "diabetes.csv"
    rows = np.column_stack([given.data, given.target / 100])
    return write_csv(path, [*given.feature_names, "progression"], rows.tolist())


# -- what a file says --------------------------------------------------------------------------


def test_texts_in_the_last_column_are_classes(iris: Path) -> None:
    data = read(iris)
    assert (data.task, data.classes) == ("classification", ("setosa", "versicolor", "virginica"))
    assert data.rows.shape == (150, 4)
    assert data.labels == (0,) * 50 + (1,) * 50 + (2,) * 50
    assert data.rows[0].tolist() == [5.1, 3.5, 1.4, 0.2]
    split = data.split()
    assert split.sizes == {"train": 120, "valid": 30}
    assert split.how["method"] == "stratified"
    assert again(data, split.how) == split


def test_fractions_are_numbers_and_few_whole_numbers_classes(
    diabetes: Path, tmp_path: Path
) -> None:
    data = read(diabetes)
    assert (data.task, data.classes, data.target_names) == ("regression", (), ("progression",))
    assert data.targets is not None
    assert data.targets.shape == (442, 1)
    split = data.split(seed=2)
    assert split.how == {"method": "drawn", "fraction": 0.2, "seed": 2}
    assert len(split.valid) == 88
    assert split != data.split(seed=3)
    few = write_csv(tmp_path / "few.csv", ["x", "y"], [[i / 7, 10 - i % 3] for i in range(30)])
    assert read(few).classes == ("8", "9", "10")
    assert read(few, task="regression").task == "regression"
    many = write_csv(tmp_path / "many.csv", ["x", "y"], [[i / 7, i * 3] for i in range(30)])
    assert read(many).task == "regression"


def test_the_target_is_named_and_may_be_several(diabetes: Path, tmp_path: Path) -> None:
    data = read(diabetes, target=["bmi", "s1"])
    assert data.target_names == ("bmi", "s1")
    assert data.targets is not None
    assert data.targets.shape == (442, 2)
    assert "progression" in data.columns
    assert "bmi" not in data.columns
    rows = [[i / 3, i % 2, (i // 2) % 2] for i in range(12)]
    labels = write_csv(tmp_path / "labels.csv", ["x", "a", "b"], rows)
    assert read(labels, target=["a", "b"]).task == "multilabel"
    assert read(labels, target=["a", "b"], task="regression").task == "regression"
    strange = write_csv(tmp_path / "s.csv", ["x", "a", "b"], [*rows, [1, 2, 0.5]])
    assert read(strange, target=["a", "b"]).task == "regression"
    fault = refused(strange, target=["a", "b"], task="multilabel")
    assert [item.location.rpartition("/")[2] for item in fault.findings] == [
        "s.csv:14: a",
        "s.csv:14: b",
    ]


def test_the_digest_tells_values_names_targets_and_order_apart(tmp_path: Path) -> None:
    rows: list[list[Any]] = [[i / 7, i / 3, "ab"[i % 2]] for i in range(8)]
    digests: list[str] = []
    for columns, changed in (
        (["x", "y", "c"], rows),
        (["x", "z", "c"], rows),
        (["x", "y", "d"], rows),
        (["x", "y", "c"], rows[::-1]),
        (["x", "y", "c"], [[0.5, *rows[0][1:]], *rows[1:]]),
        (["x", "y", "c"], [[*rows[0][:2], "b"], *rows[1:]]),
    ):
        digests.append(read(write_csv(tmp_path / "t.csv", columns, changed)).digest)
    assert len(set(digests)) == len(digests)
    spaced = tmp_path / "spaced.csv"
    spaced.write_text("x, y ,c\r\n" + "".join(f'"{x}", {y},{c} \r\n' for x, y, c in rows) + "\r\n")
    assert read(spaced).digest == digests[0]
    tabs = tmp_path / "t.tsv"
    tabs.write_text("\ufeffx\ty\tc\n" + "".join(f"{x}\t{y}\t{c}\n" for x, y, c in rows))
    assert read(tabs).digest == digests[0]


def test_columns_in_another_order_give_the_rows_of_a_model_that_names_them(tmp_path: Path) -> None:
    rows = [[i / 7, i / 3, "ab"[i % 2]] for i in range(8)]
    first = read(write_csv(tmp_path / "a.csv", ["x", "y", "c"], rows))
    turned = write_csv(tmp_path / "b.csv", ["c", "y", "x"], [row[::-1] for row in rows])
    data = read(turned, columns=("x", "y"))
    assert np.array_equal(first.rows, data.rows)
    assert (first.digest, data.target_names) == (data.digest, ("c",))


# -- what is wrong with it -----------------------------------------------------------------------


def test_every_bad_cell_is_reported_with_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    lines = [
        "age,bmi,kind",
        "1,2,a",
        ",2,a",
        "1,NA,b",
        "1,two,b",
        "1,2,",
        "inf,2,b",
        "1,2",
        "1,2,a,3",
        "1_0,2,a",
        "1,1e300,b",
        "nan,2,a",
        "1,2,alone",
    ]
    path.write_text("\n".join(lines))
    places = [item.location.removeprefix(f"{path}") for item in refused(path).findings]
    assert sorted(places) == sorted(
        [
            *(":3: age", ":4: bmi", ":5: bmi", ":6: kind", ":7: age", ":8", ":9"),
            *(":10: age", ":11: bmi", ":12: age"),
        ]
    )
    path.write_text("\n".join([lines[0], *["1,2,a", "3,2,a", "1,2,b", "3,4,b", "1,2,alone"]]))
    assert "alone" in refused(path).location


HEADERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 columns"),
    "one column": (b"x\n1\n", "one column; a target"),
    "semicolons": (b"x;y\n1,5;2\n", "looks parted by semicolons"),
    "tabs": (b"x\ty\n1\t2\n", "looks parted by tabs"),
    "no header": (b"1,2\n3,4\n", "no header"),
    "a name twice": (b"x,x,y\n1,2,3\n", "columns of one name: 'x'"),
    "no name": (b"x,,y\n1,2,3\n", "without a printable name"),
    "a NUL": (b"x,y\n1,\0\n", "NUL"),
    "no UTF-8": (b"x,y\n1,\xff\n", "no UTF-8"),
    "no rows": (b"x,y\n", "holds no row"),
    "quotes without an end": (b'x,y\n1,"2\n', "unexpected end"),
    "a giant field": (b"x,y\n1," + b"9" * 200_000 + b"\n", "field larger"),
    "many columns": (b",".join(b"c%d" % i for i in range(70_000)) + b"\n", "70000 columns"),
}


@pytest.mark.parametrize(("data", "words"), HEADERS.values(), ids=HEADERS)
def test_what_is_no_table_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    fault = refused(path)
    assert fault.code == "PL802"
    assert words in str(fault)


def test_columns_that_are_not_there_are_said(iris: Path, tmp_path: Path) -> None:
    assert refused(tmp_path / "none.csv").code == "PL801"
    assert "no such column to be told" in str(refused(iris, target=["kinds"]))
    fault = refused(iris, columns=("sepal length", "age"))
    names = {item.location.rpartition(": ")[2] for item in fault.findings}
    assert "age" in names
    constant = write_csv(tmp_path / "c.csv", ["x", "y"], [[i, 0.5] for i in range(9)])
    assert "nothing to learn" in str(refused(constant))
    with pytest.raises(PersistlibError, match="a table, no images"):
        open_data(iris)


def test_very_many_faults_are_counted(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", ["x", "y"], [["bad", 1.5 + i] for i in range(500)])
    fault = refused(path)
    assert len(fault.findings) == 51
    assert any("450 more such faults" in item.message for item in fault.findings)
    lines = [int(item.location.split(":")[1]) for item in fault.findings]
    assert lines == [*range(2, 53)]
    assert "450 more such faults from here on" in fault.findings[-1].message


def test_faults_of_several_columns_are_told_by_line(tmp_path: Path) -> None:
    rows = [["1,5", "2,5", index] for index in range(200)]
    text = "\n".join(f'"{a}","{b}",{c}' for a, b, c in rows)
    path = tmp_path / "comma.csv"
    path.write_text(f"x,y,z\n{text}\n")
    *first, last = refused(path).findings
    lines = [int(item.location.split(":")[1]) for item in (*first, last)]
    assert lines == sorted(lines)
    assert max(lines) == 27
    assert last.message.startswith("350 more such faults from here on, 400 in all")


# -- rows as a model takes them ------------------------------------------------------------------


def test_rows_are_standardized_by_those_to_train_on() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal([3, -5, 1e6], [2, 0.1, 1e5], (200, 3))
    rows[:, 1] = 0.1  # a constant
    record = table_rows.TablePreprocessing.of(("a", "b", "c"), rows)
    prepared = table_rows.apply(rows, record)
    assert np.abs(prepared.mean(axis=0)).max() < 1e-5
    assert prepared.std(axis=0) == pytest.approx([1, 0, 1], abs=1e-5)
    assert table_rows.parse(record.to_dict()) == record
    named = [dict(zip(("c", "a", "b"), row[[2, 0, 1]], strict=True)) for row in rows]
    assert np.array_equal(table_rows.apply(named, record), prepared)
    assert table_rows.apply([], record).shape == (0, 3)


@pytest.mark.parametrize(
    "rows",
    [
        [[1, 2]],
        [[1, 2, 3, 4]],
        [1, 2, 3],
        [["a", 2, 3]],
        [[1, 2, np.nan]],
        [[1, 2, np.inf]],
        [[1, 2, 1e300]],
        [[1, 2, 10**400]],
        [[1, 2, 3], [1, 2]],
        [{"a": 1, "b": 2}],
        [{"a": 1, "b": 2, "c": 3, "d": 4}],
        [None],
        np.zeros((2, 3, 1)),
    ],
)
def test_rows_of_other_columns_or_values_are_refused(rows: Any) -> None:
    record = table_rows.TablePreprocessing(("a", "b", "c"), (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(PersistlibError) as caught:
        table_rows.apply(rows, record)
    assert caught.value.code == "PL708"


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ({"columns": []}, {"columns"}),
        ({"columns": ["a", "a"]}, {"columns"}),
        ({"columns": "ab"}, {"columns"}),
        ({"mean": [0.0]}, {"mean"}),
        ({"std": [1.0, 0.0]}, {"std"}),
        ({"std": [1.0, True]}, {"std"}),
        ({"mean": [10**400, 1.0], "std": None, "more": 1}, {"mean", "std", "more"}),
    ],
)
def test_every_fault_of_a_record_is_reported(change: dict[str, Any], keys: set[str]) -> None:
    record: dict[str, Any] = {
        "kind": "table",
        "columns": ["a", "b"],
        "mean": [0.0, 1.0],
        "std": [1.0, 2.0],
    }
    table_rows.parse(record)
    with pytest.raises(PersistlibError) as caught:
        table_rows.parse(record | change)
    assert {item.location for item in caught.value.findings} == {f"preprocessing.{k}" for k in keys}


# -- from end to end -----------------------------------------------------------------------------


def mlp(widths: list[int], columns: int) -> dict[str, Any]:
    return {"arguments": {"in_channels": columns, "hidden_channels": widths, "inplace": False}}


def carried_out(made: Any, out: Path | None = None) -> Any:
    return persistlib.finetune(made.model, made.train, made.valid, **made.arguments, out=out)


def raw_rows(path: Path) -> NDArray[np.float64]:
    rows: NDArray[np.float64] = read(path).rows
    return rows


def test_a_classifier_learns_from_a_table_and_takes_raw_rows(iris: Path, tmp_path: Path) -> None:
    made = plan(MLP, data=iris, settings=SETTINGS, **mlp([16, 7], 4))
    words = dict(made.rows())
    assert words["data"] == "iris.csv: 150 rows of 4 columns"
    assert "7 classes become 3" in words["last layer"]
    assert made.counts.frozen == 0
    out = tmp_path / "bundle"
    result = carried_out(made, out)
    assert result.metrics["accuracy"] > 0.85
    manifest = persistlib.inspect(out).manifest
    assert isinstance(made.preprocessing, table_rows.TablePreprocessing)
    assert manifest.interface.preprocessing == made.preprocessing.to_dict()
    assert made.preprocessing.columns[0] == "sepal length"
    assert manifest.training is not None
    assert manifest.training.data is not None
    assert manifest.training.data.digest == read(iris).digest
    judged = persistlib.evaluate(out, iris, held_out=True, runtime="torch", **QUICK)
    assert judged.accuracy == pytest.approx(result.metrics["accuracy"])
    persistlib.convert(out, tmp_path / "model.onnx")
    session = persistlib.load(tmp_path / "model.onnx", runtime="onnxruntime")
    data = read(iris)
    names = [item.label for item in session.predict([*data.rows])]
    right = np.mean([name == data.classes[k] for name, k in zip(names, data.labels, strict=True)])
    assert right > 0.85
    named = [dict(zip(data.columns, row, strict=True)) for row in data.rows[:5]]
    assert [item.label for item in session.predict(named)] == names[:5]
    with pytest.raises(PersistlibError, match="other columns than the model's"):
        session.predict([{"sepal length": 1.0}])


def test_a_table_with_other_columns_is_refused_by_the_model(iris: Path, tmp_path: Path) -> None:
    made = plan(MLP, data=iris, settings=Settings(epochs=1, lr=0.01), **mlp([3], 4))
    out = tmp_path / "bundle"
    carried_out(made, out)
    text = iris.read_text()
    other = tmp_path / "other.csv"
    other.write_text(text.replace("petal width", "petal breadth", 1))
    with pytest.raises(PersistlibError) as caught:
        persistlib.evaluate(out, other, **QUICK)
    assert [item.location for item in caught.value.findings] == [f"{other}: petal width"]
    with pytest.raises(PersistlibError) as caught:
        persistlib.evaluate(out, str(other), held_out=True, **QUICK)
    changed = tmp_path / "iris.csv"
    changed.write_text(text.replace("5.1", "5.2", 1))
    with pytest.raises(PersistlibError, match="not the rows that the model was trained on"):
        persistlib.evaluate(out, changed, held_out=True, **QUICK)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        persistlib.evaluate(out, changed, runtime="torch", **QUICK)


@pytest.mark.parametrize("target", [None, "s5,progression"])
def test_numbers_are_learnt_from_a_table(
    diabetes: Path, tmp_path: Path, target: str | None
) -> None:
    count = 1 if target is None else 2
    how = mlp([16, count], 11 - count)
    made = plan(MLP, data=diabetes, target=target, settings=SETTINGS, **how)
    assert made.head is None
    out = tmp_path / "bundle"
    result = carried_out(made, out)
    assert result.training.strategy["task"] == "regression"
    judged = persistlib.evaluate(out, diabetes, held_out=True, runtime="torch", **QUICK)
    found = json.loads(json.dumps(judged.to_dict()))
    mse = [value for key, value in result.metrics.items() if "loss" in key or "mse" in key]
    assert mse
    assert found["data"]["held_out"] is True
    answers = np.asarray(judged.results[0].heads[0].outcomes.answers)
    targets = read(diabetes, target=target.split(",") if target else None).targets
    assert targets is not None
    wanted = targets[[*made.split.valid]]
    spread = ((wanted - wanted.mean(axis=0)) ** 2).mean()
    assert ((answers.reshape(wanted.shape) - wanted) ** 2).mean() < 0.75 * spread


def test_a_model_of_one_number_a_row_gets_targets_of_that_shape(diabetes: Path) -> None:
    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(10, 1)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            numbers: torch.Tensor = self.fc(rows)
            return numbers[:, 0]

    made = plan(MLP, data=diabetes, settings=SETTINGS, **mlp([1], 10))
    assert made.train[1].shape == (354, 1)
    from persistlib.training.data import prepared_rows

    assert isinstance(made.data, TableData)
    assert isinstance(made.preprocessing, table_rows.TablePreprocessing)
    _, targets = prepared_rows(made.data, made.split.train, made.preprocessing, Flat())
    assert targets.shape == (354,)


def test_what_does_not_take_the_rows_is_refused(diabetes: Path, iris: Path) -> None:
    with pytest.raises(PersistlibError, match="refuses rows of 4 numbers"):
        plan(MLP, data=iris, settings=SETTINGS, **mlp([3], 5))
    made = plan(MLP, data=diabetes, settings=SETTINGS, **mlp([2], 10))
    with pytest.raises(PersistlibError) as caught:
        carried_out(made)
    assert caught.value.code == "PL802"


def test_weights_that_are_a_folder_are_refused_as_for_images(iris: Path, tmp_path: Path) -> None:
    with pytest.raises(PersistlibError, match="a bundle says its model") as caught:
        plan(MLP, data=iris, weights=tmp_path, settings=SETTINGS, **mlp([3], 4))
    assert str(tmp_path) in str(caught.value.remedy)


def test_a_bundle_goes_on_with_its_own_standardization(iris: Path, tmp_path: Path) -> None:
    made = plan(MLP, data=iris, settings=Settings(epochs=2, lr=0.01), **mlp([8, 3], 4))
    first = tmp_path / "first"
    carried_out(made, first)
    lines = iris.read_text().splitlines()
    part = tmp_path / "part.csv"
    turned = [",".join([*line.split(",")[:4][::-1], line.split(",")[4]]) for line in lines]
    part.write_text("\n".join([turned[0], *turned[1:40], *turned[60:]]))
    saved = Saved(persistlib.load(first), persistlib.inspect(first).manifest)
    again_made = plan(saved, data=part, settings=Settings(epochs=1, lr=0.01))
    assert again_made.preprocessing == made.preprocessing
    assert again_made.head is not None
    assert again_made.head.is_kept
    out = tmp_path / "second"
    words = ("--data", part, "--epochs", 1, "--out", out, "--json")
    done = invoke("finetune", first, *words)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)["data"]["plan"]
    assert told["data"]["task"] == "classification"
    assert told["split"]["method"] == "stratified"
    judged = invoke("evaluate", out, "--data", part, "--held-out", "--calls", 0, "--json")
    assert judged.exit_code == 0, judged.output


def test_a_network_for_images_takes_no_table(iris: Path, tmp_path: Path) -> None:
    model = persistlib.build("torchvision.models:squeezenet1_1", num_classes=3).eval()
    interface = {"labels": ["a", "b", "c"], "preprocessing": {"kind": "image", "resize": 32}}
    persistlib.save(
        model, tmp_path / "b", example_inputs=torch.zeros(1, 3, 32, 32), interface=interface
    )
    saved = Saved(persistlib.load(tmp_path / "b"), persistlib.inspect(tmp_path / "b").manifest)
    with pytest.raises(PersistlibError, match="the bundle takes images"):
        plan(saved, data=iris, settings=SETTINGS)


# -- rows in .npz files ----------------------------------------------------------------------------


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def drawn_rows(count: int = 90) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    centres = np.array([[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]])
    return (centres[labels] + rng.normal(0, 0.5, (count, 4))).astype(np.float32), labels


@pytest.mark.parametrize("task", ["classification", "regression", "multilabel"])
def test_inputs_of_an_archive_are_learnt_as_they_are(tmp_path: Path, task: str) -> None:
    rows, labels = drawn_rows()
    told: dict[str, Any] = {
        "classification": {"labels": np.array(["ant", "bee", "cow"])[labels]},
        "regression": {"targets": rows[:, :2] @ np.array([[1.0, 2.0], [0.5, -1.0]])},
        "multilabel": {"targets": np.stack([labels > 0, labels > 1], 1).astype(np.int64)},
    }[task]
    path = write_npz(tmp_path / "rows.npz", inputs=rows, **told)
    width = {"classification": 5}.get(task, 2)
    named = task if task == "multilabel" else None
    made = plan(MLP, data=path, task=named, settings=SETTINGS, **mlp([16, width], 4))
    assert made.preprocessing is None
    assert made.train[0].dtype == torch.float32
    assert np.array_equal(made.train[0].numpy(), rows[[*made.split.train]])
    out = tmp_path / "bundle"
    result = carried_out(made, out)
    judged = persistlib.evaluate(out, path, held_out=True, runtime="torch", **QUICK)
    assert judged.samples.held_out
    assert len(judged.samples) == len(made.split.valid)
    if task == "classification":
        assert result.metrics["accuracy"] > 0.8
        assert judged.accuracy == pytest.approx(result.metrics["accuracy"])
    with pytest.warns(persistlib.errors.PersistlibWarning, match="PL809"):
        persistlib.evaluate(out, path, runtime="torch", **QUICK)


ROWS, LABELS = drawn_rows(9)
ARCHIVES: dict[str, dict[str, Any]] = {
    "neither": {"inputs": ROWS},
    "both": {"inputs": ROWS, "labels": LABELS, "targets": ROWS},
    "one axis": {"inputs": ROWS[:, 0], "labels": LABELS},
    "no columns": {"inputs": ROWS[:, :0], "labels": LABELS},
    "fewer targets": {"inputs": ROWS, "targets": ROWS[:-1]},
    "texts": {"inputs": ROWS, "targets": np.array(["a"] * 9)},
    "not finite": {"inputs": np.where(ROWS > 0, ROWS, np.nan), "targets": ROWS},
    "too large": {"inputs": ROWS, "targets": np.full(9, 1e300)},
    "constant": {"inputs": ROWS, "targets": np.ones(9)},
    "alone": {"inputs": ROWS, "labels": np.array([0] * 8 + [1])},
    "nothing": {"inputs": ROWS[:0], "targets": ROWS[:0]},
}


@pytest.mark.parametrize("arrays", ARCHIVES.values(), ids=ARCHIVES)
def test_rows_that_cannot_be_used_are_refused(tmp_path: Path, arrays: dict[str, Any]) -> None:
    assert refused(write_npz(tmp_path / "rows.npz", **arrays)).code == "PL802"


def test_targets_of_another_kind_are_refused_together(tmp_path: Path) -> None:
    bad = np.where(ROWS > 0, ROWS, np.inf)
    path = write_npz(tmp_path / "rows.npz", inputs=bad, targets=bad)
    assert len(refused(path, task="multilabel").findings) == 3
    assert "no classes" in str(
        refused(write_npz(path, inputs=ROWS, targets=ROWS), task="classification")
    )


def test_a_small_archive_that_fills_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, inputs=np.zeros((1000, 1000)), labels=np.arange(1000) % 2)
    assert len(read(path)) == 1000
    monkeypatch.setattr("persistlib.training.arrays._FLOOR", 1 << 20)
    fault = refused(path)
    assert (fault.code, "unpack to" in str(fault)) == ("PL802", True)


def test_rates_of_a_regression_are_tried_by_its_own_loss(
    diabetes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = persistlib.build(MLP, in_channels=10, hidden_channels=[8, 1])
    persistlib.save(model, tmp_path / "start", example_inputs=torch.zeros(2, 10))
    words = ("--data", diabetes, "--find-lr", tmp_path / "rates.png", "--freeze", "0.*", "--epochs")
    found = invoke("finetune", tmp_path / "start", *words, 2)
    assert found.exit_code == 0, found.output
    program, *proposed = shlex.split(found.stderr.split("next: ")[1])
    assert (program, invoke(*proposed).exit_code) == ("persistlib", 0), found.stderr
    training = persistlib.inspect(tmp_path / "tuned").manifest.training
    assert training is not None
    assert (training.epochs, training.strategy["freeze"]) == (2, ["0.*"])
    for option, reason in (
        ("--label-smoothing=0.2", "--label-smoothing means nothing for regression"),
        ("--balanced", "--balanced means nothing for regression"),
        ("--classifier=ridge", "has no classes"),
    ):
        refused_words = ("--data", diabetes, "--out", tmp_path / "x", option)
        refused = invoke("finetune", tmp_path / "start", *refused_words)
        assert (refused.exit_code, reason in refused.output) == (2, True), refused.output


def test_what_is_held_out_has_no_part_in_the_standardization(diabetes: Path) -> None:
    made = plan(MLP, data=diabetes, settings=SETTINGS, **mlp([1], 10))
    assert isinstance(made.preprocessing, table_rows.TablePreprocessing)
    rows = raw_rows(diabetes)
    trained = rows[[*made.split.train]]
    assert np.array_equal(made.preprocessing.mean, trained.mean(axis=0))
    assert np.array_equal(made.preprocessing.std, trained.std(axis=0))
    assert not np.allclose(made.preprocessing.mean, rows.mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("values", [ROWS, np.arange(9.0) % 2], ids=["numbers", "one number"])
def test_a_model_for_images_refuses_rows_before_it_trains(
    tmp_path: Path, values: np.ndarray[Any, Any]
) -> None:
    rows = np.column_stack([ROWS, values])
    path = write_csv(tmp_path / "t.csv", [f"c{i}" for i in range(rows.shape[1])], rows + 0.5)
    with pytest.raises(PersistlibError, match="the model refuses rows") as caught:
        plan("squeezenet1_1", data=path, settings=Settings(epochs=1, lr=0.1), task="regression")
    assert caught.value.code == "PL901"
