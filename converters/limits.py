"""What the process that parses a stranger's file may still do.

Law: after `confine` it opens nothing, writes no file and leaves no core; it takes no more memory
than a fixed amount, and no more time than the file's size and the steps that were made allow.
"""

from __future__ import annotations

import resource
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Memory beyond what the interpreter and its libraries take: the largest chunk as it is stored and
# as it is read, HDF5's own caches, a window, and the listing.
_MEMORY = 384 << 20
# Seconds of processor time for one step, and the bytes that one more second is for. A step is one
# more object found, whose number is limited elsewhere: time is short within one call only.
_STEP, _LISTED_A_SECOND, _READ_A_SECOND = 1, 64 << 20, 16 << 20


# Seconds after which a process that makes steps gives a sign of life.
BEAT = 5


@dataclass
class _State:
    """Whether this process is confined, which one that only imports this module is not.

    Attributes:
        is_confined: whether it is.
        beat: gives a sign of life; None where nobody listens for one.
        beaten: when it last did.
    """

    is_confined: bool = False
    beat: Callable[[], None] | None = None
    beaten: float = 0.0


_STATE = _State()


def confine(size: int, beat: Callable[[], None]) -> None:
    """Give up, for good, what parsing a file of `size` bytes does not need.

    Args:
        size: bytes of the file.
        beat: called every few seconds while steps are made.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    allowed = _mapped() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    _allow(_STEP + size / _LISTED_A_SECOND)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    _STATE.is_confined, _STATE.beat, _STATE.beaten = True, beat, time.monotonic()


def go_on() -> None:
    """Let the process run on, where it is confined: a step was made."""
    if _STATE.is_confined:
        _allow(max(_STEP, signal.getitimer(signal.ITIMER_PROF)[0]))
        if _STATE.beat is not None and (now := time.monotonic()) > _STATE.beaten + BEAT:
            _STATE.beaten = now
            _STATE.beat()


def allow_reading(size: int) -> None:
    """Let the process run as long as reading `size` bytes takes; the bytes are signs of life."""
    _STATE.beat = None
    _allow(_STEP + size / _READ_A_SECOND)


def _allow(seconds: float) -> None:
    """Let the process run for some seconds of processor time more; SIGPROF ends it then.

    A timer and not RLIMIT_CPU, which counts whole seconds from the process's start.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _mapped() -> int:
    """Return the bytes of address space in use."""
    try:
        with open("/proc/self/statm", encoding="ascii") as handle:
            return int(handle.read().split()[0]) * resource.getpagesize()
    except OSError:  # no Linux; what the libraries map there is less than this
        return 2 << 30
