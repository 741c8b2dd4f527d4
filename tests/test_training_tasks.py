"""Tasks: each learns, and is loaded bit for bit; what a task cannot mean is refused."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

import persistlib
from persistlib import Batch
from persistlib.errors import PersistlibError
from persistlib.training import nests
from persistlib.training.batches import call
from persistlib.training.loop import finetune
from persistlib.training.rates import find_rate
from persistlib.training.tallies import Tally
from persistlib.training.tasks import Head
from task_models import (
    Heads,
    built,
    headed,
    labelled,
    numbers,
    scenes,
    sentences,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TRUST = {"task_models"}
HEADS: dict[str, Any] = {"kind": "classification", "size": {"task": "regression", "weight": 0.5}}
FCN = "torchvision.models.segmentation:fcn_resnet50"
# Builder, its arguments, data, how it trains, and what it has to learn at least.
LEARNT: dict[str, tuple[Any, ...]] = {
    "regression": (
        "Perceptron",
        {"inputs": 6, "outputs": 2},
        numbers,
        {"task": "regression", "epochs": 25, "lr": 0.02},
        lambda found: found["mse"] < 0.05 and found["mae"] < 0.2,  # of a variance of 1.6
    ),
    "multilabel": (
        "Perceptron",
        {"inputs": 6, "outputs": 3},
        labelled,
        {"task": "multilabel", "epochs": 15, "lr": 0.02},
        lambda found: found["f1"] > 0.9,
    ),
    "two heads": (
        "TwoHeads",
        {},
        headed,
        {"task": HEADS, "epochs": 15, "lr": 0.02},
        lambda found: found["kind_accuracy"] > 0.85 and found["size_mse"] < 0.3,
    ),
    "a tuple of heads": (
        "Pair",
        {},
        lambda count, seed=0: (
            (given := headed(count, seed))[0],
            (given[1]["kind"], given[1]["size"]),
        ),
        {"task": HEADS, "epochs": 15, "lr": 0.05},
        lambda found: found["kind_accuracy"] > 0.85 and found["size_mse"] < 0.3,
    ),
    "text": (
        "TextClassifier",
        {},
        lambda count, seed=0: sentences(2 * count, seed),
        {"epochs": 16, "lr": 0.01},
        lambda found: found["accuracy"] > 0.9,
    ),
}


@pytest.mark.parametrize("name", LEARNT)
def test_what_learns_is_saved_and_loaded_bit_for_bit(name: str, tmp_path: Path) -> None:
    builder, arguments, data, how, is_learnt = LEARNT[name]
    model = built(builder, **arguments)
    result = persistlib.finetune(model, data(200), data(60, 1), out=tmp_path / "b", **how)
    assert is_learnt(result.metrics), result.metrics
    loaded = persistlib.load(tmp_path / "b", trust=TRUST)
    inputs = data(60, 1)[0]
    with torch.no_grad():
        assert nests.equal(call(loaded, inputs), call(model, inputs))
    training = persistlib.inspect(tmp_path / "b").manifest.training
    assert training is not None
    assert training.strategy["task"] == how.get("task", "classification")
    assert persistlib.verify(tmp_path / "b", behaviour=True, trust=TRUST).ok


def segmented(tmp_path: Path, **how: Any) -> Any:
    model = built(FCN, num_classes=2, weights_backbone=None, aux_loss=True)
    result = persistlib.finetune(
        model,
        scenes(12),
        scenes(4, 1),
        task="segmentation",
        out=tmp_path / "b",
        batch_size=6,
        lr=0.002,
        **how,
    )
    loaded = persistlib.load(tmp_path / "b")
    with torch.no_grad():
        assert nests.equal(loaded(scenes(4, 1)[0]), model(scenes(4, 1)[0]))
    return result


def test_a_segmentation_net_learns_and_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    result = segmented(tmp_path, epochs=3)
    # A class for all pixels has an IoU of 0.4 at most.
    assert result.metrics["iou"] > 0.45
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two heads", "a tuple of heads", "text", "segmentation"])
def test_graphs_are_made_and_proved(name: str, tmp_path: Path) -> None:
    if name == "segmentation":
        segmented(tmp_path, epochs=2, onnx=True)
    else:
        builder, arguments, data, how, _ = LEARNT[name]
        model = built(builder, **arguments)
        persistlib.finetune(
            model, data(100), data(40, 1), out=tmp_path / "b", onnx=True, **(how | {"epochs": 4})
        )
    (graph,) = persistlib.inspect(tmp_path / "b").manifest.graphs
    assert graph.proof["proved"] is True


def test_a_text_model_is_exported_and_answers_in_the_runtime(tmp_path: Path) -> None:
    model = built("TextClassifier")
    persistlib.finetune(
        model, sentences(60), sentences(20, 1), epochs=2, lr=0.01, out=tmp_path / "b", onnx=True
    )
    inputs = sentences(20, 1)[0]
    session = persistlib.load(tmp_path / "b", runtime="onnxruntime")
    (answers,) = session.run({name: tensor.numpy() for name, tensor in inputs.items()}).values()
    with torch.no_grad():
        assert np.allclose(answers, model(**inputs).numpy(), atol=1e-5)


def test_named_inputs_are_saved_in_the_order_of_forward(tmp_path: Path) -> None:
    inputs, labels = sentences(40)
    how: dict[str, Any] = {"epochs": 1, "lr": 0.01}
    turned = {"mask": inputs["mask"], "tokens": inputs["tokens"]}
    persistlib.finetune(built("TextClassifier"), (turned, labels), out=tmp_path / "b", **how)
    interface = persistlib.inspect(tmp_path / "b").manifest.interface
    assert [spec.name for spec in interface.inputs] == ["tokens", "mask"]
    with pytest.raises(PersistlibError, match="forward takes tokens before mask"):
        persistlib.save(
            built("TextClassifier"), tmp_path / "c", example_inputs={"mask": inputs["mask"]}
        )


# -- targets in a nest -------------------------------------------------------------------------


class Samples(Dataset[Any]):
    """Samples one by one, targets by name."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self.inputs, self.targets = headed(count, seed)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        return self.inputs[index], {name: rows[index] for name, rows in self.targets.items()}


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left: nn.Module, right: nn.Module) -> bool:
    return nests.equal(weights(left), weights(right))


