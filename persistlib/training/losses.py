"""What is made small: losses by name, torch's own, and the caller's.

Each task has losses by name (`LOSSES`). They and torch's own are called with a head's outputs and
its targets, any other callable with all outputs and the `Batch`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch.nn import functional

from persistlib.errors import Code, PersistlibError, error
from persistlib.training.answers import of_heads, targets_of
from persistlib.training.batch import Batch
from persistlib.training.fitting import FAULTS, MisfitError, require
from persistlib.training.tasks import (
    CLASSIFICATION,
    CUSTOM,
    IGNORED,
    MULTILABEL,
    REGRESSION,
    SEGMENTATION,
    Head,
    heads_of,
    record,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from persistlib.training.tasks import TaskLike

# Called with what the model returned, whole, and the batch.
Loss: TypeAlias = Callable[[Any, Batch], torch.Tensor]
# A name, one of torch's, or a `Loss` of the caller's own.
LossLike: TypeAlias = "str | torch.nn.Module | Callable[..., torch.Tensor] | None"
# Called with the outputs of a head and its targets.
HeadLoss: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# What the auxiliary classifier of torchvision's segmentation models counts for:
# references/segmentation/train.py, `criterion`.
_AUXILIARY = 0.5


class _Row(NamedTuple):
    """A loss: which tasks it is for, and what torch calls it."""

    tasks: tuple[str, ...]
    torch: tuple[str, ...]


LOSSES: dict[str, _Row] = {
    "cross_entropy": _Row(
        (CLASSIFICATION, SEGMENTATION),
        ("cross_entropy", "CrossEntropyLoss", "nll_loss", "NLLLoss"),
    ),
    "bce": _Row((MULTILABEL,), ("binary_cross_entropy_with_logits", "BCEWithLogitsLoss")),
    "mse": _Row((REGRESSION,), ("mse_loss", "MSELoss")),
    "mae": _Row((REGRESSION,), ("l1_loss", "L1Loss")),
    "huber": _Row((REGRESSION,), ("huber_loss", "HuberLoss")),
    "smooth_l1": _Row((REGRESSION,), ("smooth_l1_loss", "SmoothL1Loss")),
}
# Of each task the first.
_USUAL = {task: name for name, row in reversed(LOSSES.items()) for task in row.tasks}


class Weighing(NamedTuple):
    """What a named loss weighs while training; held-out samples are scored without.

    Attributes:
        smoothing: how much of each target of a classification goes to all classes alike.
        weights: of the classes; of the ones of each label.
        may_be_short: whether the last classes may have no weight: no sample is theirs.
    """

    smoothing: float = 0.0
    weights: torch.Tensor | None = None
    may_be_short: bool = False


class Objective(NamedTuple):
    """What a model is to learn.

    Attributes:
        heads: what its outputs are for.
        loss: what it is called with in training: see `objective`.
        names: of the loss of each head, for the manifest: `custom` for the caller's own.
    """

    heads: tuple[Head, ...]
    loss: LossLike
    names: tuple[str, ...]

    @property
    def is_named(self) -> bool:
        """Whether every head has a loss by name."""
        return self.loss is None or isinstance(self.loss, str)

    @property
    def is_own(self) -> bool:
        """Whether the loss is the caller's own: no named one, and none of torch's."""
        return not self.is_named and not _torch_name(self.loss)

    @property
    def smooths(self) -> bool:
        """Whether smoothing of labels has a meaning for some head."""
        return self.is_named and any(head.task == CLASSIFICATION for head in self.heads)

    def record(self) -> dict[str, JsonValue]:
        """Return `task` and `loss` as the manifest has them; of several heads a loss for each."""
        several = {head.name: name for head, name in zip(self.heads, self.names, strict=True)}
        loss: JsonValue = {**several} if self.heads[0].name and self.is_named else self.names[0]
        return {"task": record(self.heads), "loss": loss}

    def made(self, weighing: Sequence[Weighing] = (), *, auxiliary: bool = False) -> Loss:
        """Return the loss.

        Args:
            weighing: of each head; without, nothing is weighed.
            auxiliary: whether auxiliary outputs take part.
        """
        if not self.is_named:
            own = self.loss
            return partial(_torchs, own, self.heads) if _torch_name(own) else partial(_own, own)
        how = weighing or tuple(Weighing() for _ in self.heads)
        parts = [
            partial(_named, name, head.task, weigh)
            for name, head, weigh in zip(self.names, self.heads, how, strict=True)
        ]
        return partial(_summed, self.heads, parts, auxiliary=auxiliary)


def objective(task: TaskLike, loss: LossLike) -> Objective:
    """Return what a task and a loss together mean.

    Args:
        task: as `heads_of`; None is what the loss is for, classification without one.
        loss: None is the task's own.

    Raises:
        UsageError: the loss is none, or not for this task.
    """
    name = loss if isinstance(loss, str) or loss is None else _torch_name(loss)
    if isinstance(name, str) and isinstance(loss, str) and loss not in LOSSES:
        reason = f"{loss!r} is not one of {', '.join(LOSSES)}"
        raise error(Code.USAGE, "loss", reason, "or give a callable of outputs and batch")
    if loss is not None and not isinstance(loss, str) and not callable(loss):
        reason = f"a {type(loss).__name__} is no loss"
        raise error(Code.USAGE, "loss", reason, f"give one of {', '.join(LOSSES)}, or a callable")
    if isinstance(loss, torch.nn.Module):
        _require_still(loss)
    heads = heads_of(task)
    if task is None and loss is not None:
        heads = (Head("", LOSSES[name].tasks[0] if name in LOSSES else CUSTOM),)
    if len(heads) > 1 and name is not None:
        reason = f"{name} is for one head"
        remedy = "give each head its own in task=, or a callable of outputs and batch"
        raise error(Code.USAGE, "loss", reason, remedy)
    if loss is not None and not isinstance(loss, str):
        return Objective(heads, loss, (name or CUSTOM,) * len(heads))
    names = tuple(loss or head.loss or _USUAL[head.task] for head in heads)
    for head, chosen in zip(heads, names, strict=True):
        _require_for(head, chosen)
    return Objective(heads, loss, names)


def _require_for(head: Head, name: str) -> None:
    """Raise where a head's task is not what a loss is for."""
    if name not in LOSSES or head.task not in LOSSES[name].tasks:
        fitting = [known for known, row in LOSSES.items() if head.task in row.tasks]
        reason = f"{name!r} is no loss of {head.task}"
        where = f"task.{head.name}.loss" if head.name else "loss"
        raise error(Code.USAGE, where, reason, f"use {', '.join(fitting)}, or a callable")


