"""From a module to torch's graph of it, optimised as a whole and without one value of the state.

The state is detached before the optimiser runs: each initializer becomes a graph input without a
value. No rule can then read, fold, merge or drop it, and ONNX Runtime folds BatchNorm itself when a
session is made. (The default export of resnet18 keeps 22 of its 102 tensors by name, 2 by value.)

Torch is asked for its own graph first, and for ONNX's from that: asked for both at once it fixes an
axis that was to be free without a word, where it could say why.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch._decomp import get_decompositions
from torch._dynamo.exc import UserError

from persistlib.errors import Code, PersistlibError, error
from persistlib.examples import named_outputs
from persistlib.export.calling import call, device_of, evaluation, silence
from persistlib.export.recurrence import TRANSLATIONS, KeptWhole
from persistlib.export.scalars import keep_doubles, near_misses_hidden

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx
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
        return tuple(tensor for _, tensor in named_outputs(self.module(*inputs)))


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
        outputs = tuple(call(model, inputs))
    except Exception as fault:
        reason = f"it cannot be called with the example inputs: {summary(fault)}"
        raise error(Code.EXPORT_FAILED, _name(model), reason, "mend the example inputs") from fault
    if not outputs:
        raise error(Code.EXPORT_FAILED, _name(model), "it returns no tensor", "return tensors")
    try:
        with evaluation(model), silence():
            traced = _Traced(model)
            device = device_of(traced)
            on_device = tuple(tensor.to(device) for tensor in inputs)
            program = _unrolled(_trace(traced, on_device, axes, {}))
            made = _optimised(program, opset, state)
    except _FixedAxisError as fault:
        raise _fixed(fault, names, axes) from fault
    except Exception as fault:
        remedy = "mend the module, or save it without a graph"
        raise error(Code.EXPORT_FAILED, _name(model), summary(fault), remedy) from fault
    proto, program = made
    _name_axes(proto.graph, axes)
    return Captured(proto, len(inputs), outputs, inputs, program)


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


def _trace(
    traced: _Traced, inputs: tuple[torch.Tensor, ...], axes: FreeAxes, bounds: _Bounds
) -> ExportedProgram:
    """Return torch's own graph.

    Args:
        traced: the module.
        inputs: where it is.
        axes: which are free.
        bounds: what is known of their extents.

    Raises:
        _FixedAxisError: the module fixes an axis.
        Exception: whatever else torch raises.
    """
    traced.training = False
    try:
        return _export(traced, inputs, _shapes(axes, bounds))
    except UserError as fault:
        found = _found_bounds(str(fault))
        if not found or all(bounds.get(symbol) == bound for symbol, bound in found.items()):
            raise
    return _trace(traced, inputs, axes, {**bounds, **found})


def _export(traced: _Traced, inputs: tuple[torch.Tensor, ...], shapes: Any) -> ExportedProgram:
    try:
        with KeptWhole():
            return torch.export.export(traced, inputs, dynamic_shapes=shapes, strict=False)
    except UserError:
        raise
    except Exception:
        # What plain tracing cannot follow, reading the byte code sometimes can.
        with contextlib.suppress(Exception):
            return torch.export.export(traced, inputs, dynamic_shapes=shapes, strict=True)
        raise


class _FixedAxisError(Exception):
    """The module fixes a free axis; `symbol` is its name in torch, `extent` what it is fixed to."""

    def __init__(self, symbol: str, extent: str, reason: str) -> None:
        super().__init__(reason)
        self.symbol = symbol
        self.extent = extent


def _found_bounds(message: str) -> _Bounds:
    """Return the bounds that torch found.

    Raises:
        _FixedAxisError: torch found that an axis has one extent, is as long as another, or a
            multiple of something.
    """
    bounds: dict[str, dict[str, int]] = {}
    for symbol, other in _SUGGESTED.findall(message):
        if not other.startswith("Dim("):
            lines = [
                line.strip(" -")
                for line in message.splitlines()
                if f"{symbol} " in line and " - " in line
            ]
            reason = lines[0].partition(" If you're")[0] if lines else message
            raise _FixedAxisError(symbol, other, reason)
        bounds[symbol] = {side: int(extent) for side, extent in _BOUND.findall(other)}
    return bounds


# Of an axis, by its name in torch, the least and the most that it may be.
_Bounds = Mapping[str, Mapping[str, int]]
_SUGGESTED = re.compile(r"^\s*(free\d+) = (\S.*?)\s*$", re.MULTILINE)
_BOUND = re.compile(r"(min|max)=(\d+)")
_SYMBOL = re.compile(r"_?free\d+")


def _fixed(fault: _FixedAxisError, names: Sequence[str], axes: FreeAxes) -> PersistlibError:
    """Return our error for an axis that the module fixes, in the caller's names."""
    called = _symbols(axes)
    spelled = {symbol: name for name, symbol in called.items()}
    name = spelled[fault.symbol]
    where = next(
        f"{names[index]}:{axis}={name}"
        for index, free in enumerate(axes)
        for axis, found in free.items()
        if found == name
    )
    said = f"{name} is always {fault.extent}. {fault}"
    reason = _SYMBOL.sub(lambda found: spelled.get(found[0], "n"), said)[:400]
    remedy = "compute shapes from the input's own in forward, or leave the axis fixed"
    return error(Code.EXPORT_FAILED, where, reason, remedy)


def _symbols(axes: FreeAxes) -> dict[str, str]:
    """Return what torch calls each free axis: a word that means nothing in its formulas."""
    called: dict[str, str] = {}
    for free in axes:
        for name in free.values():
            called.setdefault(name, f"free{len(called)}")
    return called


def _shapes(axes: FreeAxes, bounds: _Bounds) -> tuple[Any, ...] | None:
    """Return torch's description of the free axes, one entry for the lone variadic argument."""
    symbols = {
        name: torch.export.Dim(symbol, **bounds.get(symbol, {}))
        for name, symbol in _symbols(axes).items()
    }
    if not symbols:
        return None
    each = ({axis: symbols[name] for axis, name in free.items()} or None for free in axes)
    return (tuple(each),)


def _unrolled(program: ExportedProgram) -> ExportedProgram:
    """Return a graph in which no LSTM is left whole: torch's translation knows no projections."""
    whole = torch.ops.aten.lstm.input
    if all(node.target is not whole for node in program.graph.nodes):
        return program
    unrolled: ExportedProgram = program.run_decompositions(get_decompositions([whole]))
    return unrolled


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
    for name in [name for name in graph.initializers if name.removeprefix(PREFIX) in state]:
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)
    with near_misses_hidden(graph):
        translated.optimize()
    proto: onnx.ModelProto = translated.model_proto
    return proto, translated.exported_program


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
