"""How much it matters that a model cannot be rebuilt in torch there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.errors import Severity

if TYPE_CHECKING:
    from persistlib.compat.facts import Facts
    from persistlib.compat.targets import Target

# Formats whose tensors torch opens.
TENSORS = frozenset({"bundle", "torch", "safetensors"})


def torch_severity(facts: Facts, target: Target) -> Severity:
    """Return an error; a warning where the bundle's graph runs in ONNX Runtime there instead."""
    has_graph = facts.manifest is not None and bool(facts.manifest.graphs)
    runs = target.version("onnxruntime") is not None and facts.runtime is None
    return Severity.WARNING if has_graph and runs else Severity.ERROR