TWO: dict[str, Any] = {"task": HEADS, "epochs": 3, "lr": 0.02, "batch_size": 16}


def test_arrays_and_a_data_set_of_the_same_samples_give_the_same_weights() -> None:
    arrays = headed(50)
    turned = arrays[0].numpy(), {name: rows.numpy() for name, rows in arrays[1].items()}
    models = [
        finetune(built("TwoHeads"), form, form, **TWO).model
        for form in (arrays, turned, Samples(50))
    ]
    assert same(models[0], models[1])
    assert same(models[0], models[2])


def test_batches_of_ones_own_may_have_nests_of_targets() -> None:
    loader = DataLoader(Samples(48), batch_size=16)
    result = finetune(built("TwoHeads"), loader, loader, **TWO)
    assert {"loss", "kind_accuracy", "size_mse", "size_mae"} <= result.metrics.keys()
    rows: Any = [(x, (k, s)) for x, k, s in zip(*rows_of(headed(48)), strict=True)]
    listed: Any = DataLoader(rows, 16)
    pair = finetune(built("Pair"), listed, listed, **TWO)
    assert pair.metrics["loss"] > 0


def rows_of(data: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    inputs, targets = data
    return inputs, targets["kind"], targets["size"]


def test_features_once_give_the_weights_of_the_whole_loop_where_targets_are_a_nest() -> None:
    how: dict[str, Any] = TWO | {"freeze": ["*", "!heads.*"], "weight_decay": 0.1}
    parts = finetune(built("TwoHeads"), headed(60), headed(20, 1), **how)
    whole = finetune(built("TwoHeads"), headed(60), headed(20, 1), cache=False, **how)
    assert parts.training.strategy["cached_before"] == "heads"
    assert whole.training.strategy["cached_before"] is None
    for name, value in weights(parts.model).items():
        assert torch.allclose(value, whole.model.state_dict()[name], rtol=1e-5, atol=1e-6), name
    assert not same(parts.model, built("TwoHeads"))


class StopError(Exception):
    """Ends a run where it stands."""


def test_a_run_of_two_heads_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    how: dict[str, Any] = TWO | {"seed": 4, "checkpoint_every": 1}
    data = headed(60), headed(20, 1)
    whole = persistlib.finetune(built("TwoHeads"), *data, run=tmp_path / "whole", **how)
    left = [7]

    def count(_: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise StopError

    with pytest.raises(StopError):
        persistlib.finetune(built("TwoHeads"), *data, run=tmp_path / "run", progress=count, **how)
    again = persistlib.finetune(
        built("TwoHeads", seed=9), *data, run=tmp_path / "run", resume=True, **how
    )
    assert again.resumed is not None
    assert same(again.model, whole.model)
    assert again.history == whole.history
    assert again.training == whole.training
    other = data[0][0], {**data[0][1], "size": data[0][1]["size"] + 1}
    with pytest.raises(PersistlibError) as caught:
        persistlib.finetune(
            built("TwoHeads"), other, data[1], run=tmp_path / "run", resume=True, **how
        )
    assert caught.value.code == "PL812"


def test_the_weight_of_a_head_is_that_of_its_loss() -> None:
    alone = finetune(
        built("TwoHeads"),
        headed(40),
        task={"kind": "classification", "size": {"task": "regression", "weight": 1e-12}},
        epochs=1,
        lr=0.02,
        freeze=["body.*"],
    )
    before = built("TwoHeads").state_dict()
    moved = alone.model.state_dict()
    assert not moved["heads.kind.weight"].equal(before["heads.kind.weight"])
    plain = finetune(built("TwoHeads"), headed(40), **TWO)
    weighed: dict[str, Any] = TWO | {"task": HEADS | {"size": {"task": "regression", "weight": 5}}}
    heavy = finetune(built("TwoHeads"), headed(40), **weighed)
    assert not same(plain.model, heavy.model)


def test_the_best_epoch_of_a_regression_has_the_lowest_loss() -> None:
    inputs, wanted = numbers(40, 1)
    how: dict[str, Any] = {"task": "regression", "epochs": 6, "lr": 0.05}
    model = built("Perceptron", inputs=6, outputs=2)
    # The more it learns, the farther it is from the opposite.
    result = finetune(model, numbers(60), (inputs, -wanted), **how)
    losses = [row["valid_loss"] for row in result.history]
    assert result.metrics["loss"] == min(losses)
    assert min(losses) < losses[-1]


def test_smoothing_is_recorded_where_it_has_a_meaning() -> None:
    model = built("Perceptron", inputs=6, outputs=2)
    how: dict[str, Any] = {"epochs": 1, "lr": 0.02}
    inputs, wanted = numbers(20)
    numeric = finetune(model, (inputs, wanted), task="regression", **how)
    classes = finetune(model, (inputs, torch.arange(20) % 2), **how)
    own = finetune(model, (inputs, torch.arange(20) % 2), loss=nn.CrossEntropyLoss(), **how)
    said = ["label_smoothing" in one.training.optimizer for one in (numeric, classes, own)]
    assert said == [False, True, False]


# -- losses ------------------------------------------------------------------------------------


def trained(**how: Any) -> nn.Module:
    settings: dict[str, Any] = {"epochs": 2, "lr": 0.02, "label_smoothing": 0.0, **how}
    outputs = 3 if settings.get("data") is labelled else 2
    data = settings.pop("data", numbers)
    return finetune(built("Perceptron", inputs=6, outputs=outputs), data(40), **settings).model


ALIKE: dict[str, tuple[Any, ...]] = {
    "mse": ("mse", functional.mse_loss, nn.MSELoss(), numbers),
    "mae": ("mae", functional.l1_loss, nn.L1Loss(), numbers),
    "huber": ("huber", functional.huber_loss, nn.HuberLoss(), numbers),
    "smooth_l1": ("smooth_l1", functional.smooth_l1_loss, nn.SmoothL1Loss(), numbers),
    "bce": (
        "bce",
        lambda outputs, batch: functional.binary_cross_entropy_with_logits(
            outputs, batch.targets.float()
        ),
        None,
        labelled,
    ),
}


@pytest.mark.parametrize("name", ALIKE)
def test_a_name_torchs_own_and_a_callable_of_the_batch_are_the_same_loss(name: str) -> None:
    word, function, module, data = ALIKE[name]
    first = trained(loss=word, data=data)
    assert not same(first, built("Perceptron", inputs=6, outputs=2 if data is numbers else 3))
    assert same(first, trained(loss=function, data=data))
    if module is not None:
        assert same(first, trained(loss=module, data=data))
        own: Callable[..., Any] = lambda outputs, batch: module(outputs, batch.targets)  # noqa: E731
        assert same(first, trained(loss=own, data=data))


def test_a_loss_of_ones_own_sees_inputs_targets_and_all_outputs() -> None:
    seen: list[Batch] = []

    def loss(outputs: Any, batch: Batch) -> torch.Tensor:
        seen.append(batch)
        wanted = batch.targets
        far = functional.mse_loss(outputs["size"], wanted["size"])
        return functional.cross_entropy(outputs["kind"], wanted["kind"]) + 0.5 * far

    def spread(outputs: Any, targets: Any) -> float:
        return float((outputs["size"] - targets["size"]).abs().max())

    how: dict[str, Any] = TWO | {"label_smoothing": 0.0}
    data = headed(40), headed(20, 1)
    mine: dict[str, Any] = how | {"task": None, "loss": loss, "metrics": {"far": spread}}
    own = finetune(built("TwoHeads"), *data, **mine)
    named = finetune(built("TwoHeads"), *data, **how)
    for name, value in weights(own.model).items():
        assert torch.allclose(value, named.model.state_dict()[name], atol=1e-6), name
    assert own.metrics.keys() == {"loss", "far"}
    assert own.training.strategy["task"] == "custom"
    assert own.training.strategy["loss"] == "custom"
    assert isinstance(seen[0].inputs, torch.Tensor)


def test_a_loss_written_for_outputs_and_targets_is_told_so() -> None:
    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).square().mean()

    with pytest.raises(PersistlibError, match=r"written for \(outputs, targets\)") as caught:
        trained(loss=loss)
    assert "batch.targets" in caught.value.remedy

    def broken(outputs: Any, batch: Batch) -> Any:
        return outputs.no_such_thing(batch)

    with pytest.raises(PersistlibError, match="no_such_thing") as caught:
        trained(loss=broken)
    assert "written for" not in caught.value.reason

    def wide(outputs: torch.Tensor, batch: Batch) -> Any:
        return (outputs - batch.targets).square()

    with pytest.raises(PersistlibError, match="not one number"):
        trained(loss=wide)


class Learning(nn.Module):
    """A loss that would have to train itself."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (self.scale * outputs - targets).square().mean()


@pytest.mark.parametrize(
    ("how", "location"),
    [
        ({"loss": "mean"}, "loss"),
        ({"loss": 3}, "loss"),
        ({"loss": Learning()}, "loss"),
        ({"task": "regression", "loss": "cross_entropy"}, "loss"),
        ({"task": "ranking"}, "task"),
        ({"task": {}}, "task"),
        ({"task": {"": "regression"}}, "task"),
        ({"task": {"a": "ranking"}}, "task.a"),
        ({"task": {"a": {"task": "regression", "weight": 0}}}, "task.a.weight"),
        ({"task": {"a": {"task": "regression", "loss": "bce"}}}, "task.a.loss"),
        ({"task": {"a": {"task": "regression", "colour": 1}}}, "task.a"),
        ({"task": {"a": {"task": "regression", "loss": ["mse"]}}}, "task.a.loss"),
        ({"task": {"a": ["regression"]}}, "task.a"),
        ({"task": ["regression"]}, "task"),
        ({"task": {"a": "regression", "b": "regression"}, "loss": "mse"}, "loss"),
        ({"task": "custom"}, "task"),
        ({"task": "regression", "class_weights": "balanced"}, "class_weights"),
    ],
)
def test_tasks_and_losses_that_mean_nothing_are_refused(how: Any, location: str) -> None:
    with pytest.raises(PersistlibError) as caught:
        finetune(built("Perceptron", inputs=6, outputs=2), numbers(20), epochs=1, lr=0.1, **how)
    assert (caught.value.code, caught.value.location) == ("PL901", location)


def test_balanced_labels_weigh_their_ones() -> None:
    inputs, labels = labelled(200)
    rare = labels.clone()
    rare[rare.cumsum(0) > 10] = 0  # ten ones of each label
    plain, weighed = (
        finetune(
            built("Perceptron", inputs=6, outputs=3),
            (inputs, rare),
            task="multilabel",
            epochs=5,
            lr=0.02,
            class_weights=given,
        ).model
        for given in (None, "balanced")
    )
    with torch.no_grad():
        assert weighed(inputs).sigmoid().mean() > 2 * plain(inputs).sigmoid().mean()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_balanced_classes_weigh_in_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    inputs = numbers(60)[0].to(dtype)
    labels = (inputs[:, 0] > 1).long()
    plain, weighed = (
        finetune(
            built("Perceptron", inputs=6, outputs=2).to(dtype),
            (inputs, labels),
            epochs=4,
            lr=0.02,
            class_weights=given,
        ).model
        for given in (None, "balanced")
    )
    with torch.no_grad():
        rare = [model(inputs).softmax(1)[:, 1].mean() for model in (plain, weighed)]
    assert rare[1] > 1.3 * rare[0]


def test_the_range_of_rates_is_tried_with_the_loss_of_the_task() -> None:
    model = built("Perceptron", inputs=6, outputs=2)
    found = find_rate(model, numbers(200), task="regression")
    assert 1e-5 < found.suggestion < 10


# -- segmentation ------------------------------------------------------------------------------


class Pixelwise(nn.Module):
    """Scores of each pixel, and auxiliary ones, as torchvision's models give them."""

    def __init__(self, *, auxiliary: bool = True) -> None:
        super().__init__()
        self.main, self.aside = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)
        self.auxiliary = auxiliary

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = {"out": self.main(images)}
        return outputs | ({"aux": self.aside(images)} if self.auxiliary else {})


