"""From an ONNX file to a bundle: the way that the file itself, or the caller, says.

Law: where the file notes the model that it was made from, the bundle is that model: the same
recipe, interface, weights and state, hence the same `bundle_id`, proved to compute what the file
computes. The file's own graph stays in it.
"""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING

import onnx

from persistlib import examples
from persistlib.conversion import ConversionReport
from persistlib.errors import Code, error
from persistlib.export.noting import INPUT_LIMIT, drawn_inputs
from persistlib.export.onnx_export import DATA, MODEL, Exported, ExportedFile
from persistlib.export.proof import prove
from persistlib.export.state import precision_of
from persistlib.formats import FORMATS
from persistlib.graph_notes import MODEL as NOTE
from persistlib.manifest.schema import Lineage
from persistlib.model_notes import parse, refusal
from persistlib.noted_models import noted_module
from persistlib.runtime.structure import check_graph
from persistlib.saving import Plan, Proved, save_module
from persistlib.sources import BUNDLE

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor, nn

    from persistlib.converters.onnx_graph import OnnxReader
    from persistlib.files import StrPath
    from persistlib.model_notes import ModelNote
    from persistlib.runtime.structure import GraphFacts

# What a run of a graph may take, for a stranger's may be endless: seconds, or times the module's.
_SECONDS = 60.0
_SLOWER = 20


def convert_onnx(
    source: StrPath,
    destination: StrPath,
    *,
    architecture: str | None,
    trust: Collection[str],
    overwrite: bool,
) -> ConversionReport:
    """Write an ONNX file as a bundle whose module computes what the file computes.

    Args:
        source: the file; its external data lies beside it.
        destination: the folder to make.
        architecture: the builder of the module; by default what the file notes of its model, and
            where it notes nothing, the graph itself as a module.
        trust: packages that may be imported to build the module.
        overwrite: whether an old bundle at `destination` is replaced.

    Raises:
        PersistlibError: the file is not well-formed, what it notes is not true of it, or module
            and graph compute something else; nothing was written.
    """
    if architecture is not None:
        from persistlib.alignment.bundle import convert_aligned

        return convert_aligned(
            source, destination, architecture=architecture, trust=trust, overwrite=overwrite
        )
    with FORMATS["onnx"].module().open_file(source) as file:
        note = parse(file.model.metadata, os.fspath(source))
        if note is not None:
            return _invert(file, note, destination, trust=trust, overwrite=overwrite)
    from persistlib.graph_modules.bundle import convert_foreign

    return convert_foreign(source, destination, trust=trust, overwrite=overwrite)


def _invert(
    file: OnnxReader,
    note: ModelNote,
    destination: StrPath,
    *,
    trust: Collection[str],
    overwrite: bool,
) -> ConversionReport:
    """Save the module that a file notes, together with the file's own graph.

    Raises:
        PersistlibError: as `convert_onnx`.
    """
    source = file.model.location
    if NOTE in file.metadata:  # the reader leaves notes there that do not fit the tensors
        reason = "another tool changed the graph since its model was noted"
        remedy = f"align it with its module: --architecture {note.architecture.builder}"
        raise error(Code.GRAPH_NOTES, source, reason, remedy)
    module = noted_module(note, file, source, trust=trust)
    graph = _proved_graph(file, note, module)
    origin = Lineage(relation="converted-from", id=note.weights, source=os.path.basename(source))
    plan = Plan(
        interface=note.interface,
        lineage=(origin, *note.lineage),
        name=note.name,
        license=note.license,
        status=note.status,
        requires=note.requires,
    )
    manifest = save_module(
        module,
        destination,
        plan,
        architecture=note.architecture,
        onnx=False,
        graph=graph,
        overwrite=overwrite,
    )
    return ConversionReport(
        source=source,
        destination=os.fspath(destination),
        format=BUNDLE,
        tensors=len(file.tensors) + len(file.aliases),
        identity=manifest.weights.identity,
        losses=tuple(f"value {field}, which a graph does not carry" for field in note.left_out),
        proof=graph.proof,
        source_format=file.format,
        source_identity=note.weights,
        notes=file.notes,
    )


def _proved_graph(file: OnnxReader, note: ModelNote, module: nn.Module) -> Proved:
    """Return the file's own graph with the proof that the module computes the same.

    Raises:
        PersistlibError: the graph is not harmless, takes other inputs than noted, or computes
            something else.
    """
    source = file.model.location
    files = _named(file.model.mapped())
    external = {part.name: memoryview(part.data) for part in files[1:]}
    facts = check_graph(memoryview(files[0].data), external=external, location=source)
    inputs = _inputs(note, facts, source)
    began = time.monotonic()
    outputs = examples.run(module, inputs)
    seconds = time.monotonic() - began
    if len(outputs) != len(facts.outputs):
        reason = f"the graph has {len(facts.outputs)} outputs, the noted module {len(outputs)}"
        raise refusal(source, reason)
    exported = Exported(
        files=files,
        ir_version=facts.ir_version,
        opsets=facts.opsets,
        inputs=facts.inputs,
        outputs=facts.outputs,
        names={},
        precision=precision_of(entry.dtype for entry in file),
        examples=tuple(inputs.values()),
    )
    patience = max(_SECONDS, _SLOWER * seconds)
    return Proved(exported, prove(module, exported, timeout=patience))


def _named(files: Mapping[str, memoryview]) -> tuple[ExportedFile, ...]:
    """Return the model and its external data under the names that they have in a bundle."""
    (_, model), *external = files.items()
    names = {
        name: DATA if not index else f"{DATA}.{index}" for index, (name, _) in enumerate(external)
    }
    data: memoryview | bytes = model
    if any(old != new for old, new in names.items()):
        proto = onnx.ModelProto.FromString(bytes(model))
        for tensor in proto.graph.initializer:
            for pair in tensor.external_data:
                if pair.key == "location":
                    pair.value = names.get(pair.value, pair.value)
        data = proto.SerializeToString(deterministic=True)
    return (ExportedFile(MODEL, data), *(ExportedFile(names[n], view) for n, view in external))


def _inputs(note: ModelNote, facts: GraphFacts, source: str) -> dict[str, Tensor]:
    """Return inputs like those that the graph was made with.

    Raises:
        FormatError: what is noted of the inputs does not fit the graph.
    """
    specs = note.interface.inputs
    if not len(specs) == len(note.inputs) == len(facts.inputs):
        raise refusal(source, f"notes of {len(note.inputs)} inputs, it has {len(facts.inputs)}")
    for spec, noted, given in zip(specs, note.inputs, facts.inputs, strict=True):
        pairs = zip(noted.shape, given.shape, strict=False)
        is_like = len(noted.shape) == len(given.shape) and spec.dtype == given.dtype
        if not is_like or any(isinstance(free, int) and size != free for size, free in pairs):
            reason = f"noted as {spec.dtype} {noted.shape}, it takes {given.dtype} {given.shape}"
            raise refusal(f"{source}: {spec.name}", reason)
        if not 0 < (size := math.prod(noted.shape)) <= INPUT_LIMIT:
            raise refusal(f"{source}: {spec.name}", f"an input of {size} elements")
    return drawn_inputs(note.inputs, specs)
