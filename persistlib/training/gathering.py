"""Samples as a run goes through them: in batches, training images varied where that is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from persistlib.processes import ALONE
from persistlib.training.augmentation import VariedSamples
from persistlib.training.batches import Batches

if TYPE_CHECKING:
    import torch

    from persistlib.processes import Group
    from persistlib.training.batches import Samples
    from persistlib.training.settings import Settings

TRAIN = "train"


def gathered(
    samples: Samples,
    name: str,
    settings: Settings,
    place: torch.device,
    group: Group = ALONE,
    *,
    dtype: torch.dtype | None = None,
) -> Batches:
    """Return samples as batches.

    Args:
        samples: as `finetune`.
        name: what errors call them; those of `TRAIN` alone are varied.
        settings: of the run.
        place: where batches go.
        group: the processes that share them.
        dtype: what arrays of floats become.

    Raises:
        TrainingError: they are none.
        UsageError: they are to be varied, and are no images.
    """
    how: dict[str, Any] = {"seed": settings.seed, "workers": settings.workers, "group": group}
    how["dtype"] = dtype
    made = Batches(samples, name, settings.batch_size, place, **how)
    if name != TRAIN or not settings.augment:
        return made
    varied = VariedSamples(samples, settings.steps, made)
    return Batches(varied, name, settings.batch_size, place, **how)
