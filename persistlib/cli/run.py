"""`persistlib run`: what a model tells of images or rows of a table, or outputs for arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import click

import persistlib
from persistlib.bundle import reading
from persistlib.cli import given, predicted
from persistlib.cli.answer import Answer, Line, Span
from persistlib.cli.command import (
    Verb,
    graph_option,
    providers_option,
    require_option,
    trust_option,
    withdrawn_option,
)
from persistlib.cli.text import command as words
from persistlib.errors import Code, error, missing_extra
from persistlib.installed import package_version
from persistlib.sources import is_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from persistlib.bundle import Bundle
    from persistlib.cli.answer import JSON, Block
    from persistlib.manifest.schema import Interface, Manifest
    from persistlib.runtime.session import Session


# Options that mean something for ONNX Runtime; a wish that torch would pass over is an error.
_GRAPH_ALONE = (
    *("out", "report", "providers", "require", "min_share", "graph", "threads", "timeout"),
    "batch",
)


class Ran(NamedTuple):
    """What a model gave.

    Attributes:
        predictions: of each image or row; empty for arrays.
        outputs: by name.
        samples: what was told of; None for arrays.
        notes: what should be known of it.
        data: what ran where, as JSON.
        blocks: the same for people.
    """

    predictions: Sequence[Any]
    outputs: Mapping[str, NDArray[Any]]
    samples: given.Given | None = None
    notes: tuple[str, ...] = ()
    data: Mapping[str, JSON] = {}
    blocks: tuple[Block, ...] = ()


@click.command("run", cls=Verb)
@click.argument("model")
@click.argument("images", metavar="[IMAGE|TABLE]...", nargs=-1)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="[NAME=]FILE",
    help="An input as the model takes it from a .npy file, or several from a .npz file, "
    "instead of images.",
)
@click.option("--out", metavar="FILE", help="A .npz file to write all outputs to.")
@click.option("--overwrite", is_flag=True, help="Replace the file of --out.")
@click.option(
    "--runtime",
    type=click.Choice(["onnxruntime", "torch"]),
    help="What computes; without it onnxruntime where the model has a graph, else torch.",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="K",
    help="Classes or labels to name for each image.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Samples of --input to compute at once; without it all, or what the graph is fixed to.",
)
@providers_option
@require_option
@click.option(
    "--min-share",
    type=click.FloatRange(0, 1),
    metavar="PART",
    help="The part of all operators that --require must be given, 0 to 1.",
)
@graph_option
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Threads to compute with.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End a run that takes longer; without it 600, or 60 where the graph has loops.",
)
@click.option("--report", is_flag=True, help="Say what ran where, and for how long.")
@trust_option
@withdrawn_option
def command(
    model: str,
    images: tuple[str, ...],
    *,
    inputs: tuple[str, ...],
    runtime: str | None,
    **options: Any,
) -> Answer:
    """Run MODEL, a bundle or an ONNX file.

    Without --input it names what is on each IMAGE, prepared as the model's training images were,
    or tells of each row of a TABLE (.csv, .tsv, .npy) what the model was trained to tell. With it,
    it computes the outputs of arrays, which are taken as they are.
    """
    if bool(images) == bool(inputs):
        reason = "both images and inputs" if images else "neither images nor inputs"
        remedy = f"{words('persistlib', 'run', model)} IMAGE, or --input FILE.npy with arrays"
        raise error(Code.USAGE, "run", reason, remedy)
    runtime = runtime or _runtime_for(model)
    work = _with_torch if runtime == "torch" else _with_onnxruntime
    ran = work(model, images, inputs, options)
    written = _write(ran, options)
    return Answer(
        data={"path": model, "runtime": runtime, **ran.data, **_told(ran), **written.data},
        report=(*_blocks(ran), *written.blocks, *ran.blocks),
        brief=_brief(ran, options["out"]),
        hints=_hints(model, images, inputs, options),
    )


def _runtime_for(model: str) -> str:
    if not is_folder(model):
        return "onnxruntime"
    return "onnxruntime" if persistlib.inspect(model).manifest.graphs else "torch"


def _with_onnxruntime(
    model: str, images: Sequence[str], inputs: Sequence[str], options: Mapping[str, Any]
) -> Ran:
    """Return what ONNX Runtime gives, and what ran where."""
    from persistlib.cli.placing import measured
    from persistlib.runtime.array_files import read_arrays
    from persistlib.runtime.batching import joined

    arrays = read_arrays(inputs)
    with measured(options["report"]) as report:
        session = _session(model, options, None if report is None else report.prefix)
        if report is not None:
            report.opened()
        predictions: Sequence[Any] = ()
        samples = given.read(images, session.interface) if images else None
        if samples is not None:
            outputs = joined([*session.outputs_of(samples.items)])
            predictions = session.told(outputs, top=options["top"])
        else:
            outputs = _outputs(session, arrays, options["batch"])
        placed: JSON = None if session.placement is None else {**session.placement}
        data: dict[str, JSON] = {"providers": [*session.providers], "placement": placed}
        blocks: tuple[Block, ...] = ()
        if report is not None:
            report.ran(session)
            asked = options["providers"] or [(n, {}) for n in (options["require"], "cpu") if n]
            data["report"] = report.data(session, asked)
            blocks = (Line((Span(""),)), *report.blocks(session, asked))
        notes = samples.notes if samples is not None else _unprepared(session.interface)
        return Ran(predictions, outputs, samples, notes, data, blocks)


def _unprepared(interface: Interface | None) -> tuple[str, ...]:
    """Return what should be known of arrays that a model for rows of a table gets as they are."""
    if (record := given.table_of(interface)) is None:
        return ()
    what = f"the standardization that the manifest records for {len(record.columns)} columns"
    return (f"inputs were taken as they are, without {what}: rows without --input get it",)


def _session(model: str, options: Mapping[str, Any], profile: str | None) -> Session:
    from persistlib import loading

    how = loading.Reading(mapped=True, verify=True)
    wishes: loading.SessionWishes = {
        "providers": options["providers"],
        "require": options["require"],
        "min_share": options["min_share"],
        "threads": options["threads"],
        "timeout": options["timeout"],
        "profile": profile,
    }
    if not is_folder(model):
        return loading.load_graph_file(
            model,
            how,
            graph=options["graph"],
            allow_withdrawn=options["allow_withdrawn"],
            **wishes,
        )

    def work(bundle: Bundle) -> Session:
        loading.require_compatible(
            bundle, "onnxruntime", allow_withdrawn=options["allow_withdrawn"]
        )
        return loading.load_session(bundle, how, graph=options["graph"], **wishes)

    return reading(model, work)


def _outputs(session: Session, arrays: Any, batch: int | None) -> dict[str, NDArray[Any]]:
    """Return the outputs of arrays, some samples at a time where that is wanted or must be."""
    first = next(iter(arrays.values() if isinstance(arrays, dict) else arrays))
    extent = session.inputs[0].shape[0] if session.inputs and session.inputs[0].shape else None
    is_other = isinstance(extent, int) and first.ndim and first.shape[0] != extent
    if batch is not None or is_other:
        return session.run_batched(arrays, batch_size=batch)
    return session.run(arrays)


def _with_torch(
    model: str, images: Sequence[str], inputs: Sequence[str], options: Mapping[str, Any]
) -> Ran:
    """Return what the module gives, with the labels of the very same manifest."""
    if package_version("torch") is None:
        raise missing_extra("torch", "torch", "running a bundle without a graph")
    from persistlib import loading
    from persistlib.runtime import torch_predictions

    asked = [name for name in _GRAPH_ALONE if options[name]]
    if inputs or asked:
        flag = "--" + (asked[0] if asked else "input").replace("_", "-")
        remedy = words("persistlib", "convert", model, "model.onnx")
        raise error(Code.USAGE, flag, "needs a graph and ONNX Runtime", f"{remedy}, and run that")

    def work(opened: Bundle) -> tuple[nn.Module, Manifest]:
        loading.require_compatible(opened, "torch", allow_withdrawn=options["allow_withdrawn"])
        how = loading.Reading(mapped=True, verify=True)
        module = loading.load_module(opened, how, strict=True, trust=options["trust"])
        return module.eval(), opened.manifest

    module, manifest = reading(model, work)
    interface, training = manifest.interface, manifest.training
    samples = given.read(images, interface)
    task = None if training is None else training.strategy.get("task")
    predictions = torch_predictions.predict(
        module, samples.items, interface, task=task, top=options["top"]
    )
    return Ran(predictions, {}, samples, samples.notes)


class Written(NamedTuple):
    """What was written beside the answer."""

    data: Mapping[str, JSON] = {}
    blocks: tuple[Block, ...] = ()


def _write(ran: Ran, options: Mapping[str, Any]) -> Written:
    if options["out"] is None:
        return Written()
    from persistlib.runtime.array_files import write_arrays

    out = options["out"]
    widened = write_arrays(out, ran.outputs, overwrite=options["overwrite"])
    said = f"wrote {', '.join(ran.outputs)} to {out}"
    if widened:
        said += f"; {', '.join(widened)} as float32, for want of a name in numpy's format"
    return Written({"out": out, "widened": [*widened]}, (Line((Span(said),)),))


def _told(ran: Ran) -> dict[str, JSON]:
    """Return predictions or outputs as JSON."""
    notes: JSON = [*ran.notes]
    if (samples := ran.samples) is not None:
        pairs = zip(samples.names, ran.predictions, strict=True)
        rows: JSON = [{samples.what: name, **predicted.data(answer)} for name, answer in pairs]
        return {"predictions": rows, "notes": notes}
    from persistlib.cli.outputs import outputs_data

    return {"outputs": outputs_data(ran.outputs), "notes": notes}


def _blocks(ran: Ran) -> tuple[Block, ...]:
    notes = tuple(Line((Span(note),)) for note in ran.notes)
    if (samples := ran.samples) is not None:
        return (predicted.table(samples.what, samples.names, ran.predictions), *notes)
    from persistlib.cli.outputs import outputs_table

    return (outputs_table(ran.outputs), *notes)


def _brief(ran: Ran, out: str | None) -> tuple[str, ...]:
    if ran.samples is not None:
        return tuple(map(predicted.brief, ran.predictions))
    return (out,) if out else tuple(ran.outputs)


def _hints(
    model: str, images: Sequence[str], inputs: Sequence[str], options: Mapping[str, Any]
) -> tuple[str, ...]:
    if not images:
        given = [word for text in inputs for word in ("--input", text)]
        more = ("--report",) if options["out"] else ("--out", "outputs.npz")
        return (words("persistlib", "run", model, *given, *more),)
    if options["top"] == 1:
        return (words("persistlib", "run", model, images[0], "--top", "5"),)
    return (words("persistlib", "run", model, images[0], "--json"),)
