"""Where elements stand: shapes, axes, repetition, padding."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from persistlib.errors import Code, error
from persistlib.graph_modules.dtypes import torch_dtype
from persistlib.graph_modules.registry import Call, operator
from persistlib.graph_modules.sizes import broadcast, ints, require_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_TILES = 6  # the first version of Tile that says a number for every axis
_PADS = 11  # the first version of Pad whose amounts are an input


@operator("Shape")
def shape(call: Call, x: Tensor) -> Tensor:
    """Return the extents of a tensor, int64."""
    extents = list(x.shape)[call.get("start", 0) : call.get("end")]
    return torch.tensor(extents, dtype=torch.int64, device=x.device)


@operator("Size")
def size(_: Call, x: Tensor) -> Tensor:
    """Return how many elements a tensor has, int64."""
    return torch.tensor(x.numel(), dtype=torch.int64, device=x.device)


@operator("Reshape")
def reshape(call: Call, x: Tensor, wanted: Tensor | None = None) -> Tensor:
    """Return the elements in another shape; 0 keeps an extent unless `allowzero`."""
    extents = ints(call.get("shape") if wanted is None else wanted)
    if not call.get("allowzero", 0):
        extents = [
            x.shape[axis] if extent == 0 and axis < x.ndim else extent
            for axis, extent in enumerate(extents)
        ]
    return x.reshape(extents)


@operator("Flatten")
def flatten(call: Call, x: Tensor) -> Tensor:
    """Return a matrix: the axes before `axis`, and the rest."""
    axis = call.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("Squeeze")
def squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Return the tensor without axes of extent 1."""
    chosen = call.get("axes") if axes is None else ints(axes)
    if chosen is None:
        return x.squeeze()
    for axis in chosen:
        if x.shape[axis] != 1:
            raise ValueError(f"axis {axis} has extent {x.shape[axis]}")
    return x.squeeze(tuple(chosen)) if chosen else x


@operator("Unsqueeze")
def unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Return the tensor with new axes of extent 1, counted in the result."""
    chosen = ints(call.get("axes") if axes is None else axes)
    rank = x.ndim + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@operator("Transpose")
def transpose(call: Call, x: Tensor) -> Tensor:
    """Return the tensor with its axes in another order, by default reversed."""
    return x.permute(call.get("perm") or tuple(range(x.ndim))[::-1])


@operator("Concat")
def concat(call: Call, *inputs: Tensor) -> Tensor:
    """Return tensors joined along an axis."""
    require_size(call, (sum(t.numel() for t in inputs),))
    return torch.cat([t for t in inputs if t.ndim], call.get("axis", 1))


@operator("Split")
def split(call: Call, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """Return parts of a tensor: of given extents, or of equal ones with a smaller last."""
    axis = call.get("axis", 0)
    said = call.get("split") if sizes is None else ints(sizes)
    if said is None:
        count = call.get("num_outputs") or len(call.outputs)
        part = -(-x.shape[axis] // count)
        said = [part] * (count - 1) + [x.shape[axis] - part * (count - 1)]
    return tuple(torch.split(x, list(said), axis))


@operator("Expand")
def expand(call: Call, x: Tensor, wanted: Tensor) -> Tensor:
    """Return the tensor broadcast with a shape."""
    extents = broadcast(x.shape, ints(wanted))
    require_size(call, extents, x)
    return x.expand(extents)


@operator("Tile")
def tile(call: Call, x: Tensor, repeats: Tensor, axis: Tensor | None = None) -> Tensor:
    """Return the tensor repeated along its axes."""
    counts = ints(repeats)
    if call.version < _TILES and axis is not None:
        counts = [counts[0] if at == ints(axis)[0] else 1 for at in range(x.ndim)]
    if any(count < 0 for count in counts):
        raise ValueError("a negative number of repeats")
    require_size(call, (x.numel(), *counts), x)
    return x.repeat(counts)


@operator("ConstantOfShape")
def constant_of_shape(call: Call, wanted: Tensor) -> Tensor:
    """Return a tensor of one value."""
    extents = ints(wanted)
    require_size(call, extents, wanted)
    value = call.get("value")
    if value is None:
        return torch.zeros(extents, device=wanted.device)
    filled: Tensor = value.reshape(()).to(wanted.device).expand(extents).clone()
    return filled


@operator("Range", numbers=(0, 1, 2))
def sequence_of_numbers(call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Return numbers from start to below limit."""
    first, last, step = (t.reshape(()).item() for t in (start, limit, delta))
    count = max(math.ceil((last - first) / step), 0)
    require_size(call, (count,), start)
    places = torch.arange(count, device=start.device)
    return (places * step + first).to(start.dtype)


@operator("EyeLike")
def eye_like(call: Call, x: Tensor) -> Tensor:
    """Return ones on a diagonal."""
    dtype = torch_dtype(call.get("dtype", 0)) or x.dtype
    rows, columns = (torch.arange(n, device=x.device) for n in x.shape)
    return torch.eq(columns[None] - rows[:, None], call.get("k", 0)).to(dtype)


