"""What the loop tells while it runs; who shows it decides how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias


class BatchDone(NamedTuple):
    """A batch was trained on; epochs and batches count from 1, `batches` is None if unknown."""

    epoch: int
    epochs: int
    batch: int
    batches: int | None
    loss: float


class EpochDone(NamedTuple):
    """An epoch has ended: its row of the history, and how long it took."""

    epoch: int
    epochs: int
    row: Mapping[str, float]
    seconds: float


Progress: TypeAlias = Callable[[BatchDone | EpochDone], None]
