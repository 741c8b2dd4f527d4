"""`persistlib identify`: what a weights file is, and which model its tensors belong to."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

import persistlib
from persistlib.cli.answer import Answer, Exit, Fields, Findings, Line, Span, Style, Table, verdict
from persistlib.cli.command import Verb
from persistlib.cli.text import command as words
from persistlib.cli.text import listing, number, size
from persistlib.errors import missing_extra
from persistlib.installed import is_importable
from persistlib.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.cli.answer import JSON, Block
    from persistlib.identification.reading import Identification, Mismatch, Ranked


@click.command("identify", cls=Verb)
@click.argument("file")
@click.option("--bundle", metavar="DIR", help="Save it as a bundle; needs torch.")
@click.option(
    "--zoo",
    type=click.Choice(["torchvision", "timm"]),
    default="torchvision",
    help="timm: also the models of an installed timm; the first time takes minutes.",
)
@click.option("--key", metavar="KEY", help="The part of a training checkpoint to look at.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that stands at DIR.")
def command(file: str, *, bundle: str | None, zoo: str, key: str | None, overwrite: bool) -> Answer:
    """Say what FILE is and which model its tensors belong to.

    FILE is a weights file of any format, or a bundle. Reads headers alone, executes nothing, and
    imports no torch.
    """
    found = persistlib.identify(file, key=key, zoo=zoo)
    made: dict[str, JSON] = {}
    if bundle is not None:
        made = {"bundle": bundle, "bundle_id": _save(found, bundle, key, overwrite=overwrite)}
    return Answer(
        data=_data(found) | made,
        report=tuple(_report(found, bundle)),
        brief=(bundle or found.builder or found.verdict,),
        findings=found.findings,
        hints=tuple(_hints(found, bundle)),
    )


def _save(found: Identification, bundle: str, key: str | None, *, overwrite: bool) -> str:
    """Save what was found as a bundle, and return its identity."""
    if not is_importable("torch"):
        raise missing_extra("torch", "torch", "making a bundle")
    from persistlib.identification.adoption import adopt

    made = adopt(found, key=key)
    manifest = persistlib.save(
        made.module,
        bundle,
        example_inputs=made.inputs,
        lineage=(made.lineage,),
        overwrite=overwrite,
    )
    return manifest.bundle_id


def _data(found: Identification) -> dict[str, JSON]:
    members: dict[str, Any] = asdict(found)
    for name in ("names", "findings"):
        del members[name]
    return members


def _report(found: Identification, bundle: str | None) -> Iterator[Block]:
    if found.builder is None:
        yield Line((Span(f"? {found.verdict}", Style.WARNING),), size(found.size))
    else:
        yield verdict(found.verdict, Exit.OK, size(found.size))
    yield Fields(tuple(_facts(found, bundle)))
    if found.builder is None and found.candidates:
        yield Line((Span(""),))
        yield _candidates(found.candidates)
        if differing := found.candidates[0].differing:
            yield Line((Span(""),))
            yield _differing(found.candidates[0].builder, differing)
    if found.findings:
        yield Findings(found.findings)


def _facts(found: Identification, bundle: str | None) -> Iterator[tuple[str, str]]:
    yield "file", found.path
    yield "format", ", ".join(text for text in (found.format, found.container) if text)
    yield "tensors", number(found.tensors)
    buffers = f" and {number(found.buffers)} in buffers" if found.buffers else ""
    yield "parameters", f"{number(found.parameters)}{buffers}"
    for index, row in enumerate(found.dtypes):
        text = f"{row.dtype}: {counted(row.tensors, 'tensor')}, {size(row.size)}"
        yield "dtypes" if index == 0 else "", text
    if found.ties:
        yield "ties", listing(tuple(f"{second} is {first}" for second, first in found.ties.items()))
    if found.optimizer:
        yield "optimizer", listing(found.optimizer, 4)
    if found.builder is not None:
        yield "builder", found.builder
    for index, (name, value) in enumerate(found.arguments.items()):
        yield "arguments" if index == 0 else "", f"{name}={value}"
    for index, edit in enumerate(found.edits):
        yield "edits" if index == 0 else "", _edit(edit)
    for index, note in enumerate(found.notes):
        yield "notes" if index == 0 else "", note
    if bundle is not None:
        yield "bundle", bundle


def _edit(edit: Any) -> str:
    if "builder" not in edit:
        return f"{edit['op']} {edit['path']}.{edit.get('attribute')} = {edit.get('value')}"
    given = ", ".join(f"{name}={_plain(value)}" for name, value in edit["arguments"].items())
    return f"{edit['op']} {edit['path']} by {edit['builder'].rpartition(':')[2]}({given})"


def _plain(value: Any) -> str:
    """Return an argument as Python spells it, where a recipe tags a tuple."""
    if isinstance(value, dict) and set(value) == {"$tuple"}:
        return f"({', '.join(str(member) for member in value['$tuple'])})"
    return str(value)


def _candidates(ranked: tuple[Ranked, ...]) -> Table:
    rows = tuple(
        (
            item.builder + "".join(f" {name}={value}" for name, value in item.arguments.items()),
            "-".join(dict.fromkeys(item.releases)),
            number(item.shared),
            number(item.missing),
            number(item.extra),
        )
        for item in ranked
    )
    return Table(("close", "releases", "shared", "missing", "extra"), rows, frozenset({2, 3, 4}))


def _differing(builder: str, differing: tuple[Mismatch, ...]) -> Table:
    rows = tuple((item.name, _shape(item.found), _shape(item.expected)) for item in differing)
    return Table(("differs", "in the file", f"in {builder.partition(':')[2]}"), rows)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else str(list(shape))


def _hints(found: Identification, bundle: str | None) -> Iterator[str]:
    if bundle is not None:
        yield words("persistlib", "verify", bundle)
        yield words("persistlib", "inspect", bundle)
    elif found.format == "bundle":
        yield words("persistlib", "inspect", found.path)
    elif found.builder is not None:
        stem = found.path.rpartition("/")[2].partition(".")[0]
        yield words("persistlib", "identify", found.path, "--bundle", f"runs/{stem}")
    else:
        stem = found.path.rpartition("/")[2].partition(".")[0]
        yield words("persistlib", "convert", found.path, *_converted(found, stem))


def _converted(found: Identification, stem: str) -> tuple[str, ...]:
    """Return what a file of an unknown model is converted into: a bundle, where it is a model."""
    near = found.candidates[0] if found.candidates else None
    if not found.is_whole:
        return (f"{stem}.safetensors",)
    if found.format == "onnx" and near and near.shared > near.missing + near.extra:
        return f"runs/{stem}", "--architecture", near.builder
    return (f"runs/{stem}",)
