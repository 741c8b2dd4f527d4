"""From a module to torch's graph of it, optimised as a whole and without one value of the state.

The state is detached before the optimiser runs: each initializer becomes a graph input without a
value. No rule can then read, fold, merge or drop it, and ONNX Runtime folds BatchNorm itself when a
session is made. (The default export of resnet18 keeps 22 of its 102 tensors by name, 2 by value.)

Torch is asked for its own graph first, and for ONNX's from that: asked for both at once it fixes an
axis that was to be free without a word, where it could say why.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from persistlib.errors import Code, PersistlibError, error
from persistlib.examples import named_outputs
from persistlib.export.calling import call, device_of, evaluation, silence
from persistlib.export.recurrence import TRANSLATIONS
from persistlib.export.scalars import keep_doubles, near_misses_hidden
from persistlib.export.tracing import trace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx
    from onnxscript import ir
    from torch.export import ExportedProgram

    from persistlib.export.axes import FreeAxes
    from persistlib.export.state import StateTensor

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
        return tuple(named_outputs(self.module(*inputs)).values())


def capture(
    model: torch.nn.Module,
    examples: Sequence[torch.Tensor],
    state: Mapping[str, StateTensor],
    *,
    names: Sequence[str],
    axes: FreeAxes,
    opset: int | None,
) -> Captured:
    """Return torch's graph of `model`.

    Args:
        model: in any mode.
        examples: its positional arguments.
        state: its tensors by name.
        names: what its arguments are called, for an error.
        axes: of each argument the free axes by name.
        opset: version of the default operator set.

    Raises:
        ExportError: the module cannot be called with the examples, fixes an axis that is to be
            free, or torch cannot export it.
    """
    inputs = tuple(widened(t, free) for t, free in zip(examples, axes, strict=True))
    try:
        outputs = call(model, inputs)
    except Exception as fault:
        reason = f"it cannot be called with the example inputs: {summary(fault)}"
        raise error(Code.EXPORT_FAILED, _name(model), reason, "mend the example inputs") from fault
    for name, tensor in outputs.items():
        if tensor.is_complex():
            remedy = "return torch.view_as_real of it, or its parts"
            raise error(Code.EXPORT_FAILED, name, f"{tensor.dtype} has no place in a graph", remedy)
    if not outputs:
        raise error(Code.EXPORT_FAILED, _name(model), "it returns no tensor", "return tensors")
    try:
        with evaluation(model), silence():
            traced = _Traced(model)
            device = device_of(traced)
            on_device = tuple(tensor.to(device) for tensor in inputs)
            program = trace(traced, on_device, names=names, axes=axes)
            made = _optimised(program, opset, state)
    except PersistlibError:
        raise
    except Exception as fault:
        remedy = "mend the module, or save it without a graph"
        raise error(Code.EXPORT_FAILED, _name(model), summary(fault), remedy) from fault
    proto, program = made
    _name_axes(proto.graph, axes)
    return Captured(proto, len(inputs), tuple(outputs), inputs, program)


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


def widened(tensor: torch.Tensor, free: Mapping[int, str]) -> torch.Tensor:
    """Return an example as a tensor of its own, of at least two along every free axis.

    Torch may take an extent of 1 for a fixed one, and a module may ask whether two of its arguments
    are the same object (`nn.MultiheadAttention` does), which the graph would then take for granted.
    """
    own = tensor.detach().clone()
    for axis in free:
        own = torch.cat([own, own], axis) if own.shape[axis] == 1 else own
    return own


def _optimised(
    program: ExportedProgram, opset: int | None, state: Mapping[str, StateTensor]
) -> tuple[onnx.ModelProto, ExportedProgram]:
    translated = torch.onnx.export(
        program,
        dynamo=True,
        optimize=False,
        verbose=False,
        opset_version=opset,
        custom_translation_table=dict(TRANSLATIONS),
    )
    if translated is None or translated.exported_program is None:
        raise RuntimeError("torch returned no program")
    graph: Any = translated.model.graph
    keep_doubles(graph, translated.exported_program)
    detached: dict[str, ir.Value] = {}
    for name in [name for name in graph.initializers if name.removeprefix(PREFIX) in state]:
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)
        detached[name] = value
    with near_misses_hidden(graph):
        translated.optimize()
    _keep_names(graph, detached)
    proto: onnx.ModelProto = translated.model_proto
    return proto, translated.exported_program


def _keep_names(graph: ir.Graph, detached: Mapping[str, ir.Value]) -> None:
    """Give the state its names back: where it is an output, the optimiser calls that by them."""
    for name, value in detached.items():
        if value.name != name:
            for index, output in enumerate(graph.outputs):
                if output.name == name:
                    output.name = f"{name}{PREFIX}{index}"
            value.name = name


def _name_axes(graph: onnx.GraphProto, axes: FreeAxes) -> None:
    """Call the free axes by their names, in the inputs and in what the outputs say of them."""
    names: dict[str, str] = {}
    for value, free in zip(graph.input, axes, strict=False):
        for axis, name in free.items():
            extent = value.type.tensor_type.shape.dim[axis]
            names.setdefault(extent.dim_param, name)
            extent.dim_param = name
    for value in graph.output:
        for extent in value.type.tensor_type.shape.dim:
            if extent.HasField("dim_param"):
                extent.dim_param = _WORD.sub(
                    lambda found: names.get(found[0], found[0]), extent.dim_param
                )


_WORD = re.compile(r"[A-Za-z_]\w*")
