"""Strategies, and what a step is made of: who trains when, how fast, on what and how precisely."""

from __future__ import annotations

import copy
import json
import math
import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import persistlib
from persistlib.errors import PersistlibError
from persistlib.training import randomness
from persistlib.training.batches import Batches
from persistlib.training.depth import blocks
from persistlib.training.drawn import _end_without
from persistlib.training.events import BatchDone, EpochDone
from persistlib.training.rates import find_rate
from persistlib.training.strategies import resolve
from persistlib.training.trainer import Trainer
from test_training_loop import net, same, samples, state

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from persistlib.training.events import Event

models = pytest.importorskip("torchvision.models")

ARGS: dict[str, Any] = {"epochs": 3, "lr": 0.02}
IMAGES = torch.zeros(1, 3, 64, 64)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.norm(self.linear(inputs))
        return hidden.relu()


def deep() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Layer() for _ in range(3)), nn.Linear(6, 3))


def rows(count: int = 30, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    return torch.randn(count, 6, generator=generator) + labels[:, None], labels


def finetune(model: nn.Module, *data: Any, **how: Any) -> Any:
    return persistlib.finetune(model, *(data or (rows(), rows(12, 1))), **(ARGS | how))


# -- blocks and phases ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("resnet18", 10, ("conv1", "bn1"), (("layer4.1",), ("fc",))),
        ("mobilenet_v2", 20, ("features.0",), (("features.18",), ("classifier.1",))),
        ("densenet121", 63, ("features.conv0", "features.norm0"), (
            ("features.denseblock4.denselayer16", "features.norm5"), ("classifier",),
        )),
        ("vgg11_bn", 11, ("features.0", "features.1"), (("classifier.3",), ("classifier.6",))),
    ],
)  # fmt: skip
def test_the_blocks_of_known_models_are_what_their_authors_repeat(
    name: str, count: int, first: tuple[str, ...], last: tuple[tuple[str, ...], ...]
) -> None:
    with torch.device("meta"):
        model = models.get_model(name)
    found = blocks(model, IMAGES.to("meta"))
    assert len(found) == count
    assert found[0].paths == first
    assert tuple(block.paths for block in found[-2:]) == last


def test_a_transformers_layers_are_blocks_and_what_stands_beside_them_comes_first() -> None:
    with torch.device("meta"):
        model = models.vit_b_16(image_size=64)
    found = blocks(model, IMAGES.to("meta"))
    assert found[0].paths == ("class_token", "encoder.pos_embedding", "conv_proj")
    assert found[-2].paths == ("encoder.layers.encoder_layer_11", "encoder.ln")
    assert len(found) == 14


def test_blocks_are_counted_in_the_order_of_running_not_of_declaring() -> None:
    class Declared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first, self.never = nn.Linear(4, 2), nn.Linear(6, 4), nn.Linear(3, 3)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.last(self.first(inputs))
            return scores

    found = blocks(Declared(), torch.zeros(2, 6))
    assert [block.paths for block in found] == [("never",), ("first",), ("last",)]
    assert [block.paths for block in blocks(nn.Linear(2, 2), torch.zeros(1, 2))] == [
        ("weight", "bias")
    ]


