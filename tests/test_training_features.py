"""The frozen front is run once where that is the same, and only there."""

from __future__ import annotations

import copy
import os
import random
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from persistlib.architecture.behaviour import untouched
from persistlib.errors import Code, PersistlibError, PersistlibWarning, error
from persistlib.training.events import EpochDone, RunsOnce
from persistlib.training.features import features
from persistlib.training.fusion import fit_classifier
from persistlib.training.loop import Folder, finetune

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistlib.training.events import Event


def front() -> nn.Sequential:
    # The pooling changes nothing; it lets the classifier work in place.
    layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers)


# Not an attribute of theirs, which would be part of what they are.
RUNS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


class Net(nn.Module):
    """A frozen front and a classifier of its own, as torchvision's are built."""

    def __init__(self, *, noise: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.front: Any = front()
        self.noise = nn.Dropout(noise) if noise else nn.Identity()
        self.classifier = nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(64, 3))
        self.scale = scale
        RUNS[self] = 0
        self.front.register_forward_hook(self._count)

    @property
    def runs(self) -> int:
        return RUNS.get(self, 0)

    def _count(self, *_: Any) -> None:
        RUNS[self] = self.runs + 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.classifier(self.noise(self.front(images)))
        return scores * self.scale


def samples(count: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 1, 6, 6, generator=generator), torch.arange(count) % 3


def net(**arguments: Any) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(**arguments)


ARGS: dict[str, Any] = {"epochs": 5, "lr": 0.02, "batch_size": 16, "freeze": ["*", "!classifier"]}


def test_training_on_features_gives_the_weights_that_training_the_whole_gives() -> None:
    whole = finetune(net(), samples(), samples(16), cache=False, **ARGS)
    parts = finetune(net(), samples(), samples(16), **ARGS)
    assert whole.training.strategy["cached_before"] is None
    assert parts.training.strategy["cached_before"] == "classifier"
    for name, value in whole.model.state_dict().items():
        assert torch.allclose(value, parts.model.state_dict()[name], atol=1e-6), name
    for left, right in zip(whole.history, parts.history, strict=True):
        assert left == pytest.approx(right, abs=1e-5)
    model = parts.model
    assert isinstance(model, Net)
    assert model.runs < 15


def moving() -> Net:
    model = net()
    model.front[1] = nn.BatchNorm2d(4, affine=False)
    return model


class Centred(nn.Module):
    """What a sample gives depends on the others of its batch."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows - rows.mean(0)


def in_company(kind: str) -> Net:
    model = net()
    if kind == "norm":
        model.front[1] = nn.BatchNorm2d(4, track_running_stats=False)
    else:
        model.front.append(Centred())
    return model


class Tutorial(nn.Module):
    """As tutorials write it: layers one by one, functions between them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc1 = nn.Linear(64, 8)
        self.fc2 = nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = functional.relu(self.norm(self.conv(images)))
        rows = functional.dropout(maps.view(maps.size(0), -1), 0.3, self.training)
        rows = functional.dropout(functional.relu(self.fc1(rows)), 0.2, self.training)
        scores: torch.Tensor = functional.log_softmax(self.fc2(rows), dim=1)
        return scores


class Scored(Tutorial):
    """Answers in a mapping, in training with what it answers from."""

    def forward(self, images: torch.Tensor, scale: float = 2.0) -> Any:
        scores = super().forward(images) * scale
        return {"logits": scores, "aux": scores * 3} if self.training else {"logits": scores}


class Cautious(Tutorial):
    """Lets no gradient through a layer that has none frozen."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = functional.relu(self.norm(self.conv(images))).flatten(1)
        with torch.no_grad():
            rows = self.fc1(rows)
        scores: torch.Tensor = self.fc2(functional.relu(rows))
        return scores


class Skipping(Tutorial):
    """Leaves a layer out by chance, drawn with a generator of Python's or of its own."""

    def __init__(self, own: random.Random | None = None) -> None:
        super().__init__()
        self.skipped = nn.Linear(8, 8)
        self.own = own

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = functional.relu(self.norm(self.conv(images))).flatten(1)
        rows = functional.relu(self.fc1(rows))
        drawn = random.random() if self.own is None else self.own.random()
        if not self.training or drawn < 0.9:
            rows = self.skipped(rows)
        scores: torch.Tensor = self.fc2(rows)
        return scores


class Waning(Tutorial):
    """Counts its calls, and answers by their number."""

    calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(images) / self.calls


