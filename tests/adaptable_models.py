"""Small networks that are adapted in the tests: each kind of first and last layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Net(nn.Module):
    """A convolutional net with BatchNorm, and a last layer of either kind."""

    def __init__(
        self,
        classes: int = 5,
        in_channels: int = 3,
        width: int = 6,
        groups: int = 1,
        head: str = "linear",
    ) -> None:
        super().__init__()
        self.classes = classes
        self.in_channels = in_channels
        self.width = width
        self.groups = groups
        self.head = head
        # Declared first, and of as many outputs as a hidden layer may have.
        self.last = {
            "linear": nn.Linear(width, classes),
            "bare": nn.Linear(width, classes, bias=False),
            "conv": nn.Conv2d(width, classes, 1),
        }[head]
        stem = nn.Conv2d(in_channels, width, 3, 2, 1, groups=groups)
        self.features = nn.Sequential(stem, nn.BatchNorm2d(width), nn.ReLU())
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.mix(self.features(x)))
        if self.head == "conv":
            scores: torch.Tensor = self.last(x).mean((2, 3)).view(-1, self.classes)
        else:
            scores = self.last(x.mean((2, 3)))
        return scores


class Clip(nn.Module):
    """Looks at a row of numbers, or at a film."""

    def __init__(self, axes: int, classes: int = 4, channels: int = 2) -> None:
        super().__init__()
        self.axes = axes
        self.classes = classes
        self.channels = channels
        kind = {1: nn.Conv1d, 3: nn.Conv3d}[axes]
        self.conv = kind(channels, 7, 3, padding=1, padding_mode="circular")
        self.fc = nn.Linear(7, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.fc(torch.tanh(self.conv(x)).flatten(2).mean(2))
        return scores


class Heads(nn.Module):
    """Two last layers: side by side, summed, or one of them for training alone."""

    def __init__(self, kind: str = "beside", classes: int = 4, others: int = 4) -> None:
        super().__init__()
        self.kind = kind
        self.classes = classes
        self.others = others
        self.body = nn.Conv2d(3, 8, 3)
        self.first = nn.Linear(8, classes)
        self.second = nn.Linear(8, others)
        self.aux = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> Any:
        x = torch.relu(self.body(x)).mean((2, 3))
        if self.kind == "beside":
            return {"a": self.first(x), "b": self.second(x)}
        if self.kind == "summed":
            return self.first(x) + self.second(torch.tanh(x))
        if self.kind == "helped" and self.training:
            return self.first(x), self.aux(x)
        return self.first(x)


class Headless(nn.Module):
    """Gives as many numbers as nothing says: its last layer is normalised by others."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.classes = classes
        self.fc = nn.Linear(3, classes)
        self.norm = nn.LayerNorm(classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.norm(self.fc(x.mean((2, 3))))
        return scores


class Centred(nn.Module):
    """Subtracts what it knows of each channel before anything else."""

    def __init__(self, classes: int = 4, *, overlooks: bool = False) -> None:
        super().__init__()
        self.classes = classes
        self.overlooks = overlooks
        self.mean: torch.Tensor
        self.register_buffer("mean", torch.tensor([0.2, 0.4, 0.6]).reshape(3, 1, 1))
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x[:, :3] if self.overlooks else x) - self.mean
        scores: torch.Tensor = self.fc(torch.relu(self.conv(x)).mean((2, 3)))
        return scores


class Choosy(nn.Module):
    """Looks at its values before it goes on."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.classes = classes
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).mean((2, 3))
        if float(x.detach().sum()) > 0:
            x = -x
        scores: torch.Tensor = self.fc(x)
        return scores


class Patches(nn.Module):
    """A transformer's beginning: two tokens, a grid of patches, and indexes into a table."""

    def __init__(self, image_size: int = 8, classes: int = 4, *, named: bool = True) -> None:
        super().__init__()
        self.image_size = image_size
        self.classes = classes
        self.named = named
        edge = image_size // 2
        self.embed = nn.Conv2d(3, 6, 2, 2)
        self.tokens = nn.Parameter(torch.randn(1, 2, 6))
        table = nn.Parameter(torch.randn(1, 2 + edge * edge, 6))
        setattr(self, "pos_embed" if named else "table", table)
        self.relative_pos_table = nn.Parameter(torch.randn((2 * edge - 1) ** 2, 6))
        self.index: torch.Tensor
        self.noise: torch.Tensor
        self.register_buffer("index", torch.arange((2 * edge - 1) ** 2))
        self.register_buffer("noise", torch.randn(6), persistent=False)
        self.head = nn.Linear(6, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.tokens.expand(len(x), -1, -1), x], 1)
        table: Any = self.pos_embed if self.named else self.table
        x = x + table + self.noise
        bias = self.relative_pos_table[self.index].mean(0)
        scores: torch.Tensor = self.head(torch.tanh(x + bias).mean(1))
        return scores


def awake(model: nn.Module, seed: int = 0) -> Any:
    """Return a model with values and BatchNorm statistics that its outputs depend on."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
                module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.2)
    return model.eval()
