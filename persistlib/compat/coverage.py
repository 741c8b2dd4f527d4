"""A rule on the target itself: whether it says enough for a verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.errors import Code, Severity, finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.compat.facts import Facts
    from persistlib.compat.targets import Target
    from persistlib.errors import Finding

_RUN = ("torch", "onnxruntime")
_RUN_GRAPH = ("onnxruntime",)


def silent(facts: Facts, target: Target) -> Iterator[Finding]:
    """Yield that a target does not name what would run the model: then "ok" would say nothing.

    A bare graph runs in ONNX Runtime alone; it is refused where that is known to be absent.
    """
    is_graph = facts.format == "onnx"
    if any(target.version(package) for package in (_RUN_GRAPH if is_graph else _RUN)):
        return
    if not target.is_complete:
        names = "no onnxruntime, which alone runs a graph" if is_graph else ""
        names = names or "neither torch nor onnxruntime"
        reason = f"it names {names}: what would run the model was not judged"
        remedy = "add it, as in --target onnxruntime==1.17.3"
        yield finding(Code.TARGET_SILENT, "target", reason, remedy, Severity.WARNING)
    elif is_graph:
        reason = "not installed, and nothing else runs a graph"
        yield finding(Code.PACKAGE_ABSENT, "onnxruntime", reason, "pip install onnxruntime")
