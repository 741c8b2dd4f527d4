"""From a module to the bytes of an ONNX file that holds its whole state_dict.

Laws: every tensor of `model.state_dict()` stands in the file under its own name, bit for bit, and
the file notes which they are (`graph_notes`), so it alone gives the state_dict back; the same
module exported twice gives the same bytes; nothing of the exporting machine stands in them.

State that the graph does not use (auxiliary heads, second names of tied tensors, counters) stands
as initializers that nothing refers to; ONNX Runtime drops those when a session is made.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from persistlib.dtypes import by_name
from persistlib.errors import Code, error
from persistlib.export.axes import free_axes
from persistlib.export.capture import capture
from persistlib.export.conditions import conditions_of
from persistlib.export.naming import settle_names, strip_notes
from persistlib.export.state import aliases_of, dtype_of, precision_of, state_of
from persistlib.export.versions import versions, write_versions
from persistlib.graph_notes import Notes, render
from persistlib.graph_tensors import (
    EXTERNAL_ABOVE,
    EXTERNAL_TENSOR,
    ExternalPlace,
    aligned,
    pairs_of,
)
from persistlib.manifest.schema import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    import torch
    from torch.export import ExportedProgram

    from persistlib.export.conditions import Condition
    from persistlib.export.state import StateTensor

MODEL = "model.onnx"
DATA = "model.onnx.data"


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """A file of the graph: its plain name and its bytes."""

    name: str
    data: memoryview | bytes


@dataclass(frozen=True, slots=True)
class Exported:
    """A module as ONNX, not yet proved (`proof.prove`).

    Attributes:
        files: the model first, then its external data when there is such.
        ir_version: as read back from the bytes.
        opsets: domain to version, as read back from the bytes.
        inputs: what goes in; a free first axis is "batch".
        outputs: what comes out.
        names: asked-for input and output names to the graph's, where the state has that name.
        precision: the coarsest float dtype of the state, which is what it computes in.
        examples: the inputs that it was traced with, on the host.
        program: torch's own graph, whose nodes are called as the values that come from them; None
            where the graph was not made just now.
        conditions: what that takes for granted of the extents of free axes.
    """

    files: tuple[ExportedFile, ...]
    ir_version: int
    opsets: Mapping[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    names: Mapping[str, str]
    precision: str
    examples: tuple[torch.Tensor, ...]
    program: ExportedProgram | None = None
    conditions: tuple[Condition, ...] = ()

    @property
    def external(self) -> dict[str, memoryview]:
        """The external data files by name."""
        return {file.name: memoryview(file.data) for file in self.files[1:]}


def export(
    model: torch.nn.Module,
    example_inputs: tuple[torch.Tensor, ...],
    *,
    input_names: tuple[str, ...],
    output_names: tuple[str, ...] | None = None,
    opset: int | None = None,
    ir: int | None = None,
    dynamic: Collection[str] = (),
    metadata: Mapping[str, str] | None = None,
    external_above: int = EXTERNAL_ABOVE,
) -> Exported:
    """Return the module as ONNX, exported in evaluation mode.

    Args:
        model: left as it is, training flags and buffers included.
        example_inputs: positional forward arguments.
        input_names: one for each of them.
        output_names: one for each output tensor; by default its key, field or position.
        opset: version of the default operator set; by default torch's choice.
        ir: version of the file format; by default the oldest that the operator set may stand in.
        dynamic: the free axes beside the batch, as of `axes.free_axes`.
        metadata: strings to put into the file beside the aliases.
        external_above: bytes of state above which it goes to a second file.

    Raises:
        UsageError: `dynamic` names no axis, or the versions do not exist.
        ExportError: torch cannot export it, an axis is not free, an operator has no counterpart in
            the wanted version, or a tensor of the state does not stand in the file bit for bit.
    """
    _require_names(input_names, example_inputs, "input_names")
    for name, tensor in zip(input_names, example_inputs, strict=True):
        dtype_of(tensor, name)
    state = state_of(model)
    wanted_versions = versions(opset, ir)
    axes = free_axes(dynamic, input_names, [tuple(t.shape) for t in example_inputs])
    captured = capture(
        model,
        example_inputs,
        state,
        names=input_names,
        axes=axes,
        opset=wanted_versions.traced,
    )
    wanted = output_names or captured.outputs
    _require_names(wanted, captured.outputs, "output_names")
    proto = captured.proto
    write_versions(proto, wanted_versions)
    strip_notes(proto)
    settle_names(proto.graph, state, input_names, wanted)
    del proto.graph.input[captured.inputs :]
    onnx.helper.set_model_props(proto, dict(sorted(_notes(state, metadata or {}).items())))
    data = _put_back(proto.graph, state, external_above)
    files = (ExportedFile(MODEL, proto.SerializeToString(deterministic=True)), *data)
    values = [value.name for value in (*proto.graph.input, *proto.graph.output)]
    asked = zip((*input_names, *wanted), values, strict=True)
    names = {name: value for name, value in asked if name != value}
    proto.Clear()  # its copy of the weights, before the written ones are parsed
    exported = _read_back(files, state, names, captured.examples)
    conditions = conditions_of(captured.program)
    return replace(exported, program=captured.program, conditions=conditions)


def _require_names(names: Sequence[str], values: Sequence[object], argument: str) -> None:
    if len(names) != len(values) or len(set(names)) != len(names) or not all(names):
        reason = f"{len(names)} names for {len(values)} tensors, or one is empty or stands twice"
        raise error(Code.USAGE, argument, reason, "give each tensor its own name")


def _notes(state: Mapping[str, StateTensor], metadata: Mapping[str, str]) -> dict[str, str]:
    views = tuple(sorted(name for name, tensor in state.items() if tensor.is_complex))
    return {**metadata, **render(Notes(tuple(state), aliases_of(state), views))}


def _put_back(
    graph: onnx.GraphProto, state: Mapping[str, StateTensor], external_above: int
) -> tuple[ExportedFile, ...]:
    """Add the whole state to the graph's initializers; return the data file, if it takes one."""
    aliases = aliases_of(state)
    is_external = sum(tensor.nbytes for tensor in state.values()) > external_above
    places: dict[str, int] = {}
    end = 0
    for name in sorted(state, key=lambda name: (name in aliases, name)):
        entry, kept = state[name], aliases.get(name, name)
        tensor = graph.initializer.add(name=name, dims=entry.shape)
        tensor.data_type = onnx.TensorProto.DataType.Value(entry.dtype.value.onnx)
        if not is_external or entry.nbytes < EXTERNAL_TENSOR:
            tensor.raw_data = bytes(entry.data)
            continue
        if kept not in places:
            places[kept] = aligned(end)
            end = places[kept] + entry.nbytes
        for key, text in pairs_of(ExternalPlace(DATA, places[kept], entry.nbytes)):
            tensor.external_data.add(key=key, value=text)
        tensor.data_location = onnx.TensorProto.EXTERNAL
    if not places:
        return ()
    buffer = memoryview(mmap.mmap(-1, end))
    for name, offset in places.items():
        buffer[offset : offset + state[name].nbytes] = state[name].data
    return (ExportedFile(DATA, buffer),)