def pixelwise(**arguments: Any) -> Pixelwise:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Pixelwise(**arguments)


SEGMENT: dict[str, Any] = {"task": "segmentation", "epochs": 2, "lr": 0.05, "batch_size": 4}


def test_the_auxiliary_classifier_counts_half_and_only_while_training() -> None:
    def reference(outputs: Any, batch: Batch) -> torch.Tensor:
        # references/segmentation/train.py of torchvision
        losses = [
            functional.cross_entropy(item, batch.targets, ignore_index=255)
            for item in outputs.values()
        ]
        return losses[0] + 0.5 * losses[1]

    data = scenes(8), scenes(4, 1)
    # Plain steps: one that scales its gradients would hide what a loss counts for.
    how: dict[str, Any] = SEGMENT | {"optimizer": "sgd"}
    ours = finetune(pixelwise(), *data, **how)
    theirs = finetune(pixelwise(), *data, **how, loss=reference)
    for name, value in weights(ours.model).items():
        assert torch.allclose(value, theirs.model.state_dict()[name], atol=1e-6), name
    moved, kept = ours.model.state_dict(), pixelwise().state_dict()
    assert not moved["aside.weight"].equal(kept["aside.weight"])
    with torch.no_grad():
        images, masks = data[1]
        out = ours.model(images)["out"]
    held_out = functional.cross_entropy(out, masks, ignore_index=255)
    assert ours.metrics["loss"] == pytest.approx(float(held_out), rel=1e-5)


