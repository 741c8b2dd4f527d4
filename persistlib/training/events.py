"""What the loop tells while it runs; who shows it decides how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias


class BatchDone(NamedTuple):
    """A batch was trained on; epochs and batches count from 1, `batches` is None if unknown.

    Attributes:
        epoch: which.
        epochs: of the run.
        batch: which.
        batches: of the epoch.
        loss: of the batch.
        samples: in the batch.
        lr: the learning rate of the last layers.
    """

    epoch: int
    epochs: int
    batch: int
    batches: int | None
    loss: float
    samples: int
    lr: float


class EpochDone(NamedTuple):
    """An epoch has ended: its row of the history, and how long it took."""

    epoch: int
    epochs: int
    row: Mapping[str, float]
    seconds: float


class WentOn(NamedTuple):
    """A run goes on from a checkpoint.

    Attributes:
        epoch: how many epochs were done.
        epochs: of the run.
        batch: how many batches of the next were done.
        batches: of the epoch.
        path: of the checkpoint.
    """

    epoch: int
    epochs: int
    batch: int
    batches: int | None
    path: str


class RunsOnce(NamedTuple):
    """The front of the model was run once for all epochs.

    Attributes:
        part: the path of the part that is run in each epoch.
        samples: how many there are, held-out ones among them.
        size: bytes of what goes into the part for all of them.
        stored: the folders that it lies in; empty for memory.
        reused: whether all of it was found there.
    """

    part: str
    samples: int
    size: int
    stored: tuple[str, ...]
    reused: bool


Event: TypeAlias = BatchDone | EpochDone | WentOn | RunsOnce
Progress: TypeAlias = Callable[[Event], None]
