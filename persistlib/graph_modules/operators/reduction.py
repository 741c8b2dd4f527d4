"""Sums, extremes and other values of many elements."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from persistlib.graph_modules.registry import Call, operator
from persistlib.graph_modules.sizes import ints

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_ANY_AXIS = 13  # the first version whose softmax reduces one axis alone
_Reduce = Any


def _reducing(name: str, function: Callable[[Tensor, list[int], bool], Tensor]) -> None:
    @operator(name)
    def compute(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = call.get("axes") if axes is None else ints(axes)
        if not chosen:
            if call.get("noop_with_empty_axes", 0):
                return function(x[None], [0], False)
            chosen = list(range(x.ndim))
        kept = bool(call.get("keepdims", 1))
        if not x.ndim:
            return function(x.reshape(1), [0], False)
        return function(x, sorted({axis % x.ndim for axis in chosen}), kept).to(x.dtype)


def _extreme(x: Tensor, axes: list[int], kept: bool, largest: bool) -> Tensor:
    """Return the largest or smallest values; of nothing, what is below or above every value."""
    if x.dtype is torch.bool:
        return _extreme(x.to(torch.uint8), axes, kept, largest).to(torch.bool)
    if any(x.shape[axis] == 0 for axis in axes):
        if x.is_floating_point():
            edge: float | int = -math.inf if largest else math.inf
        else:
            info = torch.iinfo(x.dtype)
            edge = info.min if largest else info.max
        return torch.full_like(x.sum(axes, keepdim=kept), edge, dtype=x.dtype)
    return (torch.amax if largest else torch.amin)(x, axes, keepdim=kept)


def _product(x: Tensor, axes: list[int], kept: bool) -> Tensor:
    for axis in reversed(axes):
        x = x.prod(axis, keepdim=kept)
    return x


def _mean(x: Tensor, axes: list[int], kept: bool) -> Tensor:
    return (x if x.is_floating_point() else x.double()).mean(axes, keepdim=kept)


def _log_sum_exp(x: Tensor, axes: list[int], kept: bool) -> Tensor:
    return (x if x.is_floating_point() else x.double()).logsumexp(axes, keepdim=kept)


def _root(x: Tensor, axes: list[int], kept: bool) -> Tensor:
    squares = x * x if x.is_floating_point() else x.double() ** 2
    return squares.sum(axes, keepdim=kept).sqrt()


for _name, _function in {
    "ReduceSum": lambda x, axes, kept: x.sum(axes, keepdim=kept),
    "ReduceMean": _mean,
    "ReduceMax": lambda x, axes, kept: _extreme(x, axes, kept, largest=True),
    "ReduceMin": lambda x, axes, kept: _extreme(x, axes, kept, largest=False),
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, kept: x.abs().sum(axes, keepdim=kept),
    "ReduceL2": _root,
    "ReduceSumSquare": lambda x, axes, kept: (x * x).sum(axes, keepdim=kept),
    "ReduceLogSum": lambda x, axes, kept: x.sum(axes, keepdim=kept).log(),
    "ReduceLogSumExp": _log_sum_exp,
}.items():
    _reducing(_name, _function)


def _extreme_place(call: Call, x: Tensor, largest: bool) -> Tensor:
    axis = call.get("axis", 0) % max(x.ndim, 1)
    kept = bool(call.get("keepdims", 1))
    is_last = bool(call.get("select_last_index", 0))
    values = x.flip(axis) if is_last else x
    edge = (values.amax if largest else values.amin)(axis, keepdim=True)
    # Of equal values the first: torch promises none, but a position times equality does.
    places = (values == edge).to(torch.uint8).argmax(axis, keepdim=kept)
    return x.shape[axis] - 1 - places if is_last else places


@operator("ArgMax")
def arg_max(call: Call, x: Tensor) -> Tensor:
    """Return where the largest values stand, int64."""
    return _extreme_place(call, x, largest=True)


@operator("ArgMin")
def arg_min(call: Call, x: Tensor) -> Tensor:
    """Return where the smallest values stand, int64."""
    return _extreme_place(call, x, largest=False)


def _running(name: str, function: Callable[..., Tensor], start: int) -> None:
    @operator(name)
    def compute(call: Call, x: Tensor, axis: Tensor) -> Tensor:
        along = ints(axis)[0] % x.ndim
        if call.get("reverse", 0):
            x = x.flip(along)
        if call.get("exclusive", 0):
            first = torch.full_like(x.narrow(along, 0, 1), start)
            x = torch.cat([first, x.narrow(along, 0, x.shape[along] - 1)], along)
        made = function(x, along).to(x.dtype)
        return made.flip(along) if call.get("reverse", 0) else made


_running("CumSum", torch.cumsum, 0)
_running("CumProd", torch.cumprod, 1)


def _normalised(name: str, function: Callable[[Tensor, int], Tensor]) -> None:
    @operator(name)
    def compute(call: Call, x: Tensor) -> Tensor:
        if call.version >= _ANY_AXIS:
            return function(x, call.get("axis", -1))
        axis = call.get("axis", 1) % max(x.ndim, 1)
        flat = x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
        return function(flat, 1).reshape(x.shape)


def _hard_max(x: Tensor, axis: int) -> Tensor:
    is_most = x == x.amax(axis, keepdim=True)
    return (is_most & (is_most.cumsum(axis) == 1)).to(x.dtype)


_normalised("Softmax", lambda x, axis: x.softmax(axis))
_normalised("LogSoftmax", lambda x, axis: x.log_softmax(axis))
_normalised("Hardmax", _hard_max)
