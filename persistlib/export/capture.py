"""From a module to torch's graph of it, optimised as a whole and without one value of the state.

The state is detached before the optimiser runs: each initializer becomes a graph input without a
value. No rule can then read, fold, merge or drop it, and ONNX Runtime folds BatchNorm itself when a
session is made. (The default export of resnet18 keeps 22 of its 102 tensors by name, 2 by value.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from persistlib.errors import Code, error
from persistlib.examples import named_outputs
from persistlib.export.calling import call, device_of, evaluation, silence

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx
    from torch.export import ExportedProgram

    from persistlib.export.state import StateTensor

BATCH = "batch"
# What stands before a state tensor's name while torch works: no value of its own has a name so.
PREFIX = "module."


@dataclass(frozen=True, slots=True)
class Captured:
    """Torch's graph of a module.

    Attributes:
        proto: the graph; its inputs are the forward arguments, then the state by prefixed names.
        inputs: how many forward arguments there are.
        outputs: the names of the outputs in order.
        examples: the inputs that it was traced with.
        program: torch's own graph, whose nodes are called as the values that come from them.
    """

    proto: onnx.ModelProto
    inputs: int
    outputs: tuple[str, ...]
    examples: tuple[torch.Tensor, ...]
    program: ExportedProgram


class _Traced(torch.nn.Module):
    """The module behind positional arguments and a flat tuple of outputs.

    Forward arguments thereby have no names that could clash with the state's, and outputs of any
    nesting come in a known order.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor for _, tensor in named_outputs(self.module(*inputs)))


def capture(
    model: torch.nn.Module,
    examples: Sequence[torch.Tensor],
    state: dict[str, StateTensor],
    *,
    opset: int | None,
    dynamic_batch: bool,
) -> Captured:
    """Return torch's graph of `model`.

    Raises:
        ExportError: the module cannot be called with the examples, or torch cannot export it.
    """
    axes = batch_axes(examples) if dynamic_batch else ()
    inputs = tuple(_widened(t, i in axes) for i, t in enumerate(examples))
    try:
        outputs = tuple(call(model, inputs))
    except Exception as fault:
        reason = f"it cannot be called with the example inputs: {summary(fault)}"
        raise error(Code.EXPORT_FAILED, _name(model), reason, "mend the example inputs") from fault
    if not outputs:
        raise error(Code.EXPORT_FAILED, _name(model), "it returns no tensor", "return tensors")
    try:
        with evaluation(model), silence():
            proto, program = _optimised(
                _Traced(model), inputs, _shapes(inputs, axes), opset, set(state)
            )
    except Exception as fault:
        remedy = "mend the module, or save it without a graph"
        raise error(Code.EXPORT_FAILED, _name(model), summary(fault), remedy) from fault
    return Captured(proto, len(inputs), outputs, inputs, program)


def batch_axes(examples: Sequence[torch.Tensor]) -> tuple[int, ...]:
    """Return which inputs have the batch as first axis: those as long there as the first one."""
    ranked = [(i, tensor.shape[0]) for i, tensor in enumerate(examples) if tensor.dim()]
    return tuple(i for i, extent in ranked if extent == ranked[0][1])


def summary(fault: BaseException) -> str:
    """Return the innermost cause's first line, which is where torch says what it means."""
    seen: set[int] = set()
    while (inner := fault.__cause__) is not None and id(inner) not in seen:
        seen.add(id(inner))
        fault = inner
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return f"{type(fault).__name__}: {lines[0][:300]}" if lines else type(fault).__name__


def _name(model: torch.nn.Module) -> str:
    return type(model).__qualname__


def _widened(tensor: torch.Tensor, is_batched: bool) -> torch.Tensor:
    """Return an example as a tensor of its own, of at least two rows.

    Torch may take an extent of 1 for a fixed one, and a module may ask whether two of its arguments
    are the same object (`nn.MultiheadAttention` does), which the graph would then take for granted.
    """
    own = tensor.detach().clone()
    return torch.cat([own, own]) if is_batched and own.shape[0] == 1 else own


def _shapes(inputs: Sequence[torch.Tensor], axes: Sequence[int]) -> tuple[Any, ...] | None:
    """Return torch's description of the free axes, one entry for the lone variadic argument."""
    if not axes:
        return None
    batch = torch.export.Dim(BATCH)
    return (tuple({0: batch} if i in axes else None for i in range(len(inputs))),)


def _optimised(
    traced: _Traced,
    inputs: tuple[torch.Tensor, ...],
    shapes: tuple[Any, ...] | None,
    opset: int | None,
    state: set[str],
) -> tuple[onnx.ModelProto, ExportedProgram]:
    device = device_of(traced)
    traced.training = False
    program = torch.onnx.export(
        traced,
        tuple(tensor.to(device) for tensor in inputs),
        dynamo=True,
        optimize=False,
        verbose=False,
        dynamic_shapes=shapes,
        opset_version=opset,
    )
    if program is None or program.exported_program is None:
        raise RuntimeError("torch returned no program")
    graph: Any = program.model.graph
    for name in [name for name in graph.initializers if name.removeprefix(PREFIX) in state]:
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)
    program.optimize()
    return program.model_proto, program.exported_program
