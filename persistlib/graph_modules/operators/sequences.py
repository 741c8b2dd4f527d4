"""Sequences as lists, and optionals as None or their value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from persistlib.graph_modules.registry import Call, Run, operator
from persistlib.graph_modules.sizes import ints, require_loops, require_size

if TYPE_CHECKING:
    from torch import Tensor


@operator("SequenceEmpty")
def sequence_empty(_: Call) -> list[Tensor]:
    """Return a sequence of nothing."""
    return []


@operator("SequenceConstruct")
def sequence_construct(_: Call, *inputs: Tensor) -> list[Tensor]:
    """Return a sequence of tensors."""
    return list(inputs)


@operator("SequenceAt")
def sequence_at(_: Call, sequence: list[Tensor], at: Tensor) -> Tensor:
    """Return one tensor of a sequence."""
    return sequence[ints(at)[0]]


@operator("SequenceLength")
def sequence_length(_: Call, sequence: list[Tensor]) -> Tensor:
    """Return how many tensors a sequence has, int64."""
    return torch.tensor(len(sequence), dtype=torch.int64)


@operator("SequenceInsert")
def sequence_insert(
    call: Call, sequence: list[Tensor], value: Tensor, at: Tensor | None = None
) -> list[Tensor]:
    """Return the sequence with one tensor more."""
    require_loops(call, len(sequence))
    place = len(sequence) if at is None else ints(at)[0]
    place = place + len(sequence) if place < 0 else place
    return [*sequence[:place], value, *sequence[place:]]


@operator("SequenceErase")
def sequence_erase(_: Call, sequence: list[Tensor], at: Tensor | None = None) -> list[Tensor]:
    """Return the sequence with one tensor fewer."""
    place = (-1 if at is None else ints(at)[0]) % len(sequence)
    return [*sequence[:place], *sequence[place + 1 :]]


@operator("SplitToSequence")
def split_to_sequence(call: Call, x: Tensor, sizes: Tensor | None = None) -> list[Tensor]:
    """Return slices of a tensor along an axis."""
    axis = call.get("axis", 0)
    require_loops(call, x.shape[axis])
    if sizes is None:
        parts = list(torch.split(x, 1, axis))
        return parts if call.get("keepdims", 1) else [part.squeeze(axis) for part in parts]
    said = ints(sizes)
    return list(torch.split(x, said[0] if not sizes.ndim else said, axis))


@operator("ConcatFromSequence")
def concat_from_sequence(call: Call, sequence: list[Tensor]) -> Tensor:
    """Return the tensors of a sequence joined along an old axis or a new one."""
    require_size(call, (sum(t.numel() for t in sequence),))
    join: Any = torch.stack if call.get("new_axis", 0) else torch.cat
    joined: Tensor = join(sequence, call.get("axis"))
    return joined


@operator("SequenceMap", runs=True)
def sequence_map(call: Call, run: Run, sequence: list[Tensor], *rest: Any) -> tuple[Any, ...]:
    """Return what a graph makes of each tensor of a sequence, a sequence for each output."""
    rows = []
    for index, value in enumerate(sequence):
        run.turn(call)
        others = [item[index] if isinstance(item, list) else item for item in rest]
        rows.append(run.body(call.get("body"), [value, *others]))
    return tuple(list(column) for column in zip(*rows, strict=True)) or ([],) * len(call.outputs)


@operator("Optional")
def optional(_: Call, value: Any = None) -> Any:
    """Return an optional with a value, or with none."""
    return value


@operator("OptionalGetElement")
def optional_get_element(_: Call, value: Any) -> Any:
    """Return the value of an optional.

    Raises:
        ValueError: it has none.
    """
    if value is None:
        raise ValueError("the optional is empty")
    return value


@operator("OptionalHasElement")
def optional_has_element(_: Call, value: Any = None) -> Tensor:
    """Return whether an optional has a value."""
    return torch.tensor(value is not None)
