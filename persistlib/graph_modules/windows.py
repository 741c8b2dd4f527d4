"""How far a kernel reaches and how much is added at the edges."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from persistlib.graph_modules.sizes import require_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from persistlib.graph_modules.registry import Call


class Window(NamedTuple):
    """A kernel over the trailing axes of a tensor, a number for each axis.

    Attributes:
        kernel: extents of the kernel.
        strides: steps between its places.
        dilations: steps between its elements.
        before: elements added at the beginning.
        after: elements added at the end.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]

    @property
    def reach(self) -> list[int]:
        """Extents that the dilated kernel covers."""
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]


def window(call: Call, extents: Sequence[int], kernel: Sequence[int]) -> Window:
    """Return the window that a node's attributes say.

    Args:
        call: the node.
        extents: of the axes that the kernel moves along.
        kernel: its extents.
    """
    rank = len(kernel)
    strides = list(call.get("strides") or [1] * rank)
    dilations = list(call.get("dilations") or [1] * rank)
    pads = list(call.get("pads") or [0] * (2 * rank))
    made = Window(list(kernel), strides, dilations, pads[:rank], pads[rank:])
    kind = call.get("auto_pad", "NOTSET")
    if kind == "VALID":
        return made._replace(before=[0] * rank, after=[0] * rank)
    if not kind.startswith("SAME"):
        return made
    totals = [
        max((-(-extent // stride) - 1) * stride + reach - extent, 0)
        for extent, stride, reach in zip(extents, strides, made.reach, strict=True)
    ]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    is_upper = kind == "SAME_UPPER"
    return made._replace(before=small if is_upper else large, after=large if is_upper else small)


def with_ceiling(made: Window, extents: Sequence[int]) -> Window:
    """Return the window with edges long enough for a last, partial place of the kernel."""
    after = []
    rows = zip(extents, made.reach, made.strides, made.before, made.after, strict=True)
    for extent, reach, stride, before, end in rows:
        count = -(-(extent + before + end - reach) // stride) + 1
        if (count - 1) * stride >= extent + before:  # it would begin in the added part
            count -= 1
        after.append(max((count - 1) * stride + reach - extent - before, 0))
    return made._replace(after=after)


def edged(call: Call, x: Tensor, made: Window, fill: float) -> Tensor:
    """Return the tensor with a window's edges."""
    from torch.nn import functional

    amounts = [n for pair in zip(made.before, made.after, strict=True) for n in pair]
    if not any(amounts):
        return x
    rank = len(made.kernel)
    grown = [e + b + a for e, b, a in zip(x.shape[-rank:], made.before, made.after, strict=True)]
    require_size(call, (*x.shape[:-rank], *(max(n, 0) for n in grown)), x)
    pairs = list(zip(made.before, made.after, strict=True))
    return functional.pad(x, [n for pair in reversed(pairs) for n in pair], value=fill)
