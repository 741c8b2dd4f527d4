"""Inputs of a model as arrays: one, or several by name, samples along the first axis of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

Inputs: TypeAlias = "NDArray[Any] | Mapping[str, NDArray[Any]]"


def count(inputs: Inputs) -> int:
    """Return how many samples there are."""
    return len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs)


def cut(inputs: Inputs, start: int, stop: int) -> Inputs:
    """Return some of the samples."""
    return _each(lambda array: array[start:stop], inputs)


def filled(inputs: Inputs, size: int) -> Inputs:
    """Return so many samples, the same over again where there are fewer."""
    return _each(lambda array: np.resize(array, (size, *array.shape[1:])), inputs)


def _each(change: Callable[[NDArray[Any]], NDArray[Any]], inputs: Inputs) -> Inputs:
    if isinstance(inputs, Mapping):
        return {name: change(array) for name, array in inputs.items()}
    return change(inputs)
