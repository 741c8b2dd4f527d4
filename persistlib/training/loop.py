"""The training loop: the smallest that is right.

Laws: frozen tensors and the buffers of frozen modules are bit-equal afterwards; the same model,
samples and seed give the same weights bit for bit on one machine's CPU; the caller's random
state and gradient mode are untouched.

Plain torch on one device: `accelerate` would add seconds of import, and nothing that this uses.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from persistlib.architecture import freezing
from persistlib.errors import Code, error
from persistlib.manifest import schema
from persistlib.patterns import select
from persistlib.training.batches import Batches, Samples, first_samples
from persistlib.training.events import BatchDone, EpochDone, Progress
from persistlib.training.features import Stage, stage
from persistlib.training.scoring import (
    Loss,
    Metric,
    Tally,
    apply_batch,
    cross_entropy,
    evaluate,
)
from persistlib.training.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from persistlib.architecture.freezing import Frozen
    from persistlib.patterns import Patterns

_EXAMPLES = 2


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """What fine-tuning made.

    Attributes:
        model: the very model that was given, trained and in evaluation mode.
        history: a row an epoch: epoch, train_loss, train_accuracy, valid_loss, valid_accuracy.
        metrics: of the kept weights on the held-out samples; empty when there are none.
        training: what the manifest says of the run.
        interface: what is known of inputs and outputs.
        example_inputs: two held-out (else training) samples, as the model takes them.
        frozen: what `freeze` froze.
    """

    model: torch.nn.Module
    history: tuple[dict[str, float], ...]
    metrics: dict[str, float]
    training: schema.Training
    interface: schema.Interface
    example_inputs: Any
    frozen: Frozen


def finetune(
    model: torch.nn.Module,
    train: Samples,
    valid: Samples | None = None,
    *,
    freeze: Patterns = (),
    epochs: int,
    lr: float,
    seed: int = 0,
    keep: str = "best",
    batch_size: int = 32,
    optimizer: str = "adamw",
    weight_decay: float = 0.01,
    schedule: str = "cosine",
    label_smoothing: float = 0.1,
    loss: Loss | None = None,
    metrics: Mapping[str, Metric] | None = None,
    device: str | torch.device | None = None,
    interface: schema.Interface | None = None,
    data: schema.Data | None = None,
    progress: Progress | None = None,
    cache: bool = True,
) -> FinetuneResult:
    """Train a model in place on labelled samples; return it with all that is to be recorded.

    Args:
        model: trained in place; ends in evaluation mode.
        train: (inputs, labels) as arrays or tensors, a map-style data set of such pairs, or a
            DataLoader or other lasting iterable of batches.
        valid: held-out samples in the same forms.
        freeze: globs over dotted names; `["*", "!fc.*"]` trains `fc` alone. What is frozen stays
            bit for bit, BatchNorm statistics included; so do the statistics of a module whose
            parameters the caller froze by hand.
        epochs: as in `Settings`, and likewise the arguments up to `label_smoothing`.
        lr: learning rate at the start.
        seed: of order and dropout.
        keep: "best" (on the held-out samples) or "last".
        batch_size: at most; batches that the caller made stay as they are.
        optimizer: "adamw" or "sgd".
        weight_decay: of the parameters that train.
        schedule: "cosine" or "constant".
        label_smoothing: of the default loss.
        loss: called with outputs and targets; cross-entropy when None.
        metrics: called with all held-out outputs and targets after each epoch.
        device: where to train; None stays where the model is.
        interface: handed on to the result.
        data: what the manifest says of the data.
        progress: called after each batch and each epoch.
        cache: run the frozen front of the model once a sample where that is the same (`features`).

    Raises:
        UsageError: an argument is out of range.
        TrainingError: a pattern matches nothing, nothing is left to train, samples do not fit the
            model, or the loss is not finite. The model then holds what the last step left.
    """
    settings = Settings(
        epochs=epochs,
        lr=lr,
        seed=seed,
        keep=keep,
        batch_size=batch_size,
        optimizer=optimizer,
        weight_decay=weight_decay,
        schedule=schedule,
        label_smoothing=label_smoothing,
    )
    _require_trainable(model, freeze)
    place = torch.device(device) if device is not None else next(model.parameters()).device
    samples = Batches(train, "train", batch_size, place)
    held_out = None if valid is None else Batches(valid, "valid", batch_size, place)
    with torch.inference_mode(mode=False), torch.enable_grad():
        with _own_randomness(seed, place):
            model.to(place)
            first = next((held_out or samples).in_order())
            frozen = _freeze(model, freeze)
            whole = Stage("", model, samples, held_out)
            work = stage(model, samples, held_out) if cache else whole
        run = _Run(model, settings, loss, metrics or {}, progress or _silent)
        # Begun anew: what was drawn to prepare must not show in the weights.
        with _own_randomness(seed, place):
            kept = run.train(work)
    model.eval()
    return FinetuneResult(
        model=model,
        history=tuple(run.history),
        metrics=kept.metrics,
        training=_record(run, kept, freeze, data),
        interface=interface or schema.Interface(),
        example_inputs=first_samples(first.inputs, _EXAMPLES),
        frozen=frozen,
    )


@dataclass(frozen=True, slots=True)
class _Kept:
    """The weights of an epoch, and how they did."""

    epoch: int
    metrics: dict[str, float]
    tensors: tuple[torch.Tensor, ...] = ()

    def rank(self) -> tuple[float, float]:
        """Return what the best epoch has most of: accuracy, and of equals the lower loss."""
        return self.metrics.get("accuracy", 0.0), -self.metrics["loss"]


class _Run:
    """One training run of a model whose frozen parts are frozen already."""

    def __init__(
        self,
        model: torch.nn.Module,
        settings: Settings,
        loss: Loss | None,
        metrics: Mapping[str, Metric],
        progress: Progress,
    ) -> None:
        self.model = model
        self.settings = settings
        self.history: list[dict[str, float]] = []
        self.default_loss = loss is None
        self.trained = [item for item in model.parameters() if item.requires_grad]
        self._loss = loss or cross_entropy(settings.label_smoothing)
        self._score = loss or cross_entropy(0.0)
        self._metrics = metrics
        self._progress = progress
        self._optimizer = settings.optimizer_for(self.trained)

    def train(self, work: Stage) -> _Kept:
        """Train for all epochs and leave the weights that are to be kept in the model."""
        self.stage = work
        best: _Kept | None = None
        now = _Kept(0, {})
        for epoch in range(1, self.settings.epochs + 1):
            started = time.monotonic()
            row = self._epoch(epoch)
            now = _Kept(epoch, {})
            if work.valid is not None:
                where = f"held-out samples, epoch {epoch}"
                scores = evaluate(work.module, work.valid, self._score, self._metrics, where)
                row |= {f"valid_{name}": value for name, value in scores.items()}
                now = _Kept(epoch, scores)
                if self.settings.keep == "best" and (best is None or now.rank() > best.rank()):
                    best = _Kept(epoch, scores, tuple(item.clone() for item in self._moving()))
            self.history.append(row)
            seconds = time.monotonic() - started
            self._progress(EpochDone(epoch, self.settings.epochs, row, seconds))
        if best is None:
            return now
        with torch.no_grad():
            for item, value in zip(self._moving(), best.tensors, strict=True):
                item.copy_(value)
        return best

    def _moving(self) -> list[torch.Tensor]:
        """Return all that training may change."""
        return [*(item.detach() for item in self.trained), *self.model.buffers()]

    def _epoch(self, epoch: int) -> dict[str, float]:
        """Train on every batch once and return the row of the history."""
        model, samples = self.stage.module, self.stage.train
        self.model.train()
        tally = Tally()
        batches = samples.shuffled(self.settings.seed, epoch)
        for number, batch in enumerate(batches, 1):
            part = (number - 1) / samples.count if samples.count else 0.0
            for group in self._optimizer.param_groups:
                group["lr"] = self.settings.lr_at((epoch - 1 + part) / self.settings.epochs)
            where = f"epoch {epoch}, batch {number}"
            outputs, value = apply_batch(model, batch, self._loss, where)
            self._optimizer.zero_grad()
            torch.autograd.backward(value)
            self._optimizer.step()
            tally.add(value.item(), outputs, batch.targets)
            event = BatchDone(epoch, self.settings.epochs, number, samples.count, value.item())
            self._progress(event)
        if not all(bool(item.isfinite().all()) for item in self.trained):
            raise error(
                Code.LOSS_NOT_FINITE,
                f"epoch {epoch}",
                "a parameter is no longer finite",
                "lower lr",
            )
        means = tally.result()
        return {"epoch": epoch} | {f"train_{name}": value for name, value in means.items()}


def _require_trainable(model: Any, patterns: Patterns) -> None:
    """Check, before anything changes, that something will train."""
    if not isinstance(model, torch.nn.Module):
        raise error(Code.USAGE, "model", f"{type(model).__name__} is no torch.nn.Module")
    named = dict(model.named_parameters(remove_duplicate=False))
    if absent := [name for name, item in named.items() if item.is_meta]:
        remedy = "load weights into the model first"
        raise error(Code.MODEL_META, absent[0], "has no values (meta device)", remedy)
    names = [*named, *(name for name, _ in model.named_buffers(remove_duplicate=False))]
    frozen = set(select(patterns, names))
    if not any(item.requires_grad and name not in frozen for name, item in named.items()):
        remedy = "take the last layer back, such as freeze=['*', '!fc.*']"
        raise error(Code.NOTHING_TO_TRAIN, "freeze", f"{len(named)} parameters frozen", remedy)


def _freeze(model: torch.nn.Module, patterns: Patterns) -> Frozen:
    """Freeze what the patterns select, and the statistics of what the caller froze by hand."""
    frozen = freezing.freeze(model, patterns)
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        held = next(module.buffers(recurse=False), None) is not None
        if own and held and not any(item.requires_grad for item in own):
            freezing.keep_in_eval(module)
    return frozen


def _record(
    run: _Run, kept: _Kept, patterns: Patterns, data: schema.Data | None
) -> schema.Training:
    """Return what the manifest says of the run; nothing that differs between two equal runs."""
    count = sum(item.numel() for item in run.model.parameters())
    trained = sum(item.numel() for item in run.trained)
    return schema.Training(
        strategy={
            "freeze": [patterns] if isinstance(patterns, str) else [*patterns],
            "trained_parameters": trained,
            "frozen_parameters": count - trained,
            "kept_in_eval": len(freezing.kept_in_eval(run.model)),
            "loss": "cross_entropy" if run.default_loss else "custom",
            "keep": run.settings.keep,
            "kept_epoch": kept.epoch,
            "cached_before": run.stage.path or None,
        },
        seed=run.settings.seed,
        epochs=run.settings.epochs,
        optimizer=run.settings.optimizer_record(),
        data=data,
        metrics=kept.metrics,
        history=tuple(dict(row) for row in run.history),
    )


@contextlib.contextmanager
def _own_randomness(seed: int, place: torch.device) -> Generator[None, None, None]:
    """Seed torch for the run and give the caller's random states back afterwards."""
    if place.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
        return
    devices = range(torch.get_device_module(place).device_count())
    with torch.random.fork_rng(devices=devices, device_type=place.type):
        torch.manual_seed(seed)
        yield


def _silent(event: BatchDone | EpochDone) -> None:
    """Show nothing."""
