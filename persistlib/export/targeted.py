"""A module exported for a target: a graph that the target reads and has kernels for, or none.

A release reads newer operator sets than it has kernels for in every type. So where no operator set
was asked for, the newest that it reads is tried, and then the one that torch translates to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.compat.facts import Facts
from persistlib.compat.graph_reading import structure_of
from persistlib.compat.graphs import graph_findings, runtime_of
from persistlib.compat.targets import Target
from persistlib.errors import Code, error, warn
from persistlib.export.onnx_export import export
from persistlib.export.versions import TRACED, asked, runtime_version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch
    from torch import nn

    from persistlib.compat.graphs import Runtime
    from persistlib.errors import Finding
    from persistlib.export.onnx_export import Exported
    from persistlib.graph_wishes import GraphWishes


def export_wished(
    model: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    wishes: GraphWishes,
    *,
    outputs: Iterable[str],
    metadata: Mapping[str, str],
) -> Exported:
    """Return a module as the ONNX graph that is wished for, one that its target takes.

    Of a target whose kernels are not known nothing is proved; a warning says so.

    Args:
        model: as of `export`.
        inputs: positional forward arguments by the names that the graph gives them.
        wishes: versions, target and free axes.
        outputs: names of the output tensors.
        metadata: strings to put into the file.

    Raises:
        UsageError: the wishes cannot be meant.
        ExportError: no graph can be made, or the target would make no session of it.
    """
    first = asked(wishes)
    choices = [first]
    if wishes.target is not None and wishes.opset is None and (first.opset or 0) > TRACED:
        choices.append(first._replace(opset=TRACED))
    runtime = _runtime(wishes.target)
    refused: list[Finding] = []
    for versions in choices:
        exported = export(
            model,
            tuple(inputs.values()),
            input_names=tuple(inputs),
            output_names=tuple(outputs),
            opset=versions.opset,
            ir=versions.ir,
            dynamic=wishes.dynamic,
            metadata=metadata,
        )
        found = _refusals(exported, runtime)
        if not found:
            return exported
        refused = refused or found
    remedy = f"ask for another release than {wishes.target}, or use other layers or dtypes"
    raise error(Code.EXPORT_VERSION, refused[0].location, refused[0].message, remedy)


def _runtime(target: str | None) -> Runtime | None:
    """Return the release of a target, or None where its kernels are not known, which is told."""
    if target is None:
        return None
    version = runtime_version(target)
    runtime = runtime_of(Target(packages={"onnxruntime": version}))
    if runtime is not None and runtime.exact:
        return runtime
    reason = f"not proved that {version} runs the graph: its kernels are not in the table"
    remedy = "run the graph there: persistlib run GRAPH.onnx --input NAME=X.npy"
    warn(Code.RUNTIME_UNKNOWN, "onnxruntime", reason, remedy)
    return None


def _refusals(exported: Exported, runtime: Runtime | None) -> list[Finding]:
    if runtime is None:
        return []
    model = structure_of(memoryview(exported.files[0].data), "the graph")
    return graph_findings(model, runtime, Facts(source="the graph"))
