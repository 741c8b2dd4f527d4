"""`persistlib convert`: the same model in another format, and what that format cannot keep."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

import persistlib
from persistlib.cli.answer import Answer, Exit, Fields, verdict
from persistlib.cli.command import Spread, Verb, trust_option
from persistlib.cli.manifest_text import proof_text
from persistlib.cli.text import command as words
from persistlib.cli.text import number
from persistlib.cli.text import size as shown
from persistlib.formats import by_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.conversion import ConversionReport


@click.command("convert", cls=Verb)
@click.argument("source", metavar="BUNDLE")
@click.argument("destination", metavar="OUT")
@click.option("--to", metavar="FORMAT", help="onnx, safetensors or torch; otherwise from OUT.")
@click.option(
    "--allow-loss",
    cls=Spread,
    metavar="LOSS...",
    help="What may be lost, as the refusal names it.",
)
@click.option("--only", cls=Spread, metavar="PATTERN...", help="Only the tensors so named.")
@click.option("--overwrite", is_flag=True, help="Replace a file that stands at OUT.")
@trust_option
def command(
    source: str,
    destination: str,
    *,
    to: str | None,
    allow_loss: tuple[str, ...],
    only: tuple[str, ...],
    overwrite: bool,
    trust: tuple[str, ...],
) -> Answer:
    """Write the model in BUNDLE to OUT (.onnx, .safetensors or .pt).

    Refuses to lose anything in silence, and reads back what it wrote.
    """
    report = persistlib.convert(
        source,
        destination,
        to=to,
        allow_loss=allow_loss,
        only=only or None,
        overwrite=overwrite,
        trust=trust,
    )
    is_proved = not report.proof or bool(report.proof.get("proved"))
    outcome = Exit.OK if is_proved else Exit.DEGRADED
    size = os.path.getsize(report.destination)
    return Answer(
        data={
            "source": source,
            "destination": report.destination,
            "format": report.format,
            "size": size,
            "tensors": report.tensors,
            "losses": [*report.losses],
            "identity": report.identity,
            "proof": dict(report.proof),
        },
        report=(
            verdict(f"{report.destination}: {by_name(report.format).title}", outcome, shown(size)),
            Fields(tuple(_facts(report))),
        ),
        brief=(report.destination,),
        hints=(words("persistlib", "verify", source),) if os.path.isdir(source) else (),
        exit=outcome,
    )


def _facts(report: ConversionReport) -> Iterator[tuple[str, str]]:
    yield "tensors", number(report.tensors)
    yield "identity", report.identity
    for index, loss in enumerate(report.losses or ("nothing",)):
        yield "lost" if index == 0 else "", loss
    if report.proof:
        yield "proof", proof_text(report.proof)
