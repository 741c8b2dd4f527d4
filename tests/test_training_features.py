"""The frozen front is run once where that is the same, and only there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from persistlib.training.loop import finetune


def front() -> nn.Sequential:
    # The pooling changes nothing; it lets the classifier work in place.
    layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers)


class Net(nn.Module):
    """A frozen front and a classifier of its own, as torchvision's are built."""

    def __init__(self, *, noise: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.front = front()
        self.noise = nn.Dropout(noise) if noise else nn.Identity()
        self.classifier = nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(64, 3))
        self.scale = scale
        self.runs = 0
        self.front.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.runs += 1

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
    assert model.runs < 12


def moving() -> Net:
    model = net()
    model.front[1] = nn.BatchNorm2d(4, affine=False)
    return model


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        (net(noise=0.5), {}),
        (net(noise=1e-9), {}),  # draws numbers, though nothing is dropped
        (net(scale=2.0), {}),  # what the part returns is not what the model returns
        (moving(), {"freeze": ["front.0.*"]}),  # statistics that no pattern holds
        (net(), {"freeze": ["front.0.*"]}),
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
    monkeypatch.setattr("persistlib.training.features._MEMORY", 64 * 4 * 48 - 1)
    assert finetune(net(), samples(), **ARGS).training.strategy["cached_before"] is None
    monkeypatch.setattr("persistlib.training.features._MEMORY", 64 * 4 * 48)
    assert finetune(net(), samples(), **ARGS).training.strategy["cached_before"] == "classifier"
