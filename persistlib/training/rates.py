"""Which learning rates a model can bear: a trial on a copy, the rate rising from step to step.

The learning rate range test of Leslie N. Smith, "Cyclical Learning Rates for Training Neural
Networks", 2017 (https://arxiv.org/abs/1506.01186), section 3.3. Its suggestion is where the loss
falls fastest; it is a hint, and nothing is set by it.

Law: the model and the caller's random state are untouched.
"""

from __future__ import annotations

import copy
import itertools
import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from persistlib.errors import Code, PersistlibError, error
from persistlib.training import freezes, optimizers, randomness, strategies
from persistlib.training.features import Stage, stage
from persistlib.training.gathering import gathered
from persistlib.training.losses import objective
from persistlib.training.own_dtypes import own_dtype
from persistlib.training.precision import Precision
from persistlib.training.scoring import apply_batch
from persistlib.training.settings import Settings
from persistlib.training.weighing import weighings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Unpack

    from persistlib.patterns import Patterns
    from persistlib.training.batch import Batch
    from persistlib.training.batches import Samples
    from persistlib.training.losses import Loss, LossLike
    from persistlib.training.settings import Numbers
    from persistlib.training.strategies import StrategyLike
    from persistlib.training.tasks import TaskLike

_LOW, _HIGH, _STEPS = 1e-6, 10.0, 100
_MEMORY = 0.9  # of the running mean: what the losses before count
_DIVERGED = 4.0  # times the lowest loss
_REACH = 5  # steps to either side, over which a slope is taken: single batches differ
_FALL = 0.01  # of the first loss: what is less is noise


class RateRange(NamedTuple):
    """What a trial found.

    Attributes:
        lrs: learning rates, rising.
        losses: the running mean of the loss at each.
        suggestion: where it falls fastest.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float


def find_rate(
    model: torch.nn.Module,
    train: Samples,
    *,
    freeze: Patterns = (),
    strategy: StrategyLike = None,
    task: TaskLike = None,
    loss: LossLike = None,
    device: str | torch.device | None = None,
    **numbers: Unpack[Numbers],
) -> RateRange:
    """Return how the loss goes while the learning rate rises from 1e-6 to 10 in a hundred steps.

    Args:
        model: left as it is.
        train: as `finetune`.
        freeze: as `finetune`.
        strategy: as `finetune`; its first phase is tried.
        task: as `finetune`.
        loss: as `finetune`.
        device: where; None stays where the model is.
        **numbers: as `finetune`; schedule and what belongs to whole epochs have no meaning here.

    Raises:
        TrainingError: samples do not fit, or the loss falls at no rate.
        UsageError: an argument is out of range.
    """
    settings, what = Settings(epochs=1, lr=_LOW, **numbers), objective(task, loss)
    place = torch.device(device) if device is not None else next(model.parameters()).device
    trial = _copy(model).to(place)
    samples = gathered(train, "train", settings, place, dtype=own_dtype(model))
    with (
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        randomness.own(settings.seed, place),
    ):
        first = next(samples.in_order()).inputs
        plan = strategies.resolve(strategy, trial, first, freeze=freeze, epochs=1)
        held = freezes.before(trial)
        parameters = freezes.ever_trained(trial, plan, held)
        freezes.apply(trial, plan.phases[0], held)
        work = stage(trial, samples, None)
        chosen = what.made(weighings(what, settings, samples), auxiliary=True)
        steps = _steps(trial, work, [*parameters.values()], settings, chosen)
        lrs, losses = zip(*steps, strict=True)
    return RateRange(lrs, losses, _steepest(lrs, losses))


def _copy(model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of a model.

    Raises:
        UsageError: it cannot be copied, as after a call with torch's old weight_norm.
    """
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as fault:
        remedy = "use torch.nn.utils.parametrizations, or give a model that was not run yet"
        raise error(Code.USAGE, "model", f"cannot be copied: {fault}", remedy) from fault


def _steps(
    trial: torch.nn.Module,
    work: Stage,
    parameters: list[torch.nn.Parameter],
    settings: Settings,
    loss: Loss,
) -> Iterator[tuple[float, float]]:
    """Yield each learning rate and the running mean of the loss at it, until it diverges."""
    optimizer = optimizers.make(
        settings.optimizer,
        [{"params": parameters}],
        lr=_LOW,
        decay=settings.weight_decay,
        options=settings.optimizer_options,
    )
    precision = Precision(settings.precision, parameters[0].device)
    trial.train()
    mean, lowest = 0.0, math.inf
    for number, batch in enumerate(itertools.islice(_endless(work), _STEPS)):
        rate = _LOW * (_HIGH / _LOW) ** (number / (_STEPS - 1))
        for group in optimizer.param_groups:
            group["lr"] = rate
        try:
            with precision.computing():
                _, value, _ = apply_batch(work.module, batch, loss, f"learning rate {rate:.1e}")
        except PersistlibError as fault:
            if number and fault.code == Code.LOSS_NOT_FINITE.identifier:
                return
            raise
        optimizer.zero_grad()
        torch.autograd.backward(precision.scaled(value))
        precision.step(optimizer, parameters, settings.clip)
        mean = _MEMORY * mean + (1 - _MEMORY) * value.item()
        smooth = mean / (1 - _MEMORY ** (number + 1))
        yield rate, smooth
        lowest = min(lowest, smooth)
        if smooth > _DIVERGED * lowest:
            return


def _endless(work: Stage) -> Iterator[Batch]:
    for epoch in itertools.count(1):
        yield from work.train.shuffled(epoch)


def _steepest(lrs: tuple[float, ...], losses: tuple[float, ...]) -> float:
    """Return the rate at which the loss falls fastest, over the logarithm of the rate."""
    bottom = losses.index(min(losses))
    falls = {
        lrs[index]: losses[index + _REACH] - losses[index - _REACH]
        for index in range(_REACH, bottom - _REACH + 1)
    }
    if not falls or losses[_REACH] - losses[bottom] < _FALL * abs(losses[_REACH]):
        reason = "the loss falls at no learning rate"
        raise error(Code.LOSS_NOT_FINITE, "learning rate", reason, "look at the data and the loss")
    return min(falls, key=falls.__getitem__)
