"""Rules on what a manifest says of itself: the version of its schema, and the model's status."""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.errors import Code, Severity, finding
from persistlib.manifest.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.compat.facts import Facts
    from persistlib.compat.targets import Target
    from persistlib.errors import Finding


def schema(facts: Facts, target: Target) -> Iterator[Finding]:  # noqa: ARG001 - a rule's signature
    """Yield that a manifest is of another version than this release's: a note, for it is read."""
    manifest = facts.manifest
    if manifest is None:
        return
    place = f"{facts.source}: manifest_version"
    if manifest.upgraded_from is not None:
        reason = f"{manifest.upgraded_from}, read by the steps that lead to {VERSION}"
        remedy = f"persistlib upgrade {facts.source}"
        yield finding(Code.MANIFEST_OLDER, place, reason, remedy, Severity.NOTE)
    elif manifest.unknown or manifest.manifest_version != VERSION:
        waived = ", ".join(".".join(map(str, path)) for path, _ in manifest.unknown)
        reason = f"{manifest.manifest_version}, this release knows {VERSION}"
        reason += f"; not understood, and need not be: {waived}" if waived else ""
        remedy = "pip install --upgrade persistlib"
        yield finding(Code.MANIFEST_NEWER, place, reason, remedy, Severity.NOTE)


def status(facts: Facts, target: Target) -> Iterator[Finding]:  # noqa: ARG001 - a rule's signature
    """Yield that a model was withdrawn, an error; or superseded, a warning."""
    if facts.said is None or facts.said.status.state == "active":
        return
    said = facts.said.status
    withdrawn = said.state == "withdrawn"
    word = "withdrawn" if withdrawn else "superseded"
    since = f" on {said.date}" if said.date else ""
    reason = f": {said.reason}" if said.reason else ""
    remedy = f"use {said.successor}" if said.successor else "ask who published it"
    if withdrawn:
        remedy += "; persistlib run --allow-withdrawn and load(allow_withdrawn=True) use it anyway"
    yield finding(
        Code.STATUS,
        facts.said.name or facts.source,
        f"{word}{since}{reason}",
        remedy,
        Severity.ERROR if withdrawn else Severity.WARNING,
    )
