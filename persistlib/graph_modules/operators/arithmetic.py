"""Element by element: functions of one tensor, of two, and of many."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from persistlib.errors import Code, error
from persistlib.graph_modules.dtypes import torch_dtype
from persistlib.graph_modules.registry import Call, operator, plain
from persistlib.graph_modules.sizes import require_broadcast

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_BROADCASTS = 7  # the first version whose broadcasting is numpy's
_INPUTS = 11  # the first version of Clip whose bounds are inputs
# Where torch and ONNX do not agree what becomes of numbers beyond the largest.
_UNLIKE = frozenset({torch.float8_e4m3fnuz, torch.float8_e5m2fnuz})
_NARROW = frozenset({torch.float8_e4m3fn, torch.float8_e5m2})
# torch stores these and computes little with them.
_WIDE = frozenset({torch.uint16, torch.uint32, torch.uint64})

plain(
    {
        "Abs": torch.abs,
        "Acos": torch.acos,
        "Acosh": torch.acosh,
        "Asin": torch.asin,
        "Asinh": torch.asinh,
        "Atan": torch.atan,
        "Atanh": torch.atanh,
        "Ceil": torch.ceil,
        "Cos": torch.cos,
        "Cosh": torch.cosh,
        "Erf": torch.erf,
        "Exp": torch.exp,
        "Floor": torch.floor,
        "HardSwish": lambda x: x * (x / 6 + 0.5).clamp(0, 1),
        "Identity": lambda x: x,
        "IsNaN": torch.isnan,
        "Log": torch.log,
        "Mish": functional.mish,
        "Neg": torch.neg,
        "Not": torch.logical_not,
        "BitwiseNot": lambda x: _narrowed(torch.bitwise_not, x),
        "Reciprocal": torch.reciprocal,
        "Relu": torch.relu,
        "Round": torch.round,
        "Sigmoid": torch.sigmoid,
        "Sign": torch.sign,
        "Sin": torch.sin,
        "Sinh": torch.sinh,
        "Softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
        "Softsign": functional.softsign,
        "Sqrt": torch.sqrt,
        "Tan": torch.tan,
        "Tanh": torch.tanh,
        "Det": torch.linalg.det,
    }
)


def _narrowed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return a function's value, computed in int64 for dtypes that torch only stores."""
    dtype = inputs[0].dtype
    if dtype not in _WIDE:
        return function(*inputs)
    made = function(*(t.to(torch.int64) if t.dtype in _WIDE else t for t in inputs))
    return made if made.dtype is torch.bool else made.to(dtype)


