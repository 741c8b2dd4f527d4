"""From an ONNX file that others exported to a bundle of a named architecture, with proof.

Law: what is published computes what the file computes; a file of another architecture publishes
nothing, and the error names the first operator that has no partner.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from persistlib import examples
from persistlib.alignment import building, foreign, values
from persistlib.alignment.graph_side import GraphSide
from persistlib.alignment.network import Network
from persistlib.alignment.own import Skeleton
from persistlib.alignment.pairing import Pairing
from persistlib.alignment.progress import Progress
from persistlib.alignment.reading import Foreign, read
from persistlib.alignment.state import EXACT, State
from persistlib.alignment.tape import Replay, record
from persistlib.architecture import zoo
from persistlib.conversion import ConversionReport
from persistlib.errors import Code, PersistlibError, error
from persistlib.export.onnx_export import MODEL, Exported, ExportedFile
from persistlib.export.proof import prove
from persistlib.manifest.schema import Lineage
from persistlib.saving import Plan, save_module
from persistlib.sources import BUNDLE
from persistlib.wording import with_rest

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import nn

    from persistlib.architecture.recipe import Recipe
    from persistlib.files import StrPath
    from persistlib.manifest.schema import Architecture

_SPATIAL = 224  # pixels of an image where neither the file nor the zoo says
_SHOWN = 6


@dataclass(frozen=True)
class Aligned:
    """A module with a file's weights, proved.

    Attributes:
        module: in evaluation; it remembers its recipe.
        inputs: what it was tried with.
        exact: tensors that are the file's own bits.
        equivalent: tensors that do the same as the file's.
        absent: tensors that the file does not hold, as the builder made them.
        proof: as `export.proof.prove` gives it.
    """

    module: nn.Module
    inputs: tuple[torch.Tensor, ...]
    exact: tuple[str, ...]
    equivalent: tuple[str, ...]
    absent: tuple[str, ...]
    proof: Mapping[str, Any]


def convert_aligned(
    source: StrPath,
    destination: StrPath,
    *,
    architecture: str | Mapping[str, Any] | Architecture,
    trust: Collection[str] = (),
    overwrite: bool = False,
) -> ConversionReport:
    """Write the module of an ONNX file as a bundle.

    Args:
        source: an ONNX file; its external data beside it.
        destination: the folder to make.
        architecture: its builder, such as "torchvision.models:resnet18" or "resnet18", with
            arguments in parentheses where the file does not say them; or a recipe.
        trust: packages that may be imported to build it.
        overwrite: whether a bundle that stands there is replaced.

    Returns:
        The report: its notes say which tensors are exact and which equivalent, its losses which
        the file does not hold.

    Raises:
        FormatError: the file is no graph that may be used.
        ArchitectureError: the builder is unknown or untrusted, or its module is not the file's.
        ExportError: the outputs differ, or prove nothing.
        TargetError: the bundle cannot be written.
    """
    file = read(source)
    aligned = align(file, building.parse(architecture), trust)
    named = examples.name_inputs(aligned.module, aligned.inputs)
    computed = examples.Examples(named, examples.run(aligned.module, named))
    interface, shown = examples.of_graph(file.facts.inputs, file.facts.outputs, computed)
    origin = Lineage(
        relation="converted-from", id=file.identity, source=os.path.basename(file.location)
    )
    plan = Plan(
        interface=interface,
        examples=shown,
        lineage=(origin,),
    )
    manifest = save_module(
        aligned.module, destination, plan, architecture=None, onnx=False, overwrite=overwrite
    )
    return ConversionReport(
        source=file.location,
        destination=os.fspath(destination),
        format=BUNDLE,
        tensors=len(aligned.module.state_dict()),
        identity=manifest.weights.identity,
        losses=tuple(f"value {name}, which the file does not hold" for name in aligned.absent),
        proof=aligned.proof,
        source_format=f"onnx, {file.container}",
        source_identity=file.identity,
        notes=(*_notes(aligned), *file.notes),
    )


def align(file: Foreign, made: Recipe, trust: Collection[str]) -> Aligned:
    """Return a module that computes what a file computes.

    Raises:
        PersistlibError: as `convert_aligned`.
    """
    network = Network(file.proto)
    blocks = foreign.blocks(network)
    drawn = values.draw(file.facts.inputs, _extents(made.builder))
    ran = values.run(file, values.wanted(network, blocks), network, drawn)
    graph = GraphSide(network, blocks, ran.arrays)
    module = building.build(made, graph, trust)
    inputs = building.inputs_of(drawn)
    state = _paired(module, inputs, graph)
    absent = _fill(module, state)
    proof = prove(module, _exported(file, inputs))
    return Aligned(
        module,
        inputs,
        tuple(name for name, verdict in state.verdicts.items() if verdict == EXACT),
        tuple(name for name, verdict in state.verdicts.items() if verdict != EXACT),
        absent,
        proof,
    )


def _paired(module: nn.Module, inputs: tuple[torch.Tensor, ...], graph: GraphSide) -> State:
    """Return the recovered state.

    Raises:
        ArchitectureError: the module does not take such inputs, or is not the file's.
    """
    try:
        tape = record(module, inputs)
    except Exception as fault:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
        line = (str(fault).strip().splitlines() or [""])[0]
        reason = f"the module does not take inputs of {shapes}: {type(fault).__name__}: {line}"
        raise _misfit(reason) from fault
    learned = _learned(module)
    skeleton = Skeleton(tape, learned)
    known = dict(tape.literals) | dict(zip(tape.inputs, inputs, strict=True))
    everything = dict(module.named_parameters()) | dict(module.named_buffers())
    others = {name: everything[name].detach() for name in tape.state}
    state = State(skeleton, others | learned)
    known |= {ref: others[name] for name, ref in tape.state.items() if name not in learned}
    return Pairing(skeleton, graph, Progress(0, Replay(known, tape.shared), state)).run()


def _learned(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a state_dict that a file may hold otherwise than a builder makes."""
    saved = module.state_dict()
    named = (*module.named_parameters(), *module.named_buffers())
    return {n: t.detach() for n, t in named if n in saved and t.is_floating_point()}


