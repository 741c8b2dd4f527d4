"""From an ONNX file of any origin to a bundle whose module is the graph itself, with proof.

Law: what is published computes what ONNX Runtime computes from the file, for drawn inputs of at
least two batch sizes where the batch is free; else nothing is published.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import onnx
import torch

from persistlib import examples
from persistlib.architecture.recipe import build
from persistlib.checkpoint import identity
from persistlib.conversion import ConversionReport
from persistlib.formats import FORMATS
from persistlib.graph_modules.module import BUILDER
from persistlib.graph_modules.proving import prove
from persistlib.graph_modules.reading import imported
from persistlib.graph_modules.structure import text
from persistlib.manifest.schema import Lineage
from persistlib.runtime.session import open_session
from persistlib.runtime.structure import check_graph
from persistlib.saving import Plan, save_module
from persistlib.sources import BUNDLE

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import nn

    from persistlib.files import StrPath
    from persistlib.graph_modules.reading import Imported

# Operators that torchvision computes.
_VISION = frozenset({"DeformConv", "MaxRoiPool", "RoiAlign"})
_VISION_NEEDED = {"torchvision": ">=0.21"}


def convert_foreign(
    source: StrPath, destination: StrPath, *, trust: Collection[str], overwrite: bool
) -> ConversionReport:
    """Write an ONNX file as a bundle whose module is the graph, trainable.

    Args:
        source: the file; its external data lies beside it.
        destination: the folder to make.
        trust: packages that may be imported; none are needed.
        overwrite: whether an old bundle at `destination` is replaced.

    Raises:
        FormatError: the file is not harmless, or has an operator that torch has no form of.
        ExportError: no inputs were found that prove anything, or the module computes something
            else than the file.
        PersistlibError: writing failed; nothing was written.
    """
    with FORMATS["onnx"].module().open_file(source) as file:
        views: Mapping[str, memoryview] = file.model.mapped()
        made = _imported(views, os.fspath(source))
        module = module_of(made, trust=trust)
        (_, data), *rest = views.items()
        session = open_session(data, external=dict(rest))
        shown, proof = prove(module, session, os.fspath(source))
        interface, shown = examples.of_graph(session.inputs, session.outputs, shown)
        origin = Lineage(
            relation="converted-from",
            id=identity(file),
            source=os.path.basename(os.fspath(source)),
        )
        plan = Plan(
            interface=interface,
            examples=shown,
            lineage=(origin,),
            requires=_VISION_NEEDED if _operators(made) & _VISION else {},
        )
        manifest = save_module(
            module, destination, plan, architecture=None, onnx=False, overwrite=overwrite
        )
        return ConversionReport(
            source=os.fspath(source),
            destination=os.fspath(destination),
            format=BUNDLE,
            tensors=len(manifest.weights.tensors),
            identity=manifest.weights.identity,
            losses=tuple(loss for loss in file.losses if not loss.startswith("graph ")),
            proof=proof,
            source_format=file.format,
            source_identity=identity(file),
            notes=(*file.notes, _told(module)),
        )


def _imported(views: Mapping[str, memoryview], location: str) -> Imported:
    (_, data), *rest = views.items()
    check_graph(data, external=dict(rest), location=location)
    return imported(onnx.ModelProto.FromString(bytes(data)), dict(rest), location)


def module_of(made: Imported, *, trust: Collection[str] = ()) -> nn.Module:
    """Return the module of a graph, with its weights, in evaluation.

    Raises:
        PersistlibError: it cannot be built.
    """
    module = build(BUILDER, trust=trust, config=text(made.structure))
    state = module.state_dict(keep_vars=True)
    with torch.no_grad():
        for path, values in made.values.items():
            state[path].copy_(values)
    return module.eval()


def _operators(made: Imported) -> set[str]:
    return {node.operator for graph in made.structure.graphs for node in graph.nodes}


def _told(module: nn.Module) -> str:
    trained = sum(1 for _ in module.parameters())
    others = sum(1 for _ in module.buffers())
    return f"{trained} tensors are parameters, {others} are buffers and stay as they are"