@pytest.mark.parametrize(
    ("wish", "phases"),
    [
        (None, [(1, ["0"])]),
        ("full", [(1, ["0"])]),
        ("head", [(1, ["*", "!3", "0"])]),
        ("last:2", [(1, ["*", "!2", "!3", "0"])]),
        ("last(4)", [(1, ["0"])]),
        ("gradual", [(1, ["*", "!3", "0"]), (2, ["*", "!2", "!3", "0"]),
                     (3, ["*", "!1", "!2", "!3", "0"])]),
        ("gradual:2", [(1, ["*", "!3", "0"]), (3, ["*", "!2", "!3", "0"])]),
        ({"kind": "gradual", "blocks": 1}, [(1, ["*", "!3", "0"])]),
        ({"kind": "patterns", "freeze": "1"}, [(1, ["1", "0"])]),
        ({"kind": "gradual", "phases": [{"epoch": 1, "freeze": ["*", "!3"]},
                                        {"epoch": 3, "freeze": []}]},
         [(1, ["*", "!3", "0"]), (3, ["0"])]),
    ],
)  # fmt: skip
def test_a_strategy_becomes_phases_of_patterns_with_what_is_frozen_besides(
    wish: Any, phases: list[tuple[int, list[str]]]
) -> None:
    made = resolve(wish, deep(), rows()[0], freeze="0", epochs=3)
    assert [(phase.epoch, list(phase.freeze)) for phase in made.phases] == phases
    record: Any = json.loads(json.dumps(made.to_dict()))
    assert [(item["epoch"], item["freeze"]) for item in record["phases"]] == phases


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ("head", "head"),
        ("last:2", "last:2"),
        ("gradual(3)", "gradual:3"),
        ({"kind": "last", "blocks": 2, "rate_decay": 0.5}, "last:2"),
        ({"kind": "patterns", "freeze": "3.*"}, "patterns"),
        (None, "patterns"),
    ],
)
def test_a_strategy_is_called_as_it_is_asked_for(wish: Any, words: str) -> None:
    assert str(resolve(wish, deep(), rows()[0], freeze=(), epochs=9)) == words


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        ("tail", "PL901"),
        ("head:2", "PL901"),
        ("last", "PL901"),
        ("last:0", "PL901"),
        ("last:5", "PL901"),
        ("gradual:0", "PL901"),
        (7, "PL901"),
        ({}, "PL901"),
        ({"kind": []}, "PL901"),
        ({"kind": "last", "blocks": True}, "PL901"),
        ({"kind": "full", "blocks": 2}, "PL901"),
        ({"kind": "full", "rate_decay": 0}, "PL901"),
        ({"kind": "full", "rate_decay": 1.5}, "PL901"),
        ({"kind": "patterns"}, "PL901"),
        ({"kind": "patterns", "freeze": [1]}, "PL901"),
        ({"kind": "patterns", "freeze": ["no.such"]}, "PL804"),
        ({"kind": "gradual", "phases": []}, "PL901"),
        ({"kind": "gradual", "phases": [{"epoch": 2, "freeze": []}]}, "PL901"),
        ({"kind": "gradual", "phases": [{"epoch": 1}]}, "PL901"),
        ({"kind": "gradual", "phases": [{"epoch": 1, "freeze": []}] * 2}, "PL901"),
        ({"kind": "gradual", "phases": [{"epoch": 1, "freeze": ["*"]}]}, "PL805"),
    ],
)
def test_what_is_no_strategy_is_refused_before_anything_changes(wish: Any, code: str) -> None:
    model = deep()
    before = state(model)
    with pytest.raises(PersistlibError) as caught:
        finetune(model, strategy=wish)
    assert caught.value.code == code
    assert same(before, state(model))
    assert all(item.requires_grad for item in model.parameters())


def test_gradual_thawing_trains_each_block_from_its_epoch_on() -> None:
    model = deep()
    moments = [state(model)]

    def watch(event: Event) -> None:
        if isinstance(event, EpochDone):
            moments.append(state(model))

    finetune(model, strategy="gradual", keep="last", progress=watch)
    for epoch, thawed in ((1, {"3"}), (2, {"3", "2"}), (3, {"3", "2", "1"})):
        moved = {
            n.split(".")[0] for n, v in moments[epoch].items() if not v.equal(moments[epoch - 1][n])
        }
        assert moved == thawed
        for block in thawed - {"3"}:
            name = f"{block}.norm.running_mean"
            assert not moments[epoch][name].equal(moments[epoch - 1][name])


