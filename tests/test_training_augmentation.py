"""Augmentation: named steps, drawn from seed, epoch and sample, recorded, on training alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

import persistlib
from leaving import LeftError, leave_after
from persistlib.errors import PersistlibError, PersistlibWarning
from persistlib.preprocessing import apply, parse
from persistlib.training import plots
from persistlib.training.array_images import image_data
from persistlib.training.augmentation import KINDS, Variation, in_words, steps_of
from persistlib.training.data import PreparedImages
from persistlib.training.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from persistlib.training.labelled import ImageData

pytest.importorskip("torchvision")
WORDS = [*KINDS, "crop:2", "flip:0.9", "rotate:30", "jitter:0.4", "blur:5", "zoom:0.5", "rand:5"]


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than the trainings here."""
    for name in ("curves", "confusion"):
        monkeypatch.setattr(plots, name, lambda *_: None)
    monkeypatch.setattr("persistlib.training.watching.Watch._events", lambda *_: None)


def stripes(count: int = 24, channels: int = 3) -> ImageData:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 90, (count, 14, 16, channels), np.uint8)
    for index, image in enumerate(pixels):
        image[: 4 + 4 * (index % 3), ::2] += 120
    return image_data("stripes", pixels, [i % 3 for i in range(count)], ["a", "b", "c"])


@pytest.mark.parametrize("word", WORDS)
def test_steps_of_steps_are_the_steps_again(word: str) -> None:
    steps = steps_of(word)
    assert steps_of(steps) == steps
    assert steps[0]["name"] == KINDS[word.split(":", maxsplit=1)[0]].name


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("word", WORDS)
def test_every_step_changes_images_and_keeps_their_shape(word: str, channels: int) -> None:
    vary = Variation(steps_of(word))
    rng = np.random.default_rng(1)
    image = torch.from_numpy(rng.integers(0, 200, (channels, 32, 37), np.uint8))
    torch.manual_seed(0)
    drawn = [vary(image) for _ in range(20)]
    torch.manual_seed(0)
    again = [vary(image) for _ in range(20)]
    assert all(left.equal(right) for left, right in zip(drawn, again, strict=True))
    assert {(item.shape, item.dtype) for item in drawn} == {(image.shape, torch.uint8)}
    is_grey = channels == 1 and word.startswith("grey")
    assert any(not item.equal(image) for item in drawn) is not is_grey


FAULTS: dict[str, tuple[Any, int]] = {
    "unknown words": ("flip,spin,crop:4,twirl:2", 2),
    "no number": ("crop:many", 1),
    "no number there": ("auto:3", 1),
    "not finite": ("rotate:nan", 1),
    "outside its range": ("flip:1.5", 1),
    "too large": ("crop:100000", 1),
    "a half of a pixel": ("crop:1.5", 1),
    "an even kernel": ("blur:4", 1),
    "empty": ("flip,,crop", 1),
    "another transform": ([{"name": "Lambda", "lambd": "print"}], 1),
    "a path": ([{"name": "os.system"}], 1),
    "no name": ([{"p": 0.5}], 1),
    "no mapping": ([3], 1),
    "a name that is none": ([{"name": 3}], 1),
    "another argument": ([{"name": "RandomHorizontalFlip", "q": 0.5}], 1),
    "no plain value": ([{"name": "RandomErasing", "value": print}], 1),
    "an unknown policy": ([{"name": "AutoAugment", "policy": "none"}], 1),
    "a missing argument": ([{"name": "RandomRotation"}], 1),
    "several": ([{"name": "RandomHorizontalFlip", "p": "x"}, {"name": "Nope"}], 2),
}


@pytest.mark.parametrize(("given", "count"), FAULTS.values(), ids=FAULTS)
def test_what_is_no_step_is_refused_all_at_once(given: Any, count: int) -> None:
    with pytest.raises(PersistlibError) as caught:
        Settings(epochs=0, lr=0.1, augment=given)
    codes = [item.code for item in caught.value.findings]
    assert codes == ["PL901"] * (count + 1)  # no epochs is a fault too


def test_prepared_images_are_varied_before_they_are_scaled() -> None:
    data = stripes()
    record = parse({"resize": [10, 12], "mean": [0.2, 0.2, 0.2], "std": [0.3, 0.3, 0.3]})
    for is_varied in (True, False):
        images = PreparedImages(data, range(len(data)), record, is_varied=is_varied)
        plain = apply([data.images[4]], record)[0]
        assert np.array_equal(images[4][0].numpy(), plain)
        turned, label = images.varied(4, Variation(steps_of("flip:1")))
        assert np.array_equal(turned.numpy(), plain[:, :, ::-1])
        assert label == data.labels[4]
    keeps = [PreparedImages(data, range(9), record, is_varied=v).digest for v in (True, False)]
    assert keeps[0] == keeps[1]


