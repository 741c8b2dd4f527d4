"""A batch: what goes into a model, and what it should answer; no torch."""

from __future__ import annotations

from typing import Any, NamedTuple


class Batch(NamedTuple):
    """What a loss of one's own is called with, beside the outputs.

    Attributes:
        inputs: as the model takes them: a tensor, several in a tuple, or a mapping by the names of
            forward's arguments.
        targets: what it should answer, on the same device: a tensor, or a mapping or tuple of
            tensors where there are several heads. Samples lie along the first axis of each.
        is_spare: whether the samples are none of the batch's, as where a process' share of it is
            empty; never of what a loss is called with.
    """

    inputs: Any
    targets: Any
    is_spare: bool = False
