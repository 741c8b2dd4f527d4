"""Parts of transformers; attention itself is expanded from ONNX's own definition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from persistlib.graph_modules.registry import MICROSOFT, Call, operator

if TYPE_CHECKING:
    from torch import Tensor


@operator("RotaryEmbedding")
def rotary_embedding(
    call: Call, x: Tensor, cosines: Tensor, sines: Tensor, places: Tensor | None = None
) -> Tensor:
    """Return heads turned by the angles of their places; (batch, heads, time, size) or flat."""
    is_flat = x.ndim == 3
    if is_flat:
        heads = x.reshape(*x.shape[:2], call.get("num_heads"), -1)
    else:
        heads = x.transpose(1, 2)
    if places is not None:
        cosines, sines = cosines[places], sines[places]
    turned = rotated(call, heads, cosines.unsqueeze(2), sines.unsqueeze(2))
    return turned.reshape(x.shape) if is_flat else turned.transpose(1, 2)


def rotated(call: Call, heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Return (batch, time, heads, size) turned; what lies beyond the embedding stays."""
    extent = call.get("rotary_embedding_dim", 0) or heads.shape[-1]
    moved, rest = heads[..., :extent], heads[..., extent:]
    is_interleaved = bool(call.get("interleaved", 0))
    a, b = (moved[..., 0::2], moved[..., 1::2]) if is_interleaved else moved.chunk(2, -1)
    real, imaginary = cosines * a - sines * b, sines * a + cosines * b
    if is_interleaved:
        turned = torch.stack([real, imaginary], -1).reshape(moved.shape)
    else:
        turned = torch.cat([real, imaginary], -1)
    return torch.cat([turned, rest], -1)


@operator("RotaryEmbedding", domain=MICROSOFT)
def microsoft_rotary_embedding(
    call: Call, x: Tensor, places: Tensor, cosines: Tensor, sines: Tensor
) -> Tensor:
    """Return heads turned, as ONNX Runtime's own operator says it."""
    is_flat = x.ndim == 3
    extent = call.get("rotary_embedding_dim", 0)
    size = (x.shape[-1] // call.get("num_heads")) if extent else 2 * cosines.shape[-1]
    heads = x.reshape(*x.shape[:2], -1, size) if is_flat else x.transpose(1, 2)
    if places.numel() == 1:
        places = places.reshape(()) + torch.arange(heads.shape[1], device=x.device)[None]
    cosines, sines = cosines[places].unsqueeze(2), sines[places].unsqueeze(2)
    turned = rotated(call, heads, cosines, sines)
    return turned.reshape(x.shape) if is_flat else turned.transpose(1, 2)
