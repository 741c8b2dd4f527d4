"""`persistlib compare`: which of several models is the best beginning for one's own images."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

import persistlib
from persistlib.cli import progress
from persistlib.cli.answer import Answer, Exit, Fields, Findings, Line, Span, Style, Table, verdict
from persistlib.cli.command import (
    Verb,
    batch_size_option,
    calls_option,
    trust_option,
    withdrawn_option,
)
from persistlib.cli.text import bounded, milliseconds, number, size
from persistlib.cli.text import command as words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.cli.answer import Block
    from persistlib.cli.output import Output
    from persistlib.evaluation.ranking import Candidate, Place, Ranking

_ASKED = (
    *("weights", "classifier", "resize", "folds", "seed", "batch_size", "calls", "threads"),
    *("onnx", "cache", "trust", "allow_withdrawn"),
)


@click.command("compare", cls=Verb)
@click.argument("candidates", metavar="BUILDER[=WEIGHTS]|BUNDLE...", nargs=-1, required=True)
@click.option(
    "--data",
    required=True,
    metavar="DIR|NPZ|sklearn:digits",
    help="As for finetune: a folder with one folder of images a class, an .npz file, the digits.",
)
@click.option(
    "--weights",
    default="DEFAULT",
    show_default=True,
    metavar="NAME|PATH|fresh",
    help="Of builders that name none: torchvision's own, a checkpoint, or fresh values.",
)
@click.option(
    "--classifier",
    default="logistic",
    show_default=True,
    metavar="NAME",
    help="What is fitted on the features: logistic, svm or ridge.",
)
@click.option(
    "--folds",
    type=click.IntRange(min=2),
    metavar="N",
    help="Judge every image, each by a fit on the other folds; without, the held-out part.",
)
@click.option("--resize", type=click.IntRange(min=1), metavar="N", help="Edge of square images.")
@batch_size_option
@calls_option
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads while timing; without, one a core.",
)
@click.option("--onnx", is_flag=True, help="Export each, and time it in ONNX Runtime too.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N")
@click.option("--cache", metavar="DIR", help="A folder to keep features in.")
@click.option("--out", metavar="JSON", help="A file to write everything to.")
@click.option("--overwrite", is_flag=True, help="Replace the file of --out.")
@click.option("--save", is_flag=True, help="Let each BUNDLE keep its result in its manifest.")
@trust_option
@withdrawn_option
@click.pass_obj
def command(output: Output, /, candidates: tuple[str, ...], **options: Any) -> Answer:
    """Rank models as beginnings for fine-tuning on your images.

    Each gives its features once, and a linear classifier on them is judged on the same held-out
    images; nothing is trained. Those that cannot be told from the best come first, the fastest of
    them at the top. What cannot be had is told with its reason.
    """
    with progress.counted(output) as tell:
        found = persistlib.compare(
            candidates,
            options["data"],
            save=options["save"],
            progress=tell,
            **{name: options[name] for name in _ASKED},
        )
    data = found.to_dict()
    if options["out"]:
        _write(options["out"], data, overwrite=options["overwrite"])
    outcome = Exit.OK if not found.absent else Exit.DEGRADED if found.places else Exit.FAILED
    return Answer(
        data={**data, "out": options["out"], "saved": options["save"]},
        report=tuple(_report(found, outcome, options["out"])),
        brief=tuple(place.candidate.name for place in found.places),
        findings=tuple(item for absent in found.absent for item in absent.findings),
        hints=_hints(found, options["data"], options["resize"]),
        exit=outcome,
    )


def _write(path: str, data: Any, *, overwrite: bool) -> None:
    from persistlib import publish

    with publish.file(path, overwrite=overwrite) as out:
        out.write(json.dumps(data, indent=1, allow_nan=False).encode() + b"\n")


def _hints(found: Ranking, data: str, resize: int | None) -> tuple[str, ...]:
    if (taken := found.recommended) is None:
        return ()
    builder, _, weights = taken.name.partition("=")
    chosen = [taken.name]
    if taken.bundle_id is None:
        wanted = weights or ("DEFAULT" if taken.weights else "fresh")
        chosen = [builder, *(["--weights", wanted] if wanted != "fresh" else [])]
    sized = [] if resize is None else ["--resize", str(resize)]
    return (words("persistlib", "finetune", *chosen, "--data", data, *sized, "--out", "DIR"),)


def _report(found: Ranking, outcome: Exit, out: str | None) -> Iterator[Block]:
    yield verdict(found.advice, outcome, str(found.data["name"]))
    if found.places:
        yield _accuracies(found)
        yield Line((Span(""),))
        yield _costs(found)
        yield Line((Span(""),))
        yield Fields(tuple(_facts(found, out)))
    if found.absent:
        yield Line((Span(""),))
    for absent in found.absent:
        yield Line((Span(f"not compared: {absent.name}", Style.WARNING),))
        yield Findings(absent.findings)


def _accuracies(found: Ranking) -> Table:
    best = None if found.best is None else found.best.candidate
    head = ("", "candidate", "accuracy", "of the best")
    rows = tuple(
        (
            str(rank),
            place.candidate.name,
            bounded(place.candidate.accuracy, place.candidate.interval),
            "the best" if place.candidate is best else _behind(place),
        )
        for rank, place in enumerate(found.places, 1)
    )
    return Table(head, rows, frozenset({0, 2, 3}))


def _behind(place: Place) -> str:
    return f"{100 * place.pairs.difference:+.1f}{' (tied)' if place.is_tied else ''}"


def _costs(found: Ranking) -> Table:
    """Return what each candidate costs, in the same order, a row a runtime."""
    head = ("", "candidate", "parameters", "size", "runtime", "ms", "images/s")
    rows = [
        row for rank, place in enumerate(found.places, 1) for row in _cost(place.candidate, rank)
    ]
    return Table(head, tuple(rows), frozenset({0, 2, 3, 5, 6}))


def _cost(candidate: Candidate, rank: int) -> Iterator[tuple[str, ...]]:
    own: tuple[str, ...] = (
        str(rank),
        candidate.name,
        number(candidate.parameters),
        size(candidate.size),
    )
    for runtime, timings in candidate.timings.items():
        speed = number(round(timings[-1].throughput))
        yield (*own, runtime, milliseconds(timings[0].median), speed)
        own = ("",) * len(own)
    if not candidate.timings:
        yield (*own, "-", "-", "-")


def _facts(found: Ranking, out: str | None) -> Iterator[tuple[str, str]]:
    data, classifier = found.data, found.classifier
    split: Any = data["split"]
    drawn = f"{split['method']}, seed {split['seed']}" if "seed" in split else f"as {split['by']}"
    drawn = f"{split['folds']} {drawn}" if "folds" in split else drawn
    images = f"{data['judged']:,} images of {data['classes']} classes"
    yield "judged on", f"{images}, none by a fit on itself: {data['fitted']:,} a fit; {drawn}"
    yield "by", f"{classifier['name']} on what goes into the last layer; nothing is trained"
    yield "tied", "the 95 % interval of the difference on the same images does not leave zero out"
    if found.places[0].candidate.timings:
        first = next(iter(found.places[0].candidate.timings.values()))
        yield "ms, images/s", f"of 1 image, median; in batches of {first[-1].batch}"
    if out:
        yield "written", out
