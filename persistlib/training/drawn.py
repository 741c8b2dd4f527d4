"""Samples of a data set as an epoch has them, in this process or in a loader's worker.

Law: a sample's own random numbers (augmentation) follow from (seed, epoch, index) alone.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

from persistlib.training import randomness

if TYPE_CHECKING:
    from collections.abc import Callable


class Drawn(Dataset[Any]):
    """Samples of an epoch, each drawn with numbers that follow from seed, epoch and index."""

    def __init__(self, samples: Any, seed: int, epoch: int) -> None:
        self._samples = samples
        self._seed = seed
        self._epoch = epoch

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        with randomness.apart():
            return [self._drawn(index) for index in indices]

    def _drawn(self, index: int) -> Any:
        randomness.seed_all(randomness.draw(self._seed, self._epoch, index))
        return self._samples[index]


def worker_end() -> Callable[[int], None] | None:
    """Return what ends a loader's worker whose parent was killed as it began.

    Torch's workers look whether the parent that they find at their start is still theirs
    (torch.utils.data._utils.worker.ManagerWatchdog): one that finds none would wait for ever.
    """
    if multiprocessing.get_start_method() != "fork":
        return None
    return functools.partial(_end_without, os.getpid())


def _end_without(parent: int, _: int) -> None:
    if os.getppid() != parent:
        os._exit(1)