def test_blocks_learn_at_rates_by_their_depth() -> None:
    model, rates = deep(), dict[str, float]()
    real = Trainer._step

    def step(self: Trainer) -> None:
        names = {id(item): name for name, item in self.parameters.items()}
        for group in self.optimizer.param_groups:
            rates.update({names[id(item)]: group["lr"] for item in group["params"]})
        real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", step)
        result = finetune(
            model, strategy={"kind": "full", "rate_decay": 0.1}, schedule="constant", lr=1.0
        )
    assert result.training.strategy["rate_decay"] == 0.1
    for name, rate in rates.items():
        assert rate == pytest.approx(0.1 ** (3 - int(name[0]))), name


def test_every_strategy_is_told_in_the_manifest_and_stays_frozen_when_loaded(
    tmp_path: Path,
) -> None:
    model = models.resnet18(num_classes=3)
    data = (torch.randn(6, 3, 32, 32), torch.arange(6) % 3)
    persistlib.finetune(
        model, data, data, epochs=1, lr=0.01, strategy="last:2", out=tmp_path / "bundle"
    )
    manifest = persistlib.inspect(tmp_path / "bundle").manifest
    assert manifest.training is not None
    strategy: Any = manifest.training.strategy
    assert (strategy["kind"], strategy["phases"]) == (
        "last",
        [{"epoch": 1, "freeze": ["*", "!layer4.1", "!fc"]}],
    )
    again = persistlib.load(tmp_path / "bundle").train()
    before = state(again)
    again(data[0])
    moved = {name for name, value in state(again).items() if not value.equal(before[name])}
    assert moved
    assert {name.rpartition(".")[0] for name in moved} == {"layer4.1.bn1", "layer4.1.bn2"}
    persistlib.unfreeze(again, "*")
    again.train()(data[0])
    assert not again.state_dict()["bn1.running_mean"].equal(before["bn1.running_mean"])


# -- steps ------------------------------------------------------------------------------------


def without_norm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.mark.parametrize("clip", [None, 0.4])
def test_accumulated_batches_make_the_steps_of_one_large_batch(clip: float | None) -> None:
    """Up to rounding, the last and smaller step of an epoch included."""
    how: dict[str, Any] = {"optimizer": "sgd", "schedule": "constant", "clip": clip}
    data = rows(33)
    large = finetune(without_norm(), data, **how, batch_size=33)
    small = finetune(without_norm(), data, **how, batch_size=7, accumulate=5)
    for name, value in large.model.state_dict().items():
        assert torch.allclose(value, small.model.state_dict()[name], atol=1e-6), name
    assert not same(state(without_norm()), state(large.model))


def test_clipped_gradients_make_steps_no_longer_than_asked() -> None:
    before, model = state(without_norm()), without_norm()
    options = {"optimizer": "sgd", "optimizer_options": {"momentum": 0.0}, "weight_decay": 0.0}
    finetune(model, rows(), epochs=1, lr=1.0, clip=1e-3, batch_size=30, **options)
    assert distance(state(model), before) == pytest.approx(1e-3, rel=1e-3)
    # Scaled gradients are clipped as they are without their scale; the first may overflow.
    model = without_norm()
    finetune(model, rows(), epochs=8, lr=1.0, clip=1e-3, batch_size=30, precision="f16", **options)
    assert 1e-4 < distance(state(model), before) <= 8.01e-3


def distance(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float((left[name] - right[name]).square().sum()) for name in left))


def test_class_weights_weigh_and_balanced_ones_follow_from_the_counts() -> None:
    inputs, labels = rows(30)
    labels = torch.where(labels == 2, 0, labels)  # 20 of the first class, 10 of the second, none
    runs = {
        name: finetune(without_norm(), (inputs, labels), class_weights=weights)
        for name, weights in {
            "none": None,
            "balanced": "balanced",
            "same": [30 / (2 * 20), 30 / (2 * 10), 0.0],
        }.items()
    }
    assert same(state(runs["balanced"].model), state(runs["same"].model))
    assert not same(state(runs["balanced"].model), state(runs["none"].model))
    assert runs["same"].training.optimizer["class_weights"] == [0.75, 1.5, 0.0]


