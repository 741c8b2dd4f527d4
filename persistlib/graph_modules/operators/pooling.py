"""The largest, the mean or the norm of what lies under a window."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from persistlib.errors import Code, error
from persistlib.graph_modules.registry import Call, operator
from persistlib.graph_modules.sizes import ints, require_size
from persistlib.graph_modules.windows import Window, edged, window, with_ceiling

if TYPE_CHECKING:
    from torch import Tensor

_MAXIMA = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_SUMS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def _window(call: Call, x: Tensor) -> tuple[Window, Window]:
    """Return the window as said, and with the edges that a ceiling adds."""
    kernel = call.get("kernel_shape")
    said = window(call, x.shape[2:], kernel)
    if len(kernel) not in _MAXIMA:
        raise error(Code.GRAPH_OPERATOR, call.location, f"a window over {len(kernel)} axes")
    whole = with_ceiling(said, x.shape[2:]) if call.get("ceil_mode", 0) else said
    return said, whole


@operator("MaxPool")
def max_pool(call: Call, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """Return the largest value under each place of a window, and where it stands."""
    _, whole = _window(call, x)
    rank = len(whole.kernel)
    dtype = x.dtype
    floats = x if x.is_floating_point() else x.double()
    grown = edged(call, floats, whole, -math.inf)
    pool = _MAXIMA[rank]
    if not call.wants(1):
        made = pool(grown, whole.kernel, whole.strides, 0, whole.dilations)
        return made.to(dtype)
    values, places = pool(
        grown, whole.kernel, whole.strides, 0, whole.dilations, return_indices=True
    )
    return values.to(dtype), _places(call, x, places, list(grown.shape[2:]), whole.before)


def _places(call: Call, x: Tensor, places: Tensor, extents: list[int], before: list[int]) -> Tensor:
    """Return positions in the whole tensor from those in one padded image."""
    at: list[Tensor] = []
    for extent, start in zip(reversed(extents), reversed(before), strict=True):
        at.insert(0, places.remainder(extent) - start)
        places = places.div(extent, rounding_mode="floor")
    order = list(range(len(extents)))
    if call.get("storage_order", 0):
        order.reverse()
    flat = torch.zeros_like(at[0])
    for axis in order:
        flat = flat * x.shape[2 + axis] + at[axis]
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device)
    planes = planes.reshape((*x.shape[:2],) + (1,) * len(extents))
    return flat + planes * math.prod(x.shape[2:])


def _sums(x: Tensor, made: Window) -> Tensor:
    """Return the sum under each place of a window."""
    channels = x.shape[1]
    ones = torch.ones((channels, 1, *made.kernel), dtype=x.dtype, device=x.device)
    return _SUMS[len(made.kernel)](x, ones, None, made.strides, 0, made.dilations, channels)


@operator("AveragePool")
def average_pool(call: Call, x: Tensor) -> Tensor:
    """Return the mean under each place of a window; edges count where the node says so."""
    said, whole = _window(call, x)
    total = _sums(edged(call, x, whole, 0.0), whole)
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if call.get("count_include_pad", 0):
        ones = edged(call, ones, said, 1.0)
        beyond = [w - s for w, s in zip(whole.after, said.after, strict=True)]
        rest = whole._replace(before=[0] * len(beyond), after=beyond)
        counts = _sums(edged(call, ones, rest, 0.0), whole)
    else:
        counts = _sums(edged(call, ones, whole, 0.0), whole)
    return total / counts


@operator("LpPool")
def lp_pool(call: Call, x: Tensor) -> Tensor:
    """Return the p-norm under each place of a window."""
    _, whole = _window(call, x)
    power = float(call.get("p", 2))
    return _sums(edged(call, x.abs().pow(power), whole, 0.0), whole).pow(1 / power)


@operator("GlobalAveragePool")
def global_average_pool(_: Call, x: Tensor) -> Tensor:
    """Return the mean of each channel."""
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(_: Call, x: Tensor) -> Tensor:
    """Return the largest value of each channel."""
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(call: Call, x: Tensor) -> Tensor:
    """Return the p-norm of each channel."""
    power = float(call.get("p", 2))
    return x.abs().pow(power).sum(tuple(range(2, x.ndim)), keepdim=True).pow(1 / power)


@operator("MaxUnpool")
def max_unpool(call: Call, x: Tensor, places: Tensor, wanted: Tensor | None = None) -> Tensor:
    """Return zeros with values put where MaxPool found them."""
    said = window(call, x.shape[2:], call.get("kernel_shape"))
    rows = zip(x.shape[2:], said.strides, said.kernel, said.before, said.after, strict=True)
    extents = [(n - 1) * stride + kernel - b - a for n, stride, kernel, b, a in rows]
    inner = (*x.shape[:2], *extents)
    final = tuple(ints(wanted)) if wanted is not None else inner
    require_size(call, final, x)
    # Positions count in the tensor that was pooled, whatever shape is asked for.
    flat = x.new_zeros(math.prod(inner)).scatter(0, places.reshape(-1), x.reshape(-1))
    made = flat.reshape(inner)
    amounts = [n - m for n, m in zip(final, inner, strict=True)]
    return functional.pad(made, [n for gap in reversed(amounts) for n in (0, gap)])
