"""`persistlib evaluate`: how good a model is on labelled data, in several runtimes side by side."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

import persistlib
from persistlib.cli import against, folds, progress, task_figures
from persistlib.cli.answer import Answer, Exit, Fields, Line, Span, Style, Table, verdict
from persistlib.cli.command import (
    Verb,
    batch_size_option,
    calls_option,
    classifier_option,
    graph_option,
    providers_option,
    require_option,
    trust_option,
    withdrawn_option,
)
from persistlib.cli.task_figures import WHOLE
from persistlib.cli.text import bounded, number, percent, trusting
from persistlib.cli.text import command as words
from persistlib.evaluation.intervals import DRAWS
from persistlib.training.data_sources import is_table
from persistlib.training.tasks import CLASSIFICATION
from persistlib.wording import counted, first_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.cli.answer import Block
    from persistlib.cli.output import Output
    from persistlib.evaluation.judging import Evaluation, RuntimeResult
    from persistlib.evaluation.metrics import Metrics
    from persistlib.evaluation.samples import Samples
    from persistlib.training.tasks import TaskLike

_BRACKETS = (
    "in brackets",
    f"the 95 % interval; of what is no share by {number(DRAWS)} draws of the samples",
)
_OPTIONS = (
    *("held_out", "part", "split", "batch_size", "calls", "threads", "require", "graph", "trust"),
    "allow_withdrawn",
)


@click.command("evaluate", cls=Verb)
@click.argument("model", metavar="BUNDLE|ONNX")
@click.option(
    "--data",
    required=True,
    metavar="DIR|FILE|NAME:DIR",
    help="A folder with one folder of images a class, an .npz file, cifar10:DIR, mnist:DIR, "
    "sklearn:digits or another source (docs/fine-tuning.md).",
)
@click.option(
    "--runtime",
    metavar="NAME,...",
    help="torch, onnxruntime, or both; without it, wherever the model runs here.",
)
@click.option(
    "--task",
    metavar="TASK|HEAD=TASK,...",
    help="classification, regression, multilabel or segmentation, where the model does not say it.",
)
@click.option(
    "--against",
    metavar="BUNDLE|ONNX",
    help="Another model of the same classes: what differs on the same data, and whether by chance.",
)
@click.option("--held-out", is_flag=True, help="Only what the training of the model held out.")
@click.option(
    "--part",
    type=click.Choice(("train", "valid", "test")),
    help="Only this part of data that come divided.",
)
@click.option("--split", metavar="FILE", help="What divides a folder, as finetune takes it.")
@batch_size_option
@calls_option
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads of each runtime; without, one a core.",
)
@providers_option
@require_option
@graph_option
@click.option(
    "--folds",
    type=click.IntRange(min=2),
    metavar="N",
    help="Fit the last layer anew on all folds but one, N times, and judge it on that one.",
)
@click.option("--leave-one-out", is_flag=True, help="The same, each sample a fold of its own.")
@classifier_option
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Of the folds.")
@click.option("--save", is_flag=True, help="Add the result to the bundle's manifest.")
@click.option("--all", "show_all", is_flag=True, help="Show every class and mistake.")
@trust_option
@withdrawn_option
@click.pass_context
def command(
    context: click.Context, /, model: str, *, data: str, show_all: bool, **options: Any
) -> Answer:
    """Measure how often the model is right on labelled data, and how fast.

    Images are prepared as the model's manifest says, alike for every runtime. An .npz file holds
    `labels`, and `images` or, ready for the model, `inputs`; for other tasks than classification
    `inputs` and `targets`, of several inputs or heads `inputs.NAME` and `targets.HEAD`.
    """
    output: Output = context.obj
    if folds.is_asked(context, options):
        laid_out = partial(_taken_for, show_all=show_all)
        return folds.answer(output, model, data, options, laid_out)
    with progress.counted(output) as tell:
        evaluation = persistlib.evaluate(
            model,
            data,
            runtime=options["runtime"],
            task=_task(options["task"]),
            providers=options["providers"],
            against=options["against"],
            save=options["save"],
            progress=tell,
            **{name: options[name] for name in _OPTIONS},
        )
    return Answer(
        data={"path": model, **evaluation.to_dict(), "saved": options["save"]},
        report=tuple(_report(evaluation, show_all=show_all)),
        brief=tuple(_brief(result) for result in evaluation.results),
        hints=_hints(model, data, options),
    )


def _brief(result: RuntimeResult) -> str:
    """Return a line that a program can read: the accuracy, or what the tasks have."""
    only = result.heads[0]
    if not only.outcomes.head and only.outcomes.task == CLASSIFICATION:
        return f"{result.runtime} {result.metrics.accuracy:.4f}"
    figures = ", ".join(task_figures.brief(head.metrics) for head in result.heads)
    return f"{result.runtime} {figures}"


def _task(text: str | None) -> TaskLike:
    """Return a task as `persistlib.evaluate` takes it: a word, or HEAD=TASK for each of several."""
    if text is None or "=" not in text:
        return text
    return {name.strip(): task.strip() for name, _, task in _parted(text)}


def _parted(text: str) -> Iterator[tuple[str, str, str]]:
    return (part.partition("=") for part in text.split(","))


def _hints(model: str, data: str, options: dict[str, Any]) -> tuple[str, ...]:
    if options["save"]:
        return (words("persistlib", "inspect", model),)
    chosen = ["--held-out"] if options["held_out"] else []
    for name in ("task", "part", "split", "against", "runtime", "graph"):
        chosen += [f"--{name}", options[name]] if options[name] else []
    trusted = trusting(options["trust"])
    chosen += trusted
    to_run = (words("persistlib", "run", model, data, *trusted),) if is_table(data) else ()
    return (words("persistlib", "evaluate", model, "--data", data, *chosen, "--json"), *to_run)


def _report(evaluation: Evaluation, *, show_all: bool) -> Iterator[Block]:
    if not evaluation.is_classification:
        yield from _tasks(evaluation, show_all=show_all)
        return
    first, samples = evaluation.results[0], evaluation.samples
    images = counted(len(samples), _noun(evaluation))
    right = round(first.metrics.accuracy * len(samples))
    text = f"{percent(first.metrics.accuracy)} right: {number(right)} of {images}"
    yield verdict(text, Exit.OK, _which(samples))
    yield _side_by_side(evaluation)
    yield Line((Span(""),))
    yield Fields(tuple(_facts(evaluation)))
    if evaluation.against is not None:
        yield from against.report(evaluation.against, show_all=show_all)
    yield from _classes(first, f"{_noun(evaluation)}s", show_all=show_all)
    yield from _taken_for(first.metrics, show_all=show_all)


def _which(samples: Samples) -> str:
    """Return what the samples are called, and which of them were judged."""
    which = "held out" if samples.held_out else f"its part {samples.part}" if samples.part else ""
    return ", ".join(word for word in (samples.name, which) if word)


def _noun(evaluation: Evaluation) -> str:
    """Return what a sample is called."""
    from persistlib.table_rows import TablePreprocessing

    is_row = isinstance(evaluation.samples.preprocessing, TablePreprocessing)
    return "row" if is_row else "image"


def _taken_for(metrics: Metrics, *, show_all: bool) -> Iterator[Block]:
    """Yield what was taken for what: the matrix, or of many classes the most frequent mistakes."""
    if len(metrics.classes) <= WHOLE or show_all:
        yield from _matrix(metrics)
    else:
        yield from _mistakes(metrics)


def _tasks(evaluation: Evaluation, *, show_all: bool) -> Iterator[Block]:
    """Yield the report of what is no classifier."""
    yield verdict(task_figures.told(evaluation), Exit.OK, _which(evaluation.samples))
    yield _columns(evaluation, task_figures.rows(evaluation))
    yield Line((Span(""),))
    yield Fields((*_computing(evaluation), _BRACKETS))
    if evaluation.against is not None:
        yield from against.report(evaluation.against, show_all=show_all)
    yield from task_figures.tables(evaluation, show_all=show_all)


def _side_by_side(evaluation: Evaluation) -> Table:
    """Return the runtimes in columns and what was measured in rows."""
    results = [result for _, result in task_figures.columns(evaluation)]
    rows: list[tuple[str, list[str]]] = [
        ("accuracy", [bounded(r.metrics.accuracy, r.metrics.interval) for r in results]),
    ]
    if results[0].top5 is not None:
        top = [bounded(r.top5 or 0, r.heads[0].top5_interval) for r in results]
        rows.append(("among the best 5", top))
    for kind in ("macro", "weighted"):
        for name in ("precision", "recall", "f1"):
            shown = "F1" if name == "f1" else name
            averages = (getattr(r.metrics, kind) for r in results)
            values = [bounded(getattr(a, name), a.intervals[name]) for a in averages]
            rows.append((f"{kind} {shown}", values))
    return _columns(evaluation, rows)


def _columns(evaluation: Evaluation, rows: list[tuple[str, list[str]]]) -> Table:
    """Return figures in a column for each runtime, and below them the times."""
    heads, results = zip(*task_figures.columns(evaluation), strict=True)
    for timings in zip(*(r.timings for r in results), strict=True):
        batch = f"batch {number(timings[0].batch)}"
        rows.append((f"{batch}: ms, median", [f"{t.median:.2f}" for t in timings]))
        rows.append((f"{batch}: ms, p95", [f"{t.p95:.2f}" for t in timings]))
        rows.append(
            (f"{batch}: {_noun(evaluation)}s/s", [number(round(t.throughput)) for t in timings])
        )
    head = ("", *heads)
    cells = tuple((name, *values) for name, values in rows)
    return Table(head, cells, frozenset(range(1, len(head))))


def _computing(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """Yield how alike runtimes are, and what computed in which time."""
    for agreement in evaluation.agreements:
        names = " and ".join(agreement.runtimes)
        names = f"{agreement.head}: {names}" if agreement.head else names
        spread = f"scores within {agreement.difference:.1e} of their spread"
        if agreement.same is not None:
            images = number(agreement.images)
            spread = f"{number(agreement.same)} of {images} answers alike; {spread}"
        yield names, spread
    for result in evaluation.results:
        facts = result.facts
        parts = [f"{result.runtime} {facts.get('version')}"]
        parts += [f"graph {facts['graph']}"] if "graph" in facts else []
        parts += [str(facts["device"])] if "device" in facts else []
        providers = facts.get("providers")
        parts += [", ".join(map(str, providers))] if isinstance(providers, list) else []
        parts += [f"batches of {facts['batch']}, filled up"] if "batch" in facts else []
        yield "computed by", f"{', '.join(parts)}; {counted(evaluation.threads, 'thread')}"
    timed = evaluation.results[0].timings
    if evaluation.preparation is not None and timed:
        one = "a row" if _noun(evaluation) == "row" else "an image"
        text = f"{evaluation.preparation:.2f} ms {one}; no part of the times above"
        yield "preparation", text
    if timed:
        turns = "runtimes in turns" if evaluation.against is None else "one model after the other"
        yield "timed", f"{counted(timed[0].calls, 'call')}, {turns}"


def _facts(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    yield from _computing(evaluation)
    yield _BRACKETS
    metrics = evaluation.metrics
    if metrics.averaged < len(metrics.classes):
        yield "averages", f"over {metrics.averaged} classes that occur or were answered"
    if missing := metrics.unanswered:
        shown = first_of(missing, WHOLE)
        yield "never answered", f"{shown}: precision is not defined, and counts as 0"


def _classes(result: RuntimeResult, nouns: str, *, show_all: bool) -> Iterator[Block]:
    rows = [row for row in result.metrics.classes if row.images or row.precision is not None]
    title = f"classes, {result.runtime}"
    if len(rows) > WHOLE and not show_all:
        rows = sorted(rows, key=lambda row: row.f1 or 0)[:WHOLE]
        title = f"the {WHOLE} worst of {len(result.metrics.classes)} {title}"
    yield Line((Span(""),))
    yield Table(
        (title, nouns, "precision, %", "recall, %", "F1, %"),
        tuple(task_figures.class_row(row) for row in rows),
        frozenset({1, 2, 3, 4}),
    )


def _matrix(metrics: Metrics) -> Iterator[Block]:
    """Yield the confusion matrix, rows the true class, columns the answer by its number."""
    names = [row.name for row in metrics.classes]
    rows: tuple[tuple[str | Span, ...], ...] = tuple(
        (
            name if name == str(index) else f"{index} {name}",
            *(
                Span(number(int(count)) if count else "·", _style(index == column, int(count)))
                for column, count in enumerate(counts)
            ),
        )
        for index, (name, counts) in enumerate(zip(names, metrics.confusion, strict=True))
    )
    yield Line((Span(""),))
    head = ("true class, taken for", *(str(index) for index in range(len(names))))
    yield Table(head, rows, frozenset(range(1, len(head))))


def _style(is_right: bool, count: int) -> Style:
    if not count:
        return Style.FAINT
    return Style.GOOD if is_right else Style.BAD


def _mistakes(metrics: Metrics) -> Iterator[Block]:
    confused = metrics.confused()
    if not confused:
        return
    rows = tuple((truth, answer, number(n)) for truth, answer, n in confused[:WHOLE])
    yield Line((Span(""),))
    more = f" (of {number(len(confused))} kinds)" if len(confused) > WHOLE else ""
    yield Table(("most frequent mistakes" + more, "taken for", "images"), rows, frozenset({2}))
