"""Judging a model: metrics as they are defined, runtimes side by side, every fault of the data."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import persistlib
from command_line import invoke
from digit_images import RECORD
from persistlib import preprocessing
from persistlib.errors import LockedError, PersistlibError, PersistlibWarning
from persistlib.evaluation import recording, timing
from persistlib.evaluation.intervals import wilson
from persistlib.evaluation.judging import judge
from persistlib.evaluation.metrics import measure
from persistlib.evaluation.runners import Runner
from persistlib.evaluation.samples import open_samples
from persistlib.manifest.schema import Interface
from persistlib.place import Place
from persistlib.training.data import ImageData, PreparedImages, open_data

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from persistlib.evaluation.judging import Evaluation

pytest.importorskip("sklearn")

QUICK: dict[str, Any] = {"calls": 0, "threads": 1}
PETS = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return open_data("sklearn:digits")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, digits: ImageData) -> Path:
    """A small network with BatchNorm, trained on the digits, with a graph."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 12, 3, padding=1),
        torch.nn.BatchNorm2d(12),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(12 * 16, 10),
    )
    path = tmp_path_factory.mktemp("digits") / "bundle"
    split, record = digits.split(), preprocessing.parse(RECORD)
    persistlib.finetune(
        model,
        PreparedImages(digits, split.train, record),
        PreparedImages(digits, split.valid, record),
        epochs=2,
        lr=0.01,
        interface={"preprocessing": RECORD, "labels": digits.classes},
        data=digits.record(split),
        out=path,
        onnx=True,
    )
    return path


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    target = tmp_path / "copy"
    target.mkdir()
    for file in bundle.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.fixture(scope="module")
def held_out(digits: ImageData) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    chosen = list(digits.split().valid)
    return np.stack([np.asarray(digits.images[i]) for i in chosen]), np.array(digits.labels)[chosen]


@pytest.fixture
def images(tmp_path: Path, held_out: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> Path:
    """A folder with some of the held-out digits."""
    for number, (pixels, label) in enumerate(zip(*held_out, strict=True)):
        if number % 5 == 0:
            folder = tmp_path / "images" / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return tmp_path / "images"


def stored(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def findings(caught: pytest.ExceptionInfo[PersistlibError]) -> set[tuple[str, str]]:
    return {(found.code, os.path.basename(found.location)) for found in caught.value.findings}


# -- metrics -----------------------------------------------------------------------------------

answers = st.integers(2, 6).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        st.lists(
            st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)),
            min_size=1,
            max_size=40,
        ),
    )
)


