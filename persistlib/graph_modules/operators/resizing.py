"""Tensors made larger or smaller along their axes by interpolation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from persistlib.errors import Code, error
from persistlib.graph_modules.registry import Call, operator
from persistlib.graph_modules.sizes import ints, require_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_SIZES = 11  # the first version of Resize with sizes, a region and coordinate rules


@dataclass(frozen=True)
class _Axis:
    """How one axis is resized.

    Attributes:
        axis: which one.
        extent: before.
        wanted: after.
        scale: the ratio that coordinates are computed with.
        region: begin and end of the part that `tf_crop_and_resize` takes.
    """

    axis: int
    extent: int
    wanted: int
    scale: float
    region: tuple[float, float] = (0.0, 1.0)


@operator("Upsample", numbers=(1,))
def upsample(call: Call, x: Tensor, scales: Tensor | None = None) -> Tensor:
    """Return the tensor made larger; coordinates are asymmetric."""
    said = call.get("scales") if scales is None else scales.tolist()
    if said is None:
        said = [1.0, 1.0, call.get("height_scale"), call.get("width_scale")]
    rows = [
        _Axis(i, n, math.floor(n * s), s)
        for i, (n, s) in enumerate(zip(x.shape, said, strict=True))
    ]
    return _resized(_old_rules(call), x, rows)


def _old_rules(call: Call) -> Call:
    rules = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    attributes = {**rules, "mode": call.get("mode", "nearest")}
    return Call(call.operator, call.version, attributes, (), call.location)


@operator("Resize", numbers=(1, 2, 3))
def resize(call: Call, x: Tensor, *given: Tensor | None) -> Tensor:
    """Return the tensor resized by scales or to sizes."""
    if call.version < _SIZES:
        scales = given[0]
        assert scales is not None
        enlarged: Tensor = upsample(call, x, scales)
        return enlarged
    region, scales, sizes = (*given, None, None, None)[:3]
    axes = [axis % x.ndim for axis in call.get("axes") or range(x.ndim)]
    extents = [x.shape[axis] for axis in axes]
    if sizes is not None and sizes.numel():
        wanted, ratios = _by_sizes(call, extents, ints(sizes))
    else:
        assert scales is not None
        ratios = scales.tolist()
        wanted = [math.floor(n * s) for n, s in zip(extents, ratios, strict=True)]
    is_cropped = call.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    part = (
        region.tolist()
        if is_cropped and region is not None
        else [0.0] * len(axes) + [1.0] * len(axes)
    )
    regions = list(zip(part[: len(axes)], part[len(axes) :], strict=True))
    rows = [_Axis(*row) for row in zip(axes, extents, wanted, ratios, regions, strict=True)]
    if is_cropped:
        rows = [
            _Axis(
                r.axis,
                r.extent,
                math.floor(r.extent * r.scale * (r.region[1] - r.region[0])),
                r.scale,
                r.region,
            )
            if sizes is None
            else r
            for r in rows
        ]
    return _resized(call, x, rows)


def _by_sizes(call: Call, extents: list[int], sizes: list[int]) -> tuple[list[int], list[float]]:
    """Return extents and ratios for sizes, with the aspect kept where the node says so."""
    ratios = [s / n for s, n in zip(sizes, extents, strict=True)]
    policy = call.get("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return sizes, ratios
    ratio = min(ratios) if policy == "not_larger" else max(ratios)
    return [math.floor(n * ratio + 0.5) for n in extents], [ratio] * len(extents)


def _resized(call: Call, x: Tensor, rows: list[_Axis]) -> Tensor:
    final = list(x.shape)
    for row in rows:
        final[row.axis] = row.wanted
    require_size(call, final, x)
    dtype = x.dtype
    outside: Tensor | None = None
    for row in rows:
        if row.wanted == row.extent and row.scale == 1 and row.region == (0.0, 1.0):
            continue
        places = _coordinates(call, row, x)
        x = _interpolated(call, x, row, places)
        if call.get("coordinate_transformation_mode") == "tf_crop_and_resize":
            beyond = (places < 0) | (places > row.extent - 1)
            shape = [-1 if axis == row.axis else 1 for axis in range(x.ndim)]
            beyond = beyond.reshape(shape)
            outside = beyond if outside is None else outside | beyond
    if outside is not None:
        x = torch.where(outside, call.get("extrapolation_value", 0.0), x)
    return x.to(dtype)


def _coordinates(call: Call, row: _Axis, x: Tensor) -> Tensor:
    """Return where in the old axis each new element lies, float64."""
    name = call.get("coordinate_transformation_mode", "half_pixel")
    if name not in _RULES:
        raise error(Code.GRAPH_OPERATOR, call.location, f"Resize by {name!r} is not known")
    at = torch.arange(row.wanted, dtype=torch.float64, device=x.device)
    return _RULES[name](at, row)


def _symmetric(at: Tensor, row: _Axis) -> Tensor:
    middle = row.extent / 2
    shift = middle * (1 - row.wanted / (row.scale * row.extent))
    return shift + (at + 0.5) / row.scale - 0.5


def _corners(at: Tensor, row: _Axis) -> Tensor:
    return at * (row.extent - 1) / (row.wanted - 1) if row.wanted > 1 else at * 0


def _cropped(at: Tensor, row: _Axis) -> Tensor:
    start, end = row.region
    last = row.extent - 1
    if row.wanted > 1:
        return start * last + at * (end - start) * last / (row.wanted - 1)
    return at * 0 + 0.5 * (start + end) * last


_RULES: dict[str, Callable[[Tensor, _Axis], Tensor]] = {
    "half_pixel": lambda at, row: (at + 0.5) / row.scale - 0.5,
    "half_pixel_symmetric": _symmetric,
    "pytorch_half_pixel": lambda at, row: (
        (at + 0.5) / row.scale - 0.5 if row.wanted > 1 else at * 0
    ),
    "align_corners": _corners,
    "asymmetric": lambda at, row: at / row.scale,
    "tf_half_pixel_for_nn": lambda at, row: (at + 0.5) / row.scale,
    "tf_crop_and_resize": _cropped,
}


def _interpolated(call: Call, x: Tensor, row: _Axis, at: Tensor) -> Tensor:
    """Return the tensor with one axis taken at places between its elements."""
    mode = call.get("mode", "nearest")
    if mode == "nearest":
        return x.index_select(row.axis, _nearest(call, at).clamp(0, row.extent - 1))
    places, weights = _taps(call, row, at)
    if call.get("exclude_outside", 0):
        weights = weights * ((places >= 0) & (places < row.extent))
        weights = weights / weights.sum(0, keepdim=True)
    places = places.clamp(0, row.extent - 1)
    shape = [-1 if axis == row.axis else 1 for axis in range(x.ndim)]
    floats = x if x.is_floating_point() else x.double()
    total = torch.zeros((), dtype=floats.dtype, device=x.device)
    for index, weight in zip(places, weights, strict=True):
        factor = weight.to(floats.dtype).reshape(shape)
        total = total + floats.index_select(row.axis, index) * factor
    if not x.is_floating_point():
        info = torch.iinfo(x.dtype)
        return total.round().clamp(info.min, info.max).to(x.dtype)
    return total


def _nearest(call: Call, at: Tensor) -> Tensor:
    match call.get("nearest_mode", "round_prefer_floor"):
        case "round_prefer_floor":
            return (at - 0.5).ceil().long()
        case "round_prefer_ceil":
            return (at + 0.5).floor().long()
        case "floor":
            return at.floor().long()
        case "ceil":
            return at.ceil().long()
        case other:
            raise error(Code.GRAPH_OPERATOR, call.location, f"nearest_mode {other!r} is not known")


def _taps(call: Call, row: _Axis, at: Tensor) -> tuple[Tensor, Tensor]:
    """Return which old elements make each new one, and with which weights: (taps, new)."""
    is_cubic = call.get("mode") == "cubic"
    shrink = min(row.scale, 1.0) if call.get("antialias", 0) else 1.0
    reach = (2 if is_cubic else 1) / shrink
    count = 2 * math.ceil(reach)
    require_size(call, (count, row.wanted), at)
    first = at.floor().long() - math.ceil(reach) + 1
    places = first[None] + torch.arange(count, device=at.device)[:, None]
    distance = ((places - at[None]) * shrink).abs()
    a = call.get("cubic_coeff_a", -0.75)
    weights = _cubic(distance, a) if is_cubic else (1 - distance).clamp(min=0)
    if shrink != 1:
        weights = weights / weights.sum(0, keepdim=True)
    return places, weights


def _cubic(distance: Tensor, a: float) -> Tensor:
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, distance * 0))
