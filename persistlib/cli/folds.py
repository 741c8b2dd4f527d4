"""What `evaluate --folds` and `--leave-one-out` do: the last layer fitted anew, and judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import persistlib
from persistlib.cli import progress
from persistlib.cli.answer import Answer, Exit, Fields, Line, Span, Table, verdict
from persistlib.cli.command import said
from persistlib.cli.text import bounded, number, percent
from persistlib.cli.text import command as words
from persistlib.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from persistlib.cli.answer import Block
    from persistlib.cli.output import Output
    from persistlib.evaluation.cross_validation import CrossValidation, Figure
    from persistlib.evaluation.metrics import Metrics

_MEANT = frozenset(
    {
        *("model", "data", "batch_size", "save", "show_all", "trust", "allow_withdrawn"),
        *("folds", "leave_one_out", "classifier", "strength", "seed", "cache"),
    }
)
_OWN = frozenset({"classifier", "strength", "seed", "cache"})
_SHARES = {"accuracy", "f1"}
_SHOWN = {"accuracy": "accuracy", "f1": "macro F1", "mse": "MSE", "mae": "MAE"}


def is_asked(context: click.Context, options: dict[str, Any]) -> bool:
    """Return whether cross-validation is asked for.

    Raises:
        UsageError: options are given that mean nothing with it, or without it.
    """
    has_folds = options["folds"] is not None
    if has_folds and options["leave_one_out"]:
        raise click.UsageError("Give --folds or --leave-one-out, not both.", context)
    asked = has_folds or options["leave_one_out"]
    for name, parameter in said(context).items():
        if (asked and name not in _MEANT) or (not asked and name in _OWN):
            side = "with" if asked else "without"
            text = f"{parameter.opts[0]} means nothing {side} --folds or --leave-one-out."
            raise click.UsageError(text, context)
    return asked


def answer(
    output: Output,
    model: str,
    data: str,
    options: dict[str, Any],
    mistakes: Callable[[Metrics], Iterable[Block]],
) -> Answer:
    """Cross-validate, and tell what came of it.

    Args:
        output: where progress is shown.
        model: the bundle.
        data: what it is judged on.
        options: of the command line.
        mistakes: lays out what was taken for what.
    """
    with progress.counted(output) as tell:
        result = persistlib.cross_validate(
            model,
            data,
            folds=options["folds"] or 0,
            leave_one_out=options["leave_one_out"],
            classifier=options["classifier"],
            C=options["strength"],
            seed=options["seed"],
            save=options["save"],
            batch_size=options["batch_size"],
            cache=options["cache"],
            trust=options["trust"],
            allow_withdrawn=options["allow_withdrawn"],
            progress=tell,
        )
    return Answer(
        data={"path": model, **result.to_dict(), "saved": options["save"]},
        report=tuple(_report(result, mistakes)),
        brief=tuple(f"{figure.name} {figure.mean:.4f}" for figure in result.figures),
        hints=(words("persistlib", "inspect", model),) if options["save"] else (),
    )


def _report(
    result: CrossValidation, mistakes: Callable[[Metrics], Iterable[Block]]
) -> Iterator[Block]:
    about: Any = result.about
    first = result.figures[0]
    over = f"{counted(len(result.folds), 'fold')}" if result.folds else "each sample left out"
    if first.name in _SHARES:
        text = f"{percent(first.mean)} right on samples that no fit had seen: {over}"
    else:
        text = f"{_SHOWN[first.name]} {first.mean:.4g} on samples that no fit had seen: {over}"
    yield verdict(text, Exit.OK, about["data"]["name"])
    yield Table(
        ("", "mean (95 % interval)"),
        tuple((_SHOWN[figure.name], _figure(figure)) for figure in result.figures),
        frozenset({1}),
    )
    if result.folds:
        yield Line((Span(""),))
        yield _folds(result)
    yield Line((Span(""),))
    yield Fields(tuple(_facts(result)))
    if result.metrics is not None:
        yield from mistakes(result.metrics)


def _figure(figure: Figure) -> str:
    if figure.name in _SHARES:
        return bounded(figure.mean, figure.interval)
    low, high = figure.interval
    return f"{figure.mean:.4g} ({low:.4g} to {high:.4g})"


def _folds(result: CrossValidation) -> Table:
    names = [figure.name for figure in result.figures]
    rows = tuple(
        (
            str(count),
            number(fold.fitted),
            number(fold.tested),
            *(
                percent(fold.figures[name]) if name in _SHARES else f"{fold.figures[name]:.4g}"
                for name in names
            ),
        )
        for count, fold in enumerate(result.folds, 1)
    )
    head = ("fold", "fitted on", "judged on", *(_SHOWN[name] for name in names))
    return Table(head, rows, frozenset(range(1, len(head))))


def _facts(result: CrossValidation) -> Iterator[tuple[str, str]]:
    about: Any = result.about
    steps = ", then ".join(step["class"].partition(":")[2] for step in about["steps"])
    numbers = f"{number(about['features'])} numbers" if about["features"] > 1 else "a number"
    yield "fitted", f"{steps}; on {numbers} a sample that go into {about['layer']}"
    fits = counted(result.fits, "fit")
    copies = "copies of a sample are in one fold"
    yield "divided", f"{fits}, seed {result.seed}; {copies}" if result.folds else f"{fits}"
    for method in dict.fromkeys(figure.method for figure in result.figures):
        shared = "; folds share what they are fitted on, which it allows for"
        yield "interval", f"{method}{shared if result.folds else ''}"
