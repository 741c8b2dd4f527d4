"""How far long work is: a bar that moves on a terminal; elsewhere a line an epoch, or nothing."""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from persistlib.cli.text import figure, size
from persistlib.training.events import BatchDone, EpochDone, RunsOnce, WentOn

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from persistlib.cli.output import Output
    from persistlib.training.events import Event, Progress

_WINDOW = 20  # batches over which the speed is told


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
        TextColumn("loss {task.fields[loss]:.4f}{task.fields[score]}"),
        TextColumn("{task.fields[speed]:,.0f} images/s"),
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

    def __call__(self, event: Event) -> None:
        if not isinstance(event, BatchDone):
            self._output.note(line(event))


class _Live:
    """A bar over all batches, above it a line for each epoch that has ended."""

    def __init__(self, output: Output, bar: Bar) -> None:
        self._output = output
        self._bar = bar
        self._task: TaskID | None = None
        self._done = 0  # batches before this process
        self._score = ""
        self._seen: deque[tuple[float, int]] = deque(maxlen=_WINDOW)

    def __call__(self, event: Event) -> None:
        if not isinstance(event, BatchDone):
            self._bar.console.print(line(event), markup=False, highlight=False)
            if isinstance(event, WentOn) and event.batches:
                self._done = event.epoch * event.batches + event.batch
            elif isinstance(event, EpochDone):
                self._score = _score(event)
                self._seen.clear()  # judging took its time too
            return
        self._seen.append((time.monotonic(), event.samples))
        shown: dict[str, Any] = {
            "epoch": event.epoch,
            "epochs": event.epochs,
            "loss": event.loss,
            "score": self._score,
            "speed": self._speed(),
        }
        if self._task is None:
            total = event.epochs * event.batches if event.batches else None
            self._task = self._bar.add_task("", total=total, completed=self._done, **shown)
        self._bar.update(self._task, advance=1, **shown)

    def _speed(self) -> float:
        """Return the samples a second over the last batches."""
        (start, first), (end, _) = self._seen[0], self._seen[-1]
        return (sum(n for _, n in self._seen) - first) / (end - start) if end > start else 0.0


def _score(event: EpochDone) -> str:
    """Return the held-out metric that the bar goes on showing."""
    for name in ("valid_accuracy", "valid_loss"):
        if name in event.row:
            return f"  {name.replace('_', ' ')} {event.row[name]:.4f}"
    return ""


def line(event: EpochDone | WentOn | RunsOnce) -> str:
    """Return what happened as one line."""
    if isinstance(event, RunsOnce):
        where = f"in {os.path.dirname(event.stored[0])}" if event.stored else "in memory"
        how = "was found" if event.reused else "was run once"
        return f"all before {event.part} {how}: {size(event.size)} of features {where}"
    if isinstance(event, WentOn):
        where = f", batch {event.batch}" if event.batch else ""
        return f"goes on after epoch {event.epoch}/{event.epochs}{where} ({event.path})"
    facts = (
        f"{name.replace('_', ' ')} {figure(value)}"
        for name, value in event.row.items()
        if name != "epoch" and not _is_loss_again(name, event.row)
    )
    count = len(str(event.epochs))
    return f"epoch {event.epoch:{count}}/{event.epochs}  {'  '.join(facts)}  {event.seconds:.1f} s"


def _is_loss_again(name: str, row: Mapping[str, float]) -> bool:
    """Return whether a figure is the loss beside it, as the mean squared error may be."""
    side, _, word = name.rpartition("_")
    loss = row.get(f"{side}_loss")
    return word == "mse" and loss is not None and figure(loss) == figure(row[name])
