"""Modules of our own that the architecture tests save: each keeps its state in another odd way."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations


def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def halved(x: torch.Tensor) -> torch.Tensor:
    return x / 2


class Net(nn.Module):
    """Arguments kept in attributes, and one that is not."""

    def __init__(self, width: int, activation: Any = doubled, depth: int = 2) -> None:
        super().__init__()
        self.width = width
        self.activation = activation
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.scales = [1.0, 2.0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, scale in zip(self.layers, self.scales, strict=False):
            x = self.activation(layer(x)) * scale
        return x


class Forgetful(nn.Module):
    """Keeps nothing of a required argument."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, 2)


class Random(nn.Module):
    """A random buffer that no state_dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("noise", torch.randn(4), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noise: torch.Tensor = self.noise  # type: ignore[assignment]
        out: torch.Tensor = self.layer(x) + noise
        return out


class FromParameter(nn.Module):
    """A buffer computed from a parameter, and a number read from one."""

    def __init__(self, *, reading: bool = False) -> None:
        super().__init__()
        self.reading = reading
        self.layer = nn.Linear(4, 4)
        self.register_buffer("total", self.layer.weight.detach().sum(0), persistent=False)
        if reading:
            self.limit = float(self.layer.weight.detach().abs().max() * 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = self.total  # type: ignore[assignment]
        out: torch.Tensor = self.layer(x) * total
        return out


class Tied(nn.Module):
    """One parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.embedding(x))
        return out


class Normed(nn.Module):
    """Parametrized by its own constructor."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = parametrizations.orthogonal(nn.Linear(6, 4))
        self.scale = parametrizations.weight_norm(nn.Linear(4, 4))
        self.bound = parametrizations.spectral_norm(nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.bound(self.scale(self.turn(x)))
        return out


class Closure(nn.Module):
    """A lambda of its own constructor, over a value that nothing else keeps."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.act: Any = lambda x: x * factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.act(self.layer(x))
        return out


class Setting:
    """A plain object that steers a module."""

    def __init__(self, factor: float) -> None:
        self.factor = factor


class Steered(nn.Module):
    """Holds a plain object."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.setting = Setting(2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x) * self.setting.factor
        return out


class Hidden(nn.Module):
    """A layer in a plain list, where torch does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.others = [nn.Linear(3, 3)]


GLOBAL = {"factor": 1.0}


class Global(nn.Module):
    """Depends on what is outside of it, and says so nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out


class Forking(nn.Module):
    """Draws from every generator while it is made."""

    def __init__(self) -> None:
        super().__init__()
        import random

        import numpy as np

        self.layer = nn.Linear(3, 3)
        self.first = random.random()
        self.second = float(np.random.rand())  # noqa: NPY002 - what older modules draw from


def make(width: int = 5) -> Net:
    return Net(width, functools.partial(torch.add, alpha=1) if width < 0 else halved)


def not_a_module() -> int:
    return 3


def raising() -> nn.Module:
    raise RuntimeError("no luck")
