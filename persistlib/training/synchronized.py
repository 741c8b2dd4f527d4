"""Batch statistics of the whole batch, where each process has a share of it.

Law: with shares of a batch in several processes, `batch_norm` gives the outputs, the gradients and
the running statistics that one process gives on the whole batch, up to rounding.

torch.nn.SyncBatchNorm refuses the CPU, and it takes the place of modules, so that the caller's
model would be another one meanwhile. Here calls of `batch_norm` are caught while a batch is trained
on, whichever module makes them; nothing of the model changes. What a scripted module computes is
not caught.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistlib.processes import Group


class Synchronized(TorchFunctionMode):
    """While it is entered, batch norms that train see the whole batch.

    Args:
        group: whose processes have a share each.
        is_spare: whether this process' samples are none of the batch's (`sharing`).
    """

    def __init__(self, group: Group, *, is_spare: bool) -> None:
        super().__init__()
        self._group = group
        self._is_spare = is_spare

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute one function of torch's: ours, where it is a batch norm that trains."""
        given = kwargs or {}
        if func is functional.batch_norm:
            return self._normalized(_Call(*args, **given))
        if func is torch.batch_norm:
            values, weight, bias, mean, var, training, momentum, eps, *_ = args
            return self._normalized(_Call(values, mean, var, weight, bias, training, momentum, eps))
        return func(*args, **given)

    def _normalized(self, call: _Call) -> torch.Tensor:
        if not call.training:
            return functional.batch_norm(**call._asdict())
        count, mean, var = _moments(call.input.detach(), self._group, is_spare=self._is_spare)
        if count <= 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got {count}")
        unbiased = var * (count / (count - 1))
        with torch.no_grad():
            for running, now in ((call.running_mean, mean), (call.running_var, unbiased)):
                if running is not None:
                    part = now.to(running.dtype)
                    running.mul_(1 - call.momentum).add_(part, alpha=call.momentum)
        moments = torch.stack([mean, torch.rsqrt(var + call.eps)])
        place = (count, self._group, self._is_spare)
        apply: Any = _Normalize.apply
        out: torch.Tensor = apply(call.input, call.weight, call.bias, moments, place)
        return out


class _Call(NamedTuple):
    """What torch.nn.functional.batch_norm is called with."""

    input: torch.Tensor
    running_mean: torch.Tensor | None
    running_var: torch.Tensor | None
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5


def _moments(
    values: torch.Tensor, group: Group, *, is_spare: bool
) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Return the count, mean and biased variance of each channel over all processes.

    The processes' own are put together as Chan, Golub and LeVeque do (1983), in double precision.
    """
    own = 0 if is_spare else values.numel() // values.shape[1]
    var, mean = torch.var_mean(_wide(values), _others(values), correction=0)
    head = mean.new_full((1,), own)
    rows = group.stacked(torch.cat([head, mean, var])).double()
    counts, means, variances = rows[:, :1], *rows[:, 1:].chunk(2, dim=1)
    total = counts.sum()
    middle = (counts * means).sum(0) / total
    spread = (counts * (variances + (means - middle).square())).sum(0) / total
    return int(total), middle.to(mean.dtype), spread.to(mean.dtype)


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values if values.dtype == torch.float64 else values.float()


class _Normalize(torch.autograd.Function):
    """Scaling by given statistics, whose own gradient goes through all processes."""

    @staticmethod
    def forward(  # noqa: PLR0917 - as autograd wants it
        ctx: Any,
        values: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        moments: torch.Tensor,
        place: tuple[int, Group, bool],
    ) -> torch.Tensor:
        """Return (values - mean) * scale * weight + bias, by channel."""
        ctx.save_for_backward(values, weight, moments)
        ctx.place = place
        out = _normal(values, moments)
        if weight is not None:
            out = out * _along(weight, values)
        if bias is not None:
            out = out + _along(bias, values)
        return out.to(values.dtype)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator has no types
        ctx: Any, *grad_outputs: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of values, weight and bias."""
        values, weight, moments = ctx.saved_tensors
        count, group, is_spare = ctx.place
        dims = _others(values)
        normal, wide = _normal(values, moments), _wide(grad_outputs[0])
        own = torch.stack([wide.sum(dims), (wide * normal).sum(dims)])
        whole = own.clone()
        group.sum_(whole)
        factor = moments[1] if weight is None else moments[1] * weight
        middle, slope = (_along(some / count, values) for some in whole)
        # Samples that are none of the batch's have no part in its statistics.
        inner = (wide - middle - normal * slope) * _along(factor, values) * (not is_spare)
        _, has_weight, has_bias, *_ = ctx.needs_input_grad
        outer = (own[1] if has_weight else None, own[0] if has_bias else None)
        return (inner.to(values.dtype), *outer, None, None)


def _others(values: torch.Tensor) -> list[int]:
    return [dim for dim in range(values.ndim) if dim != 1]


def _along(channels: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return a number a channel in a shape that goes with the values."""
    return channels.view([1, -1, *[1] * (values.ndim - 2)])


def _normal(values: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    return (_wide(values) - _along(moments[0], values)) * _along(moments[1], values)
