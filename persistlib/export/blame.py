"""Why a proof failed, told with the failure: the module's own rounding, or an operator."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import onnx

from persistlib.errors import Code, PersistlibError, error
from persistlib.export.bisection import Graph, locate
from persistlib.export.conditioning import own_chance, own_rounding
from persistlib.export.onnx_export import export
from persistlib.export.reference_values import ModuleValues
from persistlib.export.state import array_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from persistlib.export.bisection import Departure
    from persistlib.export.onnx_export import Exported

# A graph rounds elsewhere than the module: where the module's own rounding takes this share of what
# is allowed, both together may take all of it.
_SHARE = 2
_ILL_CONDITIONED = "train the model further, or convert it to double precision (`model.double()`)"
_DRAWN = "draw none in evaluation (`if self.training`), or take them as an input"
# What `naming.settle_names` puts behind the name of a value that the state has taken.
_TAKEN = "_inner"


def blamed(
    fault: PersistlibError,
    model: torch.nn.Module,
    exported: Exported,
    runs: Sequence[Sequence[torch.Tensor]],
    limit: float,
) -> PersistlibError:
    """Return the fault with its cause, where one can be told.

    Where the module draws random numbers, or is itself as far from what it computes in double
    precision, that is the cause; else it is the first operator that departs.

    Args:
        fault: why the graph is not proved.
        model: the module.
        exported: its graph.
        runs: the inputs of each run.
        limit: how far a float value inside the graph may be off.
    """
    if fault.code != Code.EXPORT_MISMATCH.identifier:
        return fault
    if (chance := max(map(partial(_own, own_chance, model), runs), default=0.0)) > 0:
        reason = f"it draws random numbers: two calls with the same inputs are {chance:.2g} apart"
        return error(Code.EXPORT_MISMATCH, fault.location, reason, _DRAWN)
    rounding = max(map(partial(_own, own_rounding, model), runs), default=0.0)
    if rounding > limit / _SHARE:
        reason = f"{fault.reason}; the module itself is {rounding:.2g} off its float64 values"
        return error(Code.EXPORT_MISMATCH, fault.location, reason, _ILL_CONDITIONED)
    try:
        found = next((d for run in runs if (d := _departure(model, exported, run, limit))), None)
    except Exception:  # noqa: BLE001 - modules raise what they like, and the fault itself stands
        return fault
    if found is None:
        return fault
    return error(Code.EXPORT_MISMATCH, fault.location, f"{fault.reason}; {found}", fault.remedy)


def _own(
    measure: Callable[[torch.nn.Module, Sequence[torch.Tensor]], float],
    model: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
) -> float:
    """Return a measure of the module itself; nothing where it cannot be taken."""
    try:
        return measure(model, inputs)
    except Exception:  # noqa: BLE001 - not every module computes in double precision
        return 0.0


def _departure(
    model: torch.nn.Module, exported: Exported, inputs: Sequence[torch.Tensor], limit: float
) -> Departure | None:
    program = exported.program
    if program is None:
        inputs_named = tuple(spec.name for spec in exported.inputs)
        program = export(model, exported.examples, input_names=inputs_named).program
    assert program is not None
    data: Any = exported.files[0].data  # protobuf parses any buffer, and says bytes
    proto = onnx.ModelProto.FromString(data)
    reference = ModuleValues(model, program, inputs)
    outputs = (value.name for value in proto.graph.output)
    names = {name: name.removesuffix(_TAKEN) for node in proto.graph.node for name in node.output}
    names |= dict(zip(outputs, reference.outputs, strict=False))
    feeds = {
        spec.name: array_of(tensor, spec.name)
        for spec, tensor in zip(exported.inputs, inputs, strict=True)
    }
    return locate(Graph(proto, exported.external, names, limit), feeds, reference)
