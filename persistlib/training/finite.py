"""Inputs that are not finite, found before a model is run on all of them.

A model may mean what is not finite, such as a mask of minus infinity; so it is asked: what it makes
something finite of is no fault.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from persistlib.architecture.behaviour import untouched
from persistlib.errors import Code, error_of, finding
from persistlib.training import nests
from persistlib.training.batches import call
from persistlib.training.memory import is_out_of_memory
from persistlib.training.own_dtypes import cast_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.errors import Finding
    from persistlib.training.batches import Batches

_ROWS = 1024  # looked at together, so that a large array is not held twice


def is_finite(values: torch.Tensor) -> bool:
    """Return whether all numbers are finite; only what has no finite sum is searched."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def require_finite(model: torch.nn.Module, samples: Batches) -> None:
    """Refuse inputs that are not finite and make what a model gives not finite.

    Raises:
        TrainingError: there are such inputs; every array of them is named.
        RuntimeError: memory ran out.
    """
    if faults := [*input_findings(model, samples)]:
        raise error_of(faults)


def input_findings(model: torch.nn.Module, samples: Batches) -> Iterator[Finding]:
    """Yield each array of inputs that is not finite, with how many numbers are not and the first.

    Only what was given as arrays is looked at: other samples are drawn when they are needed.

    Args:
        model: where the samples go; left as it was.
        samples: of which the inputs are known.

    Raises:
        RuntimeError: memory ran out.
    """
    for path, item in nests.leaves(samples.known_inputs()):
        if not isinstance(item, torch.Tensor) or not item.is_floating_point():
            continue
        count, first = _not_finite(item, samples)
        if first and not _is_meant(model, samples, first[0]):
            where = f"{samples.name}: inputs{f'.{path}' if path else ''}"
            reason = (
                f"{count:,} of {item.numel():,} numbers are not finite, the first at {[*first]}"
            )
            yield finding(Code.DATA_INVALID, where, reason, "leave these samples out")


def _not_finite(values: torch.Tensor, samples: Batches) -> tuple[int, tuple[int, ...]]:
    """Return how many numbers are not finite, and where the first is; empty where all are."""
    count, first = 0, ()
    for start in range(0, len(values), _ROWS):
        rows = cast_inputs(values[start : start + _ROWS], samples.dtype)
        if is_finite(rows):
            continue
        bad = ~rows.isfinite()
        count += int(bad.sum())
        if not first:
            row, *rest = bad.nonzero()[0].tolist()
            first = (start + row, *rest)
    return count, first


@torch.no_grad()
def _is_meant(model: torch.nn.Module, samples: Batches, row: int) -> bool:
    """Return whether all that a model makes of a sample is finite."""
    one = nests.each(lambda item: item[row : row + 1].to(samples.device), samples.known_inputs())
    try:
        with untouched(model):
            model.eval()
            outputs = nests.tensors(call(model, cast_inputs(one, samples.dtype)))
    except Exception as fault:
        if is_out_of_memory(fault):
            raise
        return False
    return all(map(is_finite, outputs))
