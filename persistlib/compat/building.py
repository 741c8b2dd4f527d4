"""A rule that asks the torch that is here: whether the recipe builds what was saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.compat.severities import torch_severity
from persistlib.errors import Code, PersistlibError, Severity, finding
from persistlib.installed import is_importable, package_version

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.compat.facts import Facts
    from persistlib.compat.targets import Target
    from persistlib.errors import Finding


def structure(facts: Facts, target: Target) -> Iterator[Finding]:
    """Yield that the recipe cannot be built here, or builds another structure than was saved.

    Only where it was asked for: torch is imported, and the code that the recipe names is run.
    """
    manifest = facts.manifest
    if (
        manifest is None
        or facts.trusted is None
        or not target.is_here
        or not is_importable("torch")
    ):
        return
    from persistlib.architecture.fitting import fitted
    from persistlib.architecture.skeleton import skeleton
    from persistlib.architecture.structure import is_as_saved

    architecture, saved = manifest.architecture, manifest.environment.packages
    try:
        model = skeleton(fitted(architecture, saved), trust=facts.trusted)
    except PersistlibError as fault:
        reason = f"it is not built here: {fault.code} {fault.location}: {fault.reason}"
        severity = torch_severity(facts, target)
        yield finding(Code.BUILDER_ABSENT, architecture.builder, reason, fault.remedy, severity)
        return
    if is_as_saved(model, manifest):
        return
    same = all(package_version(one) == saved.get(one) for one in ("torch", "torchvision"))
    yield finding(
        Code.STRUCTURE_DRIFT,
        architecture.builder,
        "what the recipe builds here is configured otherwise than what was saved",
        f"persistlib verify --behaviour {facts.source}",
        torch_severity(facts, target) if same else Severity.WARNING,
    )