@settings(max_examples=40)
@given(answers)
def test_metrics_are_what_their_definitions_say(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    classes, pairs = drawn
    truth, said = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    found = measure(truth, said, [f"c{index}" for index in range(classes)])
    assert found.accuracy == sum(t == s for t, s in pairs) / len(pairs)
    occurring = sorted({index for pair in pairs for index in pair})
    sums = {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    for index, row in enumerate(found.classes):
        right = sum(t == s == index for t, s in pairs)
        is_it, was_said = sum(t == index for t, _ in pairs), sum(s == index for _, s in pairs)
        assert (row.name, row.images) == (f"c{index}", is_it)
        assert row.precision == (pytest.approx(right / was_said) if was_said else None)
        assert row.recall == (pytest.approx(right / is_it) if is_it else None)
        assert row.f1 == (
            pytest.approx(2 * right / (is_it + was_said)) if is_it + was_said else None
        )
        for name in sums:
            sums[name] += (getattr(row, name) or 0) / len(occurring)
        for other in range(classes):
            assert found.confusion[index, other] == sum((t, s) == (index, other) for t, s in pairs)
    assert found.averaged == len(occurring)
    for name, value in sums.items():
        assert getattr(found.macro, name) == pytest.approx(value)
    assert found.weighted.recall == pytest.approx(found.accuracy)


@settings(max_examples=40)
@given(answers)
def test_averages_are_those_of_scikit_learns_report(
    drawn: tuple[int, list[tuple[int, int]]],
) -> None:
    from sklearn.metrics import classification_report

    truth, said = (np.array(column, np.int64) for column in zip(*drawn[1], strict=True))
    options: dict[str, Any] = {"output_dict": True, "zero_division": 0}
    report: Any = classification_report(truth, said, **options)
    found = measure(truth, said, [str(index) for index in range(drawn[0])])
    for kind in ("macro", "weighted"):
        average, known = getattr(found, kind), report[f"{kind} avg"]
        values = (average.precision, average.recall, average.f1)
        assert values == pytest.approx((known["precision"], known["recall"], known["f1-score"]))


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_wilsons(drawn: tuple[int, int]) -> None:
    from scipy.stats import binomtest

    known = binomtest(*drawn).proportion_ci(0.95, method="wilson")
    assert wilson(*drawn) == pytest.approx((known.low, known.high))


def test_mistakes_are_told_by_how_frequent_they_are() -> None:
    truth = np.array([0, 0, 0, 1, 1, 2], np.int64)
    said = np.array([1, 1, 0, 0, 1, 1], np.int64)
    found = measure(truth, said, PETS)
    assert found.confused() == [("cat", "dog", 2), ("dog", "cat", 1), ("owl", "dog", 1)]
    assert found.unanswered == ("owl",)


# -- models ------------------------------------------------------------------------------------


def test_every_runtime_answers_as_the_module_does(
    bundle: Path, held_out: tuple[NDArray[np.uint8], NDArray[np.int64]]
) -> None:
    model = persistlib.load(bundle)
    assert isinstance(model, torch.nn.Module)
    inputs = preprocessing.apply(list(held_out[0]), RECORD)
    with torch.no_grad():
        scores = model.eval()(torch.from_numpy(inputs)).numpy()
    found = persistlib.evaluate(bundle, "sklearn:digits", held_out=True, **QUICK)
    assert [result.runtime for result in found.results] == ["torch", "onnxruntime"]
    for result in found.results:
        assert np.array_equal(result.answers, scores.argmax(1))
        assert result.metrics.accuracy == np.mean(scores.argmax(1) == held_out[1])
        best = np.argsort(-scores, axis=1)[:, :5]
        assert result.top5 == np.mean((best == held_out[1][:, None]).any(1))
    (agreement,) = found.agreements
    assert (agreement.same, agreement.images) == (len(scores), len(scores))
    assert 0 < agreement.difference < 1e-5
    assert 0.5 < found.accuracy < 1
    assert found.preparation is not None


def test_held_out_samples_score_what_the_training_measured(bundle: Path) -> None:
    training = persistlib.inspect(bundle).manifest.training
    assert training is not None
    found = persistlib.evaluate(bundle, "sklearn:digits", held_out=True, **QUICK)
    assert found.accuracy == pytest.approx(training.metrics["accuracy"])


def test_a_model_judged_on_what_it_was_trained_on_is_told_so(bundle: Path) -> None:
    with pytest.warns(PersistlibWarning, match="PL809"):
        persistlib.evaluate(bundle, "sklearn:digits", runtime="onnxruntime", **QUICK)


def test_other_data_was_not_held_out(bundle: Path, images: Path) -> None:
    with pytest.raises(PersistlibError) as caught:
        persistlib.evaluate(bundle, images, held_out=True, **QUICK)
    assert (caught.value.code, caught.value.location) == ("PL802", "images")


def test_folders_files_and_arrays_of_the_same_samples_give_the_same_result(
    bundle: Path, images: Path, tmp_path: Path
) -> None:
    files = sorted(images.glob("*/*.png"))
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    names = np.array([file.parent.name for file in files])
    numbers = names.astype(np.int64)
    inputs = preprocessing.apply(list(pixels), RECORD)
    model = persistlib.load(bundle)
    session = persistlib.load(bundle, runtime="onnxruntime", threads=1)
    interface = persistlib.inspect(bundle).manifest.interface
    first = persistlib.evaluate(bundle, images, **QUICK)
    order = tuple(reversed("0123456789"))
    reversed_numbers = 9 - numbers
    forms: tuple[dict[str, Any], ...] = (
        {"images": pixels, "labels": names},
        {"images": pixels, "labels": numbers},
        {"images": pixels, "labels": reversed_numbers, "classes": np.array(order)},
        {"images": pixels, "labels": names, "classes": np.array(order)},
        {"images": pixels.astype(np.int64), "labels": names},
        {"inputs": inputs, "labels": numbers},
    )
    others = [
        persistlib.evaluate(bundle, stored(tmp_path / f"{number}.npz", **arrays), **QUICK)
        for number, arrays in enumerate(forms)
    ]
    others += [
        persistlib.evaluate(bundle, (inputs, numbers), **QUICK),
        persistlib.evaluate(model, (torch.from_numpy(inputs), torch.from_numpy(numbers)), **QUICK),
        persistlib.evaluate(model, images, interface=interface, **QUICK),
        persistlib.evaluate(session, images, **QUICK),
        persistlib.evaluate(session, (inputs, names), **QUICK),
    ]
    rows = [(row.images, row.precision, row.recall) for row in first.metrics.classes]
    for other in others:
        assert [(r.images, r.precision, r.recall) for r in other.metrics.classes] == rows
        assert np.array_equal(other.metrics.confusion, first.metrics.confusion)
    assert others[0].samples.digest == others[1].samples.digest
    assert others[0].samples.digest == others[4].samples.digest
    assert others[5].preparation is None


def test_a_graph_alone_says_its_classes_and_how_images_are_prepared(
    bundle: Path, images: Path, tmp_path: Path
) -> None:
    persistlib.convert(bundle, tmp_path / "model.onnx")
    alone = persistlib.evaluate(tmp_path / "model.onnx", images, **QUICK)
    whole = persistlib.evaluate(bundle, images, runtime="onnxruntime", **QUICK)
    assert np.array_equal(alone.results[0].answers, whole.results[0].answers)
    assert alone.metrics.to_dict() == whole.metrics.to_dict()


def test_the_graph_that_is_asked_for_is_the_one_that_is_judged(bundle: Path, images: Path) -> None:
    found = persistlib.evaluate(bundle, images, graph="f32", **QUICK)
    assert found["onnxruntime"].facts["graph"] == "F32"
    with pytest.raises(PersistlibError) as caught:
        persistlib.evaluate(bundle, images, graph="int8", **QUICK)
    assert caught.value.code == "PL607"


def test_a_module_is_left_as_it_was(bundle: Path, images: Path) -> None:
    model = persistlib.load(bundle)
    assert isinstance(model, torch.nn.Module)
    model.train()
    flags = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    interface = persistlib.inspect(bundle).manifest.interface
    persistlib.evaluate(model, images, interface=interface, calls=1, threads=threads + 1)
    assert [module.training for module in model.modules()] == flags
    assert all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())
    assert torch.get_num_threads() == threads
    assert torch.get_rng_state().equal(random)


def linear(rows: int | str, width: int, weights: NDArray[np.float32]) -> onnx.ModelProto:
    """A graph of another's making: scores = inputs @ weights."""
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [rows, width])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [rows, weights.shape[1]])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def foreign(path: Path, rows: int | str = "n", classes: int = 4) -> Path:
    weights = np.random.default_rng(1).normal(size=(6, classes)).astype(np.float32)
    path.write_bytes(linear(rows, 6, weights).SerializeToString())
    return path


