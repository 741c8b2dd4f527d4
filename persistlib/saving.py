"""Saving a module as a bundle.

What a file cannot hold is refused first. Then the weights are written to a hidden folder, hashed
on the way, while the module's recipe is found and tried and its graph is made and proved. Only when
all of that holds is the folder published; otherwise it is removed.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from persistlib import card, examples, installed, publish
from persistlib.architecture.describe import describe
from persistlib.architecture.module_state import (
    TensorCheckpoint,
    assign,
    capture,
    dtype_of,
    same_bits,
    state_tensors,
    tensor_bytes,
    unsaved_tensors,
)
from persistlib.bundle import CARD, EXAMPLES, SHARD_BYTES, STATE, WEIGHTS
from persistlib.clock import timestamp
from persistlib.digests import digest
from persistlib.errors import Code, Severity, error, finding, tell
from persistlib.graph_wishes import GraphWishes
from persistlib.manifest import document
from persistlib.manifest.schema import Examples as ExamplesRecord
from persistlib.manifest.schema import (
    FileEntry,
    Graph,
    Interface,
    Manifest,
    State,
    Status,
    TensorRecord,
    UnsavedTensor,
    Weights,
)
from persistlib.model_notes import ModelNote, noted_lineage, render
from persistlib.parents import require_unneeded
from persistlib.upkeep import foreign_files
from persistlib.writing import Written, write_file, write_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch import nn

    from persistlib.architecture.describe import Description
    from persistlib.architecture.module_state import ModuleState
    from persistlib.errors import Finding
    from persistlib.examples import Examples
    from persistlib.export.onnx_export import Exported
    from persistlib.files import StrPath
    from persistlib.manifest.schema import Architecture, Lineage, Training
    from persistlib.parents import Parent
    from persistlib.publish import NewFolder

_PACKAGES = ("torch", "torchvision", "numpy", "safetensors")
_GRAPH_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# The oldest releases that the loader is written for.
REQUIRES = {"python": ">=3.10", "torch": ">=2.6"}


# Of stored outputs, relative to their scale: another CPU or release sums in another order.
_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the caller asked to be saved with the weights.

    Attributes:
        interface: inputs, outputs, labels and preprocessing, as far as given.
        examples: example inputs and outputs, when inputs were given.
        training: how the weights came about.
        lineage: ancestors.
        name: the model's name.
        license: SPDX identifier.
        sha256: whether files also get that digest.
        shard_bytes: the most bytes of tensors in one file.
        status: whether the model may be used.
        requires: packages that the module cannot be rebuilt without, beyond torch, each with the
            versions that will do.
        parent: a whole bundle whose equal tensors are referred to instead of stored.
    """

    interface: Interface
    examples: Examples | None = None
    training: Training | None = None
    lineage: tuple[Lineage, ...] = ()
    name: str | None = None
    license: str | None = None
    sha256: bool = False
    shard_bytes: int = SHARD_BYTES
    status: Status = field(default_factory=Status)
    requires: Mapping[str, str] = field(default_factory=dict)
    parent: Parent | None = None


@dataclass(frozen=True)
class Proved:
    """A graph of the model and the proof that it computes the same."""

    exported: Exported
    proof: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """All that a manifest says of a module besides its weights."""

    state: ModuleState
    architecture: Architecture
    unsaved: Mapping[str, tuple[torch.Tensor, bool]]
    graph: Proved | None
    card: str | None


