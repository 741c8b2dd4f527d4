"""Small networks described by plain values, to be exported and found again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

# A unit of a stage: channels, kernel, whether BatchNorm and whether ReLU follow.
Unit = tuple[int, int, bool, bool]


class Branching(nn.Module):
    """Stages of parallel chains of convolutions, whose results are joined or summed."""

    def __init__(self, stages: Sequence[Any], classes: int, channels: int = 2) -> None:
        super().__init__()
        self.joins = [join for join, _ in stages]
        self.stages = nn.ModuleList()
        for join, branches in stages:
            made = [self._branch(channels, branch) for branch in branches]
            self.stages.append(nn.ModuleList(made))
            widths = [branch[-1][0] for branch in branches]
            channels = sum(widths) if join == "cat" else widths[0]
        self.head = nn.Linear(channels, classes)

    @staticmethod
    def _branch(channels: int, units: Sequence[Unit]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for width, kernel, is_normed, is_rectified in units:
            layers.append(
                nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=not is_normed)
            )
            layers += [nn.BatchNorm2d(width)] if is_normed else []
            layers += [nn.ReLU()] if is_rectified else []
            channels = width
        return nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for join, stage in zip(self.joins, self.stages, strict=True):
            assert isinstance(stage, nn.ModuleList)
            parts = [branch(x) for branch in stage]
            x = torch.cat(parts, 1) if join == "cat" else torch.stack(parts).sum(0)
        features: torch.Tensor = self.head(x.mean((2, 3)))
        return features


class Separate(nn.Module):
    """Attention with a matrix each for query, key and value."""

    def __init__(self, width: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.head = nn.Linear(width, width), nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _attended(self.query(x), self.key(x), self.value(x), self.head)


class Packed(nn.Module):
    """The same with one matrix for the three."""

    def __init__(self, width: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.packed, self.head = nn.Linear(width, 3 * width), nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.packed(x).chunk(3, -1)
        return _attended(query, key, value, self.head)


def _attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, head: nn.Linear
) -> torch.Tensor:
    mixed = torch.softmax(query @ key.transpose(1, 2), -1) @ value
    made: torch.Tensor = head(mixed.mean(1))
    return made


def trained(module: nn.Module, *shape: int, seed: int = 3) -> nn.Module:
    """Return the module with weights of every kind drawn, and statistics of its own values."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator)

    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim < 2 and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * drawn(parameter))
            else:
                parameter.add_(0.1 * drawn(parameter))
        module.train()
        for layer in module.modules():
            if isinstance(layer, nn.Dropout):
                layer.eval()
        for norm in norms:
            norm.momentum = None  # the mean of all that is seen
        module(torch.randn(shape, generator=generator))
    return module.eval()
