"""`persistlib log`: the versions in a folder, how they did, and what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import persistlib
from persistlib.cli.answer import Answer, Exit, Findings, Table, verdict
from persistlib.cli.command import Verb
from persistlib.cli.text import command as words
from persistlib.cli.text import number, size
from persistlib.wording import counted

if TYPE_CHECKING:
    from persistlib.cli.answer import JSON, Block
    from persistlib.versions import Version, Versions


@click.command("log", cls=Verb)
@click.argument("run", metavar="RUN")
def command(run: str) -> Answer:
    """List the versions of a model that RUN keeps, the oldest first.

    RUN is the folder of a run that was fine-tuned with --keep all, or any folder with bundles in
    it. The size is of a version's own files; what it stands on is stored once. Exits with 1 when a
    manifest there cannot be read.
    """
    found = persistlib.log(run)
    outcome = Exit.FAILED if found.findings else Exit.OK
    blocks: list[Block] = [verdict(_said(found), outcome)]
    if found.versions:
        blocks.append(_table(found))
    if found.findings:
        blocks.append(Findings(found.findings))
    best = found.best
    shown = best or (found.versions[-1] if found.versions else None)
    return Answer(
        data={
            "path": found.path,
            "best": best.name if best else None,
            "size": sum(version.size for version in found.versions),
            "versions": [version_data(version) for version in found.versions],
        },
        report=tuple(blocks),
        brief=tuple(version.name for version in found.versions),
        findings=found.findings,
        hints=() if shown is None else (words("persistlib", "inspect", shown.path),),
        exit=outcome,
    )


def version_data(version: Version) -> dict[str, JSON]:
    """Return a version as the envelope has it."""
    manifest = version.manifest
    return {
        "name": version.name,
        "path": version.path,
        "bundle_id": manifest.bundle_id,
        "created": manifest.created,
        "metrics": {**version.metrics},
        "size": version.size,
        "tensors": len(manifest.weights.tensors),
        "stored": version.stored,
        "base": version.base,
        "needed_by": [*version.needed_by],
    }


def _said(found: Versions) -> str:
    count = counted(len(found.versions), "version")
    total = size(sum(version.size for version in found.versions))
    faults = f", {len(found.findings)} not readable" if found.findings else ""
    return f"{count}, {total}{faults}"


def _table(found: Versions) -> Table:
    names = tuple(dict.fromkeys(name for version in found.versions for name in version.metrics))
    best = found.best.name if found.best else None
    rows = tuple(
        (
            f"{version.name} (best)" if version.name == best else version.name,
            version.manifest.created,
            *(_metric(version, name) for name in names),
            f"{number(version.stored)}/{number(len(version.manifest.weights.tensors))}",
            size(version.size),
            version.base or "",
        )
        for version in found.versions
    )
    head = ("version", "saved", *names, "stored", "size", "stands on")
    return Table(head, rows, frozenset(range(2, len(names) + 4)))


def _metric(version: Version, name: str) -> str:
    value = version.metrics.get(name)
    return "" if value is None else f"{value:.4f}"
