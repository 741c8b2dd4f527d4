"""Operators of ONNX Runtime's quantiser: arithmetic on whole numbers as the floats they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from persistlib.graph_modules.operators.quantization import (
    dequantize_linear,
    dynamic_quantize_linear,
    quantize_linear,
    rounded,
    shifted,
)
from persistlib.graph_modules.registry import MICROSOFT, OPERATORS, Call, Operator, operator

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

OPERATORS[MICROSOFT, "QuantizeLinear"] = Operator(quantize_linear, numbers=frozenset({1, 2}))
OPERATORS[MICROSOFT, "DequantizeLinear"] = Operator(dequantize_linear, numbers=frozenset({1, 2}))


def meant(x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Return the floats that whole numbers mean, as doubles."""
    return shifted(x, zero) * scale.double()


def stored(values: Tensor, scale: Tensor, zero: Tensor | None, like: torch.dtype) -> Tensor:
    """Return floats as whole numbers."""
    return rounded(values / scale.double(), zero, like if zero is None else zero.dtype)


def _binary(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @operator(name, domain=MICROSOFT, numbers=range(8))
    def compute(_: Call, *given: Any) -> Tensor:
        a, b = meant(*given[:3]), meant(*given[3:6])
        y_scale, y_zero = given[6], given[7] if len(given) > 7 else None
        return stored(function(a, b), y_scale, y_zero, next(iter(given)).dtype)


_binary("QLinearAdd", torch.add)
_binary("QLinearMul", torch.mul)


def _unary(name: str, function: Callable[[Call, Tensor], Tensor]) -> None:
    @operator(name, domain=MICROSOFT, numbers=range(5))
    def compute(call: Call, *given: Any) -> Tensor:
        y_scale, y_zero = given[3], given[4] if len(given) > 4 else None
        return stored(function(call, meant(*given[:3])), y_scale, y_zero, next(iter(given)).dtype)


_unary("QLinearSigmoid", lambda _, x: x.sigmoid())
_unary("QLinearLeakyRelu", lambda call, x: functional.leaky_relu(x, call.get("alpha", 0.01)))
_unary("QLinearSoftmax", lambda call, x: x.softmax(call.get("axis", -1)))
_unary("QLinearGlobalAveragePool", lambda _, x: x.mean(tuple(range(2, x.ndim)), keepdim=True))


@operator("QLinearConcat", domain=MICROSOFT, numbers=range(1000))
def q_linear_concat(call: Call, *given: Any) -> Tensor:
    """Return quantised tensors joined, quantised alike."""
    y_scale, y_zero, *rest = given
    parts = [meant(*rest[at : at + 3]) for at in range(0, len(rest), 3)]
    return stored(torch.cat(parts, call.get("axis")), y_scale, y_zero, rest[0].dtype)


@operator("DynamicQuantizeMatMul", domain=MICROSOFT, numbers=(2, 3))
def dynamic_quantize_mat_mul(
    call: Call, a: Tensor, b: Tensor, b_scale: Tensor, *rest: Any
) -> Tensor:
    """Return a product with quantised weights; the other matrix is quantised by its own range."""
    b_zero, bias = (*rest, None, None)[:2]
    whole, scale, zero = dynamic_quantize_linear(call, a)
    made = torch.matmul(meant(whole, scale, zero), shifted(b, b_zero) * b_scale.double())
    return (made if bias is None else made + bias).to(a.dtype)


@operator("MatMulIntegerToFloat", domain=MICROSOFT, numbers=(2, 3, 4, 5))
def mat_mul_integer_to_float(_: Call, a: Tensor, b: Tensor, *rest: Any) -> Tensor:
    """Return a product of quantised matrices as floats."""
    a_scale, b_scale = rest[:2]
    a_zero, b_zero, bias = (*rest[2:], None, None, None)[:3]
    made = torch.matmul(
        shifted(a, a_zero) * a_scale.double(), shifted(b, b_zero) * b_scale.double()
    )
    return (made if bias is None else made + bias).to(a_scale.dtype)
