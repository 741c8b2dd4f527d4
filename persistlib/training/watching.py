"""What a run folder shows of the run: history, TensorBoard's events, pictures.

    RUN/history.json    a row an epoch, and at the end the confusion of held-out samples
    RUN/tensorboard/    events: every epoch's row, and a batch's loss and rate now and then
    RUN/curves.png      each metric over the epochs
    RUN/confusion.png   of the kept weights on the held-out samples

Where TensorBoard or matplotlib is not installed, that is a warning, and the rest is written.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from typing import TYPE_CHECKING, Any

import torch

from persistlib import publish
from persistlib.errors import Code, MissingExtra, PersistlibError, warn
from persistlib.installed import is_importable
from persistlib.training import plots
from persistlib.training.answers import primary
from persistlib.training.batches import call
from persistlib.training.events import BatchDone, EpochDone
from persistlib.training.tallies import confusion, has_classes
from persistlib.training.tasks import CLASSIFICATION, CUSTOM

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from persistlib.training.events import Event, Progress
    from persistlib.training.trainer import Trainer

_SECOND = re.compile(r"events\.out\.tfevents\.(\d{1,12})\.")
HISTORY, CURVES, CONFUSION, EVENTS = "history.json", "curves.png", "confusion.png", "tensorboard"
_PAUSE = 0.25  # seconds between two batches that TensorBoard is told of


class Watch:
    """What is written about a run while it runs.

    Args:
        path: of the run folder.
        labels: names of the classes, where they are known.
    """

    def __init__(self, path: str, labels: Sequence[str]) -> None:
        self._path = path
        self._labels = labels
        self._trainer: Trainer | None = None
        self._writer: Any = None
        self._told = 0.0

    @contextlib.contextmanager
    def watching(self, trainer: Trainer) -> Generator[None]:
        """Write about a trainer while the block runs; the curves are drawn at its end."""
        self._trainer = trainer
        self._writer = self._events(trainer.steps)
        try:
            yield
        finally:
            if self._writer is not None:
                self._writer.close()
            if trainer.history:
                self._draw(lambda: plots.curves(trainer.history, self._place(CURVES)))

    def __call__(self, event: Event) -> None:
        """Write down what has happened."""
        if isinstance(event, EpochDone):
            self._write_history({})
            for name, value in event.row.items():
                if name != "epoch":
                    self._scalar(name.replace("_", "/", 1), value)
        elif isinstance(event, BatchDone) and time.monotonic() - self._told > _PAUSE:
            self._told = time.monotonic()
            self._scalar("batch/loss", event.loss)
            self._scalar("batch/lr", event.lr)

    @torch.no_grad()
    def judge(self, trainer: Trainer) -> None:
        """Draw the confusion of the held-out samples, where they have classes."""
        module, samples = trainer.stage.module, trainer.job.valid and trainer.stage.valid
        if samples is None or trainer.job.heads[0].task not in {CLASSIFICATION, CUSTOM}:
            return
        module.eval()
        counts = torch.zeros((), dtype=torch.int64)
        for batch in samples.in_order():
            if not isinstance(batch.targets, torch.Tensor):
                return
            scores = primary(call(module, batch.inputs))
            if not has_classes(scores, batch.targets) or scores.ndim != 2:
                return
            counts = counts + confusion(scores, batch.targets).cpu()
        rows: list[list[int]] = counts.tolist()
        width = len(rows)
        names = self._labels if len(self._labels) == width else [str(n) for n in range(width)]
        self._write_history({"confusion": rows, "labels": [*names]})
        self._draw(lambda: plots.confusion(rows, names, self._place(CONFUSION)))

    def _place(self, name: str) -> str:
        return os.path.join(self._path, name)

    def _write_history(self, more: dict[str, Any]) -> None:
        assert self._trainer is not None
        data = json.dumps({"history": self._trainer.history, **more}, indent=1)
        with publish.file(self._place(HISTORY)) as out:
            out.write(data.encode() + b"\n")

    def _events(self, steps: int) -> Any:
        if not is_importable("tensorboard"):
            _missing("tensorboard")
            return None
        from torch.utils.tensorboard import SummaryWriter

        _await_a_later_name(self._place(EVENTS))
        # What a killed process told of later steps is told again.
        return SummaryWriter(self._place(EVENTS), purge_step=steps + 1)

    def _scalar(self, name: str, value: float) -> None:
        if self._writer is not None and self._trainer is not None:
            self._writer.add_scalar(name, value, self._trainer.steps)

    @staticmethod
    def _draw(draw: Callable[[], None]) -> None:
        """Draw; a picture is never what a run fails of."""
        try:
            draw()
        except MissingExtra:
            _missing("matplotlib")
        except PersistlibError as fault:
            warn(Code.TARGET_WRITE, fault.location, fault.reason)


def together(progress: Progress, watch: Watch | None) -> Progress:
    """Return what tells both."""
    if watch is None:
        return progress

    def tell(event: Event) -> None:
        watch(event)
        progress(event)

    return tell


def _await_a_later_name(folder: str) -> None:
    """Wait until events get a name behind those that stand there, a second at most.

    TensorBoard reads files in the order of their names, which begin with the second and go on with
    what has no order.
    """
    names = os.listdir(folder) if os.path.isdir(folder) else []
    now = time.time()
    if any(int(match[1]) == int(now) for match in map(_SECOND.match, names) if match):
        time.sleep(int(now) + 1 - now)


def _missing(package: str) -> None:
    reason = "is not installed: the run folder is without what it makes"
    warn(Code.EXTRA_MISSING, package, reason, "pip install 'persistlib[finetune]'")
