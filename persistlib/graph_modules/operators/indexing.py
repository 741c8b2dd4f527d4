"""Elements chosen by position or by value, and put at positions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from persistlib.errors import Code, error
from persistlib.graph_modules.registry import Call, operator
from persistlib.graph_modules.sizes import ints, require_size

if TYPE_CHECKING:
    from torch import Tensor

_INPUTS = 10  # the first version of Slice and TopK whose numbers are inputs
_REDUCES = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("Slice", numbers=(1, 2, 3, 4))
def slice_of(call: Call, x: Tensor, *given: Tensor | None) -> Tensor:
    """Return a part of a tensor: starts, ends, axes and steps."""
    if call.version < _INPUTS:
        starts, ends = call.get("starts"), call.get("ends")
        said: list[list[int] | None] = [call.get("axes")]
    else:
        starts, ends = (ints(value) for value in given[:2] if value is not None)
        said = [None if value is None else ints(value) for value in given[2:]]
    axes, steps = (*said, None, None)[:2]
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        x = _along(x, axis % x.ndim, slice(start, end, step))
    return x


def _along(x: Tensor, axis: int, part: slice) -> Tensor:
    start, stop, step = part.indices(x.shape[axis])
    if step > 0:
        return x[(slice(None),) * axis + (slice(start, max(stop, start), step),)]
    places = torch.arange(start, min(stop, start), step, device=x.device)
    return x.index_select(axis, places)


def _wrapped(indices: Tensor, extent: int) -> Tensor:
    """Return positions with those that count from the end made to count from the start."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + extent, indices)


@operator("Gather")
def gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Return slices of a tensor along an axis."""
    axis = call.get("axis", 0) % x.ndim
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    require_size(call, shape, x, indices)
    chosen = x.index_select(axis, _wrapped(indices, x.shape[axis]).reshape(-1))
    return chosen.reshape(shape)


@operator("GatherElements")
def gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Return elements, one for each index."""
    axis = call.get("axis", 0) % x.ndim
    return x.gather(axis, _wrapped(indices, x.shape[axis]))


@operator("GatherND")
def gather_nd(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Return slices of a tensor, each at a position of several axes."""
    batches = call.get("batch_dims", 0)
    depth = indices.shape[-1]
    shape = (*indices.shape[:-1], *x.shape[batches + depth :])
    require_size(call, shape, x, indices)
    leading = tuple(x.shape[:batches])
    flat = x.reshape(-1, *x.shape[batches:])
    rows = math.prod(leading)
    places = indices.reshape(rows, -1, depth)
    at: list[Tensor] = [torch.arange(rows, device=x.device)[:, None]]
    at += [_wrapped(places[..., i], x.shape[batches + i]) for i in range(depth)]
    return flat[tuple(at)].reshape(shape)


@operator("ScatterElements", "Scatter")
def scatter_elements(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Return the tensor with elements replaced, or joined by a reduction."""
    axis = call.get("axis", 0) % x.ndim
    places = _wrapped(indices, x.shape[axis])
    how = call.get("reduction", "none")
    if how == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _REDUCES[how], include_self=True)


