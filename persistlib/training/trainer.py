"""A run at work: batch after batch, and what has to be known to go on from any step.

Law: a trainer that is given what `snapshots.take` gave goes on to the weights and the history, bit
for bit, that the one that was asked would have come to on the same device.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from persistlib.architecture.freezing import Frozen
from persistlib.errors import Code, PersistlibError, error
from persistlib.training import (
    freezes,
    generators,
    nests,
    optimizers,
    randomness,
    remembered,
    snapshots,
)
from persistlib.training.events import BatchDone, EpochDone
from persistlib.training.features import Stage, stage
from persistlib.training.finite import is_finite
from persistlib.training.job import Kept, valid_metrics
from persistlib.training.memory import naming_memory
from persistlib.training.precision import Precision
from persistlib.training.schedules import Length, Scheduler
from persistlib.training.scoring import apply_batch, evaluate
from persistlib.training.settings import ALL, LAST
from persistlib.training.sharing import sum_gradients, together
from persistlib.training.tallies import Tally
from persistlib.versions import rank

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from persistlib.training.batch import Batch
    from persistlib.training.events import Progress
    from persistlib.training.interruption import Interruption
    from persistlib.training.job import Job
    from persistlib.training.run_folder import RunFolder
    from persistlib.training.strategies import Phase


def _keep_none(kept: Kept) -> None:
    """Keep no version."""


class StoppedError(Exception):
    """The process was asked to stop, and a checkpoint stands."""


class Trainer:
    """A run at work.

    Attributes:
        job: what is to be done.
        parameters: all that trains in some phase, by name.
        optimizer: theirs.
        scheduler: torch's, where one says the learning rate.
        precision: what the model computes in.
        history: a row an epoch.
        done: epochs that are done.
        batch: batches of the next epoch that are done.
        steps: of the optimizer.
        tally: of the next epoch so far.
        best: the best weights so far, where they are kept.
        entry: the random state in which the caller's own batches of this epoch were begun.
        began: what the model remembered outside its weights when the run began.
        stage_path: the part that is run in each epoch, where that is known.
        stage: what is trained on what; made by `train`.
        keep_version: called at the end of each epoch, where all are kept, before its checkpoint.
        frozen: what the phase at hand froze.
        frozen_digests: of what never trains, where there is a folder.
    """

    def __init__(
        self, job: Job, folder: RunFolder | None, progress: Progress, asked: Interruption
    ) -> None:
        self.job = job
        self.history: list[dict[str, float]] = []
        self.done = self.batch = self.steps = 0
        self.tally = Tally(job.heads)
        self.best: Kept | None = None
        self.entry: randomness.RandomState | None = None
        self.stage_path: str | None = None
        self.stage = Stage("", job.model, job.train, job.valid)
        self.keep_version: Callable[[Kept], None] = _keep_none
        self.parameters = freezes.ever_trained(job.model, job.strategy, job.held)
        self.optimizer = self._optimizer()
        self.scheduler = self._scheduler()
        self.precision = Precision(job.settings.precision, job.device)
        self._folder = folder
        self._progress = progress
        self._asked = asked
        self.frozen = Frozen((), (), ())
        self.began = remembered.take(job.model)
        self._phase: Phase | None = None
        self._window = 0  # samples whose gradients wait for a step
        self._where = ""
        self._keeps = bool(job.group.from_first(folder is not None, "the run folder"))
        self.frozen_digests = snapshots.frozen_digests(job.model, self.parameters) if folder else {}

    def train(self) -> Kept:
        """Train for all epochs that are left and leave the weights that are to be kept.

        Raises:
            TrainingError: model, loss and samples do not fit, or the loss is not finite.
            PersistlibError: memory ran out.
            StoppedError: a signal asked for it, and a checkpoint of what was trained stands.
        """
        settings = self.job.settings
        try:
            with naming_memory(settings, lambda: self._where):
                while self.done < settings.epochs and not self.stopped_early:
                    self._train_epoch(self.done + 1)
        except PersistlibError as fault:
            raise self._told(fault) from fault
        return self._leave()

    @property
    def stopped_early(self) -> bool:
        """Whether no epoch of the last ones was better than the best before."""
        patience = self.job.settings.patience
        if patience is None or not self.history:
            return False
        ranks = [rank(valid_metrics(row)) for row in self.history]
        return len(ranks) - 1 - ranks.index(max(ranks)) >= patience

    def moving(self) -> dict[str, torch.Tensor]:
        """Return all that training may change, by name."""
        buffers = dict(self.job.model.named_buffers())
        return {name: item.detach() for name, item in (*self.parameters.items(), *buffers.items())}

    def _optimizer(self) -> torch.optim.Optimizer:
        settings, rates = self.job.settings, self.job.strategy.rates
        by_scale: dict[float, list[torch.nn.Parameter]] = {}
        for name, item in self.parameters.items():
            by_scale.setdefault(rates.get(name, 1.0), []).append(item)
        groups: list[dict[str, Any]] = [
            {"params": some, "lr": settings.lr * scale, "scale": scale}
            for scale, some in sorted(by_scale.items())
        ]
        return optimizers.make(
            settings.optimizer,
            groups,
            lr=settings.lr,
            decay=settings.weight_decay,
            options=settings.optimizer_options,
        )

    def _scheduler(self) -> Scheduler | None:
        settings, batches = self.job.settings, self.job.train.count
        if settings.lr_at(0.0) is not None:
            return None
        steps = None if batches is None else settings.epochs * -(-batches // settings.accumulate)
        rates = [group["lr"] for group in self.optimizer.param_groups]
        length = Length(settings.epochs, steps, rates)
        return Scheduler(settings.schedule, self.optimizer, length, settings.schedule_options)

    def _train_epoch(self, epoch: int) -> None:
        self._prepare(epoch)
        started = time.monotonic()
        self.job.model.train()
        for number, batch in enumerate(self._batches(epoch), self.batch + 1):
            self._train_batch(epoch, number, batch)
        if self._window:
            self._step()
        row: dict[str, float] = {"epoch": epoch}
        row |= {f"train_{name}": value for name, value in self.tally.result().items()}
        row |= {f"valid_{name}": value for name, value in self._judge(epoch).items()}
        self._end_epoch(row)
        self._progress(EpochDone(epoch, self.job.settings.epochs, row, time.monotonic() - started))

    def _prepare(self, epoch: int) -> None:
        """Freeze what the epoch's phase says, and find what need be run; nothing else changes."""
        phase = self.job.strategy.phase(epoch)
        if phase == self._phase:
            return
        if self._phase is not None:
            self.stage_path = None
        self._phase, job = phase, self.job
        self.frozen = freezes.apply(job.model, phase, job.held)
        self.optimizer.zero_grad()
        self.stage = Stage("", job.model, job.train, job.valid)
        if job.cache:
            self._where = f"epoch {epoch}, before its first batch"
            state, memory = randomness.capture(job.device), remembered.take(job.model)
            keeping = job.keeping._replace(between=self._stop_if_asked)
            with self.precision.computing():
                self.stage = stage(
                    job.model, job.train, job.valid, known=self.stage_path, keeping=keeping
                )
            randomness.restore(state, job.device)
            remembered.put(job.model, memory)
            if self.stage.kept:
                self._progress(self.stage.told())
        self.stage_path = self.stage.path

    def _stop_if_asked(self) -> None:
        """Leave where nothing is lost by it: the last checkpoint stands, or none is needed."""
        if self._keeps and self._is_asked():
            raise StoppedError

    def _is_asked(self) -> bool:
        """Return whether some process was asked to stop: then all are."""
        return self.job.group.is_any(self._asked.signal is not None, self._where)

    def _batches(self, epoch: int) -> Iterator[Batch]:
        """Return the batches of an epoch that are left.

        The caller's own are made again from the epoch's beginning: where they came from, nobody
        knows, so the random state of that moment is gone back to, and the present one follows.
        """
        samples, device = self.stage.train, self.job.device
        if samples.size is not None:
            return samples.shuffled(epoch, self.batch)
        own = samples.generators
        if not self.batch or self.entry is None:
            state = randomness.capture(device)
            drawn = {**state.tensors, **generators.states("own", own)}
            self.entry = randomness.RandomState(drawn, state.numbers)
            return samples.shuffled(epoch)
        now = randomness.capture(device)
        randomness.restore(self.entry, device)
        generators.put_all("own", own, self.entry.tensors)
        return samples.shuffled(epoch, self.batch, lambda: randomness.restore(now, device))

    def _train_batch(self, epoch: int, number: int, batch: Batch) -> None:
        settings, count = self.job.settings, self.stage.train.count
        self._where = f"epoch {epoch}, batch {number}"
        if not self._window:
            self._set_rates((epoch - 1 + ((number - 1) / count if count else 0)) / settings.epochs)
            self.optimizer.zero_grad()
        group, job = self.job.group, self.job
        with together(group, batch, settings.seed, (epoch, number)):
            with self.precision.computing():
                module, own = self.stage.module, job.is_own_loss
                whole, value, mean = apply_batch(
                    module, batch, job.loss, self._where, group, is_own=own
                )
            size = nests.count(whole.batch.targets)
            share = value * (size / settings.batch_size) if settings.accumulate > 1 else value
            whole.backward(self.precision.scaled(share))
        self._window += size
        self.tally.add(mean, whole.outputs, whole.batch)
        self.batch = number
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        is_step = number % settings.accumulate == 0
        if is_step:
            self._step()
        self._progress(BatchDone(epoch, settings.epochs, number, count, mean, size, rate))
        if is_step and number != count:
            self._pause()

    def _set_rates(self, progress: float) -> None:
        rate = self.job.settings.lr_at(progress)
        if rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["scale"]

    def _step(self) -> None:
        """Let the optimizer step on the mean over all samples since the step before."""
        settings, parameters = self.job.settings, self.parameters.values()
        if settings.accumulate > 1:
            share = settings.batch_size / self._window
            for item in parameters:
                if item.grad is not None:
                    item.grad.mul_(share)
        sum_gradients(self.job.group, parameters)
        with optimizers.stepping(settings.optimizer, self._where):
            self.precision.step(self.optimizer, parameters, settings.clip)
        self._window = 0
        self.steps += 1
        if self.scheduler is not None:
            self.scheduler.after_step()

    def _pause(self) -> None:
        """Write a checkpoint between two steps where it is time, or where somebody waits."""
        every = self.job.settings.checkpoint_every
        if self._keeps and ((every and self.steps % every == 0) or self._is_asked()):
            self._checkpoint()

    def _judge(self, epoch: int) -> dict[str, float]:
        """Return how the model does on the held-out samples, empty without."""
        self._require_finite(f"epoch {epoch}")
        self._require_alike(epoch)
        if self.stage.valid is None:
            return {}
        self._where = f"held-out samples, epoch {epoch}"
        module, job = self.stage.module, self.job
        with self.precision.computing():
            return evaluate(module, self.stage.valid, job, self._where)

    def _require_alike(self, epoch: int) -> None:
        """Raise where the processes' models are no longer the same, bit for bit.

        Raises:
            UsageError: they are not.
        """
        if not self.job.group.is_alone:
            remedy = "freeze what counts batches in its own way, or train in one process"
            self.job.group.require_same(snapshots.digests(self.moving()), remedy)
        self._where = f"epoch {epoch}"

    def _end_epoch(self, row: dict[str, float]) -> None:
        """Keep the epoch's row, and its weights where they are the best."""
        scores = valid_metrics(row)
        self.history.append(row)
        self.done, self.batch, self.entry = self.done + 1, 0, None
        self.tally = Tally(self.job.heads)
        if self.scheduler is not None:
            self.scheduler.after_epoch(scores.get("loss", row["train_loss"]))
        is_kept = bool(scores) and self.job.settings.keep != LAST
        if is_kept and (self.best is None or rank(scores) > rank(self.best.metrics)):
            tensors = {name: item.clone() for name, item in self.moving().items()}
            self.best = Kept(self.done, scores, tensors, remembered.take(self.job.model))
            if self._folder:
                self._folder.write_best(self.done, snapshots.weights(self.best, self.began))
        if self.job.settings.keep == ALL:
            self.keep_version(Kept(self.done, scores, {}))
        if self._keeps:
            self._checkpoint()

    def _checkpoint(self) -> None:
        self._require_finite(self._where)
        if self._folder:
            self._folder.write(self.done, self.batch, snapshots.take(self))
        self._stop_if_asked()

    @torch.no_grad()
    def _require_finite(self, where: str) -> None:
        """Raise where the weights are no longer numbers.

        Raises:
            TrainingError: they are not.
        """
        if not all(map(is_finite, self.parameters.values())):
            reason = "a parameter is no longer finite"
            raise error(Code.LOSS_NOT_FINITE, where, reason, "lower lr")

    def _told(self, fault: PersistlibError) -> PersistlibError:
        """Return the fault, of a loss that is not finite with the last good checkpoint named."""
        newest = self._folder.newest() if self._folder else None
        if fault.code != Code.LOSS_NOT_FINITE.identifier or newest is None:
            return fault
        reason = f"{fault.reason}; the last good checkpoint is {newest}"
        return error(Code.LOSS_NOT_FINITE, fault.location, reason, f"{fault.remedy}, and resume")

    @torch.no_grad()
    def _leave(self) -> Kept:
        """Leave the weights that are to be kept in the model."""
        if self._phase is None:
            phase = self.job.strategy.phase(max(self.done, 1))
            self.frozen = freezes.apply(self.job.model, phase, self.job.held)
        if self.best is None:
            return Kept(self.done, valid_metrics(self.history[-1]), {})
        moving = self.moving()
        for name, value in self.best.tensors.items():
            moving[name].copy_(value)
        remembered.put(self.job.model, self.best.memory)
        return self.best