class Attending(nn.Module):
    """Attention computes in evaluation otherwise than in training, but for a switch."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.norm(self.encoder(images[:, 0])).mean(1))
        return scores


def row() -> nn.Sequential:
    return nn.Sequential(
        *front(), nn.Dropout(0.2), nn.Linear(64, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)
    )


HEADS = ["*", "!fc1.*", "!fc2.*"]


@pytest.mark.parametrize(
    ("make", "freeze", "path"),
    [
        (partial(net, noise=0.5), ["*", "!classifier"], "noise"),
        (partial(net, scale=2.0), ["*", "!classifier"], "classifier"),
        (moving, ["front.0.*"], "front.1"),  # statistics that no pattern holds
        (net, ["front.0.*"], "front.1"),
        (row, ["*", "!6.*", "!8.*"], "5"),
        (row, ["0.*"], "1"),
        (Tutorial, HEADS, "dropout"),
        (Tutorial, ["conv.*", "norm.*", "fc1.*"], "dropout"),
        (Tutorial, ["conv.*"], "norm"),
        (Attending, ["*", "!head.*"], "head"),
        (Attending, ["*", "!norm.*", "!head.*"], "norm"),
    ],
)
def test_the_rest_alone_is_trained_wherever_the_model_may_be_cut(
    make: Callable[[], nn.Module], freeze: list[str], path: str
) -> None:
    torch.manual_seed(0)
    model = make()
    twin = copy.deepcopy(model)
    how: dict[str, Any] = {**ARGS, "freeze": freeze}
    result = finetune(model, samples(), samples(16), **how)
    assert result.training.strategy["cached_before"] == path
    plain = finetune(twin, samples(), samples(16), cache=False, **how)
    for name, value in plain.model.state_dict().items():
        assert torch.allclose(value, model.state_dict()[name], atol=1e-6), name
    for left, right in zip(plain.history, result.history, strict=True):
        assert left == pytest.approx(right, abs=1e-5)


def test_a_loss_of_all_outputs_in_training_sees_them() -> None:
    def loss(outputs: Any, batch: Any) -> torch.Tensor:
        both = [outputs["logits"], *([outputs["aux"]] if "aux" in outputs else [])]
        return torch.stack([functional.cross_entropy(one, batch.targets) for one in both]).sum()

    torch.manual_seed(0)
    model = Scored()
    twin = copy.deepcopy(model)
    how: dict[str, Any] = {**ARGS, "freeze": HEADS, "loss": loss}
    result = finetune(model, samples(), **how)
    assert result.training.strategy["cached_before"] == "dropout"
    plain = finetune(twin, samples(), cache=False, **how).model
    for name, value in plain.state_dict().items():
        assert torch.allclose(value, model.state_dict()[name], atol=1e-6), name


class Scaled(Tutorial):
    scale = 1.0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * self.scale


def test_an_attribute_that_changes_meanwhile_ends_the_training() -> None:
    model = Scaled()

    def change(event: Event) -> None:
        if isinstance(event, EpochDone) and event.epoch == 2:
            model.scale = 0.5

    how: dict[str, Any] = {**ARGS, "freeze": HEADS, "progress": change}
    with pytest.raises(PersistlibError, match="scale of the model changed") as caught:
        finetune(model, samples(), **how)
    assert "cache=False" in str(caught.value)


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        (in_company("norm"), {}),  # statistics of each batch, in evaluation too
        (in_company("mean"), {}),
        (Waning(), {"freeze": HEADS}),
        (Cautious(), {"freeze": HEADS}),
        (Skipping(), {"freeze": ["conv.*", "norm.*"]}),
        (Skipping(random.Random(1)), {"freeze": ["conv.*", "norm.*"]}),
        (net(), {"freeze": ["front.1.*"]}),
        (net(), {"freeze": ()}),
    ],
)
def test_the_whole_model_is_trained_where_its_front_is_not_the_same_each_time(
    model: Net, arguments: dict[str, Any]
) -> None:
    twin = copy.deepcopy(model)
    result = finetune(model, samples(), **ARGS | arguments)
    assert result.training.strategy["cached_before"] is None
    plain = finetune(twin, samples(), cache=False, **ARGS | arguments).model
    for name, value in result.model.state_dict().items():
        assert value.equal(plain.state_dict()[name]), name


def test_samples_that_may_change_are_not_remembered() -> None:
    result = finetune(net(), TensorDataset(*samples()), **ARGS)
    assert result.training.strategy["cached_before"] is None
    result = finetune(net(), samples(), TensorDataset(*samples()), **ARGS)
    assert result.training.strategy["cached_before"] is None


def test_features_beyond_the_memory_are_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persistlib.training.features.MEMORY", 64 * 4 * 48 - 1)
    assert finetune(net(), samples(), **ARGS).training.strategy["cached_before"] is None
    monkeypatch.setattr("persistlib.training.features.MEMORY", 64 * 4 * 48)
    assert finetune(net(), samples(), **ARGS).training.strategy["cached_before"] == "classifier"


def test_features_beyond_the_memory_lie_in_the_run_folder_until_the_run_is_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = finetune(net(), samples(), samples(16), **ARGS).model
    monkeypatch.setattr("persistlib.training.features.MEMORY", 1)
    events: list[Event] = []
    result = finetune(
        net(), samples(), samples(16), folder=Folder(path=tmp_path), progress=events.append, **ARGS
    )
    (told,) = [event for event in events if isinstance(event, RunsOnce)]
    assert told._replace(stored=()) == RunsOnce("classifier", 64, 64 * 64 * 4, (), reused=False)
    assert [os.path.dirname(path) for path in told.stored] == [str(tmp_path / "features")] * 2
    assert not (tmp_path / "features").exists()
    for name, value in plain.state_dict().items():
        assert value.equal(result.model.state_dict()[name]), name


def test_a_disk_that_is_full_costs_no_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("persistlib.training.features.MEMORY", 1)

    def full(*_: Any) -> None:
        raise error(Code.TARGET_SPACE, "there", "no space left")

    monkeypatch.setattr("persistlib.training.feature_files.write", full)
    with pytest.warns(PersistlibWarning, match="features were not kept"):
        result = finetune(net(), samples(), folder=Folder(path=tmp_path), **ARGS)
    assert result.training.strategy["cached_before"] is None


def stored(cache: Path) -> dict[str, bytes]:
    return {str(p.relative_to(cache)): p.read_bytes() for p in cache.rglob("*") if p.is_file()}


def test_features_are_found_again_bit_for_bit_for_the_same_front_and_samples(
    tmp_path: Path,
) -> None:
    model = net()
    fresh = features(model, samples())
    assert fresh.stored is None
    first = features(model, samples(), cache=tmp_path)
    before = stored(tmp_path)
    assert (first.path, first.reused) == ("classifier.2", False)
    runs = model.runs
    again = features(model, samples(), cache=tmp_path)
    assert again.reused
    assert model.runs - runs == 2  # the first batch: to find the layer, and to try it
    assert stored(tmp_path) == before
    for found in (first, again):
        assert found.values.equal(fresh.values)
        assert found.targets.equal(fresh.targets)
    # Another last layer stands on the same front.
    with torch.no_grad():
        model.classifier[2] = nn.Linear(64, 5)
    assert features(model, samples(), cache=tmp_path, at="classifier.2").reused


@pytest.mark.parametrize("change", ["weights", "statistics", "config", "samples", "batch", "part"])
def test_features_of_another_front_or_of_other_samples_are_others(
    change: str, tmp_path: Path
) -> None:
    model, data = net(), samples()
    how: dict[str, Any] = {"batch_size": 32}
    first = features(model, data, cache=tmp_path, **how)
    with torch.no_grad():
        if change == "weights":
            model.front[0].weight.view(-1)[0].add_(1e-7)
        elif change == "statistics":
            model.front[1].running_mean[0] = 1e-3
        elif change == "config":
            model.front[1].eps = 1e-4
        elif change == "samples":
            data[1][0] = 2
        elif change == "batch":
            how = {"batch_size": 31}
    at = "classifier" if change == "part" else None
    found = features(model, data, cache=tmp_path, at=at, **how)
    assert not found.reused
    assert found.stored != first.stored
    assert found.values.equal(features(model, data, at=at, **how).values)


def test_code_that_changed_is_noticed_though_no_key_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = features(net(), samples(), cache=tmp_path)
    monkeypatch.setattr(nn.ReLU, "forward", lambda _, inputs: inputs.relu() * 1.5)
    found = features(net(), samples(), cache=tmp_path)
    assert found.stored == first.stored
    assert not found.reused
    assert found.values.equal(features(net(), samples()).values)


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_features_that_are_damaged_are_computed_again(name: str, how: str, tmp_path: Path) -> None:
    good = features(net(), samples(), cache=tmp_path)
    assert good.stored is not None
    whole = good.values.clone()
    file = Path(good.stored) / name
    data = bytearray(file.read_bytes())
    file.unlink()  # not in place: what is mapped stays as it is
    data[-9] ^= 1
    if how != "gone":
        file.write_bytes(data if how == "flip" else data[:-9])
    with pytest.warns(PersistlibWarning, match="computed again"):
        found = features(net(), samples(), cache=tmp_path)
    assert not found.reused
    assert found.values.equal(whole)
    assert features(net(), samples(), cache=tmp_path).reused


def test_samples_that_nothing_tells_apart_are_never_taken_for_others(tmp_path: Path) -> None:
    for _ in range(2):
        assert not features(net(), TensorDataset(*samples()), cache=tmp_path).reused


def test_features_that_are_more_than_memory_may_hold_ask_for_a_folder() -> None:
    with pytest.raises(PersistlibError, match="cache=") as caught:
        features(net(), samples(), memory=64 * 4 * 48 - 1)
    assert caught.value.code == "PL904"
    assert len(features(net(), samples(), memory=64 * 4 * 48).values) == 48


def test_batches_of_ones_own_and_named_outputs_have_features_too() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.net(images)}

    model = Named().train()
    found = features(model, DataLoader(TensorDataset(*samples()), batch_size=7))
    assert found.path == "net.classifier.2"
    assert all(module.training for module in model.modules())
    assert torch.allclose(found.values, features(net(), samples()).values, atol=1e-6)


def test_a_model_that_no_part_ends_has_no_features() -> None:
    with pytest.raises(PersistlibError) as caught:
        features(net(scale=2.0), samples())
    assert caught.value.code == "PL806"
    with pytest.raises(PersistlibError) as caught:
        features(net(), samples(), at="nothing")
    assert caught.value.code == "PL806"


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(1, 200),
    st.sampled_from(["f32", "f64", "bf16"]),
)
def test_features_in_blocks_of_any_size_are_the_features(
    count: int, batch_size: int, block: int, kind: str
) -> None:
    dtype = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16}[kind]
    model = nn.Sequential(nn.Identity(), nn.Linear(3, 2, dtype=dtype))
    inputs = torch.randn(count, 3, generator=torch.Generator().manual_seed(count)).to(dtype)
    data = (inputs, torch.zeros(count, dtype=torch.int64))
    with tempfile.TemporaryDirectory() as cache, pytest.MonkeyPatch.context() as patch:
        patch.setattr("persistlib.training.feature_files._BLOCK", block)
        found = features(model, data, batch_size=batch_size, cache=cache)
        assert found.values.equal(inputs)
        assert features(model, data, batch_size=batch_size, cache=cache).reused


# -- inputs that are not finite ------------------------------------------------------------------


def rows_with(*bad: tuple[int, int, float]) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0))
    for row, column, value in bad:
        inputs[row, column] = value
    return inputs, torch.arange(3000) % 2


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


class Patient(nn.Module):
    """Takes what is not finite for a value that is missing."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = perceptron()

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.layers(inputs.nan_to_num(0.0, 0.0, 0.0))


