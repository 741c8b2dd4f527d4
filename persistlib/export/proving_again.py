"""The proof of a bundle's graph again, on the inputs that it was made with where they can be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from persistlib.errors import Code, ExportError, Severity, finding
from persistlib.export.capture import widened
from persistlib.export.noting import inputs_of_bundle
from persistlib.export.onnx_export import Exported, ExportedFile
from persistlib.export.proof import prove
from persistlib.runtime.structure import check_graph

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from persistlib.bundle import Bundle
    from persistlib.errors import Finding
    from persistlib.manifest.schema import Graph


def proof_findings(
    bundle: Bundle, graph: Graph, model: torch.nn.Module, name: str
) -> Iterator[Finding]:
    """Yield why the graph has no proof here; a note where its inputs could not be drawn again.

    Args:
        bundle: that holds the graph.
        graph: one that was proved against the module.
        model: the module.
        name: what to call the graph in a finding.
    """
    exported = exported_of(bundle, graph)
    stored: Any = graph.proof
    try:
        again: Any = prove(
            model,
            exported,
            seed=int(stored.get("seed", 0)),
            batch_sizes=tuple(stored.get("batch_sizes") or (1, 3)),
        )
    except ExportError as fault:
        yield finding(Code.BEHAVIOUR, f"{name}: {fault.location}", fault.reason, fault.remedy)
        return
    if again.get("inputs", {}).get("digest") != stored.get("inputs", {}).get("digest"):
        made = ", ".join(f"{p} {v}" for p, v in stored.get("versions", {}).items())
        reason = f"proved again, on other inputs: those of {made} cannot be drawn here"
        yield finding(Code.BEHAVIOUR, name, reason, severity=Severity.NOTE)


def exported_of(bundle: Bundle, graph: Graph) -> Exported:
    """Return a bundle's graph as if it had been exported now.

    Raises:
        PersistlibError: its bytes differ from the manifest, or it is not harmless.
    """
    model, *external = ((entry.path, bundle.whole(entry)) for entry in graph.files)
    facts = check_graph(model[1], external=dict(external), location=bundle.path)
    free = [{a: n for a, n in enumerate(s.shape) if isinstance(n, str)} for s in facts.inputs]
    examples = inputs_of_bundle(bundle).values()
    return Exported(
        files=tuple(ExportedFile(name, data) for name, data in (model, *external)),
        ir_version=facts.ir_version,
        opsets=facts.opsets,
        inputs=facts.inputs,
        outputs=facts.outputs,
        names={},
        precision=graph.precision,
        examples=tuple(widened(t, axes) for t, axes in zip(examples, free, strict=True)),
    )
