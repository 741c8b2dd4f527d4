"""`persistlib prune`: versions that are no longer wanted removed, and none that others need."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import persistlib
from persistlib.cli.answer import Answer, Exit, Fields, verdict
from persistlib.cli.command import Verb
from persistlib.cli.log import version_data
from persistlib.cli.text import command as words
from persistlib.cli.text import listing, size
from persistlib.wording import counted

if TYPE_CHECKING:
    from persistlib.versions import Pruned


@click.command("prune", cls=Verb)
@click.argument("run", metavar="RUN")
@click.option(
    "--keep", type=click.IntRange(min=1), required=True, help="How many of the newest stay."
)
@click.option("--dry-run", is_flag=True, help="Say what would go and remove nothing.")
def command(run: str, *, keep: int, dry_run: bool) -> Answer:
    """Remove the versions in RUN but the newest, the best, and those that these stand on.

    RUN is as for `persistlib log`. A crash in between leaves every version that has its name whole.
    """
    done = persistlib.prune(run, keep=keep, dry_run=dry_run)
    names = tuple(version.name for version in done.removed)
    return Answer(
        data={
            "path": done.path,
            "dry_run": dry_run,
            "kept": [version_data(version) for version in done.kept],
            "needed": [*done.needed],
            "removed": [version_data(version) for version in done.removed],
            "freed": done.freed,
        },
        report=(verdict(_said(done, dry_run=dry_run), Exit.OK), Fields(_fields(done))),
        brief=names,
        hints=_hints(run, keep, done, dry_run=dry_run),
    )


def _said(done: Pruned, *, dry_run: bool) -> str:
    if not done.removed:
        return f"nothing to remove, {counted(len(done.kept), 'version')} kept"
    word = "to remove" if dry_run else "removed"
    return f"{counted(len(done.removed), 'version')} {word}, {size(done.freed)}"


def _fields(done: Pruned) -> tuple[tuple[str, str], ...]:
    removed = tuple(version.name for version in done.removed)
    kept = tuple(version.name for version in done.kept)
    rows = (("removed", removed), ("kept", kept), ("needed", done.needed))
    return tuple((label, listing(names, 8)) for label, names in rows if names)


def _hints(run: str, keep: int, done: Pruned, *, dry_run: bool) -> tuple[str, ...]:
    if dry_run and done.removed:
        return (words("persistlib", "prune", run, "--keep", str(keep)),)
    return (words("persistlib", "log", run),)