def numbered(path: Path, classes: int = 4, count: int = 11) -> Path:
    draw = np.random.default_rng(2)
    inputs = draw.normal(size=(count, 6)).astype(np.float32)
    return stored(path, inputs=inputs, labels=draw.permutation(count) % classes)


def test_a_graph_without_labels_is_judged_by_the_classes_numbers(tmp_path: Path) -> None:
    found = persistlib.evaluate(foreign(tmp_path / "m.onnx"), numbered(tmp_path / "d.npz"), **QUICK)
    assert found.labels == ("0", "1", "2", "3")
    named = persistlib.evaluate(
        tmp_path / "m.onnx", tmp_path / "d.npz", interface={"labels": list("abcd")}, **QUICK
    )
    assert named.labels == tuple("abcd")
    assert np.array_equal(named.metrics.confusion, found.metrics.confusion)


@pytest.mark.parametrize("rows", [1, 4, 11, 64])
def test_a_graph_of_fixed_batches_answers_as_a_free_one(tmp_path: Path, rows: int) -> None:
    data = numbered(tmp_path / "d.npz")
    free = persistlib.evaluate(foreign(tmp_path / "free.onnx"), data, calls=1, threads=1)
    fixed = persistlib.evaluate(foreign(tmp_path / "fixed.onnx", rows), data, calls=1, threads=1)
    assert np.array_equal(fixed.results[0].answers, free.results[0].answers)
    assert fixed.results[0].facts["batch"] == rows


def test_scores_in_another_precision_are_judged_alike(bundle: Path, images: Path) -> None:
    model = persistlib.load(bundle)
    assert isinstance(model, torch.nn.Module)
    interface = persistlib.inspect(bundle).manifest.interface
    whole = persistlib.evaluate(model, images, interface=interface, **QUICK)
    for dtype in (torch.float64, torch.bfloat16):
        other = persistlib.evaluate(model.to(dtype), images, interface=interface, **QUICK)
        assert abs(other.accuracy - whole.accuracy) < 0.1


# -- what is refused ---------------------------------------------------------------------------


def test_every_fault_of_a_folder_is_reported_before_a_weight_is_read(
    copy: Path, images: Path
) -> None:
    (images / "7").rename(images / "seven")
    (images / "eleven").mkdir()
    for file in (images / "3").iterdir():
        file.unlink()
    next((images / "5").iterdir()).write_bytes(b"\x89PNG\r\n\x1a\n????")
    bad = next((images / "5").iterdir()).name
    (copy / "model.safetensors").unlink()
    (copy / "model.onnx").unlink()
    with pytest.raises(PersistlibError) as caught:
        persistlib.evaluate(copy, images, **QUICK)
    assert findings(caught) == {
        ("PL808", "seven"),
        ("PL808", "eleven"),
        ("PL802", "eleven"),
        ("PL802", "3"),
        ("PL802", bad),
    }


