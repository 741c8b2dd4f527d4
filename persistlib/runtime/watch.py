"""Ending what takes too long: one thread that waits for the earliest of all deadlines.

Law: what `deadline` surrounds is told to stop once its time is over and before it has ended, never
afterwards. Being told costs what is watched some microseconds; a thread for each run would cost a
small model more than its run.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


class Watched:
    """Something that has until a point of time.

    Attributes:
        until: on the monotonic clock.
        stop: what tells it to end; called once.
        is_over: whether it was called.
    """

    def __init__(self, until: float, stop: Callable[[], None]) -> None:
        self.until = until
        self.stop = stop
        self.is_over = False


class _Watch:
    """Everything that is watched, and the thread that does."""

    def __init__(self) -> None:
        self.change = threading.Condition()
        self.watched: set[Watched] = set()
        self.thread: threading.Thread | None = None
        self.wakes = float("inf")  # when the thread looks again by itself

    def add(self, item: Watched) -> None:
        with self.change:
            self.watched.add(item)
            if self.thread is None:
                self.thread = threading.Thread(target=self._wait, name="deadlines", daemon=True)
                self.thread.start()
            elif item.until < self.wakes:
                self.change.notify()

    def remove(self, item: Watched) -> None:
        with self.change:
            self.watched.discard(item)

    def _wait(self) -> None:
        with self.change:
            while True:
                now = time.monotonic()
                for item in [item for item in self.watched if item.until <= now]:
                    self.watched.discard(item)
                    item.is_over = True
                    item.stop()
                self.wakes = min((item.until for item in self.watched), default=float("inf"))
                span = min(self.wakes - now, threading.TIMEOUT_MAX)
                self.change.wait(None if self.wakes == float("inf") else span)


_watch = _Watch()


def _forget() -> None:
    """Begin anew: a forked child has no thread of its parent's, and maybe a lock that is held."""
    global _watch  # noqa: PLW0603 - one thread serves the process, and a child is another process
    _watch = _Watch()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def deadline(seconds: float | None, stop: Callable[[], None]) -> Generator[Watched]:
    """Call `stop` from another thread if the block has not ended in time.

    Args:
        seconds: how long it may take; None for as long as it likes.
        stop: returns at once, and raises nothing.

    Yields:
        Whether it came to that stands in `is_over`.
    """
    item = Watched(float("inf") if seconds is None else time.monotonic() + seconds, stop)
    if seconds is None:
        yield item
        return
    watch = _watch
    watch.add(item)
    try:
        yield item
    finally:
        watch.remove(item)
