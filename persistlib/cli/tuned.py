"""The bundle that a fine-tuning ended in, told: what was saved, how it did, what to try next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import persistlib
from persistlib.cli.answer import Answer, Exit, Fields, verdict
from persistlib.cli.text import command as words
from persistlib.cli.text import figure, size, trusting
from persistlib.training.data_sources import is_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from persistlib.cli.answer import JSON
    from persistlib.training.loop import FinetuneResult
    from persistlib.training.plan import Plan

Rows = tuple[tuple[str, str], ...]


def answer(
    plan: Plan,
    result: FinetuneResult,
    asked: dict[str, Any],
    *,
    data: Mapping[str, JSON],
    layer: Rows = (),
    run: Rows = (),
    folds: str | None = None,
    log: str | None = None,
) -> Answer:
    """Return the answer of `finetune`, however it was done.

    Args:
        plan: what was done.
        result: what came of it.
        asked: the options of the command line.
        data: what the envelope has besides.
        layer: what there is to say of the last layer.
        run: what there is to say of the run.
        folds: how many folds to propose; None for none.
        log: the folder of a run with versions to look at.
    """
    summary = persistlib.inspect(asked["out"])
    path, manifest = summary.path, summary.manifest
    metrics = ", ".join(f"{name} {figure(value)}" for name, value in result.metrics.items())
    graphs = [entry.path for graph in manifest.graphs for entry in graph.files]
    is_short = asked["onnx"] and not graphs
    shown = ["none: the warning says why"] if is_short else graphs
    outcome = Exit.DEGRADED if is_short else Exit.OK
    graph: Rows = (("graph", ", ".join(shown)),) if shown else ()
    facts = (("held out", metrics), *layer, ("bundle", manifest.bundle_id), *run, *graph)
    told: dict[str, JSON] = {"path": path, "bundle_id": manifest.bundle_id, "plan": plan.to_dict()}
    return Answer(
        data={**told, "metrics": {**result.metrics}, **data},
        report=(verdict(f"saved {path}", outcome, size(summary.size)), Fields(facts)),
        brief=(path,),
        hints=_hints(path, plan, asked, folds, log),
        exit=outcome,
    )


def _hints(
    path: str, plan: Plan, asked: dict[str, Any], folds: str | None, log: str | None
) -> tuple[str, ...]:
    trusted = trusting(asked["trust"])
    divided = ["--split", asked["split"]] if asked["split"] else []
    judge = ("persistlib", "evaluate", path, "--data", asked["data"])
    return (
        words("persistlib", "inspect", path),
        words("persistlib", "verify", path),
        words(*judge, *divided, *trusted, "--held-out"),
        *([words(*judge, *trusted, "--folds", folds)] if folds else []),
        *_to_run(path, plan, asked["data"], trusted),
        *([words("persistlib", "log", log)] if log else []),
    )


def _to_run(path: str, plan: Plan, data: str, trusted: Sequence[str]) -> tuple[str, ...]:
    """Return the commands that run a new bundle: on an image, or on the table it was made from."""
    if plan.is_of_images:
        return (f"{words('persistlib', 'run', path, *trusted)} IMAGE",)
    return (words("persistlib", "run", path, *trusted, data),) if is_table(data) else ()
