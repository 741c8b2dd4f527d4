"""How fast runtimes are, side by side.

Runtimes take turns in short blocks, each after a rest in which the threads of the one before come
to sleep (they spin for a while, and would take the cores from the next) and a call that is not
counted; who begins changes from round to round. What is measured is one call: a batch of inputs in
memory in, scores in memory out.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from persistlib.evaluation.inputs import count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from persistlib.evaluation.inputs import Inputs
    from persistlib.evaluation.runners import Runner

BLOCK = 5
_REST = 0.05  # seconds
# No further round begins after this many seconds.
_MOST = 10.0


class Timing(NamedTuple):
    """Times of one call.

    Attributes:
        batch: images a call.
        calls: how many were timed.
        median: milliseconds.
        p95: milliseconds, the time that 95 of 100 calls keep to.
    """

    batch: int
    calls: int
    median: float
    p95: float

    @property
    def throughput(self) -> float:
        """Images a second."""
        return 1000 * self.batch / self.median

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the times as plain JSON."""
        return {
            "batch": self.batch,
            "calls": self.calls,
            "median_ms": self.median,
            "p95_ms": self.p95,
            "images_per_second": self.throughput,
        }


def measure(runners: Sequence[Runner], inputs: Inputs, calls: int) -> tuple[Timing, ...]:
    """Return the times of each runtime for one batch.

    Args:
        runners: the runtimes.
        inputs: the batch.
        calls: how many calls to time of each, at most; fewer where they take long.
    """
    seconds: list[list[float]] = [[] for _ in runners]
    begin = time.monotonic()
    turn = 0
    while not turn or (len(seconds[0]) < calls and time.monotonic() - begin < _MOST):
        order = [(turn + step) % len(runners) for step in range(len(runners))]
        for place in order:
            time.sleep(_REST)
            runners[place].run(inputs)
            for _ in range(min(BLOCK, calls - len(seconds[place]))):
                start = time.perf_counter()
                runners[place].run(inputs)
                seconds[place].append(time.perf_counter() - start)
        turn += 1
    return tuple(
        Timing(
            batch=count(inputs),
            calls=len(taken),
            median=1000 * float(np.median(taken)),
            p95=1000 * float(np.percentile(taken, 95)),
        )
        for taken in seconds
    )
