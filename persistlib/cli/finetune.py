"""`persistlib finetune`: a known model on one's own images, the plan stated before it starts."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

import persistlib
from persistlib.cli import progress
from persistlib.cli.answer import Answer, Exit, Fields, verdict
from persistlib.cli.command import Spread, Verb, trust_option
from persistlib.cli.text import command as words
from persistlib.cli.text import size
from persistlib.errors import missing_extra
from persistlib.installed import package_version

if TYPE_CHECKING:
    from persistlib.cli.output import Output
    from persistlib.summary import Summary
    from persistlib.training.loop import FinetuneResult
    from persistlib.training.plan import Plan

_NEEDED = ("torch", "torchvision")


@click.command("finetune", cls=Verb)
@click.argument("builder")
@click.option(
    "--data",
    required=True,
    metavar="DIR|NPZ|sklearn:digits",
    help="A folder with one folder of images a class, an .npz file, or scikit-learn's digits.",
)
@click.option("--out", required=True, metavar="DIR", help="The bundle to write.")
@click.option(
    "--weights",
    metavar="PATH|DEFAULT",
    help="A checkpoint to begin from, or torchvision's own; fresh values without.",
)
@click.option(
    "--freeze",
    cls=Spread,
    metavar="PATTERN...",
    help="What stays as it is; without, all but the last layer.",
)
@click.option("--epochs", type=int, default=5, show_default=True, metavar="N")
@click.option("--lr", type=float, default=1e-2, show_default=True, help="Learning rate.")
@click.option("--batch-size", type=int, default=32, show_default=True, metavar="N")
@click.option(
    "--resize",
    type=click.IntRange(min=1),
    metavar="PX",
    help="Edge of the square images; without, what the weights were made for.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    metavar="N",
    help="Of the split, the new layer and the order of images.",
)
@click.option("--name", help="The model's name; without, that of the folder.")
@click.option("--onnx", is_flag=True, help="Add an ONNX graph, proved to compute the same.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that stands at --out.")
@trust_option
@click.pass_obj
def command(output: Output, /, builder: str, **options: Any) -> Answer:
    """Train the last layers of what BUILDER builds on your images, and save it.

    BUILDER is one of torchvision's (mobilenet_v2) or package.module:callable.
    """
    out = options["out"]
    _require_packages(onnx=options["onnx"])
    _rehearse(out, overwrite=options["overwrite"])
    plan = _plan(builder, options)
    output.show((Fields(plan.rows()),))
    with progress.shown(output) as tell:
        result = persistlib.finetune(
            plan.model,
            plan.train,
            plan.valid,
            **plan.arguments,
            out=out,
            name=options["name"] or os.path.basename(os.path.abspath(out)),
            onnx=options["onnx"],
            overwrite=options["overwrite"],
            progress=tell,
        )
    return _answer(plan, result, persistlib.inspect(out), options["data"])


def _require_packages(*, onnx: bool) -> None:
    for package in (*_NEEDED, *(["onnxscript"] if onnx else [])):
        if package_version(package) is None:
            raise missing_extra(package, "finetune", "fine-tuning")


class _RehearsedError(Exception):
    """The bundle could be put in its place."""


def _rehearse(out: str, *, overwrite: bool) -> None:
    """Fail now, not after the training, where the bundle cannot be put in its place."""
    from persistlib import publish, saving

    with (
        suppress(_RehearsedError),
        publish.folder(out, overwrite=overwrite, foreign=saving.foreign_files),
    ):
        raise _RehearsedError


def _plan(builder: str, options: dict[str, Any]) -> Plan:
    from persistlib.training import plan
    from persistlib.training.settings import Settings

    names = ("epochs", "lr", "seed", "batch_size")
    return plan.plan(
        builder,
        data=options["data"],
        weights=options["weights"],
        freeze=options["freeze"] or None,
        resize=options["resize"],
        settings=Settings(**{name: options[name] for name in names}),
        trust=options["trust"],
    )


def _answer(plan: Plan, result: FinetuneResult, summary: Summary, data: str) -> Answer:
    path = summary.path
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
    graphs = [entry.path for graph in summary.manifest.graphs for entry in graph.files]
    return Answer(
        data={
            "path": path,
            "bundle_id": summary.manifest.bundle_id,
            "plan": plan.to_dict(),
            "metrics": {**result.metrics},
            "history": [{**row} for row in result.history],
        },
        report=(
            verdict(f"saved {path}", Exit.OK, size(summary.size)),
            Fields(
                (
                    ("held out", metrics),
                    ("bundle", summary.manifest.bundle_id),
                    *((("graph", ", ".join(graphs)),) if graphs else ()),
                )
            ),
        ),
        brief=(path,),
        hints=(
            words("persistlib", "inspect", path),
            words("persistlib", "verify", path),
            words("persistlib", "evaluate", path, "--data", data, "--held-out"),
            f"{words('persistlib', 'run', path)} IMAGE",
        ),
    )