def net() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(2),
            torch.nn.Dropout(0.1),
            torch.nn.Flatten(),
            torch.nn.Linear(16, 3),
        )


RECORD = parse({"resize": [12, 12]})
HOW: dict[str, Any] = {"epochs": 3, "lr": 0.02, "batch_size": 7, "augment": "flip,crop:2,jitter"}


def asked(**how: Any) -> dict[str, Any]:
    return HOW | how


def trained(run: Path | None = None, **how: Any) -> Any:
    data = stripes()
    train = PreparedImages(data, range(18), RECORD, is_varied=True)
    valid = PreparedImages(data, range(18, 24), RECORD)
    model = how.pop("model", None) or net()
    return persistlib.finetune(model, train, valid, run=run, **asked(**how))


def same(left: Any, right: Any) -> bool:
    pairs = zip(left.model.state_dict().values(), right.model.state_dict().values(), strict=True)
    return left.history == right.history and all(a.equal(b) for a, b in pairs)


def test_a_run_is_the_same_with_workers_and_another_without_augmentation() -> None:
    first = trained()
    assert same(first, trained(workers=2))
    assert not same(first, trained(augment=""))
    assert not same(first, trained(seed=1))
    steps = [{"name": "RandomHorizontalFlip", "p": 0.5}, {"name": "RandomCrop", "padding": 2}]
    assert first.training.strategy["augment"][:2] == steps
    assert same(first, trained(augment=first.training.strategy["augment"]))
    assert "augment" not in trained(augment="").training.strategy


def test_features_are_not_kept_of_what_changes() -> None:
    cached: list[Any] = []
    for augment in ("", "flip"):
        model: Any = net()
        model[3] = torch.nn.Identity()  # dropout draws, and has no features
        result = trained(model=model, augment=augment, freeze=["*", "!5.*"])
        cached.append(result.training.strategy["cached_before"])
    assert cached == ["5", None]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batches", [1, 4])
def test_a_run_that_ended_in_the_midst_goes_on_to_the_same_bits(
    tmp_path: Path, workers: int, batches: int
) -> None:
    how: dict[str, Any] = {"checkpoint_every": 1, "workers": workers}
    with pytest.raises(LeftError):
        trained(tmp_path / "run", progress=leave_after(batches), **how)
    result = trained(tmp_path / "run", resume=True, **how)
    assert result.resumed
    assert same(result, trained())


@pytest.mark.usefixtures("no_pictures")
def test_another_augmentation_goes_on_with_a_warning(tmp_path: Path) -> None:
    trained(tmp_path / "run", epochs=1, schedule="constant")
    with pytest.warns(PersistlibWarning, match=r"PL813 augment: was .*RandomCrop.* is now \[\]"):
        result = trained(tmp_path / "run", epochs=1, schedule="constant", resume=True, augment="")
    assert result.resumed


def test_arrays_are_varied_as_they_are_and_colours_need_pixels() -> None:
    data = stripes()
    inputs = apply(data.images, RECORD)
    labels = np.array(data.labels)
    both = [
        persistlib.finetune(net(), (given, labels), **asked(augment="flip,crop:2"))
        for given in (inputs, torch.from_numpy(inputs))
    ]
    assert same(*both)
    with pytest.raises(PersistlibError, match=r"ColorJitter on numbers of torch\.float32"):
        persistlib.finetune(net(), (inputs, labels), **HOW)
    for given in ((inputs[:, 0, 0], labels), [(inputs, torch.from_numpy(labels))]):
        with pytest.raises(PersistlibError) as caught:
            persistlib.finetune(net(), given, **asked(augment="flip"))
        assert (caught.value.code, caught.value.location) == ("PL901", "augment")


class Masked(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Images with a mask that is the image's own red."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 200, (4, 3, 9, 9), dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images[index], self.images[index, 0]


def test_a_mask_moves_with_its_image() -> None:
    from persistlib.training.augmentation import varied

    torch.manual_seed(3)
    vary = Variation(steps_of("flip,crop:3,zoom"))
    for sample in (Masked()[i] for i in range(4)):
        image, mask = varied(*sample, vary)
        assert not image.equal(sample[0])
        assert type(mask) is torch.Tensor
        assert mask.shape == (9, 9)
    exact = Variation(steps_of("flip,vflip,crop:3"))
    for sample in (Masked()[i % 4] for i in range(12)):
        image, mask = varied(*sample, exact)
        assert image[0].equal(mask)


def test_steps_in_words_say_every_number() -> None:
    words = "RandomHorizontalFlip (p 0.5), RandomCrop (padding 2)"
    assert in_words(steps_of("flip,crop:2")) == words