def test_the_nearest_class_is_named(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "pets" / "cats").mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "pets" / "cats" / "a.png")
    with pytest.raises(PersistlibError, match="did you mean 'cat'"):
        persistlib.evaluate(bundle, tmp_path / "pets", interface={"labels": PETS}, **QUICK)


def test_classes_without_samples_are_told_and_left_out_of_averages(
    bundle: Path, images: Path
) -> None:
    for name in ("4", "8"):
        for file in (images / name).iterdir():
            file.unlink()
        (images / name).rmdir()
    with pytest.warns(PersistlibWarning, match=r"no sample of 2 of the model's 10 classes: 4, 8"):
        found = persistlib.evaluate(bundle, images, runtime="onnxruntime", **QUICK)
    assert found.metrics.classes[4].recall is None
    answered = set(map(int, found.results[0].answers)) & {4, 8}
    assert found.metrics.averaged == 8 + len(answered)


PIXELS = np.zeros((4, 5, 5), np.uint8)
BAD_ARRAYS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "labels beyond the classes": ({"images": PIXELS, "labels": [0, 3, -1, 3]}, {"PL808"}),
    "names of no class": ({"images": PIXELS, "labels": ["cat", "dog", "fox", "cat"]}, {"PL808"}),
    "names outside the file's": (
        {"images": PIXELS, "labels": ["cat", "dog", "owl", "cat"], "classes": ["cat", "dog"]},
        {"PL808"},
    ),
    "classes of no model": (
        {"images": PIXELS, "labels": [0, 1, 0, 1], "classes": ["cat", "fox"]},
        {"PL808"},
    ),
    "a class named twice": (
        {"images": PIXELS, "labels": [0, 1, 0, 1], "classes": ["cat", "cat"]},
        {"PL802"},
    ),
    "too few labels": ({"images": PIXELS, "labels": [0, 1]}, {"PL802"}),
    "one-hot labels": ({"images": PIXELS, "labels": np.eye(4, dtype=np.int64)}, {"PL802"}),
    "fractions as labels": ({"images": PIXELS, "labels": np.zeros(4)}, {"PL802"}),
    "no samples": ({"images": PIXELS[:0], "labels": np.zeros(0, np.int64)}, {"PL802"}),
    "no labels": ({"images": PIXELS}, {"PL802"}),
    "both kinds": ({"images": PIXELS, "inputs": PIXELS, "labels": [0] * 4}, {"PL802"}),
    "images of no image's shape": (
        {"images": np.zeros((4, 5, 5, 2), np.uint8), "labels": [0] * 4},
        {"PL802"},
    ),
    "not finite": ({"inputs": np.full((4, 3), np.nan), "labels": [0] * 4}, {"PL802"}),
    "images that were scaled": ({"images": PIXELS / 255, "labels": [0] * 4}, {"PL802"}),
    "images beyond bytes": ({"images": PIXELS.astype(np.int16) - 1, "labels": [0] * 4}, {"PL802"}),
    "texts as inputs": ({"inputs": ["a"] * 4, "labels": [0] * 4}, {"PL802"}),
    "several at once": (
        {"images": np.full((4, 5), np.inf), "labels": [0, 9, 0]},
        {"PL802", "PL808"},
    ),
}


@pytest.mark.parametrize(("arrays", "codes"), BAD_ARRAYS.values(), ids=list(BAD_ARRAYS))
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, arrays: dict[str, Any], codes: set[str]
) -> None:
    interface = Interface(labels=PETS, preprocessing=RECORD)
    with pytest.raises(PersistlibError) as caught:
        open_samples(stored(tmp_path / "d.npz", **arrays), interface)
    assert {found.code for found in caught.value.findings} == codes


