"""Whole numbers for floats, and arithmetic on them as the floats they stand for.

Rounding has no gradient; dequantising has one, to its scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from persistlib.errors import Code, error
from persistlib.graph_modules.dtypes import torch_dtype
from persistlib.graph_modules.operators.convolution import conv
from persistlib.graph_modules.registry import Call, operator

if TYPE_CHECKING:
    from torch import Tensor

_SCALES = (1, 2)


def along(call: Call, value: Tensor, x: Tensor) -> Tensor:
    """Return a scale or zero point in a shape that broadcasts with a tensor."""
    if value.numel() == 1:
        return value.reshape(())
    axis = call.get("axis", 1) % x.ndim
    block = call.get("block_size", 0)
    if block:
        return value.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return value.reshape([-1 if at == axis else 1 for at in range(x.ndim)])


def rounded(values: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return values rounded, moved to the zero point and held within a dtype."""
    info = torch.iinfo(dtype)
    moved = values.round() if zero is None else values.round() + zero.to(values.dtype)
    return moved.clamp(info.min, info.max).to(torch.int64).to(dtype)


@operator("QuantizeLinear", numbers=_SCALES)
def quantize_linear(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Return round(x / scale) + zero point, held within its dtype."""
    said = torch_dtype(call.get("output_dtype", 0))
    dtype = zero.dtype if zero is not None else said or torch.uint8
    if dtype.is_floating_point:
        raise error(Code.GRAPH_OPERATOR, call.location, f"QuantizeLinear to {dtype}")
    floats = x.float() if x.dtype in {torch.float16, torch.int32} else x
    offset = None if zero is None else along(call, zero, x)
    return rounded(floats / along(call, scale, x).to(floats.dtype), offset, dtype)


@operator("DequantizeLinear", numbers=_SCALES)
def dequantize_linear(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Return (x - zero point) scale, in the scale's dtype."""
    values = x.to(torch.float32 if scale.dtype is not torch.float64 else torch.float64)
    if zero is not None:
        values = values - along(call, zero, x).to(values.dtype)
    dtype = torch_dtype(call.get("output_dtype", 0)) or scale.dtype
    return torch.mul(values, along(call, scale, x)).to(dtype)


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(_: Call, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return bytes, the scale and the zero point that the values' own range gives."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = (-low / safe).round().clamp(0, 255)
    return rounded(x / safe, zero, torch.uint8), scale, zero.to(torch.uint8)


def shifted(x: Tensor, zero: Tensor | None, shape: tuple[int, ...] | None = None) -> Tensor:
    """Return whole numbers less their zero point, as doubles, which hold their sums exactly."""
    values = x.double()
    if zero is None:
        return values
    offset = zero.double()
    return values - (offset.reshape(shape) if shape and zero.numel() > 1 else offset)


@operator("MatMulInteger")
def mat_mul_integer(
    _: Call, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    """Return a product of matrices of whole numbers, int32."""
    rows = (-1, 1) if a_zero is not None and a_zero.ndim == 1 else None
    return torch.matmul(shifted(a, a_zero, rows), shifted(b, b_zero)).to(torch.int32)


@operator("ConvInteger")
def conv_integer(call: Call, x: Tensor, weight: Tensor, *zeros: Tensor | None) -> Tensor:
    """Return a convolution of whole numbers, int32."""
    x_zero, w_zero = (*zeros, None, None)[:2]
    each = (-1,) + (1,) * (weight.ndim - 1)
    made: Tensor = conv(call, shifted(x, x_zero), shifted(weight, w_zero, each))
    return made.to(torch.int32)


@operator("QLinearMatMul", numbers=range(1, 8))
def q_linear_mat_mul(_: Call, *inputs: Tensor) -> Tensor:
    """Return a product of matrices of quantised values, quantised."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = inputs
    rows = (-1, 1) if a_zero.ndim == 1 else None
    product = torch.matmul(shifted(a, a_zero, rows), shifted(b, b_zero))
    left = (
        a_scale.double().reshape(-1, 1)
        if a_scale.ndim == 1 and a_scale.numel() > 1
        else a_scale.double()
    )
    return rounded(product * left * b_scale.double() / y_scale.double(), y_zero, y_zero.dtype)


@operator("QLinearConv", numbers=(1, 2, 4, 5, 6, 7))
def q_linear_conv(call: Call, *inputs: Any) -> Tensor:
    """Return a convolution of quantised values, quantised."""
    x, x_scale, x_zero, weight, w_scale, w_zero, y_scale, y_zero = inputs[:8]
    each = (-1,) + (1,) * (weight.ndim - 1)
    bias = inputs[8].double() if len(inputs) > 8 and inputs[8] is not None else None
    made = conv(call, shifted(x, x_zero), shifted(weight, w_zero, each), bias)
    outer = (1, -1) + (1,) * (weight.ndim - 2)
    scale = w_scale.double().reshape(outer) if w_scale.numel() > 1 else w_scale.double()
    return rounded(made * x_scale.double() * scale / y_scale.double(), y_zero, y_zero.dtype)