def aligned(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Return the second input of an operator with the axes that old versions gave it."""
    if call.version >= _BROADCASTS or not call.get("broadcast", 0):
        return b
    axis = call.get("axis", a.ndim - b.ndim) % max(a.ndim, 1)
    return b.reshape(tuple(b.shape) + (1,) * (a.ndim - axis - b.ndim))


def _binary(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @operator(name)
    def compute(call: Call, a: Tensor, b: Tensor) -> Tensor:
        b = aligned(call, a, b)
        require_broadcast(call, a, b)
        return _narrowed(function, a, b)


def _divided(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _raised(a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": _divided,
    "Pow": _raised,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}
for _name, _function in _BINARY.items():
    _binary(_name, _function)


@operator("Mod")
def mod(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Return the remainder, with the divisor's sign or (`fmod`) with the dividend's."""
    require_broadcast(call, a, b)
    return _narrowed(torch.fmod if call.get("fmod", 0) else torch.remainder, a, b)


@operator("BitShift")
def bit_shift(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Return whole numbers with their bits moved."""
    require_broadcast(call, a, b)
    is_left = call.get("direction") == "LEFT"
    return _narrowed(torch.bitwise_left_shift if is_left else torch.bitwise_right_shift, a, b)


def _variadic(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @operator(name)
    def compute(call: Call, *inputs: Tensor) -> Tensor:
        require_broadcast(call, *inputs)
        return reduce(lambda a, b: _narrowed(function, a, b), inputs)


_variadic("Max", torch.maximum)
_variadic("Min", torch.minimum)
_variadic("Sum", torch.add)


@operator("Mean")
def mean(call: Call, *inputs: Tensor) -> Tensor:
    """Return the mean of tensors."""
    require_broadcast(call, *inputs)
    return reduce(torch.add, inputs) / len(inputs)


@operator("Where")
def where(call: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return elements of one tensor or of another."""
    require_broadcast(call, condition, a, b)
    return torch.where(condition, a, b)


@operator("Clip", numbers=(1, 2))
def clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Return values held between bounds; the upper one wins."""
    if call.version < _INPUTS:
        return x.clamp(call.get("min"), call.get("max"))
    if low is not None:
        x = _narrowed(torch.maximum, x, low)
    return x if high is None else _narrowed(torch.minimum, x, high)


@operator("Elu")
def elu(call: Call, x: Tensor) -> Tensor:
    """Return alpha (exp x - 1) below zero."""
    return functional.elu(x, call.get("alpha", 1.0))


@operator("Celu")
def celu(call: Call, x: Tensor) -> Tensor:
    """Return alpha (exp (x / alpha) - 1) below zero."""
    return functional.celu(x, call.get("alpha", 1.0))


@operator("Selu")
def selu(call: Call, x: Tensor) -> Tensor:
    """Return a scaled Elu."""
    alpha = call.get("alpha", 1.67326319217681884765625)
    return functional.elu(x, alpha) * float(call.get("gamma", 1.05070102214813232421875))


@operator("LeakyRelu")
def leaky_relu(call: Call, x: Tensor) -> Tensor:
    """Return alpha x below zero."""
    return functional.leaky_relu(x, call.get("alpha", 0.01))


@operator("ThresholdedRelu")
def thresholded_relu(call: Call, x: Tensor) -> Tensor:
    """Return zero up to alpha."""
    return torch.where(x > call.get("alpha", 1.0), x, torch.zeros_like(x))


@operator("PRelu")
def prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    """Return slope x below zero."""
    if call.version < _BROADCASTS and slope.ndim == 1 and x.ndim > 1:
        slope = slope.reshape((-1,) + (1,) * (x.ndim - 2))
    require_broadcast(call, x, slope)
    return torch.where(x < 0, slope * x, x)


@operator("HardSigmoid")
def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    """Return a straight line held between 0 and 1."""
    return (x * float(call.get("alpha", 0.2)) + float(call.get("beta", 0.5))).clamp(0, 1)


@operator("Shrink")
def shrink(call: Call, x: Tensor) -> Tensor:
    """Return values moved towards zero by bias, those within lambd of it as zero."""
    bias, limit = call.get("bias", 0.0), call.get("lambd", 0.5)
    moved = torch.where(x > limit, x - bias, torch.where(x < -limit, x + bias, x.new_zeros(())))
    return moved.to(x.dtype)


@operator("Gelu")
def gelu(call: Call, x: Tensor) -> Tensor:
    """Return x times the normal distribution's share below it."""
    return functional.gelu(x, approximate=call.get("approximate", "none"))


@operator("Swish")
def swish(call: Call, x: Tensor) -> Tensor:
    """Return x sigmoid (alpha x)."""
    return x * torch.sigmoid(call.get("alpha", 1.0) * x)


@operator("IsInf")
def is_inf(call: Call, x: Tensor) -> Tensor:
    """Return where values are infinite."""
    found = torch.isinf(x)
    if not call.get("detect_negative", 1):
        found &= x > 0
    if not call.get("detect_positive", 1):
        found &= x < 0
    return found


@operator("Cast")
def cast(call: Call, x: Tensor) -> Tensor:
    """Return the values in another dtype; floats become whole numbers by truncation."""
    return _cast(call, x, torch_dtype(call.get("to")))


@operator("CastLike")
def cast_like(call: Call, x: Tensor, like: Tensor) -> Tensor:
    """Return the values in another tensor's dtype."""
    return _cast(call, x, like.dtype)


def _cast(call: Call, x: Any, dtype: torch.dtype | None) -> Tensor:
    is_unlike = dtype in _UNLIKE or (dtype in _NARROW and not call.get("saturate", 1))
    if dtype is None or is_unlike or not isinstance(x, torch.Tensor):
        raise error(
            Code.GRAPH_OPERATOR, call.location, "casts to a dtype that torch lacks", "see the docs"
        )
    if x.dtype in _WIDE and not dtype.is_floating_point:
        x = x.to(torch.int64)
    return torch.Tensor.to(x, dtype)


@operator("BitCast")
def bit_cast(call: Call, x: Tensor) -> Tensor:
    """Return the same bits as values of another dtype of the same width."""
    dtype = torch_dtype(call.get("to"))
    return x.contiguous().view(dtype) if dtype is not None else _cast(call, x, None)
