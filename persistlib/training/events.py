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


Event: TypeAlias = BatchDone | EpochDone | WentOn
Progress: TypeAlias = Callable[[Event], None]
