"""`persistlib convert`: the same model in another format, and what that format cannot keep."""

from __future__ import annotations

import difflib
import json
import os
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

import persistlib
from persistlib.cli.answer import Answer, Exit, Fields, Line, Span, Table, verdict
from persistlib.cli.command import Spread, Verb, trust_option
from persistlib.cli.folding import fold
from persistlib.cli.manifest_text import proof_text
from persistlib.cli.text import command as words
from persistlib.cli.text import number, shape
from persistlib.cli.text import size as shown
from persistlib.formats import FORMATS, LOSSES
from persistlib.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.casting import CastError
    from persistlib.cli.answer import JSON, Block
    from persistlib.cli.folding import Fold
    from persistlib.conversion import ConversionReport, ConvertedTensor

_ANYTHING = "all"
_INDEX = ".index.json"
_LINES = 6  # of losses, unless all are asked for


def _known_losses(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the words, each of which names a kind of loss."""
    known = (*LOSSES, _ANYTHING)
    for word in value:
        if word not in known:
            near = difflib.get_close_matches(word, known, 1)
            tail = f"Did you mean '{near[0]}'?" if near else f"There are {', '.join(known)}."
            raise click.BadParameter(f"No loss is called '{word}'. {tail}", ctx, param)
    return value


@click.command("convert", cls=Verb)
@click.argument("source", metavar="SOURCE")
@click.argument("destination", metavar="OUT")
@click.option("--to", metavar="FORMAT", help="One of `persistlib formats`; otherwise from OUT.")
@click.option(
    "--allow-loss",
    cls=Spread,
    metavar="LOSS...",
    callback=_known_losses,
    help="What may be lost, as the refusal names it, or all.",
)
@click.option("--only", cls=Spread, metavar="PATTERN...", help="Only the tensors so named.")
@click.option(
    "--rename",
    cls=Spread,
    metavar="PATTERN=NAME...",
    help="New names, * for what the pattern's * is: 'module.*=*' takes a prefix off.",
)
@click.option("--dtype", metavar="DTYPE", help="Cast floating-point tensors: f32, f16, bf16, ...")
@click.option("--key", metavar="PATH", help="Which part of a training checkpoint, such as model.")
@click.option("--layout", metavar="LAYOUT", help="torch: of a Keras file, torch's names and axes.")
@click.option("--template", metavar="FILE", help="An ONNX file whose graph takes the weights.")
@click.option("--compression", metavar="KIND", help="Of HDF5: gzip or lzf.")
@click.option(
    "--shard-bytes",
    type=click.IntRange(min=1),
    metavar="BYTES",
    help="Of an index (OUT.safetensors.index.json): the most in one file.",
)
@click.option("--opset", type=click.IntRange(min=1), metavar="N", help="Of a graph: its operators.")
@click.option("--ir", type=click.IntRange(min=1), metavar="N", help="Of a graph: its file format.")
@click.option("--target", metavar="RUNTIME", help="Of a graph: onnxruntime==1.17.3 must run it.")
@click.option(
    "--dynamic", cls=Spread, metavar="INPUT:AXIS=NAME...", help="Of a graph: the axes that vary."
)
@click.option(
    "--quantize",
    type=click.Choice(["dynamic", "static"]),
    help="Of a graph: weights and arithmetic in int8.",
)
@click.option("--calibration", metavar="DIR", help="Images that --quantize static measures.")
@click.option("--pure", is_flag=True, help="With --dtype bf16: --target computes in it too.")
@click.option("--architecture", metavar="NAME", help="Of an ONNX file: the builder of its module.")
@click.option("--no-verify", is_flag=True, help="Do not read back and compare what was written.")
@click.option("--overwrite", is_flag=True, help="Replace a file that stands at OUT.")
@click.option("--all", "show_all", is_flag=True, help="List every tensor and every loss.")
@trust_option
def command(
    source: str,
    destination: str,
    *,
    allow_loss: tuple[str, ...],
    only: tuple[str, ...],
    rename: tuple[str, ...],
    no_verify: bool,
    show_all: bool,
    **options: object,
) -> Answer:
    """Write the weights in SOURCE, a bundle or a file of any format, to OUT.

    Refuses to lose anything in silence, and reads back what it wrote.
    """
    report = persistlib.convert(
        source,
        destination,
        allow_loss=allow_loss,
        only=only or None,
        rename=rename or None,
        verify=not no_verify,
        **options,  # type: ignore[arg-type] # click has checked them
    )
    is_proved = not report.proof or bool(report.proof.get("proved"))
    outcome = Exit.OK if is_proved else Exit.DEGRADED
    return Answer(
        data=_data(report),
        report=tuple(_blocks(report, outcome, show_all=show_all)),
        brief=(report.destination,),
        hints=_hints(report),
        exit=outcome,
    )


def _data(report: ConversionReport) -> dict[str, JSON]:
    return {
        "source": report.source,
        "source_format": report.source_format,
        "source_identity": report.source_identity,
        "destination": report.destination,
        "format": report.format,
        "size": _size(report.destination),
        "tensors": report.tensors,
        "kept": [*report.kept],
        "losses": [*report.losses],
        "identity": report.identity,
        "proof": dict(report.proof),
        "ir_version": report.ir_version,
        "opsets": dict(report.opsets),
        "notes": [*report.notes],
        "rows": [_row_data(row) for row in report.rows],
    }


def _row_data(row: ConvertedTensor) -> dict[str, JSON]:
    return {
        "name": row.name,
        "source": row.source,
        "dtype": row.dtype,
        "shape": [*row.shape],
        "before": row.before,
        "after": row.after,
        "cast": None if row.cast is None else asdict(row.cast),
    }


def _hints(report: ConversionReport) -> tuple[str, ...]:
    """Return what shows what was written: beside its source, where those are weights."""
    if os.path.isdir(report.destination):
        return (words("persistlib", "verify", report.destination),)
    if report.rows:
        return (words("persistlib", "diff", report.source, report.destination),)
    return (words("persistlib", "inspect", report.destination),)


def _size(path: str) -> int:
    """Return the bytes of a file, of the shards of an index too, or of all files in a folder."""
    if os.path.isdir(path):
        return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
    shards: set[str] = set()
    if path.endswith(_INDEX):
        with open(path, encoding="utf-8") as file:
            shards = set(json.load(file)["weight_map"].values())
    folder = os.path.dirname(path)
    return sum(os.path.getsize(part) for part in (path, *(os.path.join(folder, s) for s in shards)))


def _title(name: str) -> str:
    return FORMATS[name].title if name in FORMATS else name


def _blocks(report: ConversionReport, outcome: Exit, *, show_all: bool) -> Iterator[Block]:
    """Yield the report: the verdict, what was read, and what became of it."""
    size = shown(_size(report.destination))
    yield verdict(f"{report.destination}: {_title(report.format)}", outcome, size)
    yield Fields(tuple(_facts(report, show_all=show_all)))
    if show_all and report.rows:
        yield Line((Span(""),))
        yield _tensors(report)


def _facts(report: ConversionReport, *, show_all: bool) -> Iterator[tuple[str, str]]:
    if report.source_format:
        yield "from", f"{report.source}: {_title(report.source_format)}"
    yield "tensors", _tensors_said(report)
    yield "identity", report.identity
    if report.source_identity not in {None, report.identity}:
        yield "was", f"{report.source_identity}"
    losses = report.losses if show_all else _folded(report.losses)
    for index, loss in enumerate(losses or ("nothing",)):
        yield "lost" if index == 0 else "", loss
    for index, text in enumerate(_casts(report)):
        yield "cast" if index == 0 else "", text
    for index, note in enumerate(report.notes):
        yield "note" if index == 0 else "", note
    if report.opsets:
        yield "graph", _versions(report)
    if report.proof:
        yield "proof", proof_text(report.proof)


def _versions(report: ConversionReport) -> str:
    """Return the versions of a graph: `opset 17, IR 8`."""
    sets = (f"{domain} opset {n}".strip() for domain, n in sorted(report.opsets.items()))
    return ", ".join((*sets, f"IR {report.ir_version}"))


def _tensors_said(report: ConversionReport) -> str:
    renamed = sum(row.name != row.source for row in report.rows)
    return number(report.tensors) + (f", {number(renamed)} renamed" if renamed else "")


def _folded(losses: tuple[str, ...]) -> tuple[str, ...]:
    """Return many losses in few lines: `value state.[0-155].step, which is no tensor (156)`."""
    if len(losses) <= _LINES:
        return losses
    lines = tuple(_line(folded) for folded in fold(losses))
    more = len(lines) - _LINES
    return (*lines[:_LINES], f"… {number(more)} more lines (--all)") if more > 0 else lines


def _line(folded: Fold) -> str:
    count = len(folded.members)
    return folded.pattern if count == 1 else f"{folded.pattern} ({number(count)})"


def _casts(report: ConversionReport) -> Iterator[str]:
    """Yield how far casts went: how many, and where the largest errors are."""
    cast = [(row.name, row.cast) for row in report.rows if row.cast is not None]
    if not cast:
        return
    for (before, after), count in Counter((c.before, c.after) for _, c in cast).items():
        yield f"{before} → {after}: {counted(count, 'tensor')}"
    place, far = max(cast, key=lambda item: item[1].absolute)
    if far.absolute == 0:
        yield "every value is what it was"
        return
    yield f"largest error {far.absolute:.2g}, in {place}"
    place, far = max(cast, key=lambda item: item[1].relative)
    yield f"largest relative error {far.relative:.2g}, in {place}"


def _tensors(report: ConversionReport) -> Table:
    """Return a row for each tensor."""
    rows = [
        (
            row.name,
            "" if row.name == row.source else row.source,
            shape(row.dtype, row.shape),
            *_errors(row.cast),
        )
        for row in report.rows
    ]
    head = ("tensor", "was called", "dtype and shape", "cast from", "error", "relative")
    used = [i for i in range(len(head)) if not i or any(row[i] for row in rows)]
    right = frozenset(place for place, i in enumerate(used) if head[i] in {"error", "relative"})
    return Table(
        tuple(head[i] for i in used), tuple(tuple(row[i] for i in used) for row in rows), right
    )


def _errors(cast: CastError | None) -> tuple[str, str, str]:
    if cast is None:
        return "", "", ""
    return cast.before, f"{cast.absolute:.2g}", f"{cast.relative:.2g}"
