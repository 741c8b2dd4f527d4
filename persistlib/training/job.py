"""What a run is to do, and what it kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from persistlib.processes import ALONE
from persistlib.training.remembered import Memory

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from persistlib.processes import Group
    from persistlib.training.batches import Batches
    from persistlib.training.features import Keeping
    from persistlib.training.freezes import Before
    from persistlib.training.losses import Loss
    from persistlib.training.scoring import Metric
    from persistlib.training.settings import Settings
    from persistlib.training.strategies import Strategy
    from persistlib.training.tasks import Head


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be done.

    Attributes:
        model: which, where it trains.
        settings: the numbers.
        strategy: what trains when.
        held: what the caller had frozen.
        train: training batches.
        valid: held-out batches.
        heads: what the model's outputs are for.
        loss: of training.
        score: the loss of held-out samples.
        metrics: of held-out samples besides.
        cache: whether the frozen front may be run once.
        keeping: where what it gives may lie.
        device: where the model is.
        plan: all of this as plain values, by which a run is known again.
        group: the processes that do it together.
        is_own_loss: whether the loss is the caller's own, which may look at a batch's inputs.
    """

    model: torch.nn.Module
    settings: Settings
    strategy: Strategy
    held: Before
    train: Batches
    valid: Batches | None
    heads: tuple[Head, ...]
    loss: Loss
    score: Loss
    metrics: Mapping[str, Metric]
    cache: bool
    keeping: Keeping
    device: torch.device
    plan: Mapping[str, Any] = field(default_factory=dict)
    group: Group = ALONE
    is_own_loss: bool = False


class Kept(NamedTuple):
    """The weights of an epoch, what the model remembered, and how they did."""

    epoch: int
    metrics: dict[str, float]
    tensors: Mapping[str, torch.Tensor]
    memory: Memory = Memory({}, {})


def valid_metrics(row: Mapping[str, float]) -> dict[str, float]:
    """Return what a row of the history says of the held-out samples."""
    prefix = "valid_"
    return {n.removeprefix(prefix): value for n, value in row.items() if n.startswith(prefix)}
