"""From a Keras model file to a bundle, or to the graph of one, with proof.

Law: what is published computes what Keras computes from the file: the torch module's outputs are
compared with those that Keras gave in a process of its own, and the graph's with the module's. The
graph notes its model as any other does, and gives the bundle back.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from persistlib import examples
from persistlib.architecture.recipe import build
from persistlib.bundle import reading
from persistlib.checkpoint import identity
from persistlib.conversion import ConversionReport
from persistlib.errors import Code, error
from persistlib.graphs import convert_graph
from persistlib.keras_models import BUILDER, KerasModel
from persistlib.keras_reading import KerasContents, read
from persistlib.manifest.schema import Interface, Lineage
from persistlib.saving import Plan, save_module
from persistlib.sources import BUNDLE

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import nn

    from persistlib.checkpoint import CheckpointReader
    from persistlib.files import StrPath
    from persistlib.graph_wishes import GraphWishes
    from persistlib.manifest.schema import Manifest

# Keras in the child and Keras in the module are the same code on the same machine.
_TOLERANCE = 1e-5
_REQUIRES = {"keras": ">=3"}
_PREFIX = "weights."


def convert_keras(
    source: StrPath,
    file: CheckpointReader,
    destination: StrPath,
    *,
    to: str,
    wishes: GraphWishes,
    trust: Collection[str],
    overwrite: bool,
) -> ConversionReport:
    """Write a whole Keras model as a bundle or as an ONNX file.

    Args:
        source: the file.
        file: the same, open.
        destination: the folder or file to make.
        to: "bundle" or "onnx".
        wishes: what is asked of the graph.
        trust: packages whose classes the model uses.
        overwrite: whether what stands there is replaced.

    Raises:
        PersistlibError: the file is no whole model, Keras cannot be had, or the outputs differ.
    """
    contents = read(source, file, trust)
    module = _module(contents, trust)
    shown = _compared(module, contents, os.fspath(source))
    origin = Lineage(
        relation="converted-from", id=identity(file), source=os.path.basename(os.fspath(source))
    )
    plan = Plan(
        interface=examples.describe_interface(Interface(), shown),
        examples=shown,
        lineage=(origin,),
        requires=_REQUIRES,
    )
    if to == BUNDLE:
        manifest = _save(module, destination, plan, overwrite=overwrite)
        report = ConversionReport(
            source="",
            destination=os.fspath(destination),
            format=to,
            tensors=len(manifest.weights.tensors),
            identity=manifest.weights.identity,
        )
    else:
        with tempfile.TemporaryDirectory(prefix="persistlib-") as folder:
            beside = os.path.join(folder, "bundle")
            _save(module, beside, plan, overwrite=False)
            report = reading(
                beside,
                lambda bundle: convert_graph(
                    bundle, destination, wishes, trust=trust, overwrite=overwrite
                ),
            )
    return replace(
        report,
        source=os.fspath(source),
        losses=tuple(loss for loss in file.losses if not loss.startswith("graph ")),
        source_format=file.format,
        source_identity=identity(file),
        notes=(*file.notes, *report.notes),
    )


def _save(module: nn.Module, path: StrPath, plan: Plan, *, overwrite: bool) -> Manifest:
    return save_module(module, path, plan, architecture=None, onnx=False, overwrite=overwrite)


def _module(contents: KerasContents, trust: Collection[str]) -> nn.Module:
    """Return the model as a torch module with the weights that Keras read."""
    arguments: dict[str, Any] = {"config": contents.config}
    if contents.custom:
        arguments["custom_objects"] = contents.custom
    module = build(BUILDER, trust=trust, **arguments)
    assert isinstance(module, KerasModel)
    state = module.state_dict(keep_vars=True)
    weights = contents.weights
    if {f"{_PREFIX}{entry.name}" for entry in weights} != set(state):
        raise error(Code.TENSOR_MISMATCH, BUILDER, "Keras builds other weights than it loaded")
    with torch.no_grad():
        for entry in weights:
            values = np.array(weights.read(entry.name))
            state[_PREFIX + entry.name].copy_(torch.from_numpy(values))
    return module.eval()


def _compared(module: nn.Module, contents: KerasContents, location: str) -> examples.Examples:
    """Return example inputs and the module's outputs, which are Keras' own.

    Raises:
        ExportError: they are not.
    """
    inputs = {n: torch.from_numpy(np.array(a)) for n, a in contents.inputs.items()}
    outputs = examples.run(module, inputs)
    for (name, ours), theirs in zip(outputs.items(), contents.outputs.values(), strict=True):
        expected = torch.from_numpy(np.array(theirs)).double()
        scale = float(expected.abs().max()) or 1.0
        if ours.shape != expected.shape:
            gap = float("inf")
        else:
            gap = float((ours.double() - expected).abs().max()) / scale
        if not gap <= _TOLERANCE:
            raise error(
                Code.EXPORT_MISMATCH,
                f"{location}: {name}",
                f"the module departs from Keras by {gap:.2g} of the output's scale",
                "report the model's layers",
            )
    return examples.Examples(inputs, outputs)
