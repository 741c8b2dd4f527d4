"""What `finetune --classifier` does: a classifier fitted on features becomes the last layer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

import persistlib
from persistlib.cli import tuned
from persistlib.cli.answer import Answer, Fields
from persistlib.cli.command import said
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from persistlib.cli.output import Output
    from persistlib.training.loop import FinetuneResult
    from persistlib.training.plan import Plan

# What is asked for besides means nothing where nothing is trained in epochs.
_MEANT = frozenset(
    {
        *("builder", "data", "split", "fraction", "out", "weights", "batch_size", "workers"),
        *("resize", "seed", "name", "onnx", "overwrite", "trust", "allow_withdrawn"),
        *("classifier", "strength", "cache", "target", "task"),
    }
)
# Rows of a plan that are of epochs, or of what trains in them.
_OF_EPOCHS = frozenset({"strategy", "trained", "frozen", "run", "varied"})


def require_meant(context: click.Context, asked: dict[str, Any]) -> None:
    """Refuse options that mean nothing with a classifier, or without one."""
    given = said(context)
    has_one = asked["classifier"] is not None
    bad = [name for name in given if has_one and name not in _MEANT]
    bad += ["strength"] if not has_one and "strength" in given else []
    if bad:
        option = given[bad[0]].opts[0]
        side = "with" if has_one else "without"
        raise click.UsageError(f"{option} means nothing {side} --classifier.", context)


def answer(output: Output, plan: Plan, asked: dict[str, Any]) -> Answer:
    """Fit, save, and tell what came of it."""
    from persistlib.training import classifiers

    if plan.head is None:
        reason = f"{plan.data.name} has no classes"
        raise error(Code.USAGE, "--classifier", reason, "train on it without")
    estimator = classifiers.estimator_of(
        asked["classifier"], C=asked["strength"], seed=asked["seed"]
    )
    output.show((Fields((*_rows(plan), ("classifier", _named(estimator, asked["strength"])))),))
    arguments, out = plan.arguments, asked["out"]
    result = persistlib.fit_classifier(
        plan.model,
        plan.train,
        plan.valid,
        classifier=asked["classifier"],
        C=asked["strength"],
        interface=arguments["interface"],
        data=arguments["data"],
        batch_size=asked["batch_size"],
        workers=asked["workers"],
        seed=asked["seed"],
        cache=asked["cache"],
        out=out,
        name=asked["name"] or os.path.basename(os.path.abspath(out)),
        license=plan.lineage.license if plan.lineage else None,
        onnx=asked["onnx"],
        overwrite=asked["overwrite"],
    )
    return _answer(plan, result, asked)


def _rows(plan: Plan) -> tuple[tuple[str, str], ...]:
    return tuple(row for row in plan.rows() if row[0] not in _OF_EPOCHS)


def _named(estimator: Any, strength: float) -> str:
    from persistlib.training import affine

    steps = ", then ".join(type(step).__name__ for step in affine.steps_of(estimator))
    return f"{steps} (C {strength:g}), fitted once on what goes into the last layer"


def _answer(plan: Plan, result: FinetuneResult, asked: dict[str, Any]) -> Answer:
    made = result.training.strategy
    fused = f"{made['layer']}, {made['dtype']}: every answer is scikit-learn's"
    proved = f"on {made['proved_on']:,} samples; within {made['difference']:.0e}"
    return tuned.answer(
        plan,
        result,
        asked,
        data={"classifier": dict(made)},
        layer=(("last layer", f"{fused} {proved}"),),
        folds="5" if plan.is_of_images else None,
    )
