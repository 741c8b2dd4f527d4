"""Running out of memory, told from the other faults of torch, and what to try."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from persistlib.errors import Code, PersistlibError, error
from persistlib.wording import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from persistlib.training.settings import Settings

# c10/core/impl/alloc_cpu.cpp and the allocators of accelerators.
_WORDS = ("DefaultCPUAllocator", "out of memory", "can't allocate memory")


def is_out_of_memory(fault: BaseException) -> bool:
    """Return whether memory, of the host or of an accelerator, was not to be had."""
    if isinstance(fault, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(fault, RuntimeError) and any(word in str(fault) for word in _WORDS)


@contextlib.contextmanager
def naming_memory(settings: Settings, where: Callable[[], str]) -> Generator[None]:
    """Raise our error where memory runs out in the block, with the place that it had come to."""
    try:
        yield
    except (MemoryError, RuntimeError) as fault:
        if not is_out_of_memory(fault):
            raise
        raise _no_memory(where(), settings, fault) from fault


def _no_memory(where: str, settings: Settings, fault: BaseException) -> PersistlibError:
    """Return our error: the batch size, and what to try."""
    line = first_line(fault)
    half = settings.batch_size // 2
    smaller = f"batch_size={half} with accumulate={settings.accumulate * 2} steps alike, in half"
    tries = [smaller] if half else []
    if settings.precision == "f32":
        tries.append("precision='bf16' halves activations")
    tries.append("a smaller part that trains (strategy='head') keeps fewer")
    reason = f"batches of {settings.batch_size} do not fit: {line}"
    return error(Code.NO_MEMORY, where, reason, "; ".join(tries))