@operator("Trilu")
def trilu(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    """Return the upper or lower triangle of matrices."""
    offset = 0 if k is None else ints(k)[0]
    rows = torch.arange(x.shape[-2], device=x.device)[:, None]
    columns = torch.arange(x.shape[-1], device=x.device)[None]
    distance = columns - rows
    kept = distance >= offset if call.get("upper", 1) else distance <= offset
    return torch.where(kept, x, torch.zeros_like(x))


@operator("DepthToSpace")
def depth_to_space(call: Call, x: Tensor) -> Tensor:
    """Return channels moved into blocks of height and width."""
    batch, channels, height, width = x.shape
    block = call.get("blocksize")
    depth = channels // (block * block)
    if call.get("mode", "DCR") == "DCR":
        parts = x.reshape(batch, block, block, depth, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(batch, depth, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(batch, depth, height * block, width * block)


@operator("SpaceToDepth")
def space_to_depth(call: Call, x: Tensor) -> Tensor:
    """Return blocks of height and width moved into channels."""
    batch, channels, height, width = x.shape
    block = call.get("blocksize")
    rows, columns = height // block, width // block
    parts = x.reshape(batch, channels, rows, block, columns, block)
    is_depth_first = call.get("mode", "DCR") == "DCR"
    parts = parts.permute((0, 3, 5, 1, 2, 4) if is_depth_first else (0, 1, 3, 5, 2, 4))
    return parts.reshape(batch, channels * block * block, rows, columns)


@operator("ReverseSequence")
def reverse_sequence(call: Call, x: Tensor, lengths: Tensor) -> Tensor:
    """Return sequences of a batch, each reversed up to its own length."""
    time, batch = call.get("time_axis", 0), call.get("batch_axis", 1)
    moved = x.movedim((batch, time), (0, 1))
    steps = torch.arange(moved.shape[1], device=x.device)[None]
    limits = lengths.to(x.device)[:, None]
    places = torch.where(steps < limits, limits - 1 - steps, steps)
    rows = torch.arange(moved.shape[0], device=x.device)[:, None]
    return moved[rows, places].movedim((0, 1), (batch, time))


@operator("Pad", numbers=(1, 2, 3))
def pad(
    call: Call,
    x: Tensor,
    amounts: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    """Return the tensor with more at its edges, or less where an amount is negative."""
    said = ints(call.get("pads", call.get("paddings")) if amounts is None else amounts)
    chosen = list(range(x.ndim)) if axes is None else [a % x.ndim for a in ints(axes)]
    half = len(said) // 2
    pairs = {axis: (said[i], said[i + half]) for i, axis in enumerate(chosen)}
    wanted = [x.shape[a] + sum(pairs.get(a, (0, 0))) for a in range(x.ndim)]
    require_size(call, (max(extent, 0) for extent in wanted), x)
    fill: Any = call.get("value", 0.0) if call.version < _PADS else 0
    if value is not None and value.numel():
        fill = value.reshape(())
    for axis, (before, after) in pairs.items():
        x = padded(x, axis, before, after, mode=call.get("mode", "constant"), fill=fill)
    return x


def padded(x: Tensor, axis: int, before: int, after: int, *, mode: str, fill: Any) -> Tensor:
    """Return a tensor padded along one axis: constant, edge, reflect or wrap."""
    before, after = int(before), int(after)
    kept = x.narrow(axis, max(-before, 0), x.shape[axis] + min(before, 0) + min(after, 0))
    before, after = max(before, 0), max(after, 0)
    if not before and not after:
        return kept
    if mode == "constant":
        return _with_edges(kept, axis, before, after, fill)
    extent = kept.shape[axis]
    places = torch.arange(-before, extent + after, device=x.device)
    match mode:
        case "edge":
            places = places.clamp(0, extent - 1)
        case "reflect":
            period = max(2 * (extent - 1), 1)
            places = places.remainder(period)
            places = torch.where(places < extent, places, period - places)
        case "wrap":
            places = places.remainder(extent)
        case _:
            raise error(Code.GRAPH_OPERATOR, "Pad", f"mode {mode!r} is not known")
    return kept.index_select(axis, places)


def _with_edges(x: Tensor, axis: int, before: int, after: int, fill: Any) -> Tensor:
    def edge(extent: int) -> Tensor:
        shape: Sequence[int] = [*x.shape[:axis], extent, *x.shape[axis + 1 :]]
        if isinstance(fill, torch.Tensor):
            return fill.to(x.dtype).expand(shape)
        return torch.full(shape, fill, dtype=x.dtype, device=x.device)

    return torch.cat([edge(before), x, edge(after)], axis)


@operator("CenterCropPad")
def center_crop_pad(call: Call, x: Tensor, wanted: Tensor) -> Tensor:
    """Return the tensor cropped or padded with zeros around its middle."""
    extents = ints(wanted)
    axes = call.get("axes") or list(range(x.ndim))
    final = list(x.shape)
    for axis, extent in zip(axes, extents, strict=True):
        final[axis] = extent
    require_size(call, final, x)
    for axis, extent in zip(axes, extents, strict=True):
        gap = extent - x.shape[axis]
        if gap < 0:
            x = x.narrow(axis % x.ndim, (-gap) // 2, extent)
        else:
            x = padded(x, axis % x.ndim, gap // 2, gap - gap // 2, mode="constant", fill=0)
    return x
