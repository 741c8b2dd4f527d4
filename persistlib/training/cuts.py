"""A model cut in two: what is run once a sample, and what is trained on what that gave."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


class Cut(NamedTuple):
    """A model cut in two.

    Attributes:
        path: of the part, or the step, that the tail begins with.
        tail: called with features, it gives what the model gives.
        parts: paths of the modules that only the tail runs.
        head: gives the features of a batch's inputs, with the model in evaluation.
        features: of the batch that it was tried on.
    """

    path: str
    tail: torch.nn.Module
    parts: tuple[str, ...]
    head: Callable[[Any], torch.Tensor]
    features: torch.Tensor


@contextlib.contextmanager
def alike_in_both_modes() -> Generator[None]:
    """Let attention compute in evaluation what it computes in training, to the bit.

    Torch has a way of its own for evaluation without gradients (`torch.backends.mha`), which rounds
    otherwise.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
