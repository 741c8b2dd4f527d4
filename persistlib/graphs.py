"""From a bundle to an ONNX file: the graph it holds, or one made and proved now."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from persistlib import publish
from persistlib.conversion import ConversionReport
from persistlib.errors import Code, error, missing_extra
from persistlib.graph_wishes import GraphWishes
from persistlib.installed import is_importable
from persistlib.loading import Reading, load_module
from persistlib.model_notes import render

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pydantic import JsonValue
    from typing_extensions import Buffer

    from persistlib.bundle import Bundle
    from persistlib.files import StrPath

_READING = Reading(mapped=True, verify=True)


def convert_graph(
    bundle: Bundle, destination: StrPath, wishes: GraphWishes, *, trust: Collection[str]
) -> ConversionReport:
    """Write a bundle's model as an ONNX file, its external data beside it when it has any.

    Args:
        bundle: what is written.
        destination: the file.
        wishes: what is asked of the graph; a graph that the bundle holds will do where nothing is.
        trust: packages that may be imported to rebuild the module.

    Raises:
        ExportError: no graph could be made or proved; nothing is written.
        PersistlibError: the bundle differs from its manifest, or writing failed.
    """
    manifest = bundle.manifest
    if manifest.graphs and wishes == GraphWishes():
        graph = manifest.graphs[0]
        files: Mapping[str, Buffer] = {e.path: bundle.whole(e) for e in graph.files}
        proof: Mapping[str, JsonValue] = graph.proof
    else:
        files, proof = _export(bundle, trust)
    write_graph(files, destination, overwrite=True)
    weights = manifest.weights
    return ConversionReport(
        source=bundle.path,
        destination=os.fspath(destination),
        format="onnx",
        tensors=len(weights.tensors) + len(weights.aliases),
        identity=weights.identity,
        proof=proof,
    )


def write_graph(files: Mapping[str, Buffer], destination: StrPath, *, overwrite: bool) -> None:
    """Write a model, the first of the files, and its external data beside it.

    Raises:
        TargetError: writing failed; what stood there stands unchanged.
    """
    model, *external = files
    for name in external:
        beside = os.path.join(os.path.dirname(os.path.abspath(destination)), name)
        with publish.file(beside, overwrite=overwrite) as out:
            out.write(files[name])
    with publish.file(destination, overwrite=overwrite) as out:
        out.write(files[model])


def _export(
    bundle: Bundle, trust: Collection[str]
) -> tuple[Mapping[str, Buffer], Mapping[str, JsonValue]]:
    if not is_importable("torch"):
        raise missing_extra("torch", "torch", "making a graph")
    from persistlib import examples
    from persistlib.export.noting import inputs_of_bundle, note_of_bundle
    from persistlib.export.onnx_export import export
    from persistlib.export.proof import prove

    interface = bundle.manifest.interface
    if not interface.inputs:
        raise error(
            Code.EXPORT_INPUTS,
            bundle.path,
            "the bundle does not say what goes into the model",
            "save it with example_inputs= or interface=",
        )
    model = load_module(bundle, _READING, strict=True, trust=trust)
    inputs = inputs_of_bundle(bundle)
    outputs = tuple(examples.run(model, inputs))
    exported = export(
        model,
        tuple(inputs.values()),
        input_names=tuple(inputs),
        output_names=outputs,
        metadata=render(note_of_bundle(bundle, inputs)),
    )
    proof = prove(model, exported)
    return {file.name: file.data for file in exported.files}, proof