def _fill(module: nn.Module, state: State) -> tuple[str, ...]:
    """Give the module what was recovered; return the names of what was not."""
    named = dict(module.named_parameters()) | dict(module.named_buffers())
    with torch.no_grad():
        for name in state.verdicts:
            named[name].copy_(state.tensors[name])
    unknown = set(state.unknown())
    learned = _learned(module)
    return tuple(name for name in learned if name in unknown)


def _exported(file: Foreign, inputs: tuple[torch.Tensor, ...]) -> Exported:
    """Return a file as what is proved."""
    return Exported(
        files=(
            ExportedFile(MODEL, file.data),
            *(ExportedFile(name, data) for name, data in file.external.items()),
        ),
        ir_version=file.facts.ir_version,
        opsets=file.facts.opsets,
        inputs=file.facts.inputs,
        outputs=file.facts.outputs,
        names={},
        precision=file.facts.inputs[0].dtype if file.facts.inputs[0].dtype[0] in "FB" else "F32",
        examples=inputs,
    )


def _extents(builder: str) -> dict[int, int]:
    """Return what free axes of an image are taken for."""
    shapes = zoo.inputs_of(builder)
    extents = shapes[0][2:] if len(shapes) == 1 and len(shapes[0]) == 4 else ()
    return dict(enumerate(extents or (_SPATIAL, _SPATIAL), start=2))


def _notes(aligned: Aligned) -> list[str]:
    notes = [f"{len(aligned.exact)} tensors are the file's own bits"]
    if aligned.equivalent:
        notes.append(
            f"{len(aligned.equivalent)} are equivalent: {with_rest(aligned.equivalent, _SHOWN)}"
        )
    if aligned.absent:
        notes.append(
            f"{len(aligned.absent)} are not in the file and stand as built:"
            f" {with_rest(aligned.absent, _SHOWN)}"
        )
    return notes


def _misfit(reason: str) -> PersistlibError:
    return error(Code.GRAPH_UNPAIRED, "architecture", reason, "name the file's own architecture")
