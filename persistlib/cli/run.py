"""`persistlib run`: class names and probabilities for images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import persistlib
from persistlib.bundle import reading
from persistlib.cli.answer import Answer, Span, Style, Table
from persistlib.cli.command import Verb, trust_option
from persistlib.cli.text import command as words
from persistlib.cli.text import percent
from persistlib.errors import missing_extra
from persistlib.installed import package_version

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from persistlib.bundle import Bundle
    from persistlib.cli.answer import JSON
    from persistlib.manifest.schema import Interface
    from persistlib.runtime.session import Prediction


def _names(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of `--providers CUDA,CPU` and of its repetitions."""
    return tuple(name for value in values for name in value.split(",") if name)


@click.command("run", cls=Verb)
@click.argument("bundle")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option(
    "--runtime",
    type=click.Choice(["onnxruntime", "torch"]),
    help="What computes; without it onnxruntime where the bundle has a graph, else torch.",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="K",
    help="Classes to name for each image.",
)
@click.option(
    "--providers",
    multiple=True,
    callback=_names,
    metavar="NAME,...",
    help="ONNX Runtime's providers, the preferred first: CUDA,CPU.",
)
@click.option("--require", metavar="NAME", help="Refuse to run unless this provider computes.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Threads to compute with.")
@trust_option
def command(
    bundle: str,
    images: tuple[str, ...],
    *,
    runtime: str | None,
    top: int,
    **options: Any,
) -> Answer:
    """Name what is on each IMAGE, prepared as the model's training images were."""
    runtime = runtime or _runtime_for(bundle)
    ran: dict[str, JSON] = {}
    if runtime == "torch":
        predictions = _with_torch(bundle, images, top, options["trust"])
    else:
        predictions, ran = _with_onnxruntime(bundle, images, top, options)
    return Answer(
        data={
            "path": bundle,
            "runtime": runtime,
            **ran,
            "predictions": [
                _record(image, prediction)
                for image, prediction in zip(images, predictions, strict=True)
            ],
        },
        report=(_table(images, predictions),),
        brief=tuple(prediction.label for prediction in predictions),
        hints=_hints(bundle, images, top),
    )


def _runtime_for(bundle: str) -> str:
    return "onnxruntime" if persistlib.inspect(bundle).manifest.graphs else "torch"


def _with_onnxruntime(
    bundle: str, images: Sequence[str], top: int, options: Mapping[str, Any]
) -> tuple[list[Prediction], dict[str, JSON]]:
    """Return the predictions, and what ran where."""
    from persistlib.runtime.session import Session

    session = persistlib.load(
        bundle,
        runtime="onnxruntime",
        providers=options["providers"] or None,
        require=options["require"],
        threads=options["threads"],
    )
    assert isinstance(session, Session)
    predictions = session.predict(images, top=top)
    placement: JSON = None if session.placement is None else {**session.placement}
    return predictions, {"providers": [*session.providers], "placement": placement}


def _with_torch(
    bundle: str, images: Sequence[str], top: int, trust: tuple[str, ...]
) -> list[Prediction]:
    """Return the predictions of the module, with the labels of the very same manifest."""
    if package_version("torch") is None:
        raise missing_extra("torch", "torch", "running a bundle without a graph")
    from persistlib import loading
    from persistlib.runtime import torch_predictions

    def work(opened: Bundle) -> tuple[nn.Module, Interface]:
        loading.require_compatible(opened.manifest, "torch")
        how = loading.Reading(mapped=True, verify=True)
        model = loading.load_module(opened, how, strict=True, trust=trust)
        return model.eval(), opened.manifest.interface

    model, interface = reading(bundle, work)
    return torch_predictions.predict(model, images, interface, top=top)


def _hints(bundle: str, images: Sequence[str], top: int) -> tuple[str, ...]:
    if top == 1:
        return (words("persistlib", "run", bundle, images[0], "--top", "5"),)
    return (words("persistlib", "run", bundle, images[0], "--json"),)


def _record(image: str, prediction: Prediction) -> JSON:
    return {
        "image": image,
        "label": prediction.label,
        "index": prediction.index,
        "probability": prediction.probability,
        "top": [{"label": label, "probability": share} for label, share in prediction.top],
    }


def _table(images: Sequence[str], predictions: Sequence[Prediction]) -> Table:
    rows = tuple(
        row
        for image, prediction in zip(images, predictions, strict=True)
        for row in _rows(image, prediction)
    )
    return Table(("image", "class", "probability"), rows, frozenset({2}))


def _rows(image: str, prediction: Prediction) -> Iterator[tuple[str | Span, ...]]:
    for rank, (label, share) in enumerate(prediction.top):
        style = Style.STRONG if rank == 0 else Style.FAINT
        yield image if rank == 0 else "", Span(label, style), Span(percent(share), style)
