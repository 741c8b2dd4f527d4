"""A linear layer in float64 at the end of a model of another dtype."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class WideLinear(nn.Module):
    """Computes in float64 whatever it is given: `double(inputs) @ weight.T + bias`.

    Attributes:
        in_features: numbers that go in, a sample.
        out_features: numbers that come out.
        weight: (out, in), float64.
        bias: (out,), float64.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.zeros(out_features, in_features, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=torch.float64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the outputs, float64."""
        return functional.linear(inputs.double(), self.weight, self.bias)
