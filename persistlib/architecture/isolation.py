"""Building and trying modules without the caller noticing.

Law: after `isolated()` the caller's random states (torch on CPU and on every CUDA device in use,
numpy, Python), default dtype, default device, grad mode and warning filters are what they were.

Inside, everything is as in a fresh process: seed 0, float32, CPU, grad enabled. So a module built
from a recipe does not depend on who builds it.
"""

from __future__ import annotations

import contextlib
import random
import threading
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Generator

# Default dtype, warning filters and `register_parameter` belong to the whole process.
_LOCK = threading.RLock()
SEED = 0


@contextlib.contextmanager
def isolated() -> Generator[None]:
    """Run the block as a fresh process would, one thread at a time, and put everything back."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_LOCK)
        stack.enter_context(random_states())
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device() != torch.device("cpu"):
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        torch.set_default_dtype(torch.float32)
        seed()
        yield


@contextlib.contextmanager
def random_states() -> Generator[None]:
    """Put back every random state when the block ends."""
    # The legacy state is the one that modules draw from, and that the caller seeded.
    numeric = np.random.get_state()  # noqa: NPY002 - as above
    python, host = random.getstate(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if _cuda_in_use() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numeric)  # noqa: NPY002 - as above
        torch.set_rng_state(host)
        if devices:
            torch.cuda.set_rng_state_all(devices)


def seed(number: int = SEED) -> None:
    """Begin every random sequence anew; a CUDA that was never used is left unused."""
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002 - the global state is what modules draw from
    torch.default_generator.manual_seed(number)
    if _cuda_in_use():
        torch.cuda.manual_seed_all(number)


def _cuda_in_use() -> bool:
    """Say whether CUDA was used already; asking for its state otherwise would start it."""
    ask: Any = torch.cuda.is_initialized
    return bool(ask())
