"""Convolutions and their transposes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional

from persistlib.errors import Code, error
from persistlib.graph_modules.registry import Call, operator
from persistlib.graph_modules.sizes import require_size
from persistlib.graph_modules.windows import Window, edged, window

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSES = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


@operator("Conv")
def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a convolution over one to three axes."""
    rank = weight.ndim - 2
    made = window(call, x.shape[2:], weight.shape[2:])
    compute = _of_rank(call, _CONVOLUTIONS, rank)
    padding = made.before
    if made.before != made.after or any(n < 0 for n in made.before):
        x, padding = edged(call, x, made, 0.0), [0] * rank
    else:
        require_size(call, (*x.shape[:2], *_grown(x, made)), x)
    return compute(x, weight, bias, made.strides, padding, made.dilations, call.get("group", 1))


def _grown(x: Tensor, made: Window) -> list[int]:
    return [n + 2 * b for n, b in zip(x.shape[2:], made.before, strict=True)]


def _of_rank(
    call: Call, table: dict[int, Callable[..., Tensor]], rank: int
) -> Callable[..., Tensor]:
    if rank not in table:
        raise error(
            Code.GRAPH_OPERATOR,
            call.location,
            f"{call.operator} over {rank} axes; torch has one to three",
            "change the model's kernels",
        )
    return table[rank]


@operator("ConvTranspose")
def conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the transpose of a convolution, cropped as the node says.

    torch crops and extends both sides alike; so the whole is computed, then cut or extended.
    """
    rank = weight.ndim - 2
    made = window(call, x.shape[2:], call.get("kernel_shape") or weight.shape[2:])
    compute = _of_rank(call, _TRANSPOSES, rank)
    extra = list(call.get("output_padding") or [0] * rank)
    rows = zip(x.shape[2:], made.strides, made.reach, strict=True)
    whole = [(extent - 1) * stride + reach for extent, stride, reach in rows]
    before, after = _cropped(call, made, whole, extra)
    group = call.get("group", 1)
    require_size(call, (x.shape[0], weight.shape[1] * group, *whole), x, weight)
    y = compute(x, weight, None, made.strides, [0] * rank, [0] * rank, group, made.dilations)
    y = edged(call, y, made._replace(before=[-n for n in before], after=[-n for n in after]), 0.0)
    return y if bias is None else y + bias.reshape((-1,) + (1,) * rank)


def _cropped(
    call: Call, made: Window, whole: list[int], extra: list[int]
) -> tuple[list[int], list[int]]:
    """Return how much is cut at each side; what is below zero is added."""
    wanted = call.get("output_shape")
    kind = call.get("auto_pad", "NOTSET")
    if wanted:
        wanted = wanted[-len(whole) :]
    elif kind.startswith("SAME"):
        # The transpose of a "same" convolution has its input's extents times the strides.
        rows = zip(whole, made.reach, made.strides, strict=True)
        wanted = [(n - reach) + stride for n, reach, stride in rows]
    else:
        return made.before, [a - e for a, e in zip(made.after, extra, strict=True)]
    totals = [n + e - w for n, e, w in zip(whole, extra, wanted, strict=True)]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    before, after = (small, large) if kind == "SAME_UPPER" else (large, small)
    if kind == "NOTSET":
        before, after = large, small
    return before, [a - e for a, e in zip(after, extra, strict=True)]


@operator("DeformConv")
def deform_conv(
    call: Call, x: Tensor, weight: Tensor, offset: Tensor, *rest: Tensor | None
) -> Tensor:
    """Return a convolution whose elements are moved by offsets, over two axes."""
    from torchvision.ops import deform_conv2d

    bias, mask = (*rest, None, None)[:2]
    made = window(call, x.shape[2:], weight.shape[2:])
    if made.before != made.after or weight.ndim != 4:
        raise error(Code.GRAPH_OPERATOR, call.location, "DeformConv with uneven edges")
    moved: Tensor = deform_conv2d(
        x,
        offset,
        weight,
        bias,
        stride=(made.strides[0], made.strides[1]),
        padding=(made.before[0], made.before[1]),
        dilation=(made.dilations[0], made.dilations[1]),
        mask=mask,
    )
    return moved
