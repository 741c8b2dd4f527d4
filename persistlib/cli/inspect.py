"""`persistlib inspect`: what a bundle holds, from its manifest alone, on one screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import persistlib
from persistlib.cli.answer import Answer, Fields, Findings, Line, Span, Style
from persistlib.cli.command import Verb
from persistlib.cli.manifest_text import fields_of
from persistlib.cli.tensor_table import every_tensor, folded_tensors
from persistlib.cli.text import command as words
from persistlib.cli.text import counted, size
from persistlib.summary import glance

if TYPE_CHECKING:
    from persistlib.cli.answer import Block
    from persistlib.summary import Summary


@click.command("inspect", cls=Verb)
@click.argument("bundle")
@click.option("--all", "show_all", is_flag=True, help="List every tensor.")
def command(bundle: str, *, show_all: bool) -> Answer:
    """Show what BUNDLE holds, from its manifest alone.

    Reads no weights: `persistlib verify` compares them.
    """
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
    labels = manifest.interface.labels or ()
    facts = [
        f"{builder}, {counted(edits, 'edit')}" if edits else builder,
        *([f"{len(labels)} classes"] if labels else []),
        f"manifest {manifest.manifest_version}",
    ]
    name = Span(manifest.name or str(summary.path), Style.STRONG)
    return Line((name, Span(f"  {' · '.join(facts)}")), size(summary.size))


def _body(summary: Summary, *, show_all: bool) -> tuple[Block, ...]:
    manifest = summary.manifest
    table = every_tensor(manifest) if show_all else folded_tensors(manifest)
    blocks: list[Block] = [
        Fields(fields_of(manifest, summary.parameters, summary.trainable)),
        Line((Span(""),)),
        table,
    ]
    if summary.findings:
        blocks.append(Findings(tuple(summary.findings)))
    return tuple(blocks)
