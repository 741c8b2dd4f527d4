"""Graphs inside the graph: chosen, repeated, and moved along sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from persistlib.errors import Code, error
from persistlib.graph_modules.registry import Call, Run, operator
from persistlib.graph_modules.sizes import ints, require_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_UNBATCHED = 9  # the first version of Scan without a batch axis


@operator("Constant")
def constant(call: Call) -> Any:
    """Return what stands in the node."""
    for name in ("value", "value_int", "value_float", "value_ints", "value_floats"):
        value = call.get(name)
        if isinstance(value, torch.Tensor):
            return value
        if value is not None:
            return torch.tensor(value, dtype=torch.int64 if "int" in name else torch.float32)
    raise error(Code.GRAPH_OPERATOR, call.location, "a constant that is no tensor of numbers")


@operator("If", runs=True)
def choose(call: Call, run: Run, condition: Tensor) -> tuple[Any, ...]:
    """Return the outputs of one of two graphs."""
    branch = "then_branch" if bool(condition.reshape(()).item()) else "else_branch"
    return tuple(run.body(call.get(branch), []))


@operator("Loop", runs=True)
def loop(
    call: Call, run: Run, most: Tensor | None, condition: Tensor | None, *carried: Any
) -> tuple[Any, ...]:
    """Return the carried values after the last turn, and what each turn gave, stacked."""
    limit = None if most is None else ints(most)[0]
    goes_on = condition is None or bool(condition.item())
    state, turn = list(carried), 0
    rows: list[list[Tensor]] = []
    held = 0
    while goes_on and (limit is None or turn < limit):
        run.turn(call)
        made = run.body(
            call.get("body"), [torch.tensor(turn, dtype=torch.int64), torch.tensor(True), *state]
        )
        goes_on, state = bool(made[0].item()), made[1 : 1 + len(carried)]
        rows.append(made[1 + len(carried) :])
        held += sum(value.numel() for value in rows[-1])
        require_size(call, (held,))
        turn += 1
    return *state, *_stacked(rows, len(call.outputs) - len(carried))


def _stacked(rows: list[list[Tensor]], count: int) -> list[Tensor]:
    if not rows:
        return [torch.zeros(0) for _ in range(count)]
    return [torch.stack(list(column)) for column in zip(*rows, strict=True)]


@operator("Scan", runs=True)
def scan(call: Call, run: Run, *inputs: Any) -> tuple[Any, ...]:
    """Return the state after the last slice, and what each slice gave, stacked."""
    if call.version < _UNBATCHED:
        return _batched_scan(call, run, *inputs)
    count = call.get("num_scan_inputs")
    axes = call.get("scan_input_axes") or [0] * count
    moved = [v.movedim(axis, 0) for v, axis in zip(inputs[-count:], axes, strict=True)]
    ways = call.get("scan_input_directions") or [0] * count
    results, states = _scanned(call, run, list(inputs[:-count]), _turned(moved, ways))
    out_ways = call.get("scan_output_directions") or [0] * len(results)
    out_axes = call.get("scan_output_axes") or [0] * len(results)
    turned = _turned(results, out_ways)
    return *states, *(r.movedim(0, axis) for r, axis in zip(turned, out_axes, strict=True))


def _turned(values: Sequence[Tensor], ways: Sequence[int]) -> list[Tensor]:
    return [v.flip(0) if way else v for v, way in zip(values, ways, strict=True)]


def _scanned(
    call: Call, run: Run, states: list[Any], slices: Sequence[Tensor]
) -> tuple[list[Tensor], list[Any]]:
    rows: list[list[Tensor]] = []
    for at in range(slices[0].shape[0]):
        run.turn(call)
        made = run.body(call.get("body"), [*states, *(value[at] for value in slices)])
        rows.append(made[len(states) :])
        states = made[: len(states)]
    return _stacked(rows, len(call.outputs) - len(states)), states


def _batched_scan(call: Call, run: Run, lengths: Tensor | None, *inputs: Tensor) -> tuple[Any, ...]:
    """Return what version 8 says: a batch axis before the one that is moved along."""
    if lengths is not None:
        raise error(Code.GRAPH_OPERATOR, call.location, "Scan of version 8 with lengths")
    count = call.get("num_scan_inputs")
    ways = call.get("directions") or [0] * count
    rows = []
    for sample in zip(*inputs, strict=True):
        moved = _turned(sample[-count:], ways)
        results, states = _scanned(call, run, list(sample[:-count]), moved)
        rows.append((*states, *results))
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))
