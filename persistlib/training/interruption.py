"""Ctrl-C and a scheduler's SIGTERM, kept until the run can be left whole."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Whether the process was asked to stop.

    Attributes:
        signal: by which signal; None while it was not.
    """

    def __init__(self) -> None:
        self.signal: int | None = None


@contextlib.contextmanager
def deferred() -> Generator[Interruption]:
    """Keep the first such signal for the end of the block, where it takes its usual course.

    A second one takes it at once. Outside the main thread, where Python delivers no signal,
    nothing is kept.
    """
    asked = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    usual = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in usual.items():
            # None is a handler that was not installed from Python, and stays where it was.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def keep(number: int, _: Any) -> None:
        asked.signal = number
        restore()

    for number in _SIGNALS:
        signal.signal(number, keep)
    try:
        yield asked
    finally:
        restore()
    if asked.signal is not None:
        signal.raise_signal(asked.signal)
