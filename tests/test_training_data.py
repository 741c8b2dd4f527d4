"""Labelled images: folders and the digits; every fault is named, and every split is the same."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from persistlib.errors import PersistlibError
from persistlib.preprocessing import apply, parse
from persistlib.training.data import ImageData, PreparedImages, open_data

if TYPE_CHECKING:
    from pathlib import Path


def make_folder(root: Path, sizes: dict[str, int]) -> Path:
    rng = np.random.default_rng(0)
    for name, count in sizes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (9, 12, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02}.png")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "pets", {"dog": 5, "Cat": 3, "owl": 10})


@pytest.fixture(scope="module")
def digits() -> ImageData:
    pytest.importorskip("sklearn")
    return open_data("sklearn:digits")


def test_all_digits_are_there_as_eight_bit_images(digits: ImageData) -> None:
    from sklearn.datasets import load_digits

    given: Any = load_digits()
    assert len(digits) == 1797
    assert digits.classes == tuple("0123456789")
    assert digits.labels == tuple(given.target)
    whites = np.stack([np.asarray(image) for image in digits.images])
    assert whites.dtype == np.uint8
    # No grey is lost: the 17 levels come back.
    assert np.array_equal(np.rint(whites / 255 * 16), given.images)


def test_the_digits_have_the_digest_that_they_had() -> None:
    pytest.importorskip("sklearn")
    known = "blake3:6d30718e858be24a398726a45bb6aab176f4f3df415ad42c82a201a5940d61f4"
    assert open_data("sklearn:digits").digest == known


def test_a_picture_file_of_a_digit_becomes_what_training_saw(
    digits: ImageData, tmp_path: Path
) -> None:
    record = parse({"resize": 32})
    seen = PreparedImages(digits, [7], record)[0][0].numpy()
    image = digits.images[7]
    assert isinstance(image, np.ndarray)
    Image.fromarray(image).save(tmp_path / "seven.png")
    assert np.array_equal(apply([tmp_path / "seven.png"], record)[0], seen)


def test_a_folder_gives_its_classes_in_order_of_their_names(folder: Path) -> None:
    (folder / ".DS_Store").write_bytes(b"hidden")
    (folder / "dog" / ".thumbs").write_bytes(b"hidden")
    (folder / "README.md").write_text("in no class")
    data = open_data(folder)
    assert (data.name, data.classes) == ("pets", ("Cat", "dog", "owl"))
    assert data.labels == (0,) * 3 + (1,) * 5 + (2,) * 10
    assert data.images == open_data(str(folder)).images


def test_the_digest_tells_samples_labels_and_order_apart(folder: Path) -> None:
    before = open_data(folder).digest
    assert open_data(folder).digest == before
    (folder / "dog" / "00.png").rename(folder / "owl" / "zz.png")
    moved = open_data(folder).digest
    (folder / "owl" / "zz.png").rename(folder / "dog" / "00.png")
    assert open_data(folder).digest == before
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(folder / "dog" / "00.png")
    assert len({before, moved, open_data(folder).digest}) == 3


def test_a_split_is_stratified_complete_and_drawn_from_the_seed(digits: ImageData) -> None:
    split = digits.split(fraction=0.2, seed=3)
    assert sorted((*split.train, *split.valid)) == list(range(len(digits)))
    assert split == digits.split(fraction=0.2, seed=3)
    assert split != digits.split(fraction=0.2, seed=4)
    labels = np.array(digits.labels)
    for label in range(10):
        held = (labels[list(split.valid)] == label).sum()
        assert held == round(0.2 * (labels == label).sum())


def test_the_smallest_class_is_on_both_sides(tmp_path: Path) -> None:
    data = open_data(make_folder(tmp_path / "d", {"a": 2, "b": 30}))
    for fraction in (0.01, 0.5, 0.99):
        split = data.split(fraction=fraction)
        for side in (split.train, split.valid):
            assert {data.labels[index] for index in side} == {0, 1}


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_a_fraction_outside_its_range_is_refused(digits: ImageData, fraction: float) -> None:
    with pytest.raises(PersistlibError) as caught:
        digits.split(fraction=fraction)
    assert caught.value.code == "PL901"


def test_every_fault_of_a_folder_is_reported_together(folder: Path) -> None:
    make_folder(folder, {"alone": 1, "empty": 0})
    (folder / "dog" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n????")
    (folder / "dog" / "notes.txt").write_text("not an image")
    (folder / "owl" / "nested").mkdir()
    (folder / "owl" / "gone.png").symlink_to("nowhere")
    with pytest.raises(PersistlibError) as caught:
        open_data(folder)
    found = {fault.location.rpartition("pets/")[2] for fault in caught.value.findings}
    assert {fault.code for fault in caught.value.findings} == {"PL802"}
    expected = {"alone", "empty", "dog/broken.png", "owl/nested", "owl/gone.png"}
    assert found == expected


def test_what_holds_no_classes_is_refused(tmp_path: Path) -> None:
    for root in (tmp_path, make_folder(tmp_path / "one", {"only": 3})):
        with pytest.raises(PersistlibError, match="class folders") as caught:
            open_data(root)
        assert caught.value.code == "PL802"


@pytest.mark.parametrize("spec", ["no/such/folder", "sklearn:iris", "sklearn:", __file__, "a\0b"])
def test_data_that_is_not_there_is_named_as_such(spec: str) -> None:
    with pytest.raises(PersistlibError) as caught:
        open_data(spec)
    assert caught.value.code == "PL801"
    assert "sklearn:digits" in caught.value.remedy


def test_images_are_prepared_the_same_in_memory_and_one_by_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_data(folder)
    record = parse({"resize": [6, 7]})
    together = PreparedImages(data, range(4), record)
    monkeypatch.setattr("persistlib.training.data._MEMORY", 0)
    alone = PreparedImages(data, range(4), record)
    assert len(together) == len(alone) == 4
    for index in range(4):
        left, right = together[index], alone[index]
        assert left[0].equal(right[0])
        assert left[1] == right[1] == data.labels[index]


def test_prepared_images_have_a_digest_of_every_image_label_and_preparation(folder: Path) -> None:
    data, record = open_data(folder), parse({"resize": 8})
    every = range(len(data))
    first = PreparedImages(data, every, record).digest
    assert first == PreparedImages(open_data(folder), [*every], record).digest
    others = [
        PreparedImages(data, every[:-1], record),
        PreparedImages(data, [*every[1:], 0], record),
        PreparedImages(data, every, parse({"resize": 9})),
        PreparedImages(replace(data, labels=(1, *data.labels[1:])), every, record),
    ]
    (folder / "owl" / "03.png").write_bytes((folder / "owl" / "04.png").read_bytes())
    others.append(PreparedImages(open_data(folder), every, record))
    assert len({first, *(other.digest for other in others)}) == 6