def test_ignored_pixels_change_nothing() -> None:
    images, masks = scenes(8)
    noisy = images.clone()
    noisy[(masks == 255).unsqueeze(1).expand_as(images)] = 9.0
    plain = finetune(pixelwise(auxiliary=False), (images, masks), **SEGMENT)
    other = finetune(pixelwise(auxiliary=False), (noisy, masks), **SEGMENT)
    assert same(plain.model, other.model)
    ignored = torch.full_like(masks, 255)
    ignored[:4] = masks[:4]  # whole batches without a pixel that counts
    result = finetune(pixelwise(), (images, ignored), **SEGMENT)
    assert all(np.isfinite(row["train_loss"]) for row in result.history)


# -- wrong targets -----------------------------------------------------------------------------

TEN = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
WRONG: dict[str, tuple[str, Any, Any, str, str]] = {
    # model, targets, task, code, what is said
    "a lone row of numbers": ("P1", torch.zeros(10), "regression", "PL802", "targets[:, None]"),
    "numbers too many": ("P2", torch.zeros(10, 3), "regression", "PL802", "(N, 3)"),
    "a row too many": ("P1", torch.zeros(10, 1, 1), "regression", "PL802", "outputs' shape"),
    "numbers that are none": (
        "P1",
        torch.full((10, 1), torch.nan),
        "regression",
        "PL802",
        "finite",
    ),
    "a label beyond": ("P2", torch.arange(10) % 3, None, "PL808", "0 to 2 for 2 classes (3"),
    "a negative label": ("P2", torch.arange(10) % 2 - 1, None, "PL808", "-1 to 0"),
    "a column of labels": ("P2", torch.zeros(10, 1).long(), None, "PL802", "targets[:, 0]"),
    "fractions as labels": ("P2", torch.rand(10), None, "PL802", "regression"),
    "numbers as probabilities": ("P2", TEN[:, :2], None, "PL808", "no probabilities"),
    "one output for classes": ("P1", torch.zeros(10).long(), None, "PL802", "two classes"),
    "labels of one": ("P2", torch.ones(10).long(), "multilabel", "PL802", "(N)"),
    "labels of two": ("P2", torch.full((10, 2), 2), "multilabel", "PL808", "not 0 or 1"),
    "labels too many": ("P2", torch.ones(10, 3).long(), "multilabel", "PL802", "(N, 3)"),
    "a mapping for one head": ("P2", {"a": torch.zeros(10).long()}, None, "PL802", "task="),
    "two tensors for one head": ("P2", (torch.zeros(10).long(),) * 2, None, "PL802", "task="),
    "no such head": ("T", {"kind": torch.zeros(10).long()}, HEADS, "PL802", "'size'"),
    "no such output": (
        "T",
        {"kind": torch.zeros(10).long(), "age": torch.zeros(10, 1)},
        {"kind": "classification", "age": "regression"},
        "PL802",
        "no 'age'",
    ),
    "one output for heads": (
        "P2",
        {"a": TEN, "b": TEN},
        dict.fromkeys("ab", "regression"),
        "PL802",
        "one tensor",
    ),
}


