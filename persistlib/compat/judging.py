"""Rules carried out: the findings on a model, and the verdict on a manifest alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.compat.facts import Facts
from persistlib.compat.table import RULES
from persistlib.compat.verdicts import verdict_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.compat.targets import Target
    from persistlib.compat.verdicts import Report
    from persistlib.errors import Finding
    from persistlib.manifest.schema import Manifest


def findings_of(facts: Facts, target: Target, *, walks: bool = True) -> Iterator[Finding]:
    """Yield what every rule finds, and how the target's description was read.

    Args:
        facts: of the model.
        target: where it shall load.
        walks: whether rules that read the graphs are among them.

    Raises:
        PersistlibError: a graph cannot be read.
    """
    yield from target.findings
    found = list(_each(facts, target, walks=walks))
    yield from found


def _each(facts: Facts, target: Target, *, walks: bool) -> Iterator[Finding]:
    for rule in RULES:
        if walks or not rule.walks:
            yield from rule.call(facts, target)


def check_manifest(
    manifest: Manifest, target: Target, *, source: str = "BUNDLE", runtime: str | None = None
) -> Report:
    """Return the verdict on a manifest; no graph is read.

    Args:
        manifest: of the bundle.
        target: where it shall load.
        source: its path, as remedies name it.
        runtime: "torch" or "onnxruntime" when that one is meant; None for either.
    """
    facts = Facts(source=source, manifest=manifest, runtime=runtime)
    found = findings_of(facts, target, walks=False)
    return verdict_of(found, upgraded=bool(manifest.upgraded_from))