@pytest.mark.parametrize("weights", ["even", [1, -1, 1], [1, "2"], [math.inf]])
def test_weights_that_are_none_are_refused(weights: Any) -> None:
    with pytest.raises(PersistlibError) as caught:
        finetune(without_norm(), class_weights=weights)
    assert (caught.value.code, caught.value.location) == ("PL901", "class_weights")


def test_a_run_ends_early_when_nothing_gets_better() -> None:
    result = finetune(without_norm(), epochs=30, lr=0.3, optimizer="sgd", patience=3, seed=1)
    strategy = result.training.strategy
    assert strategy["stopped_early"] is True
    assert len(result.history) == strategy["kept_epoch"] + 3 < 30
    assert result.training.epochs == len(result.history)
    with pytest.raises(PersistlibError) as caught:
        finetune(without_norm(), rows(), patience=3)
    assert caught.value.location == "patience"


@pytest.mark.parametrize("precision", ["bf16", "f16"])
def test_half_precision_computes_in_half_and_keeps_weights_whole(precision: str) -> None:
    seen: set[torch.dtype] = set()
    model = without_norm()
    hook = model.register_forward_hook(lambda *given: seen.add(given[2].dtype))
    result = finetune(model, precision=precision, epochs=8)
    hook.remove()
    assert seen == {{"bf16": torch.bfloat16, "f16": torch.float16}[precision]}
    assert {item.dtype for item in model.parameters()} == {torch.float32}
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert result.training.optimizer["precision"] == precision