def _read_back(
    files: tuple[ExportedFile, ...],
    state: Mapping[str, StateTensor],
    names: Mapping[str, str],
    examples: tuple[torch.Tensor, ...],
) -> Exported:
    """Return what the written bytes say, after comparing every tensor of the state with them."""
    serialized: Any = files[0].data  # protobuf parses any buffer, and says bytes
    proto = onnx.ModelProto.FromString(serialized)
    data = memoryview(files[1].data) if len(files) > 1 else memoryview(b"")
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    for name, entry in state.items():
        fault = _difference(stored.get(name), entry, data)
        if fault:
            raise error(
                Code.EXPORT_FAILED, name, fault, "report this: the graph must hold the whole state"
            )
    return Exported(
        files=files,
        ir_version=proto.ir_version,
        opsets={opset.domain: opset.version for opset in proto.opset_import},
        inputs=_specs(proto.graph.input),
        outputs=_specs(proto.graph.output),
        names=names,
        precision=precision_of(entry.dtype for entry in state.values()),
        examples=tuple(tensor.detach().cpu() for tensor in examples),
    )


def _difference(
    tensor: onnx.TensorProto | None, entry: StateTensor, data: memoryview
) -> str | None:
    if tensor is None:
        return "not in the written file"
    if tuple(tensor.dims) != entry.shape:
        return f"written with shape {tuple(tensor.dims)}, it is {entry.shape}"
    if onnx.TensorProto.DataType.Name(tensor.data_type) != entry.dtype.value.onnx:
        return f"written as {onnx.TensorProto.DataType.Name(tensor.data_type)}"
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        place = {item.key: item.value for item in tensor.external_data}
        stored = data[(start := int(place["offset"])) : start + int(place["length"])]
    else:
        stored = memoryview(tensor.raw_data)
    # As arrays: a memoryview compares item by item.
    written, own = np.frombuffer(stored, np.uint8), np.frombuffer(entry.data, np.uint8)
    return None if np.array_equal(written, own) else "written with other bytes"


def _specs(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    specs: list[TensorSpec] = []
    for value in values:
        kind = value.type.tensor_type
        spelled = onnx.TensorProto.DataType.Name(kind.elem_type)
        if (dtype := by_name("onnx", spelled)) is None:
            raise error(Code.EXPORT_FAILED, value.name, f"{spelled} is no dtype of ours", "cast it")
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{value.name}_{axis}"
            for axis, dim in enumerate(kind.shape.dim)
        )
        specs.append(TensorSpec(name=value.name, dtype=dtype.name, shape=shape))
    return tuple(specs)
