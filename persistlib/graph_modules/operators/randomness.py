"""Random values, from torch's own generators."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from persistlib.graph_modules.dtypes import torch_dtype
from persistlib.graph_modules.registry import Call, operator
from persistlib.graph_modules.sizes import require_size

if TYPE_CHECKING:
    from torch import Tensor


def _dtype(call: Call, default: torch.dtype) -> torch.dtype:
    return torch_dtype(call.get("dtype", 0)) or default


def _normal(call: Call, zeros: Tensor) -> Tensor:
    return torch.randn_like(zeros) * float(call.get("scale", 1.0)) + float(call.get("mean", 0.0))


def _uniform(call: Call, zeros: Tensor) -> Tensor:
    low, high = float(call.get("low", 0.0)), float(call.get("high", 1.0))
    return torch.rand_like(zeros) * (high - low) + low


def _shaped(call: Call) -> Tensor:
    require_size(call, call.get("shape"))
    return torch.empty(tuple(call.get("shape")), dtype=_dtype(call, torch.float32))


@operator("RandomNormal")
def random_normal(call: Call) -> Tensor:
    """Return values of a normal distribution."""
    return _normal(call, _shaped(call))


@operator("RandomUniform")
def random_uniform(call: Call) -> Tensor:
    """Return values between two bounds."""
    return _uniform(call, _shaped(call))


@operator("RandomNormalLike")
def random_normal_like(call: Call, x: Tensor) -> Tensor:
    """Return values of a normal distribution, in a tensor's shape."""
    return _normal(call, torch.empty_like(x, dtype=_dtype(call, x.dtype)))


@operator("RandomUniformLike")
def random_uniform_like(call: Call, x: Tensor) -> Tensor:
    """Return values between two bounds, in a tensor's shape."""
    return _uniform(call, torch.empty_like(x, dtype=_dtype(call, x.dtype)))


@operator("Bernoulli")
def bernoulli(call: Call, x: Tensor) -> Tensor:
    """Return ones with the probabilities given, and zeros."""
    return torch.bernoulli(x).to(_dtype(call, x.dtype))


@operator("Multinomial")
def multinomial(call: Call, x: Tensor) -> Tensor:
    """Return classes drawn by their unnormalised log probabilities."""
    count = call.get("sample_size", 1)
    require_size(call, (x.shape[0], count), x)
    drawn = torch.multinomial(x.softmax(-1), count, replacement=True)
    return drawn.to(_dtype(call, torch.int32))
