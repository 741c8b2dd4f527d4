"""`persistlib adapt`: a model changed to fit another task, saved with a record of what was done."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

import persistlib
from persistlib.cli.answer import Answer, Exit, Fields, verdict
from persistlib.cli.command import Spread, Verb, trust_option
from persistlib.cli.text import command as words
from persistlib.cli.text import size
from persistlib.errors import Code, error
from persistlib.formats import by_content
from persistlib.rehearsal import rehearse
from persistlib.wording import first_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from persistlib.adaptation.record import Adaptation
    from persistlib.manifest.schema import Manifest

_SIZE = "--image-size"
# Formats whose files may hold a model, of which `convert` makes a bundle.
_WHOLE = ("onnx", "keras")


def _extents(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    """Return height and width: of `384`, a square, or of `256x384`."""
    if value is None:
        return None
    edges = value.lower().split("x")
    if len(edges) > 2 or not all(edge.isascii() and edge.isdecimal() for edge in edges):
        raise click.BadParameter(f"{value!r} is neither 384 nor 256x384.", ctx, param)
    return int(edges[0]), int(edges[-1])


class _Adapt(Verb):
    """The verb, which takes `--image-size 256 384` for `--image-size 256x384`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, height and width as one of them."""
        for at, word in enumerate(args[:-2]):
            pair = args[at + 1 : at + 3]
            if word == _SIZE and all(map(str.isdecimal, pair)):
                return super().parse_args(ctx, [*args[: at + 1], "x".join(pair), *args[at + 3 :]])
        return super().parse_args(ctx, args)


@click.command("adapt", cls=_Adapt)
@click.argument("source", metavar="SOURCE")
@click.argument("out", metavar="OUT")
@click.option(
    "--classes",
    cls=Spread,
    metavar="N|NAME...",
    help="How many, or their names: labels that stay keep their weights.",
)
@click.option(
    "--head", cls=Spread, metavar="LAYER...", help="The last layers meant, where several could be."
)
@click.option("--channels", type=click.IntRange(min=1), metavar="N", help="Channels of an image.")
@click.option(_SIZE, metavar="PX|HxW", callback=_extents, help="Pixels of an image.")
@click.option(
    "--rename",
    cls=Spread,
    metavar="PATTERN=NAME...",
    help="Other names for the stored tensors: 'module.*=*' takes a prefix off.",
)
@click.option("--partly", is_flag=True, help="Take the tensors that fit, and list the others.")
@click.option("--architecture", metavar="BUILDER", help="Of a weights file: what its model is.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N")
@click.option("--name", help="The model's name; without, that of the folder.")
@click.option("--onnx", is_flag=True, help="Add an ONNX graph, proved to compute the same.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that stands at OUT.")
@trust_option
def command(source: str, out: str, **options: Any) -> Answer:
    """Change the model in SOURCE to fit another task, and save it as the bundle OUT.

    SOURCE is a bundle, or a weights file with --architecture. Values for new classes are drawn
    from --seed: train them before use.
    """
    wishes = _wishes(options)
    rehearse(out, overwrite=options["overwrite"])
    model, license = _model(source, wishes, options)  # noqa: A001 - the field's word for it
    record = persistlib.adaptation_of(model)
    assert record is not None
    manifest = persistlib.save(
        model,
        out,
        example_inputs=_examples(record),
        name=options["name"] or os.path.basename(os.path.abspath(out)),
        license=license,
        onnx=options["onnx"],
        overwrite=options["overwrite"],
    )
    return _answer(source, out, record, manifest)


def _wishes(options: dict[str, Any]) -> dict[str, Any]:
    """Return what `adapt=` takes.

    Raises:
        UsageError: nothing is asked.
    """
    classes = options["classes"]
    asked = int(classes[0]) if len(classes) == 1 and classes[0].isdecimal() else list(classes)
    wishes = {
        "classes": asked and (dict.fromkeys(options["head"], asked) or asked),
        "channels": options["channels"],
        "image_size": options["image_size"],
        "rename": list(options["rename"]),
    }
    given = {key: value for key, value in wishes.items() if value not in (None, [])}
    if options["head"] and "classes" not in given:
        raise error(Code.USAGE, "--head", "names a layer for new classes", "add --classes")
    if not given and not options["partly"]:
        remedy = "--classes, --channels, --image-size, --rename or --partly"
        raise error(Code.USAGE, "persistlib adapt", "nothing is to be changed", remedy)
    return {**given, "seed": options["seed"]}


def _model(
    source: str, wishes: dict[str, Any], options: dict[str, Any]
) -> tuple[nn.Module, str | None]:
    """Return the adapted model, and the licence of what it was made from."""
    builder = options["architecture"]
    how: dict[str, Any] = {
        "adapt": wishes,
        "strict": "report" if options["partly"] else True,
        "trust": options["trust"],
    }
    if os.path.isdir(source):
        if builder is not None:
            raise error(Code.USAGE, "--architecture", "a bundle says its own", "leave it out")
        known = persistlib.inspect(source).manifest.license
        return persistlib.load(source, **how), known
    if builder is None and by_content(source).name in _WHOLE:
        remedy = f"make a bundle of it first: {words('persistlib', 'convert', source, 'DIR')}"
        raise error(Code.USAGE, source, "a file of a whole model, which is no bundle", remedy)
    if builder is None:
        remedy = f"{words('persistlib', 'identify', source)} tells what to pass as --architecture"
        raise error(Code.USAGE, source, "a weights file does not say its model", remedy)
    from persistlib.architecture.trusted import whole_name

    name = whole_name(builder)
    return persistlib.build(name, weights=os.path.abspath(source), **how), None


def _examples(record: Adaptation) -> Any:
    """Return inputs to save with the model, where its interface says all of their extents."""
    specs = record.interface.inputs
    if not specs or not all(isinstance(e, int) for spec in specs for e in spec.shape[1:]):
        return None
    from persistlib.examples import draw_inputs

    return draw_inputs(record.interface)


def _answer(source: str, out: str, record: Adaptation, manifest: Manifest) -> Answer:
    outcome = Exit.OK if not (record.missing or record.reshaped) else Exit.DEGRADED
    total = persistlib.inspect(out).size
    return Answer(
        data={
            "source": source,
            "path": out,
            "bundle_id": manifest.bundle_id,
            "adaptation": record.to_dict(),
        },
        report=(
            verdict(f"saved {out}", outcome, size(total)),
            Fields(tuple(_rows(source, record, manifest))),
        ),
        brief=(out,),
        hints=(
            words("persistlib", "inspect", out),
            words("persistlib", "diff", source, out),
        ),
        exit=outcome,
    )


def _rows(source: str, record: Adaptation, manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "from", source
    for change in record.changes:
        where = f", {change.location}" if change.location else ""
        yield change.kind.replace("_", " "), f"{change.before} → {change.after}{where}"
        yield "", change.detail
    for index, text in enumerate([*record.words()][len(record.changes) :]):
        yield "tensors" if index == 0 else "", text
    for index, note in enumerate(record.notes):
        yield "note" if index == 0 else "", note
    if labels := manifest.interface.labels:
        shown = first_of(labels, 12)
        yield "labels", f"{len(labels)}: {shown}"
    yield "bundle", manifest.bundle_id