def member(data: bytes) -> bytes:
    """An archive whose images are these bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.npy", npy(np.zeros(4, np.int64)))
        archive.writestr("images.npy", data)
    return buffer.getvalue()


def npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def twice() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("images.npy", npy(PIXELS))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("images.npy", npy(PIXELS))
    return buffer.getvalue()


def changed() -> bytes:
    data = bytearray(member(npy(np.random.default_rng(0).integers(0, 256, (4, 9, 9), np.uint8))))
    data[len(data) // 2] ^= 255
    return bytes(data)


def with_shape(shape: str) -> bytes:
    old = b"(4, 5, 5), }" + b" " * 12
    return npy(PIXELS).replace(old, f"{shape}, }}".encode().ljust(len(old)))


HOSTILE: dict[str, Callable[[], bytes]] = {
    "a pickle": lambda: member(npy(np.array([{"code": 1}] * 4, object))),
    "a shape of terabytes": lambda: member(with_shape("(9999999999999,)")),
    "a larger shape": lambda: member(with_shape("(9, 9, 9)")),
    "a negative shape": lambda: member(with_shape("(-4,5,-5)")),
    "a header that is code": lambda: member(with_shape("exit(1)")),
    "nothing": lambda: member(b""),
    "another version": lambda: member(npy(PIXELS)[:6] + b"\x09" + npy(PIXELS)[7:]),
    "cut short": lambda: member(npy(PIXELS))[:-40],
    "a byte changed": changed,
    "a name twice": twice,
    "deep nesting": lambda: member(with_shape("(((((((((")),
    "magic alone": lambda: b"PK\x03\x04",
}


@pytest.mark.parametrize("made", HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_archives_are_refused(tmp_path: Path, made: Callable[[], bytes]) -> None:
    path = tmp_path / "d.npz"
    path.write_bytes(made())
    with pytest.raises(PersistlibError) as caught:
        open_samples(path, Interface(labels=PETS, preprocessing=RECORD))
    assert caught.value.code == "PL802"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a pickle", "elements of object"),
        ("a shape of terabytes", "its header and its size disagree"),
        ("a larger shape", "its header and its size disagree"),
    ],
)
def test_no_memory_is_taken_for_what_a_header_alone_says(
    tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "d.npz").write_bytes(HOSTILE[name]())
    with pytest.raises(PersistlibError, match=reason):
        open_samples(tmp_path / "d.npz", Interface(labels=PETS, preprocessing=RECORD))


def test_arrays_larger_than_the_limit_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("persistlib.training.arrays._MOST", 100)
    with pytest.raises(PersistlibError, match="all arrays may have 100"):
        open_data(stored(tmp_path / "d.npz", images=np.zeros((9, 5, 5)), labels=[0] * 9))


@pytest.mark.parametrize("data", [3, None, ([1],), {"images": 1}, "no/such/place"])
def test_what_is_no_data_is_refused(bundle: Path, data: Any) -> None:
    with pytest.raises(PersistlibError) as caught:
        persistlib.evaluate(bundle, data, **QUICK)
    assert caught.value.code in {"PL801", "PL802"}


def test_images_need_a_preparation_and_folders_need_names(tmp_path: Path, images: Path) -> None:
    model = foreign(tmp_path / "m.onnx", classes=10)
    with pytest.raises(PersistlibError) as caught:
        persistlib.evaluate(model, images, **QUICK)
    assert caught.value.code == "PL708"
    with pytest.raises(PersistlibError) as caught:
        persistlib.evaluate(model, images, interface={"preprocessing": RECORD}, **QUICK)
    assert (caught.value.code, caught.value.location) == ("PL808", "images")


def test_a_name_of_two_classes_is_no_label_but_a_number_is(tmp_path: Path) -> None:
    interface = {"labels": ["crane", "cat", "crane", "dog"]}
    model, data = foreign(tmp_path / "m.onnx"), numbered(tmp_path / "d.npz")
    found = persistlib.evaluate(model, data, interface=interface, **QUICK)
    assert [row.name for row in found.metrics.classes] == interface["labels"]
    inputs = np.zeros((2, 6), np.float32)
    with pytest.raises(PersistlibError, match="2 classes of this name") as caught:
        persistlib.evaluate(model, (inputs, ["crane", "dog"]), interface=interface, **QUICK)
    assert caught.value.code == "PL808"


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (torch.nn.Linear(6, 1), "PL810"),
        (torch.nn.Unflatten(1, (2, 3)), "PL810"),
        (torch.nn.Linear(6, 5), "PL810"),
        (torch.nn.Linear(7, 4), "PL706"),
        (torch.nn.LSTM(6, 4, proj_size=3), "PL810"),
        (object(), "PL901"),
    ],
    ids=["one score", "planes", "other classes", "other inputs", "three for four", "no model"],
)
def test_what_gives_no_scores_of_the_classes_is_refused(model: Any, code: str) -> None:
    data = (np.ones((4, 6), np.float32), [0, 1, 2, 3])
    with pytest.raises(PersistlibError) as caught:
        persistlib.evaluate(model, data, interface={"labels": list("abcd")}, **QUICK)
    assert caught.value.code == code


def test_scores_that_are_not_finite_are_refused() -> None:
    model = torch.nn.Linear(6, 4)
    torch.nn.init.constant_(model.bias, float("nan"))
    with pytest.raises(PersistlibError, match="not finite") as caught:
        persistlib.evaluate(model, (np.ones((3, 6), np.float32), [0, 1, 2]), **QUICK)
    assert caught.value.code == "PL706"


def test_a_label_beyond_the_scores_is_refused() -> None:
    data = (np.ones((3, 6), np.float32), [0, 1, 4])
    with pytest.raises(PersistlibError, match="label 4; the model has 4 classes") as caught:
        persistlib.evaluate(torch.nn.Linear(6, 4), data, **QUICK)
    assert caught.value.code == "PL808"


@pytest.mark.parametrize(
    "how",
    [
        {"batch_size": 0},
        {"calls": -1},
        {"threads": 0},
        {"threads": True},
        {"runtime": "tensorflow"},
        {"runtime": ""},
        {"runtime": ("torch", "torch")},
    ],
)
def test_arguments_that_mean_nothing_are_refused(bundle: Path, how: dict[str, Any]) -> None:
    with pytest.raises(PersistlibError) as caught:
        persistlib.evaluate(bundle, "sklearn:digits", **how)
    assert caught.value.code == "PL901"


def test_what_is_open_already_runs_where_it_is_and_keeps_nothing(bundle: Path) -> None:
    model = persistlib.load(bundle)
    data = (np.ones((1, 1, 8, 8), np.float32), [0])
    refused: tuple[dict[str, Any], ...] = ({"runtime": "onnxruntime"}, {"save": True})
    for how in refused:
        with pytest.raises(PersistlibError) as caught:
            persistlib.evaluate(model, data, **QUICK, **how)
        assert caught.value.code == "PL901"


# -- without torch, without scikit-learn ---------------------------------------------------------


WITHOUT_TORCH = """
import json, sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name.split(".")[0] in {"torch", "torchvision"}
        return None if absent else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