WHO_LOOKS: dict[str, Callable[[nn.Module, Any], object]] = {
    "features": features,
    "fit_classifier": fit_classifier,
    "finetune": lambda model, samples: finetune(model, samples, epochs=1, lr=0.1),
    "held out": lambda model, samples: finetune(model, rows_with(), samples, epochs=1, lr=0.1),
}


@pytest.mark.parametrize("act", WHO_LOOKS.values(), ids=WHO_LOOKS)
def test_inputs_that_are_not_finite_are_counted_before_anything_is_run(
    act: Callable[[nn.Module, Any], object],
) -> None:
    bad = rows_with((2100, 3, float("nan")), (2100, 1, float("inf")), (2999, 0, float("-inf")))
    with pytest.raises(PersistlibError) as caught:
        act(perceptron(), bad)
    (found,) = caught.value.findings
    assert found.code == "PL802"
    assert found.location.endswith(": inputs")
    assert found.message == "3 of 12,000 numbers are not finite, the first at [2100, 1]"
    act(Patient(), bad)
    act(perceptron(), rows_with())


def test_bad_inputs_and_targets_are_told_together() -> None:
    inputs, _ = rows_with((7, 0, float("nan")))
    targets = torch.zeros(3000, 2)
    targets[9, 1] = float("inf")
    with pytest.raises(PersistlibError) as caught:
        finetune(perceptron(), (inputs, targets), epochs=1, lr=0.1, task="regression")
    places = {item.location for item in caught.value.findings}
    assert places == {"train: inputs", "train: targets"}


def test_a_trial_in_training_leaves_statistics_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with untouched(model):
        model(torch.randn(5, 3))
        assert not model.state_dict()["1.running_mean"].equal(before["1.running_mean"])
    for name, value in model.state_dict().items():
        assert value.equal(before[name]), name
