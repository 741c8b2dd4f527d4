"""Attention, and the rotation that tells it where a token stands."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from persistlib.graph_modules.dtypes import torch_dtype
from persistlib.graph_modules.registry import MICROSOFT, Call, operator
from persistlib.graph_modules.sizes import require_size

if TYPE_CHECKING:
    from torch import Tensor


@operator("RotaryEmbedding")
def rotary_embedding(
    call: Call, x: Tensor, cosines: Tensor, sines: Tensor, places: Tensor | None = None
) -> Tensor:
    """Return heads turned by the angles of their places; (batch, heads, time, size) or flat."""
    is_flat = x.ndim == 3
    flat = (*x.shape[:2], call.get("num_heads"), -1)
    heads = x.reshape(flat) if is_flat else x.transpose(1, 2)
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


class _Heads(NamedTuple):
    """Queries, keys and values: (batch, heads, time, size)."""

    q: Tensor
    k: Tensor
    v: Tensor


@operator("Attention")
def attention(
    call: Call, q: Tensor, k: Tensor, v: Tensor, *rest: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what each query takes from the values, the keys and values, and the scores."""
    mask, past_k, past_v, lengths = (*rest, None, None, None, None)[:4]
    is_flat = q.ndim == 3
    if is_flat:
        theirs, ours = call.get("q_num_heads"), call.get("kv_num_heads")
        q, k, v = (
            t.reshape(*t.shape[:2], n, -1).transpose(1, 2)
            for t, n in ((q, theirs), (k, ours), (v, ours))
        )
    offset = 0 if past_k is None else past_k.shape[2]
    k = k if past_k is None else torch.cat([past_k, k], 2)
    v = v if past_v is None else torch.cat([past_v, v], 2)
    require_size(call, (*q.shape[:3], k.shape[2]), q, k)
    bias = _bias(call, _Heads(q, k, v), mask, lengths, offset)
    y, scores = _attended(call, _Heads(q, k, v), bias)
    if is_flat:
        y = y.transpose(1, 2).flatten(2)
    return y, k, v, scores


def _attended(call: Call, heads: _Heads, bias: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = heads
    shared = q.shape[1] // k.shape[1]
    if shared > 1:
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    # The root on each side keeps half precision from overflowing.
    scale = math.sqrt(call.get("scale") or 1 / math.sqrt(q.shape[-1]))
    scores = (q * scale) @ (k * scale).mT
    mode, cap = call.get("qk_matmul_output_mode", 0), call.get("softcap", 0.0)
    capped = cap * (scores / cap).tanh() if cap else scores
    biased = capped + bias
    wide = torch_dtype(call.get("softmax_precision", 0)) or biased.dtype
    shares = biased.to(wide).softmax(-1)
    # A query that may see nothing takes nothing.
    is_blind = (bias == -math.inf).all(-1, keepdim=True)
    shares = torch.where(is_blind, torch.zeros_like(shares), shares).to(q.dtype)
    return shares @ v, (scores, capped, biased, shares)[mode].to(q.dtype)


def _bias(
    call: Call, heads: _Heads, mask: Tensor | None, lengths: Tensor | None, offset: int
) -> Tensor:
    """Return what is added to the scores: minus infinity where a query may not look."""
    q, k, _ = heads
    times, keys = q.shape[2], k.shape[2]
    at = torch.arange(keys, device=q.device)
    first = torch.full((1, 1, 1, 1), offset, device=q.device)
    if lengths is not None:
        first = (lengths.reshape(-1, 1, 1, 1) - times).to(q.device)
    places = first + torch.arange(times, device=q.device)[:, None]
    seen = torch.ones_like(places == at)
    if call.get("is_causal", 0):
        seen = seen & (at <= places)
    left, right = call.get("left_window_size", -1), call.get("right_window_size", -1)
    if left >= 0:
        seen = seen & (places - at <= left)
    if right >= 0:
        seen = seen & (at - places <= right)
    if lengths is not None:
        seen = seen & (at < lengths.reshape(-1, 1, 1, 1).to(q.device))
    never = torch.full((), -math.inf, dtype=q.dtype, device=q.device)
    bias = torch.where(seen, torch.zeros_like(never), never)
    if mask is None:
        return bias
    said = torch.where(mask, torch.zeros_like(never), never) if mask.dtype is torch.bool else mask
    short = keys - said.shape[-1]
    if short > 0:
        said = torch.nn.functional.pad(said, (0, short), value=-math.inf)
    return bias + said