import persistlib
from persistlib.errors import MissingExtra

bundle, data = sys.argv[1:]
found = persistlib.evaluate(bundle, data, calls=1, threads=1)
print(json.dumps(found.record()))
try:
    persistlib.evaluate(bundle, data, runtime="torch")
except MissingExtra as fault:
    print(fault.remedy)
"""


def test_the_graph_is_judged_where_torch_cannot_be_found(bundle: Path, images: Path) -> None:
    child = [sys.executable, "-c", WITHOUT_TORCH, str(bundle), str(images)]
    done = subprocess.run(child, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    record, remedy = done.stdout.splitlines()
    here = persistlib.evaluate(bundle, images, runtime="onnxruntime", **QUICK)
    assert json.loads(record) == json.loads(json.dumps(here.record()))
    assert remedy == "pip install 'persistlib[torch]'"


def test_without_scikit_learn_the_extra_is_named_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(PersistlibError) as caught:
        persistlib.evaluate("no/such/bundle", "no/such/data")
    assert (caught.value.code, caught.value.remedy) == (
        "PL902",
        "pip install 'persistlib[evaluate]'",
    )


# -- comparing and timing ------------------------------------------------------------------------


class Fake:
    """A runtime that gives known scores, and notes when it was called."""

    def __init__(self, name: str, scores: NDArray[Any], calls: list[str]) -> None:
        self.name = name
        self.scores = scores
        self.calls = calls

    def run(self, inputs: Any) -> dict[str, NDArray[Any]]:
        self.calls.append(self.name)
        return {"scores": self.scores[inputs[:, 0].astype(int)]}

    def runner(self) -> Runner:
        return Runner(self.name, self.run, {})


def compared(first: NDArray[Any], second: NDArray[Any]) -> Evaluation:
    count = len(first)
    samples = open_samples((np.arange(count)[:, None], [0] * count), Interface())
    fakes = [Fake("a", first, []).runner(), Fake("b", second, []).runner()]
    return judge(fakes, samples, batch_size=2, calls=0, threads=1)


def test_agreement_is_counted_and_measured_against_the_spread_of_the_first() -> None:
    first = np.array([[1.0, 0.0], [0.0, 3.0], [-1.0, 0.5], [2.0, 1.0], [0.0, 1.0]])
    second = first + np.array([[0.0, 0.1], [0.0, 0.0], [0.0, 0.0], [-1.2, 0.0], [0.0, 0.0]])
    (agreement,) = compared(first, second).agreements
    assert (agreement.same, agreement.images) == (4, 5)
    assert agreement.difference == pytest.approx(1.2 / 4)
    (alike,) = compared(first, first).agreements
    assert (alike.same, alike.difference) == (5, 0)


def test_runtimes_with_other_numbers_of_classes_are_not_compared() -> None:
    with pytest.raises(
        PersistlibError, match=r"b: outputs: shape \(2, 3\), and \(2, 2\) in the first"
    ):
        compared(np.eye(4, 2), np.eye(4, 3))


def test_runtimes_take_turns_and_each_begins_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_REST", 0)
    calls: list[str] = []
    scores = np.eye(3, 2)
    runners = [Fake(name, scores, calls).runner() for name in "ab"]
    found = timing.measure(runners, np.arange(3)[:, None], 12)
    assert [(t.batch, t.calls) for t in found] == [(3, 12), (3, 12)]
    # A call that is not counted stands before each block; the last block is the rest.
    a, b = "a" * (1 + timing.BLOCK), "b" * (1 + timing.BLOCK)
    assert "".join(calls) == a + b + b + a + "aaa" + "bbb"
    assert all(0 < t.median <= t.p95 for t in found)
    assert found[0].throughput == pytest.approx(3000 / found[0].median)


def test_no_round_begins_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_REST", 0)
    monkeypatch.setattr(timing, "_MOST", 0)
    calls: list[str] = []
    found = timing.measure([Fake("a", np.eye(2), calls).runner()], np.zeros((1, 1)), 1000)
    assert found[0].calls == timing.BLOCK == len(calls) - 1


# -- keeping results ---------------------------------------------------------------------------


def test_a_result_is_kept_without_changing_what_the_model_is(copy: Path, images: Path) -> None:
    before = persistlib.inspect(copy).manifest
    files = {file.name: file.read_bytes() for file in copy.iterdir()}
    found = persistlib.evaluate(copy, images, save=True, **QUICK)
    after = persistlib.inspect(copy).manifest
    assert after.evaluations == (json.loads(json.dumps(found.record())),)
    assert after.bundle_id == before.bundle_id
    same = {"digest": before.digest, "evaluations": ()}
    assert after.model_copy(update=same) == before
    for file in copy.iterdir():
        assert file.name == "manifest.json" or file.read_bytes() == files[file.name]
    assert sorted(os.listdir(copy)) == sorted(files)
    assert persistlib.verify(copy, behaviour=True).ok
    assert isinstance(persistlib.load(copy), torch.nn.Module)


def test_one_result_is_kept_once_and_another_after_it(copy: Path, images: Path) -> None:
    how: dict[str, Any] = {"runtime": "onnxruntime", **QUICK}
    for _ in range(2):
        persistlib.evaluate(copy, images, save=True, **how)
    persistlib.evaluate(copy, "sklearn:digits", held_out=True, save=True, **how)
    kept = persistlib.inspect(copy).manifest.evaluations
    names: list[Any] = [record["data"] for record in kept]
    assert [data["name"] for data in names] == ["images", "sklearn:digits"]
    assert "images_per_second" not in json.dumps(kept)


def test_no_result_is_kept_of_another_model(copy: Path) -> None:
    before = (copy / "manifest.json").read_bytes()
    with pytest.raises(PersistlibError, match="was judged"):
        recording.keep(copy, "blake3:" + "0" * 64, {"accuracy": 1.0})
    assert (copy / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("call", ["rename", "fsync", "open"])
def test_a_fault_while_keeping_leaves_the_bundle_and_nothing_else(
    copy: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    bundle_id = persistlib.inspect(copy).manifest.bundle_id
    real = getattr(os, call)

    def fail(*arguments: Any, **named: Any) -> Any:
        if call == "open" and not (len(arguments) > 1 and arguments[1] & os.O_CREAT):
            return real(*arguments, **named)
        if call == "open" and str(arguments[0]).endswith("lock"):
            return real(*arguments, **named)
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(PersistlibError) as caught:
        recording.keep(copy, bundle_id, {"accuracy": 1.0})
    monkeypatch.undo()
    assert caught.value.code == "PL406"
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before
    assert os.listdir(copy.parent) == ["copy"]


def test_what_a_killed_writer_left_is_swept(copy: Path) -> None:
    left = copy.parent / f".copy.new-{1:016x}"
    left.write_bytes(b"half a manif")
    bundle_id = persistlib.inspect(copy).manifest.bundle_id
    recording.keep(copy, bundle_id, {"accuracy": 1.0})
    assert os.listdir(copy.parent) == ["copy"]


def test_results_wait_for_no_other_writer(copy: Path) -> None:
    from persistlib.lock import locked

    bundle_id = persistlib.inspect(copy).manifest.bundle_id
    place = Place(copy)
    place.open()
    with locked(place.fd, place.lock, place.path), pytest.raises(LockedError):
        recording.keep(copy, bundle_id, {"accuracy": 1.0})
    place.close()


def test_results_are_kept_through_a_link_and_from_within(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle_id = persistlib.inspect(copy).manifest.bundle_id
    (copy.parent / "link").symlink_to(copy)
    recording.keep(copy.parent / "link", bundle_id, {"accuracy": 1.0})
    monkeypatch.chdir(copy)
    recording.keep(".", bundle_id, {"accuracy": 0.5})
    assert len(persistlib.inspect(copy).manifest.evaluations) == 2
    assert (copy.parent / "link").is_symlink()


# -- the command line --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told(bundle: Path) -> dict[str, Any]:
    words = ("evaluate", bundle, "--data", "sklearn:digits", "--held-out", "--calls", 2)
    result = invoke(*words, "--threads", 1, "--json")
    assert result.exit_code == 0, result.output
    data: dict[str, Any] = json.loads(result.stdout)["data"]
    return data


def test_programs_are_told_everything(told: dict[str, Any], bundle: Path) -> None:
    assert told["path"] == str(bundle)
    assert told["data"]["images"] == 359
    assert [result["runtime"] for result in told["results"]] == ["torch", "onnxruntime"]
    for result in told["results"]:
        assert sum(map(sum, result["confusion"])) == 359
        assert [timed["batch"] for timed in result["timings"]] == [1, 32]
        low, high = result["interval"]
        assert low < result["accuracy"] < high
    assert told["agreements"][0]["same"] == 359
    assert (told["threads"], told["saved"]) == (1, False)


def test_people_see_the_runtimes_side_by_side(bundle: Path, told: dict[str, Any]) -> None:
    words = ("evaluate", bundle, "--data", "sklearn:digits", "--held-out", "--threads", 1)
    result = invoke(*words, "--calls", 2, "--save")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    right = round(told["results"][0]["accuracy"] * 359)
    assert lines[0].startswith("✓ ")
    assert f"right: {right} of 359 images" in lines[0]
    assert lines[1].split() == ["torch", "onnxruntime"]
    assert all(len(line) <= 100 for line in lines)
    assert "359 of 359 answers alike" in result.stdout
    shown = invoke("inspect", bundle).stdout
    assert "evaluated     sklearn:digits · held out · 359 images · torch accuracy 0." in shown


def test_what_is_proposed_asks_the_same_of_the_same_samples(bundle: Path) -> None:
    words = ("evaluate", bundle, "--data", "sklearn:digits", "--held-out", "--calls", 0)
    shown = invoke(*words, "--runtime", "onnxruntime", "--threads", 1).stderr
    proposed = f"evaluate {bundle} --data sklearn:digits --held-out --runtime onnxruntime --json"
    assert f"next: persistlib {proposed}" in shown


def test_many_classes_are_folded_unless_all_are_asked_for(tmp_path: Path) -> None:
    model = foreign(tmp_path / "m.onnx", classes=30)
    data = numbered(tmp_path / "d.npz", classes=30, count=200)
    words = ("evaluate", model, "--data", data, "--calls", 0, "--threads", 1)
    folded, whole = invoke(*words).stdout, invoke(*words, "--all").stdout
    assert "the 12 worst of 30 classes" in folded
    assert "most frequent mistakes" in folded
    assert len(folded.splitlines()) < 50 < len(whole.splitlines())


def test_a_pipe_gets_a_line_a_runtime(bundle: Path, images: Path) -> None:
    result = invoke("evaluate", bundle, "--data", images, "--calls", 0, "--threads", 1, "-q")
    names = [line.split()[0] for line in result.stdout.splitlines()]
    assert names == ["torch", "onnxruntime"]


def test_faults_exit_with_their_code(bundle: Path, tmp_path: Path) -> None:
    missing = invoke("evaluate", bundle, "--data", tmp_path / "nowhere", "--json")
    assert (missing.exit_code, json.loads(missing.stdout)["findings"][0]["code"]) == (1, "PL801")
    assert invoke("evaluate", bundle).exit_code == 2
    unknown = invoke("evaluate", bundle, "--data", "sklearn:digits", "--runtime", "tf")
    assert unknown.exit_code == 2


def test_results_are_shown_in_a_line_of_figures(bundle: Path, images: Path) -> None:
    found = persistlib.evaluate(bundle, "sklearn:digits", held_out=True, **QUICK)
    crossed = persistlib.cross_validate(bundle, images, folds=2)
    for thing in (found, found.results[0], found.results[0].heads[0], found.samples, crossed):
        text = repr(thing)
        assert text.startswith(f"{type(thing).__name__}(")
        assert len(text) < 400
        assert "\n" not in text
    assert f"accuracy={found.accuracy:.4g}" in repr(found)
    assert "held out" in repr(found.samples)
    assert f"accuracy={crossed['accuracy'].mean:.4g}" in repr(crossed)