def save_module(
    model: nn.Module,
    path: StrPath,
    plan: Plan,
    *,
    architecture: Architecture | Mapping[str, Any] | str | None,
    onnx: bool | GraphWishes,
    overwrite: bool,
    graph: Proved | None = None,
    write: Callable[[NewFolder, ModuleState, Plan], Written] | None = None,
    is_hollow: bool = False,
) -> Manifest:
    """Save a module as a bundle at `path` and return its manifest.

    Args:
        model: as `persistlib.save`.
        path: as `persistlib.save`.
        plan: what is saved with the weights.
        architecture: as `persistlib.save`.
        onnx: whether a graph is made, or what is asked of it.
        overwrite: as `persistlib.save`.
        graph: one that was made of this module already.
        write: writes the weights, where the module's own tensors are not what is written.
        is_hollow: whether the module has no values that it could be run with.

    Raises:
        PersistlibError: see `persistlib.save`.
    """
    if overwrite:
        require_unneeded(path)
    state = capture(model)
    if plan.examples is not None:
        plan = replace(plan, examples=examples.named_as(plan.interface, plan.examples))
    with (
        publish.folder(path, overwrite=overwrite, foreign=foreign_files) as folder,
        ThreadPoolExecutor(1) as pool,
    ):
        writing = pool.submit(write or _write_weights, folder, state, plan)
        description = describe(
            model, architecture=architecture, inputs=_probe(plan), is_hollow=is_hollow
        )
        unsaved = _unsaved(model, state, description)
        tell((*state.findings, *description.findings, *_borrowed(model, state, unsaved)))
        if onnx:
            wishes = onnx if isinstance(onnx, GraphWishes) else GraphWishes()
            noted = _Noted(state, description.architecture, unsaved)
            graph = _export(model, plan, noted, wishes)
        prepared = _Prepared(
            state=state,
            architecture=description.architecture,
            unsaved=unsaved,
            graph=graph,
            card=_previous_card(path) if overwrite else None,
        )
        return _write(folder, prepared, plan, writing.result())


def _write_weights(folder: NewFolder, state: ModuleState, plan: Plan) -> Written:
    """Write the tensors of a state_dict that no parent has, while others try the module.

    A trial may change buffers for its duration, so copies of them are written; parameters that
    change meanwhile are a torn state that nobody asked to save.

    Raises:
        ModelError: a parameter changed.
    """
    versions = {item.name: item.tensor._version for item in state.tensors}  # noqa: SLF001 - how torch counts writes
    stored = {
        item.name: item.tensor if item.is_parameter else item.tensor.detach().clone()
        for item in state.tensors
    }
    known = {} if plan.parent is None else _lent(plan.parent, stored)
    own = {name: tensor for name, tensor in stored.items() if name not in known}
    written = Written((), None, {}, {})
    if own:
        written = write_tensors(
            folder,
            TensorCheckpoint(own, state.aliases),
            stem=WEIGHTS,
            limit=plan.shard_bytes,
            sha256=plan.sha256,
        )
    written = replace(written, digests={**written.digests, **known})
    for name, tensor, is_parameter in state.tensors:
        if is_parameter and tensor._version != versions[name]:  # noqa: SLF001 - as above
            raise error(
                Code.MODEL_STATE,
                name,
                "changed while it was being saved",
                "save between training steps, and outside the model's own forward",
            )
    return written


