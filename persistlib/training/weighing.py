"""How much classes weigh in a named loss while a model is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from persistlib.errors import Code, error
from persistlib.training.answers import targets_of
from persistlib.training.losses import Weighing
from persistlib.training.settings import BALANCED
from persistlib.training.tasks import CLASSIFICATION, IGNORED, MULTILABEL, REGRESSION, SEGMENTATION

if TYPE_CHECKING:
    from persistlib.training.batches import Batches
    from persistlib.training.losses import Objective
    from persistlib.training.settings import Settings
    from persistlib.training.tasks import Head


def weighings(what: Objective, settings: Settings, samples: Batches) -> list[Weighing]:
    """Return what the named loss of each head weighs.

    Raises:
        UsageError: weights were given that no head, or more than one, could take.
        TrainingError: the targets are not those of the heads.
    """
    given, heads = settings.class_weights, what.heads
    plain = [Weighing(_smoothing(head, settings)) for head in heads]
    if given is None:
        return plain
    takes = [head.task in {CLASSIFICATION, MULTILABEL, SEGMENTATION} for head in heads]
    if not what.is_named or not any(takes):
        reason = "no head has a loss by name that weighs classes"
        raise error(Code.USAGE, "class_weights", reason, "weigh them in the loss itself")
    if given == BALANCED:
        pairs = zip(heads, targets_of(samples.targets(), heads), plain, strict=True)
        return [_balanced(head, wanted, how, samples.device) for head, wanted, how in pairs]
    if len(heads) > 1:
        reason = f"one list for {len(heads)} heads"
        raise error(Code.USAGE, "class_weights", reason, f"give {BALANCED!r}, or a loss")
    weights = torch.tensor([float(item) for item in given], device=samples.device)
    return [plain[0]._replace(weights=weights)]


def balanced_weights(labels: torch.Tensor) -> torch.Tensor:
    """Return a weight a class: samples by classes, over the samples of the class.

    As scikit-learn's `class_weight="balanced"`; a class without samples weighs 0.
    """
    counts = torch.bincount(labels.flatten().long()).double()
    weights = counts.sum() / (counts.count_nonzero() * counts)
    return torch.where(counts > 0, weights, 0.0).float()


def balanced_ones(labels: torch.Tensor) -> torch.Tensor:
    """Return a weight for the ones of each label: zeros over ones; 1 where there is no one.

    Args:
        labels: (samples, ...) of 0 and 1.
    """
    ones = labels.double().sum(0)
    return torch.where(ones > 0, (len(labels) - ones) / ones, 1.0).float()


def _smoothing(head: Head, settings: Settings) -> float:
    return settings.label_smoothing if head.task == CLASSIFICATION else 0.0


def _balanced(head: Head, targets: torch.Tensor, how: Weighing, device: torch.device) -> Weighing:
    if head.task == REGRESSION:
        return how
    if head.task == MULTILABEL:
        return how._replace(weights=balanced_ones(targets).to(device))
    counted = targets[targets != IGNORED] if head.task == SEGMENTATION else targets
    return how._replace(weights=balanced_weights(counted).to(device), may_be_short=True)
