"""A process that is gone in the midst of a run, played in one that goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.training.events import BatchDone, EpochDone

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistlib.training.events import Event


class LeftError(Exception):
    """The process is gone; the same one plays the next."""


def leave_after(
    count: int, kind: type[BatchDone | EpochDone] = BatchDone
) -> Callable[[Event], None]:
    """Return what ends a run when it has told of so many batches, or epochs, and of one more."""
    left = count

    def leave(event: Event) -> None:
        nonlocal left
        left -= isinstance(event, kind)
        if left < 0:
            raise LeftError

    return leave
