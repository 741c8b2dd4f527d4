"""The loop: frozen stays frozen, one seed gives one set of weights, and faults have a name."""

from __future__ import annotations

import copy
import math
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from persistlib.cli import progress
from persistlib.errors import PersistlibError
from persistlib.training.events import BatchDone, EpochDone, Event
from persistlib.training.loop import finetune

if TYPE_CHECKING:
    from collections.abc import Iterator

ARGS: dict[str, Any] = {"epochs": 3, "lr": 0.02}


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(4 * 16, 3),
        )


def samples(count: int = 45, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    noise = torch.randn(count, 1, 6, 6, generator=generator) * 0.3
    return noise + labels.view(-1, 1, 1, 1).float(), labels


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)


def test_a_net_learns_what_can_be_learnt() -> None:
    result = finetune(net(), samples(), samples(30, 1), epochs=8, lr=0.02, batch_size=8)
    assert result.metrics["accuracy"] > 0.9
    assert result.history[0]["train_loss"] > result.history[-1]["train_loss"]
    assert [row["epoch"] for row in result.history] == list(range(1, 9))
    assert not result.model.training


def test_two_runs_of_one_seed_give_the_same_weights_bit_for_bit() -> None:
    runs = [finetune(net(), samples(), samples(20, 1), seed=5, **ARGS) for _ in range(2)]
    assert same(state(runs[0].model), state(runs[1].model))
    assert runs[0].training == runs[1].training
    other = finetune(net(), samples(), samples(20, 1), seed=6, **ARGS)
    assert not same(state(runs[0].model), state(other.model))


