"""Loss and accuracy of a model over samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.nn import functional

from persistlib.errors import Code, error
from persistlib.training.batches import call
from persistlib.training.memory import is_out_of_memory

if TYPE_CHECKING:
    from persistlib.training.batches import Batch, Batches

# Called with what the model returned, whole, and the targets of the batch.
Loss: TypeAlias = Callable[[Any, torch.Tensor], torch.Tensor]
# Called with the (first) outputs and the targets of all held-out samples.
Metric: TypeAlias = Callable[[torch.Tensor, torch.Tensor], float]


def primary(outputs: Any) -> torch.Tensor:
    """Return the tensor that answers: the outputs, or the first where there are several.

    Auxiliary heads (googlenet, inception) come after it and take no part.

    Raises:
        TypeError: there is no tensor.
    """
    if isinstance(outputs, Mapping):
        outputs = outputs["logits"] if "logits" in outputs else next(iter(outputs.values()), None)
    elif isinstance(outputs, Sequence) and outputs:
        outputs = outputs[0]
    if not isinstance(outputs, torch.Tensor):
        raise TypeError(f"the model returned no tensor but {type(outputs).__name__}")
    return outputs


def cross_entropy(
    label_smoothing: float, weights: torch.Tensor | None = None, *, may_be_short: bool = False
) -> Loss:
    """Return the default loss: of class indices, or of class probabilities.

    Args:
        label_smoothing: how much of each target goes to all classes alike.
        weights: of the classes.
        may_be_short: whether the last classes may have no weight: no sample is theirs.
    """

    def loss(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        scores = primary(outputs)
        if not targets.is_floating_point() and targets.numel():
            low, high = int(targets.min()), int(targets.max())
            if low < 0 or high >= scores.shape[1]:
                raise ValueError(f"labels {low} to {high} for {scores.shape[1]} classes")
        given = weights
        if given is not None and may_be_short:
            given = functional.pad(given, (0, scores.shape[1] - len(given)))
        return functional.cross_entropy(
            scores, targets, weight=given, label_smoothing=label_smoothing
        )

    return loss


class Tally:
    """Sums of loss and right answers over batches."""

    def __init__(self) -> None:
        self._loss: list[float] = []
        self._weights: list[int] = []
        self._right = 0
        self._answers = 0

    def add(self, loss: float, outputs: Any, targets: torch.Tensor) -> None:
        """Add a batch: its mean loss, and its right answers where targets are classes."""
        self._loss.append(loss * len(targets))
        self._weights.append(len(targets))
        try:
            scores = primary(outputs)
        except TypeError:
            return  # a loss of the caller's own understands them
        if has_classes(scores, targets):
            self._right += int((scores.argmax(1) == targets).sum())
            self._answers += targets.numel()

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
        """Return the sums as tensors, and the counts."""
        tensors = {
            "loss": torch.tensor(self._loss, dtype=torch.float64),
            "weights": torch.tensor(self._weights, dtype=torch.int64),
        }
        return tensors, {"right": self._right, "answers": self._answers}

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], counts: Mapping[str, int]) -> Tally:
        """Return a tally that goes on from what `state` gave."""
        tally = cls()
        tally._loss = tensors["loss"].tolist()
        tally._weights = tensors["weights"].tolist()
        tally._right, tally._answers = counts["right"], counts["answers"]
        return tally

    def result(self) -> dict[str, float]:
        """Return the means: loss, and accuracy where targets are classes."""
        means = {"loss": math.fsum(self._loss) / sum(self._weights)}
        if self._answers:
            means["accuracy"] = self._right / self._answers
        return means


def has_classes(scores: torch.Tensor, targets: torch.Tensor) -> bool:
    """Return whether scores hold one number a class for each target."""
    if targets.is_floating_point() or scores.ndim < 2:
        return False
    return (scores.shape[0], *scores.shape[2:]) == targets.shape


def apply_batch(
    model: torch.nn.Module, batch: Batch, loss: Loss, where: str
) -> tuple[Any, torch.Tensor]:
    """Return the model's outputs and their loss.

    Raises:
        TrainingError: model, loss and batch do not fit each other, or the loss is not finite.
        RuntimeError: memory ran out.
    """
    try:
        outputs = call(model, batch.inputs)
        value = loss(outputs, batch.targets)
        number = value.item()
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        if is_out_of_memory(e):
            raise
        text = (str(e).strip().splitlines() or [type(e).__name__])[0]
        remedy = "compare the model's inputs and classes with the data's, or give loss="
        raise error(
            Code.DATA_INVALID, where, f"model and samples do not fit: {text}", remedy
        ) from e
    if not math.isfinite(number):
        remedy = "lower lr, or look for samples that are not finite"
        raise error(Code.LOSS_NOT_FINITE, where, f"the loss is {number}", remedy)
    return outputs, value


def balanced_weights(labels: torch.Tensor) -> torch.Tensor:
    """Return a weight a class: samples by classes, over the samples of the class.

    As scikit-learn's `class_weight="balanced"`; a class without samples weighs 0.
    """
    counts = torch.bincount(labels.flatten().long()).double()
    weights = counts.sum() / (counts.count_nonzero() * counts)
    return torch.where(counts > 0, weights, 0.0).float()


@torch.no_grad()
def evaluate(
    model: torch.nn.Module, samples: Batches, loss: Loss, metrics: Mapping[str, Metric], where: str
) -> dict[str, float]:
    """Return loss, accuracy and the caller's metrics; the model is left in evaluation mode.

    Raises:
        TrainingError: as `apply_batch`, or a metric is not a finite number.
    """
    model.eval()
    tally = Tally()
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    for number, batch in enumerate(samples.in_order(), 1):
        outputs, value = apply_batch(model, batch, loss, f"{where}, batch {number}")
        tally.add(value.item(), outputs, batch.targets)
        if metrics:
            kept.append((primary(outputs).cpu(), batch.targets.cpu()))
    result = tally.result()
    for name, metric in metrics.items():
        answers, targets = (torch.cat(parts) for parts in zip(*kept, strict=True))
        result[name] = float(metric(answers, targets))
        if not math.isfinite(result[name]):
            raise error(Code.LOSS_NOT_FINITE, where, f"the metric {name} is {result[name]}")
    return result