def _lent(parent: Parent, stored: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the digests of the tensors that a parent has, bit for bit, under the same names."""
    found: dict[str, str] = {}
    for name, tensor in stored.items():
        row = parent.tensors.get(name)
        alike = (dtype_of(tensor).name, tuple(tensor.shape))
        if row is not None and (row.dtype, row.shape) == alike:
            found[name] = digest(tensor_bytes(tensor))
    return {name: known for name, known in found.items() if known == parent.tensors[name].blake3}


def _probe(plan: Plan) -> tuple[torch.Tensor, ...] | None:
    """Return what the rebuilt module is tried with, where the caller said what goes in."""
    if plan.examples is not None:
        return tuple(plan.examples.inputs.values())
    if plan.interface.inputs:
        return tuple(examples.draw_inputs(plan.interface).values())
    return None


def _unsaved(
    model: nn.Module, state: ModuleState, description: Description
) -> dict[str, tuple[torch.Tensor, bool]]:
    """Return the tensors outside the state_dict, each with whether rebuilding makes it.

    The module is rebuilt just as a load does it, so what is found equal here is equal there.
    """
    if not state.unsaved:
        return {}
    rebuilt = description.skeleton
    assign(rebuilt, {item.name: item for item in state_tensors(model)})
    made = dict(unsaved_tensors(rebuilt))
    return {
        name: (tensor.detach(), name in made and same_bits(tensor, made[name]))
        for name, tensor in state.unsaved.items()
    }


def _borrowed(
    model: nn.Module, state: ModuleState, unsaved: Mapping[str, tuple[torch.Tensor, bool]]
) -> Iterator[Finding]:
    """Yield the stored buffers outside the state_dict that lie in memory of a tensor inside it.

    Plain attributes may: old-style spectral_norm keeps its weight so until the first forward.
    """
    buffers = dict(model.named_buffers())
    owners = {t.untyped_storage().data_ptr(): name for name, t, _ in state.tensors if t.numel()}
    for name, (tensor, is_made) in unsaved.items():
        place = tensor.untyped_storage().data_ptr() if tensor.numel() else None
        if not is_made and name in buffers and place in owners:
            reason = f"lies in the memory of {owners[place]}; it is saved as a copy of its own"
            yield finding(Code.MODEL_OVERLAP, name, reason, severity=Severity.WARNING)


class _Noted(NamedTuple):
    """What a graph notes of the module beside the plan."""

    state: ModuleState
    architecture: Architecture
    unsaved: Mapping[str, tuple[torch.Tensor, bool]]

    def note(self, plan: Plan, inputs: Mapping[str, torch.Tensor]) -> dict[str, str]:
        """Return the metadata of a graph that is made with some inputs."""
        from persistlib.export.noting import noted_inputs, noted_state

        weights, state = noted_state(self.state, self.unsaved)
        records = {"training": plan.training, "examples": plan.examples}
        return render(
            ModelNote(
                name=plan.name,
                license=plan.license,
                status=plan.status,
                architecture=self.architecture,
                interface=plan.interface,
                weights=weights,
                state=state,
                inputs=noted_inputs(inputs),
                requires=REQUIRES | dict(plan.requires),
                lineage=noted_lineage(plan.lineage),
                left_out=tuple(name for name, record in records.items() if record is not None),
            )
        )


def _export(model: nn.Module, plan: Plan, noted: _Noted, wishes: GraphWishes) -> Proved:
    """Return the model as a proved graph.

    Raises:
        ExportError: nothing says what goes in, or export or proof failed.
    """
    from persistlib.export.proof import prove
    from persistlib.export.targeted import export_wished

    if plan.examples is not None:
        inputs = dict(plan.examples.inputs)
    elif plan.interface.inputs:
        inputs = examples.draw_inputs(plan.interface)
    else:
        raise error(
            Code.EXPORT_INPUTS,
            "onnx=True",
            "nothing says what goes into the model",
            "pass example_inputs= or interface=",
        )
    computed = plan.examples.outputs if plan.examples else examples.run(model, inputs)
    outputs = examples.output_names(plan.interface, computed)
    if wishes.derives:
        remedy = "save the bundle, and convert that (persistlib convert BUNDLE m.onnx --quantize)"
        raise error(Code.USAGE, "onnx", "a derived graph is made from a bundle", remedy)
    metadata = noted.note(plan, inputs)
    exported = export_wished(model, inputs, wishes, outputs=outputs, metadata=metadata)
    return Proved(exported, prove(model, exported))


def _previous_card(path: StrPath) -> str | None:
    try:
        with open(os.path.join(path, CARD), encoding="utf-8") as handle:
            return handle.read()
    except (OSError, UnicodeDecodeError):
        return None


def _write(folder: NewFolder, prepared: _Prepared, plan: Plan, written: Written) -> Manifest:
    """Write every other file of the bundle, the manifest last, and return it."""
    state, graph = prepared.state, prepared.graph
    devices = {item.tensor.device for item in state.tensors}
    weights = _weights(state, written, plan.parent)
    draft = Manifest(
        writer=installed.writer(),
        bundle_id=document.UNSEALED,
        digest=document.UNSEALED,
        created=timestamp(),
        name=plan.name,
        license=plan.license,
        status=plan.status,
        architecture=prepared.architecture,
        interface=plan.interface,
        weights=weights,
        state=_state(folder, state, prepared.unsaved, sha256=plan.sha256),
        training=plan.training,
        environment=installed.current(
            (*_PACKAGES, *plan.requires, *(_GRAPH_PACKAGES if graph else ())),
            _accelerator(devices),
        ),
        requires=REQUIRES | dict(plan.requires),
        graphs=(_graph(folder, graph, weights.identity, sha256=plan.sha256),) if graph else (),
        examples=_examples(folder, plan),
        lineage=plan.lineage,
        documents=(CARD,),
    )
    with folder.create(CARD) as out:
        out.write(card.render(draft, prepared.card).encode())
    manifest = document.seal(draft)
    data = document.write(manifest)
    document.read(data)  # what no reader would accept is not published
    with folder.create(document.NAME) as out:
        out.write(data)
    return manifest


def _weights(state: ModuleState, written: Written, parent: Parent | None) -> Weights:
    records = tuple(
        TensorRecord(
            name=item.name,
            dtype=dtype_of(item.tensor).name,
            shape=tuple(item.tensor.shape),
            blake3=written.digests[item.name],
            file=written.placed.get(item.name),
            role="parameter" if item.is_parameter else "buffer",
            frozen=item.frozen,
        )
        for item in state.tensors
    )
    draft = Weights(
        identity=document.UNSEALED,
        base=parent.record if parent and len(written.placed) < len(records) else None,
        index=written.index,
        files=written.files,
        tensors=records,
        aliases=dict(state.aliases),
    )
    return draft.model_copy(update={"identity": document.identity_of_weights(draft)})


def _state(
    folder: NewFolder,
    state: ModuleState,
    unsaved: Mapping[str, tuple[torch.Tensor, bool]],
    *,
    sha256: bool,
) -> State:
    kept = {name: tensor for name, (tensor, is_made) in unsaved.items() if not is_made}
    files: tuple[FileEntry, ...] = ()
    if kept:
        stem = STATE.removesuffix(".safetensors")
        files = write_tensors(
            folder, TensorCheckpoint(kept, {}), stem=stem, limit=_NO_LIMIT, sha256=sha256
        ).files
    return State(
        training=state.training,
        frozen_modules_in_eval=state.kept_in_eval,
        unsaved_buffers={
            name: UnsavedTensor(
                dtype=dtype_of(tensor).name,
                shape=tuple(tensor.shape),
                blake3=digest(tensor_bytes(tensor)),
                file=None if is_made else 0,
            )
            for name, (tensor, is_made) in unsaved.items()
        },
        files=files,
        strides=dict(state.strides),
    )


def _graph(folder: NewFolder, graph: Proved, identity: str, *, sha256: bool) -> Graph:
    exported = graph.exported
    files = tuple(write_file(folder, f.name, f.data, sha256=sha256) for f in exported.files)
    return Graph(
        files=files,
        ir_version=exported.ir_version,
        opsets=dict(exported.opsets),
        weights_identity=identity,
        precision=exported.precision,
        proof=graph.proof,
    )


def _examples(folder: NewFolder, plan: Plan) -> ExamplesRecord | None:
    if plan.examples is None:
        return None
    from persistlib.formats import FORMATS

    tensors = {
        f"{kind}.{name}": tensor.detach()
        for kind, group in (("input", plan.examples.inputs), ("output", plan.examples.outputs))
        for name, tensor in group.items()
    }
    data = FORMATS["safetensors"].module().render(TensorCheckpoint(tensors, {}))
    entry = write_file(folder, EXAMPLES, data, sha256=plan.sha256)
    tolerance = {
        name: _TOLERANCE
        for name, tensor in plan.examples.outputs.items()
        if tensor.is_floating_point()
    }
    return ExamplesRecord(files=(entry,), tolerance=tolerance)


def _accelerator(devices: Iterable[torch.device]) -> str | None:
    kinds = sorted((device for device in devices if device.type != "cpu"), key=str)
    if not kinds:
        return None
    return torch.cuda.get_device_name(kinds[0]) if kinds[0].type == "cuda" else kinds[0].type


_NO_LIMIT = 1 << 62
