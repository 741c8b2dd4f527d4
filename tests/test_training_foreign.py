"""Models, losses and metrics of others' making: what they give counts whole, or has a name."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from persistlib.errors import PersistlibError
from persistlib.training import nests
from persistlib.training.loop import Folder, finetune
from persistlib.training.rates import find_rate

if TYPE_CHECKING:
    from pathlib import Path

ARGS: dict[str, Any] = {"epochs": 1, "lr": 0.02, "batch_size": 8}


def samples(count: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 6, generator=generator), torch.arange(count) % 3


@dataclass(frozen=True)
class Answer:
    size: torch.Tensor
    logits: torch.Tensor
    penalty: torch.Tensor
    cache: object = None


class Answering(nn.Module):
    """Answers with a dataclass, as many models of others do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 4)

    def forward(self, rows: torch.Tensor) -> Answer:
        out = self.layer(rows)
        return Answer(out[:, 3:], out[:, :3], out.square().mean(), object())


def test_of_a_dataclass_the_logits_answer() -> None:
    inputs, labels = samples()
    plain = copy.deepcopy(Answering())
    found = finetune(Answering(), (inputs, labels), (inputs, labels), **ARGS)

    def loss(outputs: Answer, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs.logits, batch.targets, label_smoothing=0.1)

    known = finetune(plain, (inputs, labels), (inputs, labels), loss=loss, **ARGS)
    assert all(map(torch.equal, found.model.parameters(), known.model.parameters()))
    assert found.metrics["accuracy"] == known.metrics["accuracy"]


def test_metrics_are_given_the_outputs_of_all_samples_whatever_holds_them() -> None:
    inputs, labels = samples()
    targets = {"logits": labels, "size": torch.zeros(20, 1)}
    seen: list[Answer] = []

    def metric(outputs: Answer, _: Any) -> float:
        seen.append(outputs)
        return 1.0

    task = {"logits": "classification", "size": "regression"}
    data = (inputs, targets)
    model = finetune(Answering(), data, data, task=task, metrics={"m": metric}, **ARGS).model
    ((whole,), known) = seen, model(inputs)
    assert isinstance(whole, Answer)
    assert torch.allclose(whole.logits, known.logits, atol=1e-6)
    assert torch.allclose(whole.size, known.size, atol=1e-6)
    assert whole.penalty.shape == (3,)  # one a batch
    assert whole.cache is None  # nobody knows how to join it


def test_what_is_done_to_a_nest_is_done_in_a_dataclass_and_leaves_it_alone() -> None:
    given = Answer(torch.zeros(2, 1), torch.ones(2, 3), torch.tensor(1.0), "kept")
    made = nests.each(lambda item: item + 1, {"a": [given]})
    assert nests.equal(made["a"][0].logits, torch.full((2, 3), 2.0))
    assert made["a"][0].cache == "kept"
    assert given.logits.equal(torch.ones(2, 3))
    assert [path for path, _ in nests.leaves({"a": given})][:2] == ["a.size", "a.logits"]


class Bag(nn.Module):
    """Words whose gradients are sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.EmbeddingBag(9, 4, sparse=True, mode="sum"), nn.Linear(4, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.words(tokens))
        return scores


def refusal(model: Any, inputs: torch.Tensor | None = None, **how: Any) -> PersistlibError:
    own, labels = samples()
    data = (own if inputs is None else inputs, labels)
    with pytest.raises(PersistlibError) as caught:
        finetune(model, data, data, **ARGS | how)
    return caught.value


def test_what_an_optimizer_refuses_is_told_as_the_optimizers() -> None:
    tokens = torch.arange(60).reshape(20, 3) % 9
    fault = refusal(Bag(), tokens)
    assert (fault.code, fault.location) == ("PL901", "optimizer adamw")
    assert "epoch 1, batch 1: Adam does not support sparse gradients" in fault.reason
    how: dict[str, Any] = {"optimizer": "sgd", "weight_decay": 0.0}
    assert finetune(Bag(), (tokens, samples()[1]), **ARGS, **how).history
    assert refusal(Bag(), tokens, optimizer="sgd").location == "optimizer sgd"


def test_a_state_that_no_checkpoint_holds_is_refused_by_name(tmp_path: Path) -> None:
    tokens = torch.arange(60).reshape(20, 3) % 9
    how: dict[str, Any] = {"optimizer": "sgd", "weight_decay": 0.0}
    fault = refusal(Bag(), tokens, folder=Folder(path=tmp_path / "run"), **how)
    assert "momentum_buffer" in fault.reason


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_modules_in_which_nothing_can_be_frozen_or_trained_are_refused() -> None:
    scripted: Any = torch.jit.trace(nn.Linear(6, 3), samples()[0])  # type: ignore[no-untyped-call]
    assert refusal(nn.Sequential(scripted)).code == "PL321"
    with torch.inference_mode():
        fixed = nn.Linear(6, 3)
    fault = refusal(fixed)
    assert (fault.code, fault.location) == ("PL901", "weight")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("loss", 1.0, "is what the held-out loss is called"),
        ("m", "much", "it gives a str, not one number"),
        ("m", torch.ones(20), "it gives a Tensor of shape (20,), not one number"),
    ],
)
def test_metrics_that_are_none_are_refused(name: str, value: Any, text: str) -> None:
    fault = refusal(nn.Linear(6, 3), metrics={name: lambda *_: value})
    assert fault.location == f"metrics.{name}"
    assert text in fault.reason


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_model_that_cannot_be_copied_is_told_so() -> None:
    model = nn.utils.weight_norm(nn.Linear(6, 3))
    model(samples()[0])
    with pytest.raises(PersistlibError, match="cannot be copied"):
        find_rate(model, samples())
