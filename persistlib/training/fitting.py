"""Whether outputs and targets fit each other, as a task wants them, before anything is learnt.

Torch takes much that was not meant: targets of (N,) beside outputs of (N, 1) become (N, N). What a
task wants is said here once, and asked of the first outputs beside all targets that are at hand
(`examine`), and of every batch (`require`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from persistlib.architecture.behaviour import untouched
from persistlib.errors import Code, error_of, finding
from persistlib.training import nests
from persistlib.training.answers import left_out, of_heads, targets_of
from persistlib.training.batches import call
from persistlib.training.finite import input_findings, is_finite
from persistlib.training.memory import is_out_of_memory
from persistlib.training.own_dtypes import own_dtype
from persistlib.training.tasks import (
    CLASSIFICATION,
    CUSTOM,
    IGNORED,
    MULTILABEL,
    REGRESSION,
    SEGMENTATION,
)
from persistlib.wording import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from persistlib.errors import Finding
    from persistlib.training.batch import Batch
    from persistlib.training.batches import Batches
    from persistlib.training.tasks import Head

# What a model, or a loss, leads to when it is given what does not fit.
FAULTS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

_FEW = 2  # samples that the model is first run on; BatchNorm's statistics stand still
_UNTOLD = "say its task in task=, or leave its targets out"


class MisfitError(ValueError):
    """Outputs and targets that do not fit a task.

    Attributes:
        code: which fault.
        reason: what was seen.
        remedy: what mends it.
    """

    def __init__(self, code: Code, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.remedy = remedy


def require(task: str, answer: torch.Tensor, targets: torch.Tensor) -> None:
    """Raise where a batch's targets are none of a head's outputs.

    Args:
        task: of the head.
        answer: its outputs.
        targets: of the batch.

    Raises:
        MisfitError: they do not fit.
    """
    if task != CUSTOM and answer.shape[:1] != targets.shape[:1]:
        counts = f"{_shown(answer)} for targets of shape {_shown(targets)}"
        remedy = "a head gives a row for each sample"
        raise MisfitError(Code.DATA_INVALID, f"outputs of shape {counts}", remedy)
    for fault in _RULES[task](answer, targets):
        raise fault


def examine(model: torch.nn.Module, samples: Sequence[Batches], heads: Sequence[Head]) -> None:
    """Compare targets with what a model makes of each first batch; the model is left as it was.

    Where samples were given as arrays all of them are looked at.

    Raises:
        TrainingError: they do not fit; every fault is reported.
        RuntimeError: memory ran out.
    """
    if all(head.task == CUSTOM for head in heads):
        return
    faults = [fault for some in samples for fault in input_findings(model, some)]
    faults += [fault for some in samples for fault in _faults(model, some, heads)]
    if faults:
        raise error_of([*dict.fromkeys(faults)])


def _faults(model: torch.nn.Module, samples: Batches, heads: Sequence[Head]) -> list[Finding]:
    """Return what is found with few samples of the first batch, where that is also of the whole.

    A model may take batches of one size alone.
    """
    whole = next(samples.in_order())
    few = nests.rows(whole, slice(_FEW), nests.count(whole.targets))
    with untouched(model), torch.no_grad():
        model.eval()
        return [*_misfits(model, few, samples, heads)] and [*_misfits(model, whole, samples, heads)]


def _misfits(
    model: torch.nn.Module, batch: Batch, samples: Batches, heads: Sequence[Head]
) -> Iterator[Finding]:
    known = samples.known_targets()
    where = f"{samples.name}: targets"
    try:
        outputs = call(model, batch.inputs)
        answers = of_heads(outputs, heads)
        targets = targets_of(batch.targets if known is None else known, heads)
    except FAULTS as fault:
        if is_out_of_memory(fault):
            raise
        yield finding(Code.DATA_INVALID, samples.name, *told(fault, model, batch.inputs))
        return
    for name in left_out(outputs, batch.targets, heads):
        reason = "the model gives it and there are targets for it, but no task"
        yield finding(Code.DATA_INVALID, f"task.{name}", reason, _UNTOLD)
    for head, answer, wanted in zip(heads, answers, targets, strict=True):
        place = f"{where}.{head.name}" if head.name else where
        for misfit in _RULES[head.task](answer, wanted):
            yield finding(misfit.code, place, misfit.reason, misfit.remedy)


def told(
    fault: Exception, model: torch.nn.Module | None = None, inputs: Any = None
) -> tuple[str, str]:
    """Return why model and samples do not fit, and what to do.

    Args:
        fault: what was raised.
        model: that was called; None where its inputs fitted.
        inputs: that it was called with.
    """
    if isinstance(fault, MisfitError):
        return fault.reason, fault.remedy
    text = first_line(fault)
    remedy = "compare the model's inputs and outputs with the data's, or give task= or loss="
    own = None if model is None else own_dtype(model)
    floats = [item.dtype for item in nests.tensors(inputs) if item.is_floating_point()]
    if own is not None and (others := [dtype for dtype in floats if dtype != own]):
        text = f"inputs of {others[0]} for a model of {own}: {text}"
        remedy = f"cast them in the data set: inputs.to({own})"
    return f"model and samples do not fit: {text}", remedy


def _classes(answer: torch.Tensor, targets: torch.Tensor) -> Iterator[MisfitError]:
    if answer.ndim < 2 or answer.shape[1] < 2:
        remedy = "give a score for each of two classes or more, or task='regression'"
        yield _shape(f"outputs of shape {_shown(answer)}", remedy)
    elif targets.is_floating_point():
        if answer.shape[1:] != targets.shape[1:]:
            remedy = "give whole numbers, or a probability for each class; or task='regression'"
            yield _shape(_beside(answer, targets, "fractions"), remedy)
        if not bool(((targets >= 0) & (targets <= 1)).all()):
            remedy = "give whole numbers, or probabilities; or task='regression'"
            yield MisfitError(Code.DATA_CLASSES, "fractions that are no probabilities", remedy)
    elif answer.shape[2:] != targets.shape[1:]:
        remedy = "give one class a sample, as a whole number"
        if targets.ndim == 2 and targets.shape[1] == 1:
            remedy += ": targets[:, 0]"
        yield _shape(_beside(answer, targets, "classes"), remedy)
    else:
        yield from _range(targets, answer.shape[1], "labels")


def _masks(answer: torch.Tensor, targets: torch.Tensor) -> Iterator[MisfitError]:
    if answer.ndim != 4:
        reason = f"outputs of shape {_shown(answer)}"
        yield _shape(reason, "segmentation gives (samples, classes, height, width)")
    elif targets.is_floating_point():
        yield _shape(f"masks of {targets.dtype}", "give the class of each pixel, a whole number")
    elif targets.shape[1:] != answer.shape[2:]:
        remedy = "give masks of (samples, height, width), as large as the outputs"
        yield _shape(_beside(answer, targets, "masks"), remedy)
    else:
        counted = targets[targets != IGNORED]
        yield from _range(counted, answer.shape[1], f"pixels ({IGNORED} counts for nothing)")


def _numbers(answer: torch.Tensor, targets: torch.Tensor) -> Iterator[MisfitError]:
    if answer.shape[1:] != targets.shape[1:]:
        yield _shape(_beside(answer, targets, "numbers"), _reshaped(answer, targets))
    yield from _finite(targets)


def _labels(answer: torch.Tensor, targets: torch.Tensor) -> Iterator[MisfitError]:
    if answer.ndim < 2 or answer.shape[1:] != targets.shape[1:]:
        yield _shape(_beside(answer, targets, "labels"), _reshaped(answer, targets))
    if bool(((targets != 0) & (targets != 1)).any()):
        low, high = float(targets.min()), float(targets.max())
        reason = f"labels from {low:g} to {high:g} that are not 0 or 1"
        yield MisfitError(Code.DATA_CLASSES, reason, "give 1 for each label that a sample has")


_RULES: dict[str, Callable[[Any, Any], Iterator[MisfitError]]] = {
    CLASSIFICATION: _classes,
    REGRESSION: _numbers,
    MULTILABEL: _labels,
    SEGMENTATION: _masks,
    # The caller's own loss understands them.
    CUSTOM: lambda _, __: iter(()),
}


def _range(targets: torch.Tensor, classes: int, what: str) -> Iterator[MisfitError]:
    if not targets.numel():
        return
    least, most = targets.aminmax()
    low, high = int(least), int(most)
    if low < 0 or high >= classes:
        bad = int(((targets < 0) | (targets >= classes)).sum())
        reason = f"{what} {low} to {high} for {classes} classes ({bad:,} outside)"
        remedy = f"give numbers from 0 to {classes - 1}, or a last layer with more outputs"
        yield MisfitError(Code.DATA_CLASSES, reason, remedy)


def _finite(targets: torch.Tensor) -> Iterator[MisfitError]:
    if targets.is_floating_point() and not is_finite(targets):
        bad = int((~targets.isfinite()).sum())
        reason = f"{bad:,} of {targets.numel():,} numbers are not finite"
        yield MisfitError(Code.DATA_INVALID, reason, "leave these samples out")


def _reshaped(answer: torch.Tensor, targets: torch.Tensor) -> str:
    if answer.ndim == targets.ndim + 1 and answer.shape[1] == 1:
        return "give targets of the outputs' shape: targets[:, None]"
    if targets.ndim == answer.ndim + 1 and targets.shape[1] == 1:
        return "give targets of the outputs' shape: targets[:, 0]"
    return "give targets of the outputs' shape"


def _beside(answer: torch.Tensor, targets: torch.Tensor, what: str) -> str:
    return f"{what} of shape {_shown(targets)} for outputs of shape {_shown(answer)}"


def _shown(tensor: torch.Tensor) -> str:
    """Return a shape, whose first extent is any number of samples."""
    return f"({', '.join(['N', *map(str, tensor.shape[1:])])})"


def _shape(reason: str, remedy: str) -> MisfitError:
    return MisfitError(Code.DATA_INVALID, reason, remedy)
