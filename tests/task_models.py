"""Models of several tasks, small enough to learn something in a test; built by plain values."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import persistlib


def built(name: str, seed: int = 0, **arguments: Any) -> nn.Module:
    """Return a model of this module, or of torchvision's, its values drawn from a seed."""
    builder = name if ":" in name else f"task_models:{name}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return persistlib.build(builder, trust={"task_models"}, **arguments)


class Perceptron(nn.Module):
    """A network of two layers."""

    def __init__(self, inputs: int, outputs: int, hidden: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Dropout(0.1))
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answers: torch.Tensor = self.head(self.body(x))
        return answers


class Heads(nn.Module):
    """Two answers from the same features, by name."""

    def __init__(self, width: int, classes: int, sizes: int) -> None:
        super().__init__()
        self.kind, self.size = nn.Linear(width, classes), nn.Linear(width, sizes)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.drop(x)
        return {"kind": self.kind(x), "size": self.size(x)}


class TwoHeads(nn.Module):
    """What kind, and how large."""

    def __init__(self, inputs: int = 6, classes: int = 3, sizes: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, 16), nn.BatchNorm1d(16), nn.Tanh())
        self.heads = Heads(16, classes, sizes)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        answers: dict[str, torch.Tensor] = self.heads(self.body(x))
        return answers


class Pair(nn.Module):
    """Two answers without names."""

    def __init__(self, inputs: int = 6, classes: int = 3, sizes: int = 2) -> None:
        super().__init__()
        self.kind, self.size = nn.Linear(inputs, classes), nn.Linear(inputs, sizes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.kind(x), self.size(x)


class TextClassifier(nn.Module):
    """Embedding, places, a transformer encoder, and the mean over what is no padding."""

    def __init__(
        self, words: int = 20, classes: int = 2, width: int = 16, longest: int = 12
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width, padding_idx=0)
        self.places = nn.Parameter(torch.zeros(longest, width))
        layer = nn.TransformerEncoderLayer(
            width, nhead=2, dim_feedforward=32, dropout=0.1, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) + self.places[: tokens.shape[1]]
        x = self.encoder(x, src_key_padding_mask=mask)
        kept = (~mask).unsqueeze(-1).to(x.dtype)
        scores: torch.Tensor = self.head((x * kept).sum(1) / kept.sum(1))
        return scores


def rows(count: int, seed: int = 0, width: int = 6) -> torch.Tensor:
    """Return inputs."""
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def numbers(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs, and two numbers that follow from them."""
    x = rows(count, seed)
    return x, torch.stack([x[:, 0] - x[:, 1], x[:, 2] * 0.5 + 1], 1)


def labelled(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs, and three labels of which a sample may have any."""
    x = rows(count, seed)
    return x, torch.stack([x[:, 0] > 0, x[:, 1] > 0.3, x[:, 2] + x[:, 3] > 0], 1).long()


def headed(count: int, seed: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return inputs, and targets of two heads."""
    x = rows(count, seed)
    size = torch.stack([x[:, 0] + x[:, 1], x[:, 2] - x[:, 3]], 1)
    return x, {"kind": x[:, :3].argmax(1), "size": size}


def scenes(count: int, seed: int = 0, edge: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy images with a bright square, and masks: 1 inside, 255 on its edge."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, edge, edge, generator=generator) * 0.3
    masks = torch.zeros(count, edge, edge, dtype=torch.int64)
    corners = torch.randint(0, edge // 2, (count, 2), generator=generator).tolist()
    for image, mask, (top, left) in zip(images, masks, corners, strict=True):
        down, across = slice(top, top + edge // 2), slice(left, left + edge // 2)
        image[:, down, across] += 2
        mask[down, across] = 255
        mask[top + 1 : top + edge // 2 - 1, left + 1 : left + edge // 2 - 1] = 1
    return images, masks


def sentences(count: int, seed: int = 0) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return padded token rows with their padding, and whether word 1 comes before word 2."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 20, (count, 12), generator=generator)
    lengths = torch.randint(5, 13, (count,), generator=generator)
    labels = torch.randint(0, 2, (count,), generator=generator)
    for row, length, label in zip(tokens, lengths.tolist(), labels.tolist(), strict=True):
        first, second = torch.randperm(length, generator=generator)[:2].sort().values.tolist()
        row[first], row[second] = (1, 2) if label else (2, 1)
        row[length:] = 0
    return {"tokens": tokens, "mask": tokens == 0}, labels
