"""Tensors read at places that another tensor says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from persistlib.errors import Code, error
from persistlib.graph_modules.registry import Call, operator
from persistlib.graph_modules.sizes import ints, require_size

if TYPE_CHECKING:
    from torch import Tensor

_MODES = {"linear": "bilinear", "cubic": "bicubic"}


@operator("GridSample")
def grid_sample(call: Call, x: Tensor, grid: Tensor) -> Tensor:
    """Return values at places given in [-1, 1], the last axis of an image first."""
    mode = str(call.get("mode", "linear"))
    if x.ndim not in {4, 5} or (x.ndim == 5 and mode in {"cubic", "bicubic"}):
        raise error(Code.GRAPH_OPERATOR, call.location, f"GridSample of {x.ndim} axes by {mode}")
    return functional.grid_sample(
        x,
        grid,
        mode=_MODES.get(mode) or mode,
        padding_mode=call.get("padding_mode", "zeros"),
        align_corners=bool(call.get("align_corners", 0)),
    )


@operator("AffineGrid")
def affine_grid(call: Call, theta: Tensor, size: Tensor) -> Tensor:
    """Return the places that an affine map sends a regular grid to."""
    extents = ints(size)
    require_size(call, (*extents, 3), theta)
    return functional.affine_grid(theta, extents, bool(call.get("align_corners", 0)))


@operator("RoiAlign")
def roi_align(call: Call, x: Tensor, boxes: Tensor, batches: Tensor) -> Tensor:
    """Return the mean of samples in each cell of each box."""
    from torchvision.ops import roi_align as align

    if call.get("mode", "avg") != "avg":
        raise error(Code.GRAPH_OPERATOR, call.location, "RoiAlign by the maximum")
    height, width = call.get("output_height", 1), call.get("output_width", 1)
    require_size(call, (len(boxes), x.shape[1], height, width), x, boxes)
    rows = torch.cat([batches.to(boxes.dtype)[:, None], boxes], 1)
    mode = call.get("coordinate_transformation_mode", "half_pixel" if call.version >= 16 else "")
    aligned: Tensor = align(
        x,
        rows,
        (height, width),
        call.get("spatial_scale", 1.0),
        call.get("sampling_ratio", 0) or -1,
        aligned=mode == "half_pixel",
    )
    return aligned


@operator("MaxRoiPool")
def max_roi_pool(call: Call, x: Tensor, boxes: Tensor) -> Tensor:
    """Return the largest value in each cell of each box."""
    from torchvision.ops import roi_pool

    height, width = call.get("pooled_shape")
    require_size(call, (len(boxes), x.shape[1], height, width), x, boxes)
    pooled: Tensor = roi_pool(x, boxes, (height, width), call.get("spatial_scale", 1.0))
    return pooled
