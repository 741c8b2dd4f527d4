"""Sums over batches from which an epoch's loss and figures come, task by task.

Law: a tally that goes on from another's state comes to what one tally of all batches comes to.

| task | figures |
|---|---|
| classification | `accuracy`, where targets are classes |
| regression | `mse`, `mae` |
| multilabel | `f1` over all labels together |
| segmentation | `accuracy` of pixels, `iou`: the mean over classes that occur or were answered |

Of several heads each figure has the head's name before it, with `_`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from persistlib.training import nests
from persistlib.training.answers import of_heads, targets_of
from persistlib.training.tasks import (
    CLASSIFICATION,
    CUSTOM,
    IGNORED,
    MULTILABEL,
    REGRESSION,
    SEGMENTATION,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from persistlib.training.batch import Batch
    from persistlib.training.tasks import Head

_LOSS, _WEIGHTS = "loss", "weights"
# Of a head over batches; a tensor, on the host, where it is more than a number.
Sum: TypeAlias = "int | float | torch.Tensor"


class Tally:
    """Sums of loss and figures over batches.

    Args:
        heads: what the outputs are for.
        sums: what `state` gave, to go on from.
    """

    def __init__(
        self, heads: Sequence[Head], sums: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        kept = dict(sums or {})
        self._heads = heads
        self._loss: list[float] = kept.pop(_LOSS, torch.empty(0)).tolist()
        self._weights: list[int] = kept.pop(_WEIGHTS, torch.empty(0)).tolist()
        self._sums: dict[str, Sum] = {
            key: value if value.ndim else value.item() for key, value in kept.items()
        }

    def add(self, loss: float, outputs: Any, batch: Batch) -> None:
        """Add a batch: its mean loss, and what each head's outputs are worth."""
        size = nests.count(batch.targets)
        self._loss.append(loss * size)
        self._weights.append(size)
        try:
            answers = of_heads(outputs, self._heads)
            targets = targets_of(batch.targets, self._heads)
        except TypeError:
            return  # a loss of the caller's own understands them
        for index, head in enumerate(self._heads):
            for name, value in _COUNTS[head.task](answers[index], targets[index]).items():
                key = f"{index}.{name}"
                self._sums[key] = self._sums[key] + value if key in self._sums else value

    def state(self) -> dict[str, torch.Tensor]:
        """Return the sums."""
        return {
            _LOSS: torch.tensor(self._loss, dtype=torch.float64),
            _WEIGHTS: torch.tensor(self._weights, dtype=torch.int64),
            **{key: _tensor(value) for key, value in self._sums.items()},
        }

    def result(self) -> dict[str, float]:
        """Return the mean loss, and the figures of each head."""
        means = {"loss": math.fsum(self._loss) / sum(self._weights)}
        for index, head in enumerate(self._heads):
            start = f"{index}."
            own = {
                key.removeprefix(start): value
                for key, value in self._sums.items()
                if key.startswith(start)
            }
            before = f"{head.name}_" if head.name else ""
            if own:
                figures = _FIGURES[head.task](own)
                means |= {f"{before}{name}": value for name, value in figures.items()}
        return means


def _tensor(value: Sum) -> torch.Tensor:
    dtype = torch.float64 if isinstance(value, float) else None
    return torch.as_tensor(value, dtype=dtype)


def has_classes(scores: torch.Tensor, targets: torch.Tensor) -> bool:
    """Return whether scores hold one number a class for each target."""
    if targets.is_floating_point() or scores.ndim < 2:
        return False
    return (scores.shape[0], *scores.shape[2:]) == targets.shape


def confusion(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return counts, int64, (classes, classes), rows the true class.

    Args:
        scores: (samples, classes, ...).
        targets: (samples, ...), whole numbers; what is no class counts for nothing.
    """
    classes = scores.shape[1]
    counted = (targets >= 0) & (targets < classes)
    pairs = targets[counted] * classes + scores.argmax(1)[counted]
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def _classes(scores: torch.Tensor, targets: torch.Tensor) -> dict[str, Sum]:
    if not has_classes(scores, targets):
        return {}
    return {"right": int((scores.argmax(1) == targets).sum()), "answers": targets.numel()}


def _numbers(answers: torch.Tensor, targets: torch.Tensor) -> dict[str, Sum]:
    if answers.shape != targets.shape:
        return {}
    off = answers.detach().double() - targets.double()
    squared, absolute = off.square().sum(), off.abs().sum()
    return {"squared": float(squared), "absolute": float(absolute), "answers": off.numel()}


def _labels(scores: torch.Tensor, targets: torch.Tensor) -> dict[str, Sum]:
    if scores.shape != targets.shape:
        return {}
    said, true = scores > 0, targets > 0
    counts = {"both": said & true, "said": said, "true": true}
    return {name: int(where.sum()) for name, where in counts.items()}


def _pixels(scores: torch.Tensor, targets: torch.Tensor) -> dict[str, Sum]:
    if not has_classes(scores, targets):
        return {}
    return {"confusion": confusion(scores, targets.where(targets != IGNORED, -1)).cpu()}


def _accuracy(sums: Mapping[str, Any]) -> dict[str, float]:
    return {"accuracy": sums["right"] / sums["answers"]}


def _errors(sums: Mapping[str, Any]) -> dict[str, float]:
    count = sums["answers"]
    return {"mse": sums["squared"] / count, "mae": sums["absolute"] / count}


def _f1(sums: Mapping[str, Any]) -> dict[str, float]:
    together = sums["said"] + sums["true"]
    return {"f1": 2 * sums["both"] / together if together else 0.0}


def _overlap(sums: Mapping[str, Any]) -> dict[str, float]:
    counts = sums["confusion"].double()
    both, union = counts.diag(), counts.sum(0) + counts.sum(1) - counts.diag()
    if not bool(counts.any()):
        return {}
    iou = float((both / union)[union > 0].mean())
    return {"accuracy": float(both.sum() / counts.sum()), "iou": iou}


_COUNTS: dict[str, Callable[[torch.Tensor, torch.Tensor], dict[str, Sum]]] = {
    CLASSIFICATION: _classes,
    CUSTOM: _classes,
    REGRESSION: _numbers,
    MULTILABEL: _labels,
    SEGMENTATION: _pixels,
}
_FIGURES: dict[str, Callable[[Mapping[str, Any]], dict[str, float]]] = {
    CLASSIFICATION: _accuracy,
    CUSTOM: _accuracy,
    REGRESSION: _errors,
    MULTILABEL: _f1,
    SEGMENTATION: _overlap,
}
