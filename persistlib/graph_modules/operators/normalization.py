"""Normalisation by statistics, stored or computed, and dropout."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from persistlib.graph_modules.registry import Call, Run, operator
from persistlib.graph_modules.sizes import ints

if TYPE_CHECKING:
    from torch import Tensor

_PER_CHANNEL = 21  # the first version of GroupNormalization whose scale is a channel's
_STATISTICS = frozenset({3, 4})
_DROPS_BY_INPUT = 12


@operator("BatchNormalization", runs=True, numbers=_STATISTICS)
def batch_normalization(
    call: Call, run: Run, x: Tensor, scale: Tensor, *rest: Tensor
) -> Tensor | tuple[Tensor, ...]:
    """Return values normalised a channel.

    In training (the module's, or the node's own) by the batch's statistics, which move the stored
    ones as torch does; else by the stored ones.
    """
    bias, mean, variance = rest
    epsilon, kept = call.get("epsilon", 1e-5), call.get("momentum", 0.9)
    if call.get("spatial", 1) == 0:
        scaled: Tensor = (x - mean) / (variance + epsilon).sqrt() * scale
        return scaled + bias
    if call.get("training_mode", 0):
        return _by_batch(x, scale, (bias, mean, variance), epsilon, kept)
    return functional.batch_norm(
        x, mean, variance, scale, bias, training=run.training, momentum=1 - kept, eps=epsilon
    )


def _by_batch(
    x: Tensor, scale: Tensor, rest: tuple[Tensor, ...], epsilon: float, kept: float
) -> tuple[Tensor, ...]:
    bias, mean, variance = rest
    axes = [0, *range(2, x.ndim)]
    now, spread = x.mean(axes), x.var(axes, correction=0)
    y = functional.batch_norm(x, None, None, scale, bias, training=True, eps=epsilon)
    return y, mean * kept + now * (1 - kept), variance * kept + spread * (1 - kept)


@operator("Dropout", runs=True, numbers=(1, 2))
def dropout(
    call: Call, run: Run, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return values, in training some of them zero and the rest larger; and which were kept."""
    del training  # what the module is doing says more than what its exporter did
    share = call.get("ratio", 0.5) if call.version < _DROPS_BY_INPUT else 0.5
    if ratio is not None:
        share = float(ratio)
    if not run.training or share == 0:
        return x, torch.ones_like(x, dtype=torch.bool)
    kept = torch.rand_like(x) >= share
    return torch.where(kept, x / (1 - share), torch.zeros_like(x)), kept


@operator("InstanceNormalization")
def instance_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Return values normalised a channel of each sample."""
    axes = tuple(range(2, x.ndim))
    shape = (1, -1) + (1,) * (x.ndim - 2)
    made = normalised(x, axes, call.get("epsilon", 1e-5))[0]
    return made * scale.reshape(shape) + bias.reshape(shape)


def normalised(x: Tensor, axes: tuple[int, ...], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return values with mean 0 and variance 1 along axes, the mean, and 1 over the deviation."""
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    inverse = (centred * centred).mean(axes, keepdim=True).add(epsilon).rsqrt()
    return centred * inverse, mean, inverse


@operator("LayerNormalization")
def layer_normalization(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor] | Tensor:
    """Return values normalised along the axes from `axis` on, the means and inverse deviations."""
    axis = call.get("axis", -1) % x.ndim
    epsilon = call.get("epsilon", 1e-5)
    inner = x.shape[axis:]
    if not call.wants(1) and not call.wants(2) and scale.shape == inner:
        return functional.layer_norm(
            x, inner, scale, bias if bias is None else bias.expand(inner), epsilon
        )
    wide = x.float() if x.dtype in {torch.float16, torch.bfloat16} else x
    made, mean, inverse = normalised(wide, tuple(range(axis, x.ndim)), epsilon)
    y = made.to(x.dtype) * scale
    return y if bias is None else y + bias, mean, inverse


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def rms_normalization(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    """Return values over their root mean square along the axes from `axis` on."""
    axes = tuple(range(call.get("axis", -1) % x.ndim, x.ndim))
    wide = x.float() if x.dtype in {torch.float16, torch.bfloat16} else x
    inverse = (wide * wide).mean(axes, keepdim=True).add(call.get("epsilon", 1e-5)).rsqrt()
    return (wide * inverse).to(x.dtype) * scale


@operator("GroupNormalization")
def group_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Return values normalised a group of channels."""
    groups = call.get("num_groups")
    if call.version < _PER_CHANNEL:
        each = x.shape[1] // groups
        scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return functional.group_norm(x, groups, scale, bias, call.get("epsilon", 1e-5))


@operator("LpNormalization")
def lp_normalization(call: Call, x: Tensor) -> Tensor:
    """Return values over their p-norm along an axis; zero stays zero."""
    norm = x.norm(call.get("p", 2), call.get("axis", -1), keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(call: Call, x: Tensor) -> Tensor:
    """Return values with mean 0 and deviation 1 along axes."""
    axes = tuple(ints(call.get("axes", [0, 2, 3])))
    centred = x - x.mean(axes, keepdim=True)
    return centred / ((centred * centred).mean(axes, keepdim=True).sqrt() + 1e-9)


@operator("LRN")
def local_response_normalization(call: Call, x: Tensor) -> Tensor:
    """Return values over a power of the squares of neighbouring channels."""
    extent = call.get("size")
    before = (extent - 1) // 2
    flat = (x * x).reshape(x.shape[0], 1, x.shape[1], math.prod(x.shape[2:]))
    grown = functional.pad(flat, (0, 0, before, extent - 1 - before))
    mean = functional.avg_pool2d(grown, (extent, 1), 1)
    scale = call.get("bias", 1.0) + call.get("alpha", 1e-4) * mean.reshape(x.shape)
    return x / torch.pow(scale, call.get("beta", 0.75))
