"""`persistlib materialize`: a delta made whole, so that it stands by itself."""

from __future__ import annotations

import click

import persistlib
from persistlib.cli.answer import Answer, Exit, Fields, verdict
from persistlib.cli.command import Verb
from persistlib.cli.text import command as words
from persistlib.cli.text import number, size


@click.command("materialize", cls=Verb)
@click.argument("bundle")
@click.argument("destination", required=False)
@click.option("--base", help="The bundle that BUNDLE stands on, where it is not beside it.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle at DESTINATION.")
def command(bundle: str, *, destination: str | None, base: str | None, overwrite: bool) -> Answer:
    """Write BUNDLE with every tensor in it to DESTINATION, or in its own place.

    A bundle that was saved over a base stores only what differs from it. The model stays what it
    is, and so does its bundle_id.
    """
    manifest = persistlib.materialize(bundle, destination, base=base, overwrite=overwrite)
    path = destination or bundle
    summary = persistlib.inspect(path)
    tensors = len(manifest.weights.tensors)
    return Answer(
        data={
            "path": path,
            "bundle_id": manifest.bundle_id,
            "weights": manifest.weights.identity,
            "size": summary.size,
            "tensors": tensors,
        },
        report=(
            verdict(f"{path} is whole", Exit.OK, size(summary.size)),
            Fields((("tensors", number(tensors)), ("bundle", manifest.bundle_id))),
        ),
        brief=(path,),
        hints=(words("persistlib", "verify", path),),
    )
