"""Bounds on what an operator may make.

A graph of a few bytes can ask for terabytes. An operator that makes more than it was given says how
much before it makes it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from persistlib.graph_modules.registry import Call

# Elements; no machine that trains today holds the second.
GROWN = 1 << 29
MOST = 1 << 34
# A batch may be as large as its owner likes; what grows beyond this from small inputs is no batch.
_GROWTH = 64
LOOPS = 1_000_000


def require_size(call: Call, shape: Iterable[int], *inputs: torch.Tensor | None) -> None:
    """Raise where an output of this shape is beyond what inputs of a well-meant graph grow to.

    Raises:
        FormatError: it is; nothing was made.
    """
    if torch.compiler.is_compiling():
        return
    count = math.prod(shape)
    if count <= GROWN:
        return
    given = sum(tensor.numel() for tensor in inputs if tensor is not None)
    if count > MOST or count > _GROWTH * given:
        raise error(
            Code.FORMAT_LIMIT,
            call.location,
            f"asks for {count} elements from {given}",
            "give smaller inputs; a file that does this with any input is not well meant",
        )


def broadcast(*shapes: Sequence[int]) -> tuple[int, ...]:
    """Return the shape that tensors of these shapes broadcast to."""
    made: Any = torch.broadcast_shapes  # torch gives it no types
    return tuple(made(*(tuple(shape) for shape in shapes)))


def require_broadcast(call: Call, *inputs: torch.Tensor) -> None:
    """Raise where inputs broadcast to more than they may.

    Raises:
        FormatError: they do; nothing was made.
    """
    if torch.compiler.is_compiling() or math.prod(t.numel() for t in inputs) <= GROWN:
        return
    require_size(call, broadcast(*(t.shape for t in inputs)), *inputs)


def require_loops(call: Call, count: int) -> None:
    """Raise where a loop turns more often than any well-meant one.

    Raises:
        FormatError: it does.
    """
    if count > LOOPS:
        raise error(
            Code.FORMAT_LIMIT,
            call.location,
            f"turns more than {LOOPS} times",
            "do not use this file with these inputs",
        )


def ints(value: torch.Tensor | Sequence[int]) -> list[int]:
    """Return whole numbers of a tensor or a list as Python's."""
    if isinstance(value, torch.Tensor):
        flat = value.reshape(-1).tolist()
        return [int(item) for item in flat] if value.is_floating_point() else flat
    return list(value)
