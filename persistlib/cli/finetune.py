"""`persistlib finetune`: a known model on one's own images, the plan stated before it starts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

import persistlib
from persistlib.cli import begun, fitting, progress, tuned
from persistlib.cli.answer import Answer, Exit, Fields, verdict
from persistlib.cli.command import (
    Spread,
    Verb,
    again,
    classifier_option,
    said,
    trust_option,
    withdrawn_option,
)
from persistlib.cli.text import command as words
from persistlib.cli.text import trusting
from persistlib.errors import Code, TargetError, error, missing_extra
from persistlib.installed import package_version
from persistlib.rehearsal import rehearse

if TYPE_CHECKING:
    from persistlib.cli.output import Output
    from persistlib.training.beginnings import Saved
    from persistlib.training.loop import FinetuneResult
    from persistlib.training.plan import Plan

_NEEDED = ("torch", "torchvision")
_VERB = ("persistlib", "finetune")
_OF_TASKS = {
    "label_smoothing": ("classification",),
    "balanced": ("classification", "multilabel"),
}
_OUT = "tuned"  # where a bundle is proposed to go
_TRIED = (
    *("freeze", "strategy", "seed", "batch_size", "optimizer", "weight_decay"),
    *("label_smoothing", "clip", "precision", "workers", "augment", "task"),
)


@click.command("finetune", cls=Verb)
@click.argument("builder", metavar="BUILDER|BUNDLE", required=False)
@click.option(
    "--data",
    metavar="DIR|FILE|NAME:DIR",
    help="A folder with one folder of images a class, an .npz or .csv file, cifar10:DIR, "
    "mnist:DIR, sklearn:digits or another source (docs/fine-tuning.md).",
)
@click.option(
    "--split",
    metavar="FILE",
    help="Which images of a folder are held out: lines of path,part, or paths of these alone.",
)
@click.option(
    "--fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="F",
    help="Part of each class that is held out; without, as the data come divided, else 0.2.",
)
@click.option(
    "--target",
    metavar="COLUMN,...",
    help="What is to be told from the rows of a .csv file; without, the last column.",
)
@click.option(
    "--task",
    type=click.Choice(("classification", "regression", "multilabel")),
    help="What these columns are; without, what they look like.",
)
@click.option("--out", metavar="DIR", help="The bundle to write.")
@click.option(
    "--run",
    metavar="RUN",
    help="The folder for checkpoints, history and plots; without, that of --out with .run.",
)
@click.option("--resume", metavar="RUN", help="Go on with the run in this folder, as it was begun.")
@click.option(
    "--weights",
    metavar="PATH|DEFAULT",
    help="A checkpoint of a builder's model, or torchvision's own; fresh values without.",
)
@click.option(
    "--freeze",
    cls=Spread,
    metavar="PATTERN...",
    help="What stays as it is; without, all but the last layer, or what --strategy says.",
)
@click.option(
    "--strategy",
    metavar="WORD",
    help="What trains: full, head, last:N (blocks), or gradual:N (a block more every N epochs).",
)
@click.option(
    "--rate-decay",
    type=float,
    metavar="F",
    help="How fast a block learns, relative to the next.",
)
@click.option("--epochs", type=int, default=5, show_default=True, metavar="N")
@click.option("--lr", type=float, default=1e-2, show_default=True, help="Learning rate.")
@click.option("--batch-size", type=int, default=32, show_default=True, metavar="N")
@click.option("--optimizer", default="adamw", show_default=True, help="One of torch's.")
@click.option("--weight-decay", type=float, default=0.01, show_default=True, metavar="F")
@click.option(
    "--schedule",
    default="cosine",
    show_default=True,
    help="cosine, constant, or one of torch's schedulers.",
)
@click.option("--label-smoothing", type=float, default=0.1, show_default=True, metavar="F")
@click.option(
    "--balanced",
    is_flag=True,
    help="Weigh rare classes more, by the inverse of how often they are.",
)
@click.option("--patience", type=int, metavar="N", help="End after N epochs without a better one.")
@click.option(
    "--keep",
    type=click.Choice(("best", "last", "all")),
    default="best",
    show_default=True,
    help="Whose epoch's weights; with all, every other epoch's too, as versions in RUN.",
)
@click.option("--accumulate", type=int, default=1, metavar="N", help="Batches that make one step.")
@click.option("--clip", type=float, metavar="F", help="The most that the gradients' norm may be.")
@click.option(
    "--precision", default="f32", show_default=True, help="f32, bf16 or f16, where that is safe."
)
@click.option("--workers", type=int, default=0, metavar="N", help="Processes that load images.")
@click.option(
    "--checkpoint-every",
    type=int,
    metavar="N",
    help="Write a checkpoint every N steps too, not at the end of an epoch alone.",
)
@click.option(
    "--resize",
    type=click.IntRange(min=1),
    metavar="PX",
    help="Edge of the square images; without, what the weights were made for.",
)
@click.option(
    "--augment",
    default="",
    metavar="WORD,...",
    help="How training images are varied: flip, crop:4, rotate:15, jitter:0.2, trivial, ...",
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
@classifier_option
@click.option("--overwrite", is_flag=True, help="Replace a bundle at --out, and a run at --run.")
@click.option(
    "--find-lr",
    metavar="PNG",
    help="Train nothing: try rising learning rates on a copy, and draw the loss.",
)
@trust_option
@withdrawn_option
@click.pass_context
def command(context: click.Context, /, **options: Any) -> Answer:
    """Train the last layers of what BUILDER builds, or of BUNDLE, on your images, and save it.

    BUILDER is one of torchvision's (mobilenet_v2) or package.module:callable. BUNDLE says its
    weights and how images are prepared. With --resume RUN everything is as the run was begun, but
    for what is given again.
    """
    output: Output = context.obj
    fitting.require_meant(context, options)
    _require_packages(onnx=options["onnx"])
    _let_one_speak(output)
    asked = begun.options(context, options) if options["resume"] else options
    _require_given(context, asked)
    if not asked["find_lr"]:
        _require_place(asked)
    plan = _plan(asked)
    _require_meant(context, plan)
    if asked["classifier"] is not None:
        return fitting.answer(output, plan, asked)
    output.show((Fields(plan.rows()),))
    if asked["find_lr"]:
        return _rates(context, plan, asked)
    return _train(output, plan, asked)


def _let_one_speak(output: Output) -> None:
    """Be silent where torchrun, or another launcher, started several processes for this command."""
    from persistlib import processes

    if not processes.is_first():
        output.leave_to_others()


def _require_given(context: click.Context, asked: dict[str, Any]) -> None:
    """Refuse a command line that lacks what nothing else says."""
    if not asked["builder"]:
        raise click.UsageError("Missing argument 'BUILDER|BUNDLE'.", context)
    needed = ("data",) if asked["find_lr"] else ("data", "out")
    for name in needed:
        if not asked[name]:
            raise click.UsageError(f"Missing option '--{name}'.", context)


def _require_meant(context: click.Context, plan: Plan) -> None:
    """Refuse options that have no meaning for what is to be learnt."""
    task, given = plan.arguments.get("task", "classification"), said(context)
    for name, tasks in _OF_TASKS.items():
        if name in given and task not in tasks:
            raise click.UsageError(f"{given[name].opts[0]} means nothing for {task}.", context)


def _require_place(asked: dict[str, Any]) -> None:
    """Refuse a bundle's place that is taken; of a run that is complete, say so.

    Raises:
        TargetError: the bundle cannot be put there.
    """
    try:
        rehearse(asked["out"], overwrite=asked["overwrite"])
    except TargetError as fault:
        run, epochs = asked["resume"], asked["epochs"]
        if not run or fault.code != Code.TARGET_EXISTS.identifier:
            raise
        from persistlib.training import run_folder

        if (done := run_folder.epochs_done(run)) < epochs:
            raise
        more = ("--epochs", str(2 * done), "--overwrite", *trusting(asked["trust"]))
        longer = words(*_VERB, "--resume", run, *more)
        reason = f"the run is complete, {done} of {epochs} epochs, and its bundle stands there"
        raise error(
            Code.TARGET_EXISTS, asked["out"], reason, f"to train longer: {longer}"
        ) from fault


def _train(output: Output, plan: Plan, asked: dict[str, Any]) -> Answer:
    from persistlib.training.loop import Folder

    out = asked["out"]
    run = asked["run"] or os.fspath(out).rstrip(os.sep) + begun.RUN
    folder = Folder(
        path=run,
        resume=bool(asked["resume"]),
        overwrite=asked["overwrite"],
        command=begun.note(asked),
    )
    try:
        with progress.shown(output) as tell:
            result = persistlib.finetune(
                plan.model,
                plan.train,
                plan.valid,
                **plan.arguments,
                cache=asked["cache"] or True,
                folder=folder,
                out=out,
                name=asked["name"] or os.path.basename(os.path.abspath(out)),
                license=plan.lineage.license if plan.lineage else None,
                onnx=asked["onnx"],
                overwrite=asked["overwrite"],
                progress=tell,
            )
    except KeyboardInterrupt:
        if os.path.isdir(run):
            output.note(f"go on with: {words(*_VERB, '--resume', run)}")
        raise
    return _answer(plan, result, asked, run)


def _rates(context: click.Context, plan: Plan, asked: dict[str, Any]) -> Answer:
    """Try learning rates and draw what came of it."""
    from persistlib.training import plots
    from persistlib.training.rates import find_rate

    arguments = {name: plan.arguments[name] for name in _TRIED if name in plan.arguments}
    found, path = find_rate(plan.model, plan.train, **arguments), asked["find_lr"]
    plots.rates(found.lrs, found.losses, found.suggestion, path)
    rate, out = f"{found.suggestion:.1e}", asked["out"] or _OUT
    return Answer(
        data={"suggestion": found.suggestion, "lrs": [*found.lrs], "losses": [*found.losses]},
        report=(
            verdict(f"the loss falls fastest at {rate}", Exit.OK, path),
            Fields((("tried", f"{found.lrs[0]:.0e} to {found.lrs[-1]:.0e}, nothing was trained"),)),
        ),
        brief=(f"{found.suggestion:.2e}",),
        hints=(again(context, find_lr=None, lr=rate, out=out),),
    )


def _require_packages(*, onnx: bool) -> None:
    for package in (*_NEEDED, *(["onnxscript"] if onnx else [])):
        if package_version(package) is None:
            raise missing_extra(package, "finetune", "fine-tuning")


def _plan(options: dict[str, Any]) -> Plan:
    from persistlib.training import plan, strategies
    from persistlib.training.settings import BALANCED, Settings

    strategy = options["strategy"]
    if options["rate_decay"] is not None:
        wish = strategies.wish_of(strategy or "full")
        strategy = strategies.wish_of({**wish, "rate_decay": options["rate_decay"]})
    weights = BALANCED if options["balanced"] else None
    return plan.plan(
        _beginning(options),
        data=options["data"],
        weights=options["weights"],
        freeze=options["freeze"] or None,
        strategy=strategy,
        resize=options["resize"],
        fraction=options["fraction"],
        **{name: options[name] for name in ("split", "target", "task")},
        settings=Settings(class_weights=weights, **{name: options[name] for name in begun.NUMBERS}),
        trust=options["trust"],
    )


def _beginning(options: dict[str, Any]) -> str | Saved:
    """Return the builder that was named, or the bundle, loaded.

    Raises:
        UsageError: weights are given for a bundle.
        PersistlibError: the bundle cannot be loaded.
    """
    from persistlib.training.beginnings import Saved, is_bundle

    name: str = options["builder"]
    if not is_bundle(name):
        return name
    if options["weights"] is not None:
        reason = f"{name} is a bundle, which has its own"
        raise error(Code.USAGE, "--weights", reason, "name a builder, or leave the weights out")
    how = {"trust": options["trust"], "allow_withdrawn": options["allow_withdrawn"]}
    return Saved(persistlib.load(name, **how), persistlib.inspect(name).manifest)


def _answer(plan: Plan, result: FinetuneResult, asked: dict[str, Any], run: str) -> Answer:
    from persistlib.training import run_folder

    left = run_folder.left(run)
    return tuned.answer(
        plan,
        result,
        asked,
        data={
            "run": run,
            "resumed": result.resumed,
            "history": [{**row} for row in result.history],
        },
        run=(("run", f"{run}: {', '.join(left)}"),),
        log=run if "versions" in left else None,
    )