def _require_still(loss: torch.nn.Module) -> None:
    """Refuse a loss that would have to train itself."""
    if any(item.requires_grad for item in loss.parameters()):
        reason = f"{type(loss).__name__} has parameters of its own, which would not train"
        remedy = "make them part of the model, and give a callable of outputs and batch"
        raise error(Code.USAGE, "loss", reason, remedy)


def _torch_name(loss: Any) -> str | None:
    """Return what a loss that is called as torch's are is called; None for the caller's own.

    That is the name in the table, or torch's own where it stands in none.
    """
    plain = loss.func if isinstance(loss, partial) else loss
    if isinstance(plain, torch.nn.Module):
        known = type(plain).__name__
    elif getattr(plain, "__module__", None) == functional.__name__:
        known = plain.__name__
    else:
        return None
    return next((name for name, row in LOSSES.items() if known in row.torch), known)


def _summed(
    heads: Sequence[Head],
    parts: Sequence[HeadLoss],
    outputs: Any,
    batch: Batch,
    *,
    auxiliary: bool,
) -> torch.Tensor:
    """Return the weighted sum of the losses of all heads."""
    answers, targets = of_heads(outputs, heads), targets_of(batch.targets, heads)
    losses = [
        part(answer, wanted) if head.weight == 1 else head.weight * part(answer, wanted)
        for head, part, answer, wanted in zip(heads, parts, answers, targets, strict=True)
    ]
    if auxiliary and heads[0].task == SEGMENTATION and isinstance(outputs, Mapping):
        aside = outputs.get("aux")
        if isinstance(aside, torch.Tensor):
            losses.append(_AUXILIARY * parts[0](aside, targets[0]))
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def _named(
    name: str, task: str, how: Weighing, answer: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Return a named loss of one head's outputs, once they fit the targets."""
    require(task, answer, targets)
    if name == "cross_entropy":
        return _cross_entropy(task, how, answer, targets)
    # In half precision the targets would be rounded to it.
    dtype = torch.promote_types(answer.dtype, torch.float32)
    answer, targets = answer.to(dtype), targets.to(dtype)
    if name == "bce":
        own = how.weights
        return functional.binary_cross_entropy_with_logits(answer, targets, pos_weight=own)
    chosen: HeadLoss = getattr(functional, LOSSES[name].torch[0])
    return chosen(answer, targets)


def _cross_entropy(
    task: str, how: Weighing, answer: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    given = how.weights
    if given is not None:
        given = given.to(torch.promote_types(answer.dtype, torch.float32))
    if given is not None and how.may_be_short:
        given = functional.pad(given, (0, answer.shape[1] - len(given)))
    if task == CLASSIFICATION:
        return functional.cross_entropy(
            answer, targets, weight=given, label_smoothing=how.smoothing
        )
    if not bool((targets != IGNORED).any()):
        return answer.sum() * 0.0  # the mean over no pixel is not a number
    return functional.cross_entropy(answer, targets, weight=given, ignore_index=IGNORED)


def _torchs(loss: Any, heads: Sequence[Head], outputs: Any, batch: Batch) -> torch.Tensor:
    """Return what a loss of torch's says of the only head."""
    (answer,), (targets,) = of_heads(outputs, heads), targets_of(batch.targets, heads)
    require(heads[0].task, answer, targets)
    value: torch.Tensor = loss(answer, targets)
    return value


def _own(loss: Any, outputs: Any, batch: Batch) -> torch.Tensor:
    """Return what the caller's own loss says.

    Raises:
        MisfitError: it is written for outputs and targets, or gives no number.
    """
    try:
        value = loss(outputs, batch)
    except FAULTS as fault:
        if not _takes_targets(loss, outputs, batch):
            raise
        reason = "the loss is written for (outputs, targets), and is called with (outputs, batch)"
        remedy = "take batch.targets in it; torch's own losses are called with (outputs, targets)"
        raise MisfitError(Code.USAGE, reason, remedy) from fault
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
        reason = f"the loss gives a {type(value).__name__}{shape}, not one number in a tensor"
        raise MisfitError(Code.USAGE, reason, "give the mean over the batch")
    return value


@torch.no_grad()
def _takes_targets(loss: Any, outputs: Any, batch: Batch) -> bool:
    """Return whether a loss that failed works on the targets alone."""
    try:
        return isinstance(loss(outputs, batch.targets), torch.Tensor)
    except (*FAULTS, PersistlibError):
        return False
