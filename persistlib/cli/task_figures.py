"""Figures of `persistlib evaluate` where a model is no classifier: a table a head, and its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.cli.answer import Line, Span, Table
from persistlib.cli.text import bounded, measured, narrow, number, percent
from persistlib.evaluation.task_metrics import Multilabel, Regression, Segmentation
from persistlib.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.cli.answer import Block
    from persistlib.evaluation.judging import Evaluation, HeadResult, RuntimeResult
    from persistlib.evaluation.metrics import Average, ClassScore
    from persistlib.evaluation.task_metrics import Measured, OutputScore, Region

_UNDEFINED = "-"
# Rows above which a table shows some alone, unless all are asked for.
WHOLE = 12


def told(evaluation: Evaluation) -> str:
    """Return the result in a sentence."""
    heads = evaluation.results[0].heads
    samples = counted(len(evaluation.samples), "sample")
    if len(heads) == 1 and not heads[0].outcomes.head:
        return f"{brief(heads[0].metrics)}, of {samples}"
    parts = (f"{head.outcomes.head}: {brief(head.metrics)}" for head in heads)
    return f"{'; '.join(parts)}, of {samples}"


def brief(metrics: Measured) -> str:
    """Return the figure that says most."""
    match metrics:
        case Regression():
            return f"R2 {_share(metrics.mean.r2)}, RMSE {metrics.mean.rmse:.4g}"
        case Multilabel():
            whole = f"all labels right {percent(metrics.accuracy)}"
            return f"micro F1 {percent(metrics.micro.f1)}, {whole}"
        case Segmentation():
            return f"mean IoU {percent(metrics.iou)}, pixels right {percent(metrics.accuracy)}"
        case _:
            return f"{percent(metrics.accuracy)} right"


def columns(evaluation: Evaluation) -> list[tuple[str, RuntimeResult]]:
    """Return each runtime's result with its name; of two models the other's, by their names."""
    shown = [(result.runtime, result) for result in evaluation.results]
    if (other := evaluation.against) is not None:
        shown[0] = other.models[0], evaluation.results[0]
        shown.append((other.models[1], other.evaluation.results[0]))
    return shown


def rows(evaluation: Evaluation) -> list[tuple[str, list[str]]]:
    """Return what was measured in rows, a column for each runtime."""
    made: list[tuple[str, list[str]]] = []
    for heads in zip(*(result.heads for _, result in columns(evaluation)), strict=True):
        before = f"{heads[0].outcomes.head}: " if heads[0].outcomes.head else ""
        figures = [_figures(head.metrics) for head in heads]
        for index, (name, _) in enumerate(figures[0]):
            made.append((f"{before}{name}", [column[index][1] for column in figures]))
    return made


def tables(evaluation: Evaluation, *, show_all: bool) -> Iterator[Block]:
    """Yield the outputs, labels or classes of each head in the first runtime."""
    for head in evaluation.results[0].heads:
        yield Line((Span(""),))
        yield _table(head, show_all=show_all)


def _figures(metrics: Measured) -> list[tuple[str, str]]:
    match metrics:
        case Regression(mean=mean):
            values = {"mse": mean.mse, "mae": mean.mae, "rmse": mean.rmse, "r2": mean.r2}
            return [
                (name.upper(), measured(value, mean.intervals[name]))
                for name, value in values.items()
            ]
        case Multilabel():
            return [
                ("all labels right", bounded(metrics.accuracy, metrics.interval)),
                *_averages("micro", metrics.micro, ("precision", "recall", "f1")),
                *_averages("macro", metrics.macro, ("precision", "recall", "f1")),
            ]
        case Segmentation(intervals=intervals):
            return [
                ("mean IoU", bounded(metrics.iou, intervals["iou"])),
                ("pixels right", bounded(metrics.accuracy, intervals["accuracy"])),
            ]
        case _:
            return [
                ("accuracy", bounded(metrics.accuracy, metrics.interval)),
                *_averages("macro", metrics.macro, ("f1",)),
                *_averages("weighted", metrics.weighted, ("f1",)),
            ]


def _averages(kind: str, average: Average, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for name in names:
        shown = "F1" if name == "f1" else name
        yield f"{kind} {shown}", bounded(getattr(average, name), average.intervals[name])


def _table(head: HeadResult, *, show_all: bool) -> Table:
    metrics, name = head.metrics, head.outcomes.head
    shown: tuple[str, ...]
    match metrics:
        case Regression():
            title, shown = "outputs", ("MAE", "RMSE", "R2")
            cells = [_output(row) for row in metrics.outputs]
        case Multilabel(labels=labels):
            title, shown = "labels", ("samples", "precision, %", "recall, %", "F1, %")
            cells = [class_row(row) for row in labels]
        case Segmentation():
            title, shown = "classes", ("pixels", "IoU, %", "precision, %", "recall, %")
            cells = [_region(row) for row in metrics.classes]
        case _:
            title, shown = "classes", ("samples", "precision, %", "recall, %", "F1, %")
            cells = [class_row(row) for row in metrics.classes]
    title = f"{name}: {title}" if name else title
    if len(cells) > WHOLE and not show_all:
        title = f"the first {WHOLE} of {len(cells)} {title} (--all)"
        cells = cells[:WHOLE]
    return Table((title, *shown), tuple(cells), frozenset(range(1, len(shown) + 1)))


def _output(row: OutputScore) -> tuple[str, ...]:
    values = {"mae": row.mae, "rmse": row.rmse, "r2": row.r2}
    shown = (measured(value, row.intervals[name]) for name, value in values.items())
    return row.name, *shown


def class_row(row: ClassScore) -> tuple[str, ...]:
    """Return a class or label, how many samples it has, and its figures."""
    shares = {"precision": row.precision, "recall": row.recall, "f1": row.f1}
    shown = (narrow(share, row.intervals[name]) for name, share in shares.items())
    return row.name, number(row.images), *shown


def _region(row: Region) -> tuple[str, ...]:
    shares = {"iou": row.iou, "precision": row.precision, "recall": row.recall}
    shown = (narrow(share, row.intervals[name]) for name, share in shares.items())
    return row.name, number(row.pixels), *shown


def _share(value: float | None) -> str:
    return _UNDEFINED if value is None else f"{value:.3f}"
