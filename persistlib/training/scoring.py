"""A model's loss over a batch, and loss and figures over held-out samples."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from persistlib.errors import Code, error
from persistlib.processes import ALONE
from persistlib.training import nests
from persistlib.training.answers import primary
from persistlib.training.batches import call
from persistlib.training.fitting import FAULTS, MisfitError, told
from persistlib.training.memory import is_out_of_memory
from persistlib.training.sharing import Whole, in_turn
from persistlib.training.tallies import Tally

if TYPE_CHECKING:
    from collections.abc import Generator

    from persistlib.processes import Group
    from persistlib.training.batch import Batch
    from persistlib.training.batches import Batches
    from persistlib.training.job import Job
    from persistlib.training.losses import Loss

# Called with the (first) outputs and the targets of all held-out samples; of several heads with all
# outputs and all targets, in the model's form.
Metric: TypeAlias = Callable[[Any, Any], float]


def apply_batch(
    model: torch.nn.Module,
    batch: Batch,
    loss: Loss,
    where: str,
    group: Group = ALONE,
    *,
    is_own: bool = False,
) -> tuple[Whole, torch.Tensor, float]:
    """Return the model's outputs and the targets of the whole batch, their loss, and its number.

    Args:
        model: run on the batch.
        batch: all of it, or this process' share.
        loss: called with the outputs and targets of all of it.
        where: what errors say.
        group: the processes that have the other shares.
        is_own: whether the loss is the caller's own, which may look at the inputs.

    Raises:
        TrainingError: model, loss and batch do not fit each other, or the loss is not finite.
        RuntimeError: memory ran out.
    """
    with _fitting(where):
        outputs = call(model, batch.inputs)
    whole = Whole(group, batch, outputs, where, with_inputs=is_own)
    return (whole, *_measured(loss, whole.outputs, whole.batch, where))


def _measured(loss: Loss, outputs: Any, batch: Batch, where: str) -> tuple[torch.Tensor, float]:
    with _fitting(where):
        value = loss(outputs, batch)
        number = value.item()
    if not math.isfinite(number):
        remedy = "lower lr, or look for samples that are not finite"
        raise error(Code.LOSS_NOT_FINITE, where, f"the loss is {number}", remedy)
    return value, number


@contextlib.contextmanager
def _fitting(where: str) -> Generator[None]:
    """Say of what a model or a loss raises that it does not fit the samples."""
    try:
        yield
    except FAULTS as fault:
        if is_out_of_memory(fault):
            raise
        code = fault.code if isinstance(fault, MisfitError) else Code.DATA_INVALID
        raise error(code, where, *told(fault)) from fault


@torch.no_grad()
def evaluate(model: torch.nn.Module, samples: Batches, job: Job, where: str) -> dict[str, float]:
    """Return loss, figures and the caller's metrics; the model is left in evaluation mode.

    Args:
        model: the job's, or the part of it that is run.
        samples: held-out ones.
        job: says what is scored.
        where: what to name in an error.

    Raises:
        TrainingError: as `apply_batch`, or a metric is not a finite number.
    """
    model.eval()
    tally = Tally(job.heads)
    kept: list[tuple[Any, Any]] = []

    def answer(number: int, batch: Batch) -> Any:
        with _fitting(f"{where}, batch {number}"):
            return call(model, batch.inputs)

    answers = in_turn(samples, answer, with_inputs=job.is_own_loss)
    for number, (outputs, batch) in enumerate(answers, 1):
        _, loss = _measured(job.score, outputs, batch, f"{where}, batch {number}")
        tally.add(loss, outputs, batch)
        if job.metrics:
            kept.append(nests.each(torch.Tensor.cpu, (_judged(outputs, batch), batch.targets)))
    result = tally.result()
    for name, metric in job.metrics.items():
        result[name] = _number(name, metric(*nests.joined(kept)), where)
        if not math.isfinite(result[name]):
            raise error(Code.LOSS_NOT_FINITE, where, f"the metric {name} is {result[name]}")
    return result


def _number(name: str, value: Any, where: str) -> float:
    """Return what a metric of the caller's gave.

    Raises:
        UsageError: it is no number.
    """
    try:
        return float(value)
    except (RuntimeError, TypeError, ValueError) as fault:
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
        reason = f"{where}: it gives a {type(value).__name__}{shape}, not one number"
        raise error(Code.USAGE, f"metrics.{name}", reason, "give the mean") from fault


def _judged(outputs: Any, batch: Batch) -> Any:
    """Return what the caller's metrics are given of a batch's outputs."""
    return primary(outputs) if isinstance(batch.targets, torch.Tensor) else outputs
