"""Modules as a user would define them: what the saving and loading tests are tried on.

Each class keeps its constructor's arguments in attributes of the same names, in a module that
another process can import.
"""

from __future__ import annotations

import collections
import functools
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self, words: int = 11, width: int = 6) -> None:
        super().__init__()
        self.words = words
        self.width = width
        self.embedding = nn.Embedding(words, width)
        self.rnn = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.rnn(self.embedding(tokens))[0]
        logits: torch.Tensor = self.head(hidden)
        return logits


class Noisy(nn.Module):
    """Holds a random projection that no state_dict keeps."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.width = width
        self.projection: torch.Tensor
        self.register_buffer("projection", torch.randn(width, width), persistent=False)
        self.linear = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(x @ self.projection)
        return result


class Positions(nn.Module):
    """Holds a table that building makes the same each time, and no state_dict keeps."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.width = width
        self.table: torch.Tensor
        self.register_buffer("table", torch.linspace(0, 1, width), persistent=False)
        self.linear = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(x + self.table)
        return result


class Derived(nn.Module):
    """Has a buffer computed from a parameter while it is built."""

    def __init__(self, width: int = 4, *, persistent: bool = True) -> None:
        super().__init__()
        self.width = width
        self.persistent = persistent
        self.linear = nn.Linear(width, width)
        self.scale: torch.Tensor
        norms = self.linear.weight.detach().abs().sum(1)
        self.register_buffer("scale", norms, persistent=persistent)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(x) * self.scale
        return result


class Attributes(nn.Module):
    """Keeps tensors in plain attributes: in lists, tuples and dicts of every kind of key."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Linear(width, width)
        self.shift = torch.randn(width)
        self.again = self.shift
        self.pieces = [torch.randn(width), torch.randn(width)]
        self.pair = (torch.randn(width), torch.ones(width))
        self.named: dict[str, Any] = {"low": torch.randn(width), "high": [torch.randn(width)]}
        self.keyed = {8: torch.randn(width), "a.b": torch.randn(width), "": torch.randn(width)}
        self.own = [self.linear.weight]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(x) + self.shift + self.pieces[0] * self.pieces[1]
        result = result + self.pair[0] * self.pair[1] + self.named["low"] - self.named["high"][0]
        return result * self.keyed[8] + self.keyed["a.b"] * self.again - self.keyed[""]


class Hidden(nn.Module):
    """Keeps a tensor where nothing that is saved leads to."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.linear = nn.Linear(3, 3)
        tensor = torch.randn(3)
        self.box: Any = {
            "set": {tensor},
            "deque": collections.deque([tensor]),
            "partial": functools.partial(torch.add, other=tensor),
            "array": tensor.numpy(),
            "instance": Box(tensor),
            "leaf": tensor.requires_grad_(),
            "parameter": [nn.Parameter(tensor)],
        }[kind]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(x)
        return result


class Box:
    """Holds something."""

    def __init__(self, content: torch.Tensor) -> None:
        self.content = content


class Seven(nn.Module):
    """Each way of deriving a weight from others, side by side."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.width = width
        self.orthogonal = parametrizations.orthogonal(nn.Linear(width, width))
        self.weight_norm = parametrizations.weight_norm(nn.Linear(width, width))
        self.spectral_norm = parametrizations.spectral_norm(nn.Linear(width, width))
        self.old_weight_norm = old_weight_norm(nn.Linear(width, width))
        self.old_spectral_norm = old_spectral_norm(nn.Linear(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            x = x + torch.tanh(layer(x))
        return x


class Symmetric(nn.Module):
    """A parametrization of our own."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.triu() + weight.triu(1).transpose(-1, -2)


class Parametrized(nn.Module):
    """Uses a parametrization of our own."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Linear(width, width)
        parametrize.register_parametrization(self.linear, "weight", Symmetric())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(x)
        return result


class ConvNet(nn.Module):
    """A small convolutional net with BatchNorm, dropout and everything that a mode changes."""

    def __init__(self, channels: int = 6, classes: int = 4, drop: float = 0.25) -> None:
        super().__init__()
        self.channels = channels
        self.classes = classes
        self.drop = drop
        self.features = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, channels, 3, groups=2),
            nn.GroupNorm(2, channels),
        )
        self.dropout = nn.Dropout(drop)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = functional.relu(self.features(x)).mean((2, 3))
        logits: torch.Tensor = self.fc(self.dropout(features))
        return logits


class Outputs(nn.Module):
    """Takes two inputs, writes into one, and returns a dict that holds a tuple."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.width = width
        self.left = nn.Linear(width, width)
        self.right = nn.Bilinear(width, width, 2)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, Any]:
        b = b.mul_(2) if not self.training else b
        return {"sum": self.left(a) + b, "both": (self.right(a, b), self.left(b))}


class Shared(nn.Module):
    """Runs one child under two names, and keeps its children in containers."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.width = width
        self.first = nn.Linear(width, width)
        self.again = self.first
        self.items = nn.ModuleDict({"b": nn.Linear(width, width), "a": nn.PReLU(width)})
        self.weights = nn.ParameterList([torch.randn(width), torch.randn(width)])
        self.nothing = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.items["a"](self.items["b"](self.again(torch.tanh(self.first(x)))))
        result: torch.Tensor = x * self.weights[0] + self.weights[1]
        return result


class Scalars(nn.Module):
    """Holds scalars, empty tensors, integers and booleans."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.mask: torch.Tensor
        self.count: torch.Tensor
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("absent", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(self.mask, x * self.gain, x - self.count) + self.empty.sum()


class Kinds(nn.Module):
    """Holds tensors of every dtype that torch and a file share."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.width = width
        self.short = nn.Linear(width, width).half()
        self.norm = nn.LayerNorm(width)
        self.long = nn.Linear(width, 3).double()
        names = "uint8 int8 uint16 int16 int32 uint32 int64 uint64 float16 bfloat16 float64"
        for name in f"{names} float8_e4m3fn float8_e5m2 complex64 bool".split():
            values = torch.arange(4).to(getattr(torch, name))
            self.register_buffer(f"of_{name}", values)
        self.brain = nn.Parameter(torch.ones(2, dtype=torch.bfloat16), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.long(self.norm(self.short(x.half()).float()).double())
        return result


class Small(nn.Module):
    """Has a little of everything that a bundle keeps: for trials of every byte of one."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.width = width
        self.conv = nn.Conv1d(2, width, 2)
        self.norm = nn.BatchNorm1d(width)
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.mask: torch.Tensor
        self.noise: torch.Tensor
        self.steps: torch.Tensor
        self.register_buffer("mask", torch.tensor([True, False, True, True]))
        self.register_buffer("noise", torch.randn(width), persistent=False)
        self.register_buffer("steps", torch.arange(3, dtype=torch.uint8) * 3, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.conv(x)).mean(2)
        hidden = torch.where(self.mask, torch.tanh(self.first(hidden)), hidden)
        result: torch.Tensor = self.second(hidden + self.noise) * self.steps.sum()
        return result
