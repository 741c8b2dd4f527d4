"""Boxes chosen by score; nothing here has a gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from persistlib.graph_modules.registry import Call, operator
from persistlib.graph_modules.sizes import ints

if TYPE_CHECKING:
    from torch import Tensor


@operator("NonMaxSuppression", numbers=(2, 3, 4))
def non_max_suppression(
    call: Call, boxes: Tensor, scores: Tensor, *limits: Tensor | None
) -> Tensor:
    """Return (batch, class, box) of the boxes that no better one of its class covers, int64."""
    most, overlap, least = (*limits, None, None, None)[:3]
    count = 0 if most is None else ints(most)[0]
    threshold = 0.0 if overlap is None else float(overlap.reshape(()))
    floor = None if least is None else float(least.reshape(()))
    corners = _corners(boxes, is_centred=bool(call.get("center_point_box", 0)))
    chosen = [
        (batch, kind, box)
        for batch in range(scores.shape[0])
        for kind in range(scores.shape[1])
        for box in _kept(corners[batch], scores[batch, kind], count, threshold, floor)
    ]
    return torch.tensor(chosen, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def _corners(boxes: Tensor, *, is_centred: bool) -> Tensor:
    boxes = boxes.detach()
    if is_centred:
        x, y, width, height = boxes.unbind(-1)
        return torch.stack([y - height / 2, x - width / 2, y + height / 2, x + width / 2], -1)
    top, left, bottom, right = boxes.unbind(-1)
    low = [torch.minimum(top, bottom), torch.minimum(left, right)]
    high = [torch.maximum(top, bottom), torch.maximum(left, right)]
    return torch.stack([*low, *high], -1)


def _kept(
    boxes: Tensor, scores: Tensor, most: int, threshold: float, floor: float | None
) -> list[int]:
    order = scores.detach().argsort(descending=True, stable=True)
    if floor is not None:
        order = order[scores[order] > floor]
    kept: list[int] = []
    while len(order) and len(kept) < most:
        best, order = int(order[0]), order[1:]
        kept.append(best)
        order = order[_overlaps(boxes[best], boxes[order]) <= threshold]
    return kept


def _overlaps(box: Tensor, others: Tensor) -> Tensor:
    """Return the shared area of a box and each of others over their joint area."""
    low, high = torch.maximum(box[:2], others[:, :2]), torch.minimum(box[2:], others[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return torch.where(shared > 0, shared / (areas - shared), torch.zeros_like(shared))
