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


def silent(facts: Facts, target: Target) -> Iterator[Finding]:  # noqa: ARG001 - a rule's signature
    """Yield that a target does not name what would run the model: then "ok" would say nothing."""
    if target.is_complete or any(target.version(package) for package in _RUN):
        return
    reason = "names neither torch nor onnxruntime: what would run the model was not judged"
    remedy = "add it, as in --target onnxruntime==1.17.3"
    yield finding(Code.TARGET_SILENT, "target", reason, remedy, Severity.WARNING)
