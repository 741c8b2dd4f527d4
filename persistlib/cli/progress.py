"""How far long work is: a bar that moves on a terminal; elsewhere a line an epoch, or nothing."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from persistlib.training.events import BatchDone, EpochDone

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from persistlib.cli.output import Output
    from persistlib.training.events import Progress


@contextmanager
def shown(output: Output) -> Generator[Progress]:
    """Give a callback for the training loop that shows what it is told on stderr."""
    if not output.live:
        yield _Lines(output)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Live(output, bar)


@contextmanager
def counted(output: Output) -> Generator[Callable[[str, int, int], None] | None]:
    """Give a callback that shows on a terminal what is being done, and how many steps of all."""
    if not output.live:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def tell(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield tell


class _Lines:
    """A line an epoch."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def __call__(self, event: BatchDone | EpochDone) -> None:
        if isinstance(event, EpochDone):
            self._output.note(epoch_line(event))


class _Live:
    """A bar over all batches, above it a line for each epoch that has ended."""

    def __init__(self, output: Output, bar: Bar) -> None:
        self._output = output
        self._bar = bar
        self._task: TaskID | None = None

    def __call__(self, event: BatchDone | EpochDone) -> None:
        if isinstance(event, EpochDone):
            self._bar.console.print(epoch_line(event), markup=False, highlight=False)
            return
        if self._task is None:
            total = event.epochs * event.batches if event.batches else None
            self._task = self._bar.add_task(
                "", total=total, epoch=event.epoch, epochs=event.epochs, loss=event.loss
            )
        self._bar.update(self._task, advance=1, epoch=event.epoch, loss=event.loss)


def epoch_line(event: EpochDone) -> str:
    """Return an epoch's row of the history as one line."""
    facts = (
        f"{name.replace('_', ' ')} {value:.4f}"
        for name, value in event.row.items()
        if name != "epoch"
    )
    count = len(str(event.epochs))
    return f"epoch {event.epoch:{count}}/{event.epochs}  {'  '.join(facts)}  {event.seconds:.1f} s"