@pytest.mark.parametrize(
    ("how", "location"),
    [
        ({"optimizer_options": {"no_such": 1}}, "optimizer_options.no_such"),
        ({"optimizer_options": {"betas": 7}}, "optimizer"),
        ({"schedule_options": {"gamma": 1}}, "schedule_options.gamma"),
        ({"schedule": "steplr", "schedule_options": {"step_size": "x"}}, "schedule steplr"),
        ({"accumulate": 0}, "accumulate"),
        ({"clip": -1.0}, "clip"),
        ({"precision": "int8"}, "precision"),
        ({"workers": -1}, "workers"),
        ({"patience": 0}, "patience"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
    ],
)
def test_what_a_step_cannot_be_made_of_is_named(how: dict[str, Any], location: str) -> None:
    with pytest.raises(PersistlibError) as caught:
        finetune(deep(), **how)
    assert (caught.value.code, caught.value.location) == ("PL901", location)


def test_memory_that_runs_out_names_the_batch_size_and_what_to_try() -> None:
    class Greedy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.outer, self.inner = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if self.training and len(inputs) > 8:
                torch.empty(1 << 60)
            scores: torch.Tensor = self.inner(self.outer(inputs))
            return scores

    for cache, where in ((True, "before its first batch"), (False, "batch 1")):
        with pytest.raises(PersistlibError) as caught:
            finetune(Greedy(), rows(32), batch_size=16, cache=cache, freeze="outer.*")
        assert (caught.value.code, caught.value.location) == ("PL904", f"epoch 1, {where}")
    assert "batches of 16" in caught.value.reason
    assert "batch_size=8 with accumulate=2" in caught.value.remedy
    finetune(Greedy(), rows(32), batch_size=8, accumulate=2)


def test_a_trial_of_a_part_moves_no_statistics() -> None:
    """A part of the model that has BatchNorm is trained alike with and without features."""

    def made() -> nn.Sequential:
        torch.manual_seed(0)
        part = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
        return nn.Sequential(nn.Linear(6, 6), part)

    how: dict[str, Any] = {"freeze": ["*", "!1"], "batch_size": 10, "optimizer": "sgd"}
    parts, whole = finetune(made(), **how), finetune(made(), cache=False, **how)
    assert parts.training.strategy["cached_before"] == "1"
    for name, value in whole.model.state_dict().items():
        assert torch.allclose(value, parts.model.state_dict()[name], atol=1e-6), name


# -- rates ------------------------------------------------------------------------------------


def test_a_trial_of_learning_rates_suggests_one_that_trains_and_changes_nothing() -> None:
    model, before = deep(), torch.get_rng_state()
    first = state(model)
    found = find_rate(model, rows(300), batch_size=16)
    assert same(first, state(model))
    assert model.training
    assert torch.get_rng_state().equal(before)
    assert list(found.lrs) == sorted(found.lrs)
    assert 1e-4 < found.suggestion < found.lrs[found.losses.index(min(found.losses))]
    assert found == find_rate(model, rows(300), batch_size=16)
    losses = [
        finetune(copy.deepcopy(model), rows(300), lr=rate, epochs=2).history[-1]["train_loss"]
        for rate in (found.suggestion, 1e-6)
    ]
    assert losses[0] < losses[1]


def test_a_loss_that_falls_nowhere_suggests_nothing() -> None:
    inputs, labels = rows()

    def flat(outputs: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return outputs.sum() * 0 + 1

    with pytest.raises(PersistlibError) as caught:
        find_rate(deep(), (inputs, labels), loss=flat)
    assert "falls at no learning rate" in caught.value.reason


# -- samples ----------------------------------------------------------------------------------


class Random(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.rand(2), index


def drawn(batches: Batches, epoch: int) -> dict[int, list[float]]:
    return {
        int(target): row.tolist()
        for batch in batches.shuffled(epoch)
        for row, target in zip(batch.inputs, batch.targets, strict=True)
    }


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # a fork beside threads, on 3.12
def test_a_samples_augmentation_follows_from_seed_epoch_and_index_alone() -> None:
    device = torch.device("cpu")
    alone = Batches(Random(), "train", 4, device, seed=1)
    state_before = randomness.capture(device).tensors["torch"]
    first = drawn(alone, 1)
    assert torch.get_rng_state().equal(state_before)
    assert first == drawn(Batches(Random(), "train", 2, device, seed=1, workers=2), 1)
    assert first != drawn(alone, 2)
    assert first != drawn(Batches(Random(), "train", 4, device, seed=2), 1)
    assert len({tuple(row) for row in first.values()}) == 9
    held_out = [[batch.inputs.tolist() for batch in alone.in_order()] for _ in range(2)]
    assert held_out[0] == held_out[1]


def test_a_loaders_worker_ends_where_its_parent_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the fork and torch's own look at the parent would leave it for ever."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    _end_without(os.getppid(), 0)
    assert codes == []
    _end_without(os.getppid() + 1, 0)
    assert codes == [1]


@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: (x + 1e-6, y),
        lambda x, y: (x, y.roll(1)),
        lambda x, y: (x[:-1], y[:-1]),
        lambda x, y: (x.double(), y),
        lambda x, y: (x.flip(0), y),
    ],
)
def test_the_digest_of_samples_tells_any_change(change: Callable[..., Any]) -> None:
    inputs, labels = rows()
    forms: list[Callable[[Any], Any]] = [
        lambda pair: pair,
        lambda pair: torch.utils.data.TensorDataset(*pair),
        lambda pair: [({"x": x}, y) for x, y in zip(*pair, strict=True)],
    ]
    for form in forms:
        digests = [
            Batches(form(pair), "train", 4, torch.device("cpu")).digest()
            for pair in ((inputs, labels), (inputs.clone(), labels), change(inputs, labels))
        ]
        assert digests[0] == digests[1] != digests[2]


def test_the_events_tell_samples_and_rate() -> None:
    events: list[Event] = []
    finetune(net(), samples(), batch_size=20, schedule="constant", progress=events.append)
    batches = [event for event in events if isinstance(event, BatchDone)]
    assert sum(event.samples for event in batches) == 45 * 3
    assert {event.lr for event in batches} == {0.02}
