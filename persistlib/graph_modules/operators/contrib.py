"""Operators of ONNX Runtime that its optimiser and its exporters write into files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from persistlib.errors import Code, error
from persistlib.graph_modules.operators.convolution import conv
from persistlib.graph_modules.operators.linear import gemm, multiplied
from persistlib.graph_modules.operators.normalization import normalised
from persistlib.graph_modules.registry import MICROSOFT, Call, operator, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

plain(
    {
        "Gelu": functional.gelu,
        "BiasGelu": lambda x, bias: functional.gelu(x + bias),
        "BiasAdd": lambda x, bias, skip: x + bias + skip,
        "GroupNormSilu": functional.silu,
    },
    MICROSOFT,
)


@operator("FastGelu", domain=MICROSOFT)
def fast_gelu(_: Call, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the tanh form of Gelu."""
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


@operator("QuickGelu", domain=MICROSOFT)
def quick_gelu(call: Call, x: Tensor) -> Tensor:
    """Return x sigmoid (alpha x)."""
    return x * torch.sigmoid(call.get("alpha", 1.702) * x)


# Of what is fused into a node, with the numbers that it takes.
_ACTIVATIONS: dict[str, Callable[[Tensor, Sequence[float]], Tensor]] = {
    "": lambda x, _: x,
    "Relu": lambda x, _: x.relu(),
    "Sigmoid": lambda x, _: x.sigmoid(),
    "Tanh": lambda x, _: x.tanh(),
    "LeakyRelu": lambda x, numbers: functional.leaky_relu(x, numbers[0]),
    "Clip": lambda x, numbers: x.clamp(numbers[0], numbers[1]),
    "HardSigmoid": lambda x, numbers: (x * numbers[0] + numbers[1]).clamp(0, 1),
}


def _activated(call: Call, x: Tensor) -> Tensor:
    """Return values through the activation that was fused into a node."""
    name = call.get("activation", "")
    if name not in _ACTIVATIONS:
        raise error(Code.GRAPH_OPERATOR, call.location, f"the activation {name!r} is not known")
    return _ACTIVATIONS[name](x, call.get("activation_params") or [])


@operator("FusedConv", domain=MICROSOFT)
def fused_conv(
    call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None, more: Tensor | None = None
) -> Tensor:
    """Return a convolution, a sum and an activation."""
    made = conv(call, x, weight, bias)
    return _activated(call, made if more is None else made + more)


@operator("FusedGemm", domain=MICROSOFT)
def fused_gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Return a product of matrices, a sum and an activation."""
    return _activated(call, gemm(call, a, b, c))


@operator("FusedMatMul", domain=MICROSOFT)
def fused_mat_mul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Return alpha A B, each transposed where the node says so."""
    if call.get("transBatchA", 0) or call.get("transBatchB", 0):
        raise error(Code.GRAPH_OPERATOR, call.location, "FusedMatMul with moved batches")
    a = a.mT if call.get("transA", 0) else a
    b = b.mT if call.get("transB", 0) else b
    return multiplied(call, a, b) * float(call.get("alpha", 1.0))


@operator("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(
    call: Call, x: Tensor, skip: Tensor, scale: Tensor, *rest: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Return the normalised sum of a tensor and a shortcut, and the sum."""
    shift, bias = (*rest, None, None)[:2]
    total = x + skip if bias is None else x + skip + bias
    made = normalised(total, (total.ndim - 1,), call.get("epsilon", 1e-12))[0] * scale
    return made if shift is None else made + shift, None, None, total


@operator("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_simplified_layer_normalization(
    call: Call, x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Return the sum of a tensor and a shortcut over its root mean square, and the sum."""
    total = x + skip if bias is None else x + skip + bias
    inverse = (total * total).mean(-1, keepdim=True).add(call.get("epsilon", 1e-12)).rsqrt()
    return total * inverse * scale, None, None, total


@operator("MatMulNBits", domain=MICROSOFT, numbers=(2, 3))
def mat_mul_n_bits(
    call: Call, x: Tensor, packed: Tensor, scales: Tensor, *rest: Tensor | None
) -> Tensor:
    """Return a product with a matrix whose blocks are quantised to a few bits."""
    zeros, order, bias = (*rest, None, None, None)[:3]
    inner, outer = call.get("K"), call.get("N")
    bits, block = call.get("bits", 4), call.get("block_size")
    if order is not None or bits not in {4, 8} or (zeros is not None and zeros.is_floating_point()):
        raise error(Code.GRAPH_OPERATOR, call.location, f"MatMulNBits of {bits} bits, reordered")
    blocks = -(-inner // block)
    values = _unpacked(packed.reshape(outer, blocks, -1), bits)[..., :block]
    if zeros is None:
        offset = torch.full((outer, blocks, 1), 1 << (bits - 1), device=x.device)
    else:
        offset = _unpacked(zeros.reshape(outer, -1), bits)[:, :blocks, None]
    table = (values - offset).to(x.dtype) * scales.reshape(outer, blocks, 1)
    made = multiplied(call, x, table.reshape(outer, -1)[:, :inner].T)
    return made if bias is None else made + bias


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """Return whole numbers of a few bits, the first in the lowest, from bytes."""
    if bits == 8:
        return packed.int()
    low, high = packed.int() & 0x0F, packed.int() >> 4
    return torch.stack([low, high], -1).flatten(-2)
