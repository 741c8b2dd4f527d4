"""`persistlib inspect`: what a bundle or a weights file holds, on one screen; no weight is read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

import persistlib
from persistlib.cli.answer import Answer, Fields, Findings, Line, Span, Style
from persistlib.cli.command import Verb
from persistlib.cli.manifest_text import fields_of, labelled
from persistlib.cli.tensor_table import every_tensor, file_tensors, folded_tensors
from persistlib.cli.text import command as words
from persistlib.cli.text import listing, size
from persistlib.summary import glance
from persistlib.wording import counted

if TYPE_CHECKING:
    from persistlib.cli.answer import Block
    from persistlib.summary import Summary


@click.command("inspect", cls=Verb)
@click.argument("source", metavar="BUNDLE|FILE")
@click.option("--all", "show_all", is_flag=True, help="List every tensor.")
def command(source: str, *, show_all: bool) -> Answer:
    """Show what a bundle or a weights file holds.

    Reads no weights: `persistlib verify` compares those of a bundle.
    """
    return _file(source, show_all=show_all) if os.path.isfile(source) else _bundle(source, show_all)


def _file(path: str, *, show_all: bool) -> Answer:
    from persistlib.formats import FORMATS
    from persistlib.sources import open_file

    with open_file(path) as checkpoint:
        tensors, aliases = file_tensors(checkpoint), dict(checkpoint.aliases)
        table = every_tensor(tensors, aliases) if show_all else folded_tensors(tensors)
        form = FORMATS[checkpoint.format].title
        stored = sum(entry.nbytes for entry in checkpoint)
        title = Line(
            (Span(os.path.basename(path), Style.STRONG), Span(f"  {form}")),
            size(os.path.getsize(path)),
        )
        besides = [loss.partition(" ")[2] for loss in checkpoint.losses[:3]]  # without the kind
        facts = [
            ("container", checkpoint.container),
            ("tensors", f"{counted(len(tensors), 'tensor')} of {size(stored)}"),
            ("ties", counted(len(aliases), "second name") if aliases else ""),
            ("metadata", listing(tuple(k for k in checkpoint.metadata if k != "format"))),
            *(("besides" if not n else "", held) for n, held in enumerate(besides)),
            *(("note", text) for text in checkpoint.notes),
        ]
        return Answer(
            data={
                "path": path,
                "size": os.path.getsize(path),
                "format": checkpoint.format,
                "container": checkpoint.container,
                "tensors": [
                    {"name": t.name, "dtype": t.dtype, "shape": [*t.shape]} for t in tensors
                ],
                "aliases": dict(aliases),
                "metadata": dict(checkpoint.metadata),
                "losses": [*checkpoint.losses],
                "notes": [*checkpoint.notes],
            },
            report=(title, Fields(tuple(f for f in facts if f[1])), Line((Span(""),)), table),
            brief=(checkpoint.format,),
            hints=(words("persistlib", "identify", path),),
        )


def _bundle(bundle: str, show_all: bool) -> Answer:
    summary = glance(bundle) or persistlib.inspect(bundle)
    return Answer(
        data={
            "path": str(summary.path),
            "size": summary.size,
            "parameters": summary.parameters,
            "trainable": summary.trainable,
            "manifest": summary.manifest.model_dump(mode="json"),
        },
        report=(_title(summary), *_body(summary, show_all=show_all)),
        brief=(summary.manifest.bundle_id,),
        findings=tuple(summary.findings),
        hints=(words("persistlib", "verify", bundle), words("persistlib", "check", bundle)),
    )


def _title(summary: Summary) -> Line:
    manifest = summary.manifest
    builder = manifest.architecture.builder.rpartition(":")[2]
    edits = len(manifest.architecture.edits)
    facts = [
        f"{builder}, {counted(edits, 'edit')}" if edits else builder,
        labelled(manifest),
        f"manifest {manifest.manifest_version}",
    ]
    name = Span(manifest.name or str(summary.path), Style.STRONG)
    return Line((name, Span(f"  {' · '.join(filter(None, facts))}")), size(summary.size))


def _body(summary: Summary, *, show_all: bool) -> tuple[Block, ...]:
    manifest = summary.manifest
    weights = manifest.weights
    table = (
        every_tensor(weights.tensors, weights.aliases)
        if show_all
        else folded_tensors(weights.tensors)
    )
    blocks: list[Block] = [
        Fields(fields_of(manifest, summary.parameters, summary.trainable)),
        Line((Span(""),)),
        table,
    ]
    if summary.findings:
        blocks.append(Findings(tuple(summary.findings)))
    return tuple(blocks)