@operator("ScatterND")
def scatter_nd(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Return the tensor with slices replaced, or joined by a reduction."""
    depth = indices.shape[-1]
    inner = tuple(x.shape[depth:])
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=x.device)
    for axis in range(depth):
        flat = flat * x.shape[axis] + _wrapped(indices[..., axis], x.shape[axis])
    rows = flat.reshape(-1)
    table = x.reshape(math.prod(x.shape[:depth]), *inner)
    news = updates.reshape(len(rows), *inner)
    how = call.get("reduction", "none")
    if how == "none":
        return table.index_put((rows,), news).reshape(x.shape)
    places = rows.reshape(-1, *(1,) * len(inner)).expand(news.shape)
    made = table.scatter_reduce(0, places, news, _REDUCES[how], include_self=True)
    return made.reshape(x.shape)


@operator("TensorScatter")
def tensor_scatter(
    call: Call, past: Tensor, update: Tensor, starts: Tensor | None = None
) -> Tensor:
    """Return a cache with new entries of each batch written at a place of its own."""
    axis = call.get("axis", -2) % past.ndim
    moved, news = past.movedim(axis, 1), update.movedim(axis, 1)
    first = torch.zeros(len(past), dtype=torch.int64) if starts is None else starts
    places = first.to(past.device)[:, None] + torch.arange(news.shape[1], device=past.device)
    if call.get("mode", "linear") == "circular":
        places = places.remainder(moved.shape[1])
    rows = torch.arange(len(past), device=past.device)[:, None]
    return moved.index_put((rows, places), news).movedim(1, axis)


@operator("NonZero")
def non_zero(_: Call, x: Tensor) -> Tensor:
    """Return the positions of what is not zero, a column for each, int64."""
    return (x if x.ndim else x.reshape(1)).nonzero().T.contiguous()[: x.ndim or 1]


@operator("Compress")
def compress(call: Call, x: Tensor, condition: Tensor) -> Tensor:
    """Return slices where a condition holds."""
    axis = call.get("axis")
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(axis, condition.nonzero().reshape(-1))


@operator("OneHot", numbers=(0, 1, 2))
def one_hot(call: Call, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """Return a new axis that says each index: values are (off, on)."""
    count = ints(depth)[0]
    axis = call.get("axis", -1) % (indices.ndim + 1)
    require_size(call, (indices.numel(), count), indices)
    places = _wrapped(indices, count).unsqueeze(axis)
    steps = torch.arange(count, device=indices.device)
    steps = steps.reshape((-1,) + (1,) * (indices.ndim - axis))
    return torch.where(places == steps, values[1], values[0])


@operator("TopK")
def top_k(call: Call, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the largest or smallest values along an axis, and their positions."""
    count = call.get("k") if k is None else ints(k)[0]
    axis = call.get("axis", -1) % x.ndim
    is_largest = bool(call.get("largest", 1))
    # Stable: of equal values the first comes first.
    values, places = torch.sort(x, dim=axis, descending=is_largest, stable=True)
    if count > x.shape[axis]:
        raise ValueError(f"the first {count} of {x.shape[axis]}")
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


@operator("Unique")
def unique(call: Call, x: Tensor) -> tuple[Tensor, ...]:
    """Return different values, where each first stood, which each element is, and counts."""
    axis = call.get("axis")
    flat, along = (x.reshape(-1), 0) if axis is None else (x, axis % x.ndim)
    made: Any = torch.unique(flat, return_inverse=True, return_counts=True, dim=along)
    values, inverse, counts = made
    places = torch.arange(len(inverse), device=x.device)
    firsts = torch.full_like(counts, len(inverse))
    firsts = firsts.scatter_reduce(0, inverse, places, "amin")
    if call.get("sorted", 1):
        return values, firsts, inverse, counts
    order = firsts.argsort()
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=x.device)
    return values.index_select(along, order), firsts[order], rank[inverse], counts[order]


@operator("Col2Im")
def col2im(call: Call, x: Tensor, image: Tensor, block: Tensor) -> Tensor:
    """Return images that columns of blocks add up to."""
    extents, kernel = ints(image), ints(block)
    if len(extents) != 2:
        raise error(Code.GRAPH_OPERATOR, call.location, f"Col2Im of {len(extents)} axes")
    pads = call.get("pads", [0, 0, 0, 0])
    whole = [n + pads[i] + pads[i + 2] for i, n in enumerate(extents)]
    require_size(call, (x.shape[0], *whole), x)
    made = torch.nn.functional.fold(
        x,
        (whole[0], whole[1]),
        (kernel[0], kernel[1]),
        dilation=call.get("dilations", [1, 1]),
        stride=call.get("strides", [1, 1]),
    )
    top, left = pads[:2]
    return made[..., top : top + extents[0], left : left + extents[1]]