def wrong_model(name: str) -> nn.Module:
    if name == "T":
        return built("TwoHeads")
    return built("Perceptron", inputs=6, outputs=int(name[1:]))


@pytest.mark.parametrize("name", WRONG)
def test_targets_that_a_task_cannot_mean_are_refused_before_the_first_step(name: str) -> None:
    which, targets, task, code, text = WRONG[name]
    model = wrong_model(which)
    before, mode = weights(model), model.training
    with pytest.raises(PersistlibError) as caught:
        finetune(model, (TEN, targets), task=task, epochs=1, lr=0.1)
    assert caught.value.code == code
    assert text in f"{caught.value.reason} {caught.value.remedy}"
    assert nests.equal(before, weights(model))
    assert model.training is mode


@pytest.mark.parametrize(
    ("masks", "code", "text"),
    [
        (torch.zeros(4, 16, 16).long(), "PL802", "(N, 16, 16)"),
        (torch.zeros(4, 1, 32, 32).long(), "PL802", "(samples, height, width)"),
        (torch.zeros(4, 32, 32), "PL802", "whole number"),
        (torch.full((4, 32, 32), 7), "PL808", "7 to 7 for 2 classes"),
        (torch.full((4, 32, 32), -1), "PL808", "-1 to -1"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks: torch.Tensor, code: str, text: str) -> None:
    with pytest.raises(PersistlibError) as caught:
        finetune(pixelwise(), (scenes(4)[0], masks), **SEGMENT)
    assert caught.value.code == code
    assert text in f"{caught.value.reason} {caught.value.remedy}"


def test_every_fault_of_both_data_sets_is_reported_together() -> None:
    inputs, targets = headed(20)
    bad = {"kind": targets["kind"] + 1, "size": targets["size"][:, 0]}
    worse = {"kind": targets["kind"], "size": targets["size"] * torch.nan}
    with pytest.raises(PersistlibError) as caught:
        finetune(built("TwoHeads"), (inputs, bad), (inputs, worse), **TWO)
    found = {(item.code, item.location) for item in caught.value.findings}
    assert found == {
        ("PL808", "train: targets.kind"),
        ("PL802", "train: targets.size"),
        ("PL802", "valid: targets.size"),
    }


def test_a_wrong_target_far_into_a_data_set_names_its_batch() -> None:
    samples = [
        (row, torch.tensor(n % 2 if n < 90 else 5)) for n, row in enumerate(TEN.repeat(10, 1))
    ]
    with pytest.raises(PersistlibError, match="for 2 classes") as caught:
        finetune(built("Perceptron", inputs=6, outputs=2), samples, epochs=1, lr=0.1, batch_size=10)
    assert caught.value.code == "PL808"
    assert "epoch 1, batch" in caught.value.location


def test_of_arrays_every_target_is_looked_at_before_the_first_step() -> None:
    inputs = TEN.repeat(10, 1)
    labels = torch.arange(100) % 2
    labels[97] = 5
    with pytest.raises(PersistlibError, match=r"0 to 5 for 2 classes \(1 outside") as caught:
        finetune(built("Perceptron", inputs=6, outputs=2), (inputs, labels), epochs=1, lr=0.1)
    assert caught.value.location == "train: targets"


@pytest.mark.parametrize(
    "targets",
    [
        [{"boxes": torch.zeros(n, 4), "labels": torch.zeros(n)} for n in range(1, 11)],
        {"a": torch.zeros(10), "b": torch.zeros(9)},
        {"a": torch.tensor(1.0)},
        {"a": ["cat"] * 10},
        {},
    ],
    ids=["boxes", "lengths", "no rows", "texts", "nothing"],
)
def test_targets_of_no_form_are_refused(targets: Any) -> None:
    with pytest.raises(PersistlibError) as caught:
        finetune(built("TwoHeads"), (TEN, targets), **TWO)
    assert caught.value.code == "PL802"


def test_boxes_in_batches_are_refused_by_what_they_are() -> None:
    class Boxes:
        def __iter__(self) -> Iterator[Any]:
            yield TEN, [{"boxes": torch.zeros(2, 4)} for _ in range(10)]

    with pytest.raises(PersistlibError, match="detection"):
        finetune(built("TwoHeads"), Boxes(), **TWO)


# -- figures of an epoch -----------------------------------------------------------------------


def test_the_figures_of_an_epoch_are_those_of_all_its_samples_at_once() -> None:
    result = finetune(built("TwoHeads"), headed(40), headed(33, 1), **TWO)
    inputs, targets = headed(33, 1)
    with torch.no_grad():
        outputs = result.model(inputs)
    off = outputs["size"] - targets["size"]
    assert result.metrics["size_mse"] == pytest.approx(float(off.square().mean()), rel=1e-5)
    assert result.metrics["size_mae"] == pytest.approx(float(off.abs().mean()), rel=1e-5)
    right = (outputs["kind"].argmax(1) == targets["kind"]).float().mean()
    assert result.metrics["kind_accuracy"] == pytest.approx(float(right))


def test_the_figures_of_labels_and_pixels_are_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    scores, truth = torch.randn(30, 4, generator=generator), torch.randint(0, 2, (30, 4))
    tally = Tally((Head("", "multilabel"),))
    for part in range(3):
        rows = slice(10 * part, 10 * part + 10)
        tally.add(0.5, scores[rows], Batch(None, truth[rows]))
    known = metrics.f1_score(truth.flatten(), (scores > 0).flatten())
    assert tally.result() == {"loss": 0.5, "f1": pytest.approx(known)}
    pixels = torch.randn(6, 3, 5, 5, generator=generator)
    masks = torch.randint(0, 3, (6, 5, 5), generator=generator)
    masks[:, 0] = 255
    tally = Tally((Head("", "segmentation"),))
    tally.add(1.0, {"aux": None, "out": pixels}, Batch(None, masks))
    counted = masks != 255
    said = pixels.argmax(1)[counted]
    overlap = metrics.jaccard_score(masks[counted], said, average="macro")
    right = metrics.accuracy_score(masks[counted], said)
    found = {"loss": 1.0, "accuracy": pytest.approx(right), "iou": pytest.approx(overlap)}
    assert tally.result() == found


def test_the_record_says_the_heads_as_finetune_takes_them() -> None:
    model = built("TwoHeads")
    record = finetune(model, headed(20), **TWO).training.strategy
    assert json.loads(json.dumps(record["task"])) == HEADS
    assert record["loss"] == {"kind": "cross_entropy", "size": "mse"}
    said: dict[str, Any] = TWO | {"task": record["task"]}
    again = finetune(built("TwoHeads"), headed(20), **said)
    assert same(model, again.model)


def test_a_part_that_answers_otherwise_in_training_is_no_stand_in() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.heads = nn.Linear(6, 16), Heads(16, 3, 2)

        def forward(self, x: torch.Tensor) -> Any:
            named = self.heads(self.body(x))
            return {**named, "aside": named["kind"]} if self.training else named

    model = Net()
    how: dict[str, Any] = TWO | {"freeze": ["*", "!heads.*"]}
    result = finetune(copy.deepcopy(model), headed(40), **how)
    assert result.training.strategy["cached_before"] is None