def test_the_callers_random_state_and_gradient_mode_are_untouched() -> None:
    torch.manual_seed(1)
    legacy: Any = np.random  # numpy's global state
    before = (torch.get_rng_state(), random.getstate(), legacy.get_state()[1].copy())
    with torch.no_grad():
        trained = finetune(net(), samples(), **ARGS)
        assert not torch.is_grad_enabled()
    model, train = net(), samples()
    with torch.inference_mode():
        inference = finetune(model, train, **ARGS)
        assert torch.is_inference_mode_enabled()
    assert torch.get_rng_state().equal(before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(legacy.get_state()[1], before[2])
    torch.manual_seed(2)
    assert same(state(trained.model), state(finetune(net(), samples(), **ARGS).model))
    assert same(state(trained.model), state(inference.model))


def test_the_frozen_part_stays_bit_for_bit_statistics_included() -> None:
    model = net()
    before = state(model)
    result = finetune(model, samples(), freeze=["*", "!5.*"], weight_decay=0.5, **ARGS)
    after = state(model)
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {"5.weight", "5.bias"}
    assert set(result.frozen.modules) == {"1"}
    assert result.training.strategy["trained_parameters"] == 195
    assert result.training.strategy["frozen_parameters"] == 48


def test_what_the_caller_froze_by_hand_keeps_its_statistics_too() -> None:
    model = net()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("5")
    before = state(model)
    finetune(model, samples(), **ARGS)
    assert before["1.running_mean"].equal(model[1].running_mean)  # type: ignore[index]


def test_a_fault_before_training_leaves_the_model_as_it_was() -> None:
    model = net()
    before = state(model)
    for arguments in ({"freeze": "*"}, {"freeze": "nothing.like.it"}, {"train": (1, 2)}):
        train = arguments.pop("train", samples())
        with pytest.raises(PersistlibError):
            finetune(model, train, **arguments, **ARGS)
    assert all(item.requires_grad for item in model.parameters())
    assert model.training
    assert same(before, state(model))


class Pairs(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.inputs, self.labels = pair

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.inputs[index], int(self.labels[index])


class Again:
    """Batches of the caller's own, without a length."""

    def __iter__(self) -> Iterator[Any]:
        inputs, labels = samples()
        yield inputs.numpy()[:30], labels[:30].int()
        yield inputs.numpy()[30:], labels[30:].tolist()


def test_arrays_tensors_and_data_sets_are_the_same_samples() -> None:
    inputs, labels = samples()
    forms: list[Any] = [
        (inputs, labels),
        [inputs.numpy(), labels.numpy()],
        (inputs, labels.tolist()),
        (inputs, labels.int()),
        TensorDataset(inputs, labels),
        Pairs((inputs, labels)),
        list(zip(inputs, labels, strict=True)),
    ]
    results = [state(finetune(net(), form, form, **ARGS).model) for form in forms]
    assert all(same(results[0], other) for other in results[1:])


def test_batches_of_the_callers_own_are_taken_as_they_come() -> None:
    loader = DataLoader(Pairs(samples()), batch_size=7, shuffle=True)
    first = finetune(net(), loader, loader, **ARGS)
    assert same(state(first.model), state(finetune(net(), loader, loader, **ARGS).model))
    unsized = finetune(net(), Again(), **ARGS)
    assert len(unsized.history) == 3


@pytest.mark.parametrize(
    "train",
    [
        (torch.zeros(3, 1, 6, 6), torch.zeros(2)),
        (torch.zeros(0, 1, 6, 6), torch.zeros(0)),
        (torch.tensor(1.0), torch.tensor(1)),
        (torch.zeros(3, 1, 6, 6), ["cat", "dog", "cat"]),
        (torch.zeros(3, 2, 6, 6), torch.zeros(3, dtype=torch.long)),
        TensorDataset(torch.zeros(3, 1, 6, 6, dtype=torch.float64), torch.arange(3) % 2),
        [],
        None,
        7,
        iter([]),
        DataLoader(TensorDataset(torch.zeros(4, 1, 6, 6))),
    ],
)
def test_samples_that_cannot_be_trained_on_are_refused(train: Any) -> None:
    with pytest.raises(PersistlibError) as caught:
        finetune(net(), train, **ARGS)
    assert caught.value.code == "PL802"


def test_no_batch_is_a_lone_sample_that_batch_norm_refuses() -> None:
    sizes: list[int] = []
    model = net()

    def note(module: nn.Module, args: tuple[torch.Tensor]) -> None:
        if module.training:
            sizes.append(len(args[0]))

    model.register_forward_pre_hook(note)
    finetune(model, samples(33), epochs=1, lr=0.01, batch_size=32)
    assert {*sizes} == {16, 17}


class OneSize(nn.Module):
    """Takes batches of 15 samples alone."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.reshape(15, 36)


def test_a_model_that_takes_one_size_of_batch_is_looked_at_with_that() -> None:
    model = nn.Sequential(OneSize(), nn.Linear(36, 3))
    result = finetune(model, samples(45), samples(30), batch_size=15, **ARGS)
    assert len(result.history) == 3
    with pytest.raises(PersistlibError, match="labels 0 to 2 for 2 classes"):
        finetune(nn.Sequential(OneSize(), nn.Linear(36, 2)), samples(45), batch_size=15, **ARGS)


def test_a_loss_that_is_not_finite_stops_with_epoch_and_batch_named() -> None:
    inputs, labels = samples(40)
    inputs[13] = math.nan
    drawn = [*zip(inputs, labels, strict=True)]  # of a data set nothing is known beforehand
    with pytest.raises(PersistlibError) as caught:
        finetune(net(), drawn, batch_size=10, **ARGS)
    assert caught.value.code == "PL803"
    assert "epoch 1, batch " in caught.value.location
    with pytest.raises(PersistlibError) as caught:
        finetune(net(), samples(), drawn, **ARGS)
    assert caught.value.code == "PL803"
    assert "held-out" in caught.value.location
    with pytest.raises(PersistlibError) as caught:
        finetune(net(), samples(), epochs=3, lr=1e30, batch_size=45, optimizer="sgd")
    assert caught.value.code == "PL803"


def test_every_parameter_frozen_has_its_own_error() -> None:
    with pytest.raises(PersistlibError) as caught:
        finetune(net(), samples(), freeze="*", **ARGS)
    assert caught.value.code == "PL805"
    with pytest.raises(PersistlibError) as caught:
        finetune(nn.ReLU(), samples(), **ARGS)
    assert caught.value.code == "PL805"
    with pytest.raises(PersistlibError) as caught:
        finetune(net(), samples(), freeze=["0.*", "!6.*"], **ARGS)
    assert caught.value.code == "PL804"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("epochs", True),
        ("lr", 0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("lr", "fast"),
        ("seed", -1),
        ("seed", 2**63),
        ("batch_size", 0),
        ("weight_decay", -1),
        ("label_smoothing", 1),
        ("keep", "first"),
        ("optimizer", "lbfgs"),
        ("schedule", []),
    ],
)
def test_an_argument_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(PersistlibError) as caught:
        finetune(net(), samples(), **ARGS | {name: value})
    assert (caught.value.code, caught.value.location) == ("PL901", name)


def test_a_module_without_values_and_no_module_at_all_are_refused() -> None:
    with pytest.raises(PersistlibError) as caught:
        finetune(net().to("meta"), samples(), **ARGS)
    assert caught.value.code == "PL320"
    with pytest.raises(PersistlibError) as caught:
        finetune("resnet18", samples(), **ARGS)  # type: ignore[arg-type]
    assert caught.value.code == "PL901"


def test_the_best_epoch_is_kept_or_the_last() -> None:
    states: list[dict[str, torch.Tensor]] = []
    ranks: list[tuple[float, float]] = []

    def watch(event: Event) -> None:
        if isinstance(event, EpochDone):
            states.append(state(model))
            ranks.append((event.row["valid_accuracy"], -event.row["valid_loss"]))

    for keep in ("best", "last"):
        model = net()
        states.clear()
        ranks.clear()
        held_out = samples(20, 1)
        result = finetune(
            model, samples(), held_out, epochs=6, lr=0.3, keep=keep, progress=watch, optimizer="sgd"
        )
        index = ranks.index(max(ranks)) if keep == "best" else 5
        assert result.training.strategy["kept_epoch"] == index + 1
        assert same(state(model), states[index])
        assert result.metrics["loss"] == -ranks[index][1]


def test_progress_is_told_in_order() -> None:
    events: list[Event] = []
    finetune(net(), samples(), epochs=2, lr=0.01, batch_size=20, progress=events.append)
    assert [type(event).__name__ for event in events] == (["BatchDone"] * 3 + ["EpochDone"]) * 2
    last = events[-2]
    assert isinstance(last, BatchDone)
    assert last[:4] == (2, 2, 3, 3)


def test_losses_and_metrics_of_the_callers_own_are_used() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 1))
    inputs, labels = samples()
    targets = labels.float()[:, None]

    def error(outputs: torch.Tensor, wanted: torch.Tensor) -> float:
        assert len(outputs) == 45
        return float((outputs - wanted).abs().mean())

    def nowhere(outputs: torch.Tensor, wanted: torch.Tensor) -> float:
        return math.nan * len(outputs) * len(wanted)

    loss = nn.functional.mse_loss
    result = finetune(
        model, (inputs, targets), (inputs, targets), loss=loss, metrics={"mae": error}, **ARGS
    )
    assert result.metrics.keys() == {"loss", "mse", "mae"}
    assert "valid_mae" in result.history[0]
    assert result.training.strategy["loss"] == "mse"
    with pytest.raises(PersistlibError, match="metric mae"):
        finetune(
            model,
            (inputs, targets),
            (inputs, targets),
            loss=loss,
            metrics={"mae": nowhere},
            **ARGS,
        )


class TwoHeads(nn.Module):
    """Takes two inputs, gives an auxiliary answer too, as inception does in training."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.aux = nn.Linear(36, 3), nn.Linear(36, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> Any:
        flat = (left + right).flatten(1)
        return (self.main(flat), self.aux(flat)) if self.training else self.main(flat)


def test_several_inputs_and_auxiliary_outputs_are_understood() -> None:
    inputs, labels = samples()
    named = [({"left": item, "right": item}, label) for item, label in zip(*samples(), strict=True)]
    pairs = [((item, item), label) for item, label in zip(inputs, labels, strict=True)]
    torch.manual_seed(0)
    model = TwoHeads()
    results = [finetune(copy.deepcopy(model), form, form, **ARGS) for form in (named, pairs)]
    assert same(state(results[0].model), state(results[1].model))
    assert results[0].example_inputs.keys() == {"left", "right"}
    assert len(results[1].example_inputs) == 2


def test_the_record_holds_no_time_and_fits_the_manifest() -> None:
    result = finetune(net(), samples(), samples(20, 1), **ARGS)
    text = result.training.model_dump_json()
    assert "seconds" not in text
    assert result.training.optimizer["name"] == "adamw"
    assert result.training.history == result.history
    assert result.example_inputs.shape == (2, 1, 6, 6)


def test_an_epochs_line_tells_a_loss_once() -> None:
    row = {"epoch": 1, "train_loss": 0.25, "train_mse": 0.25, "valid_loss": 0.5, "valid_mse": 0.75}
    told = progress.line(EpochDone(1, 2, row, 0.1))
    assert "train loss 0.2500  valid loss 0.5000  valid mse 0.7500" in told
