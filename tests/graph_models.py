"""Modules whose state an exporter would rather fold, rename, merge or drop.

Each keeps its constructor's arguments in attributes of the same names, in a module that another
process can import.
"""

from __future__ import annotations

import torch
from torch import nn


class Language(nn.Module):
    """A language model: embedding, causal attention, and a head that is the embedding."""

    def __init__(self, words: int = 23, width: int = 8, longest: int = 12) -> None:
        super().__init__()
        self.words = words
        self.width = width
        self.longest = longest
        self.tokens = nn.Embedding(words, width)
        self.places = nn.Embedding(longest, width)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mask: torch.Tensor
        later = torch.ones(longest, longest, dtype=torch.bool).triu(1)
        self.register_buffer("mask", later, persistent=False)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        length = tokens.shape[1]
        hidden = self.tokens(tokens) + self.places.weight[:length]
        mask = self.mask[:length, :length]
        normed = self.norm(hidden)
        hidden = hidden + self.attention(normed, normed, normed, attn_mask=mask)[0]
        logits: torch.Tensor = self.head(hidden)
        return logits


class Recurrent(nn.Module):
    """Two layers of an LSTM, read in both directions."""

    def __init__(self, width: int = 4, hidden: int = 5, *, batch_first: bool = True) -> None:
        super().__init__()
        self.width = width
        self.hidden = hidden
        self.batch_first = batch_first
        self.lstm = nn.LSTM(
            width, hidden, num_layers=2, bidirectional=True, batch_first=batch_first
        )
        self.head = nn.Linear(2 * hidden, 3)

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.lstm(steps)[0])
        return scores


class Pair(nn.Module):
    """Takes two inputs and returns a dict; one of its parameters is called as an input is."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.width = width
        self.left = nn.Linear(width, width)
        self.mask = nn.Parameter(torch.randn(width))
        self.bilinear = nn.Bilinear(width, width, 2)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": self.left(x) * self.mask + mask, "both": self.bilinear(x, mask)}


class Gated(nn.Module):
    """Gates at zero, bounds in buffers, a rotation in complex numbers, and a head for training."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.width = width
        self.branch = nn.Linear(width, width)
        self.gate = nn.Parameter(torch.zeros(()))
        self.gates = nn.Parameter(torch.zeros(width))
        self.ones = nn.Parameter(torch.ones(width))
        self.low: torch.Tensor
        self.high: torch.Tensor
        self.turn: torch.Tensor
        self.calls: torch.Tensor
        self.register_buffer("low", torch.tensor(-1.5))
        self.register_buffer("high", torch.linspace(0.5, 2, width))
        self.register_buffer("turn", torch.polar(torch.ones(width), torch.arange(float(width))))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.auxiliary = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
        hidden = x * self.ones + self.gate * self.branch(x) + self.gates * x.square()
        hidden = torch.clamp(hidden, self.low, self.high)
        return torch.view_as_real(hidden * self.turn).flatten(-2)


class Normed(nn.Module):
    """BatchNorm with statistics, twins of equal values, a weight of two parts, odd strides."""

    def __init__(self, channels: int = 4, *, twice: bool = True) -> None:
        super().__init__()
        self.channels = channels
        self.twice = twice
        self.conv = nn.Conv2d(3, channels, 3, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.again = nn.BatchNorm2d(channels)
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(channels, 3))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.norm(self.conv(image)))
        hidden = self.again(hidden) if self.twice else hidden
        scores: torch.Tensor = self.head(hidden.mean((2, 3)))
        return scores


class Remembering(nn.Module):
    """A random projection outside the state_dict, and a table that building makes again."""

    def __init__(self, width: int = 5, wide: int = 7) -> None:
        super().__init__()
        self.width = width
        self.wide = wide
        self.projection: torch.Tensor
        self.table: torch.Tensor
        self.register_buffer("projection", torch.randn(width, wide), persistent=False)
        self.register_buffer("table", torch.linspace(-1, 1, width), persistent=False)
        self.shift = [torch.randn(wide), {"scale": torch.randn(wide)}]
        self.linear = nn.Linear(wide, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.shift
        assert isinstance(first, torch.Tensor)
        assert isinstance(second, dict)
        hidden = (x + self.table) @ self.projection + first * second["scale"]
        result: torch.Tensor = self.linear(hidden)
        return result


class Logarithm(nn.Module):
    """Takes positive numbers alone."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(x.log())
        return result


class Tall(nn.Module):
    """One table, of any size."""

    def __init__(self, words: int = 1 << 10, width: int = 512) -> None:
        super().__init__()
        self.words = words
        self.width = width
        self.table = nn.Parameter(torch.rand(words, width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(tokens, self.table).tanh()


class Wide(nn.Module):
    """Two tables of gigabytes, nearly all zeros, and a little that is computed with them."""

    def __init__(self, words: int = 1 << 20, width: int = 16, used: int = 64) -> None:
        super().__init__()
        self.words = words
        self.width = width
        self.used = used
        self.table = nn.Parameter(torch.zeros(words, width))
        self.other = nn.Parameter(torch.zeros(words, width))
        with torch.no_grad():
            for table in (self.table, self.other):
                table[:used] = torch.randn(used, width)
                table[-1] = 1

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        first = nn.functional.embedding(tokens, self.table)
        return first * nn.functional.embedding(tokens, self.other)
