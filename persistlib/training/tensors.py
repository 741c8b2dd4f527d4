"""Arrays as tensors, whatever their layout; nothing is copied that torch can read as it lies."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

# Torch compares none of these: https://github.com/pytorch/pytorch/issues/58734.
_HARDLY_KNOWN = (torch.uint16, torch.uint32, torch.uint64)


def array_of(given: Any) -> Any:
    """Return what can be an array, as tables of other libraries can, as one; the rest as it is."""
    is_known = isinstance(given, (np.ndarray, torch.Tensor))
    return np.asarray(given) if hasattr(given, "__array__") and not is_known else given


def tensor_of(given: Any) -> torch.Tensor:
    """Return an array, a tensor or numbers as a tensor; wide unsigned integers become int64.

    Raises:
        TypeError: torch has no such dtype.
        ValueError: the numbers have no shape together.
    """
    if isinstance(given, np.ndarray):
        if not given.dtype.isnative or any(stride < 0 for stride in given.strides):
            given = np.array(given, dtype=given.dtype.newbyteorder("="), order="C")
        with warnings.catch_warnings():
            # It is only read.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            given = torch.from_numpy(given)
    tensor = torch.as_tensor(given)
    return tensor.long() if tensor.dtype in _HARDLY_KNOWN else tensor
