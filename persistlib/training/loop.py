"""Fine-tuning: what is asked for, checked and made ready, then trained and recorded.

Laws: frozen tensors and the buffers of frozen modules are bit-equal afterwards; the same model,
samples and seed give the same weights bit for bit on one machine's CPU; a run that was killed at
any moment and goes on gives them too; the caller's random state and gradient mode are untouched.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.parameter import is_lazy

from persistlib.architecture import freezing
from persistlib.divided import has_parts
from persistlib.errors import Code, error
from persistlib.manifest import schema
from persistlib.processes import ALONE, joined, own_device
from persistlib.training import agreement, freezes, randomness, resuming, run_folder, strategies
from persistlib.training.batches import Batches, Samples, first_samples
from persistlib.training.events import WentOn
from persistlib.training.features import Keeping
from persistlib.training.fitting import examine
from persistlib.training.gathering import gathered
from persistlib.training.interruption import Interruption, deferred
from persistlib.training.job import Job
from persistlib.training.losses import objective
from persistlib.training.memory import naming_memory
from persistlib.training.own_dtypes import own_dtype
from persistlib.training.precision import Precision
from persistlib.training.settings import ALL, Numbers, Settings, require_known
from persistlib.training.trainer import StoppedError, Trainer
from persistlib.training.watching import Watch, together
from persistlib.training.weighing import weighings

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Generator, Mapping
    from contextlib import AbstractContextManager

    from typing_extensions import Unpack

    from persistlib.architecture.freezing import Frozen
    from persistlib.files import StrPath
    from persistlib.patterns import Patterns
    from persistlib.processes import Group
    from persistlib.training.events import Event, Progress
    from persistlib.training.job import Kept
    from persistlib.training.losses import LossLike, Objective
    from persistlib.training.run_folder import RunFolder
    from persistlib.training.scoring import Metric
    from persistlib.training.strategies import StrategyLike
    from persistlib.training.tasks import TaskLike

EXAMPLES = 2
# What is asked for besides the settings.
_OWN = (
    *("freeze", "strategy", "folder", "task", "loss", "metrics", "device", "interface"),
    *("data", "progress", "cache", "alone"),
)


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
        frozen: what is frozen at the end, besides what the caller had frozen.
        resumed: the checkpoint that the run went on from.
    """

    model: torch.nn.Module
    history: tuple[dict[str, float], ...]
    metrics: dict[str, float]
    training: schema.Training
    interface: schema.Interface
    example_inputs: Any
    frozen: Frozen
    resumed: str | None = None

    def __repr__(self) -> str:
        figures = (f"{name}={value:.4g}" for name, value in self.metrics.items())
        parts = (type(self.model).__name__, f"{len(self.history)} epochs", *figures)
        return f"FinetuneResult({', '.join(parts)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """Where a run leaves what it needs to go on.

    Attributes:
        path: None for nowhere.
        resume: whether a run that stands there is gone on with.
        overwrite: whether it is removed otherwise.
        command: what whoever started the run wants to know when it goes on.
        write_version: saves the model at the end of an epoch, where all are kept; called with the
            model, where to, what its manifest says of the run, and inputs that it takes.
    """

    path: StrPath | None = None
    resume: bool = False
    overwrite: bool = False
    command: Mapping[str, Any] | None = None
    write_version: Callable[[torch.nn.Module, str, schema.Training, Any], None] | None = None

    def keeping(self, cache: bool | StrPath) -> Keeping:
        """Return where features may lie: in a folder that was named, or in the run's."""
        if not isinstance(cache, bool):
            return Keeping(os.fspath(cache), always=True)
        return Keeping(None if self.path is None else run_folder.features(self.path))

    @contextlib.contextmanager
    def opened(self, group: Group) -> Generator[tuple[RunFolder | None, Interruption]]:
        """Yield the folder and whether the process was asked to stop, which waits meanwhile.

        Of several processes the first has the folder, and all wait.
        """
        if self.path is None:
            yield None, Interruption()
            return
        if not group.is_first:
            with deferred() as asked:
                yield None, asked
            return
        how = {"resume": self.resume, "overwrite": self.overwrite}
        with run_folder.opened(self.path, **how) as folder, deferred() as asked:
            yield folder, asked

    def note(self, folder: RunFolder) -> None:
        """Write what the run is started with, once nothing refuses to begin or to go on."""
        if self.command is not None or not folder.is_noted:
            folder.note(self.command or {})


def finetune(
    model: torch.nn.Module,
    train: Samples,
    valid: Samples | None = None,
    *,
    freeze: Patterns = (),
    strategy: StrategyLike = None,
    epochs: int,
    lr: float,
    folder: Folder | None = None,
    task: TaskLike = None,
    loss: LossLike = None,
    metrics: Mapping[str, Metric] | None = None,
    device: str | torch.device | None = None,
    interface: schema.Interface | None = None,
    data: schema.Data | None = None,
    progress: Progress | None = None,
    cache: bool | StrPath = True,
    alone: bool = False,
    **numbers: Unpack[Numbers],
) -> FinetuneResult:
    """Train a model in place on labelled samples; return it with all that is to be recorded.

    Where several processes were launched and each calls this, they train as one (`processes`).

    Args:
        model: trained in place; ends in evaluation mode.
        train: (inputs, targets) as arrays, tensors or lists, or mappings of arrays by name; a
            map-style data set of such pairs; or a DataLoader or other lasting iterable of batches.
        valid: held-out samples in the same forms.
        freeze: globs over dotted names; `["*", "!fc.*"]` trains `fc` alone. What is frozen stays
            bit for bit, BatchNorm statistics included; so do the statistics of a module whose
            parameters the caller froze by hand.
        strategy: what trains when, and how fast (`strategies`); None is what `freeze` says.
        epochs: how often all training samples are gone through.
        lr: learning rate at the start.
        folder: where checkpoints, history and plots go, and whether a run there is gone on with.
        task: what outputs are for: classification, regression, multilabel or segmentation; or a
            mapping of heads to these (`tasks`). None is what the loss is for, classification
            without one.
        loss: a name (`losses.LOSSES`) or one of torch's, called with outputs and targets; or any
            callable of the outputs, whole, and the `Batch`. None is the task's own.
        metrics: called with all held-out outputs and targets after each epoch.
        device: where to train; None stays where the model is.
        interface: handed on to the result.
        data: what the manifest says of the data.
        progress: called after each batch and each epoch.
        cache: run the frozen front of the model once a sample where that is the same (`features`);
            or a folder in which what it gives is kept, and found again by another run. Without one,
            what is too large for memory lies in the run's folder meanwhile.
        alone: whether each of several processes trains for itself.
        **numbers: as in `Settings`.

    Raises:
        UsageError: an argument is out of range.
        TrainingError: a pattern matches nothing, nothing is left to train, samples do not fit the
            model, or the loss is not finite. The model then holds what the last step left. Or a
            run cannot be gone on with.
        PersistlibError: another process failed or is gone.
        TargetError: the folder cannot be used.
        KeyboardInterrupt: the process was asked to stop; with a folder a checkpoint was written.
    """
    require_known(numbers, _OWN)
    settings, what = Settings(epochs=epochs, lr=lr, **numbers), objective(task, loss)
    where = folder or Folder()
    _require_values(model, settings, valid, metrics or ())
    _require_folder(settings, where)
    record = partial(_record, patterns=freeze, data=data, what=what)
    with _processes(alone=alone) as group, torch.inference_mode(mode=False), torch.enable_grad():
        place = _place(model, device, group)
        ready = partial(
            gathered, settings=settings, place=place, group=group, dtype=own_dtype(model)
        )
        samples = ready(train, "train")
        held_out = None if valid is None else ready(valid, "valid")
        with randomness.own(settings.seed, place), naming_memory(settings, _before):
            model.to(place)
            data_sets = {"train": samples, "valid": held_out}
            first, plan = _strategy(model, samples, held_out, strategy, freeze, settings)
            known: dict[str, Any] = {}
            if where.path or not group.is_alone:
                known = _plan(model, settings, plan, data_sets, what)
            agreement.reach(group, model, known)
            with Precision(settings.precision, place).computing():
                examine(model, [s for s in data_sets.values() if s is not None], what.heads)
            job = Job(
                model=model,
                settings=settings,
                strategy=plan,
                held=freezes.before(model),
                train=samples,
                valid=held_out,
                heads=what.heads,
                loss=what.made(weighings(what, settings, samples), auxiliary=True),
                score=what.made(),
                metrics=metrics or {},
                cache=cache is not False,
                keeping=where.keeping(cache),
                device=place,
                plan=known,
                group=group,
                is_own_loss=what.is_own,
            )
            told = _Told(interface or schema.Interface(), record, first_samples(first, EXAMPLES))
        # Begun anew: what was drawn to prepare must not show in the weights.
        with randomness.own(settings.seed, place):
            try:
                trainer, kept, resumed = _run(job, where, progress or _silent, told)
            except BaseException:
                # Or a second try would take the phase at hand for the caller's own wish.
                freezes.give_back(model, job.held)
                raise
    model.eval()
    return FinetuneResult(
        model=model,
        history=tuple(trainer.history),
        metrics=kept.metrics,
        training=record(trainer, kept),
        interface=told.interface,
        example_inputs=told.inputs,
        frozen=trainer.frozen,
        resumed=resumed,
    )


def _processes(*, alone: bool) -> AbstractContextManager[Group]:
    """Return the context of the processes that train together."""
    return contextlib.nullcontext(ALONE) if alone else joined()


def _place(model: torch.nn.Module, device: str | torch.device | None, group: Group) -> torch.device:
    """Return where this process trains."""
    given = torch.device(device) if device is not None else next(model.parameters()).device
    return own_device(given, group)


class _Told(NamedTuple):
    """What a run says of itself: to the watchers, in a version, and in the end."""

    interface: schema.Interface
    record: Callable[[Trainer, Kept], schema.Training]
    inputs: Any

    def write_version(self, where: Folder, folder: RunFolder, trainer: Trainer, kept: Kept) -> None:
        """Write the model at the end of an epoch."""
        assert where.write_version is not None
        path, training = folder.version(kept.epoch), self.record(trainer, kept)
        where.write_version(trainer.job.model, path, training, self.inputs)


def _run(
    job: Job, where: Folder, progress: Progress, told: _Told
) -> tuple[Trainer, Kept, str | None]:
    """Train, from a checkpoint where there is one; return what was kept, and that checkpoint."""
    resumed: str | None = None
    if not job.group.is_first:
        progress = _silent
    with where.opened(job.group) as (folder, asked):
        watch = Watch(folder.path, tuple(told.interface.labels or ())) if folder else None
        trainer = Trainer(job, folder, together(progress, watch), asked)
        if folder:
            trainer.keep_version = partial(told.write_version, where, folder, trainer)
        if where.path and where.resume:
            resumed = resuming.resume(trainer, folder)
        if folder:
            where.note(folder)
        if resumed is not None:
            size = job.train.count
            progress(WentOn(trainer.done, job.settings.epochs, trainer.batch, size, resumed))
        watching = watch.watching(trainer) if watch else contextlib.nullcontext()
        with watching, contextlib.suppress(StoppedError):
            kept = trainer.train()
            if watch:
                watch.judge(trainer)
            if folder:
                folder.drop_features()
            return trainer, kept, resumed
    # Where the signal's own handler ended nothing.
    raise KeyboardInterrupt


def require_model(model: Any) -> dict[str, torch.nn.Parameter]:
    """Return a model's parameters, which have values.

    Raises:
        UsageError: it is no module, or made in inference mode.
        ModelError: it is TorchScript, or a parameter is on the meta device.
    """
    if not isinstance(model, torch.nn.Module):
        raise error(Code.USAGE, "model", f"{type(model).__name__} is no torch.nn.Module")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        remedy = "fine-tune the module that was scripted or traced"
        raise error(Code.MODEL_WRAPPED, "model", "is TorchScript, which no part freezes in", remedy)
    named = dict(model.named_parameters(remove_duplicate=False))
    if fixed := [n for n, item in named.items() if not is_lazy(item) and item.is_inference()]:
        remedy = "build or load the model outside of it"
        raise error(Code.USAGE, fixed[0], "was made in inference mode: it cannot train", remedy)
    if absent := [name for name, item in named.items() if item.is_meta]:
        remedy = "load weights into the model first"
        raise error(Code.MODEL_META, absent[0], "has no values (meta device)", remedy)
    return named


def _require_values(
    model: Any, settings: Settings, valid: Samples | None, metrics: Container[str]
) -> None:
    """Check, before anything changes, that there is a model with values, and what needs what."""
    named = require_model(model)
    if not any(item.requires_grad for item in named.values()):
        remedy = "take the last layer back, such as freeze=['*', '!fc.*']"
        raise error(Code.NOTHING_TO_TRAIN, "freeze", f"{len(named)} parameters frozen", remedy)
    if has_parts(model):
        remedy = "give the plain model: its batches are shared among processes, its tensors are not"
        raise error(Code.USAGE, "model", "its tensors are divided among processes", remedy)
    if settings.patience is not None and valid is None:
        raise error(Code.USAGE, "patience", "needs held-out samples", "give valid=")
    if "loss" in metrics:
        raise error(Code.USAGE, "metrics.loss", "is what the held-out loss is called", "rename it")


def _require_folder(settings: Settings, where: Folder) -> None:
    """Refuse to keep all versions where nothing says in which folder, or how they are saved."""
    if settings.keep == ALL and (where.path is None or where.write_version is None):
        remedy = "give run=, the folder of the run"
        raise error(Code.USAGE, f"keep={ALL!r}", "nothing says where versions go", remedy)


def _strategy(  # noqa: PLR0917 - what a strategy depends on
    model: torch.nn.Module,
    samples: Batches,
    held_out: Batches | None,
    strategy: StrategyLike,
    freeze: Patterns,
    settings: Settings,
) -> tuple[Any, strategies.Strategy]:
    """Return inputs of a batch, and what trains when; nothing has changed."""
    first = next((held_out or samples).in_order()).inputs
    plan = strategies.resolve(strategy, model, first, freeze=freeze, epochs=settings.epochs)
    freezes.ever_trained(model, plan, freezes.before(model))
    return first, plan


def _plan(
    model: torch.nn.Module,
    settings: Settings,
    plan: strategies.Strategy,
    data: dict[str, Batches | None],
    what: Objective,
) -> dict[str, Any]:
    """Return what a run is known by when it goes on."""
    return {
        "settings": {**settings.to_dict(), "strategy": plan.to_dict()},
        "context": {
            **what.record(),
            "held_out": data["valid"] is not None,
            "frozen before": [n for n, item in model.named_parameters() if not item.requires_grad],
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "processes": data["train"].group.world if data["train"] else 1,
        },
        "data": {name: some.digest() for name, some in data.items() if some is not None},
    }


def _record(
    trainer: Trainer,
    kept: Kept,
    patterns: Patterns,
    data: schema.Data | None,
    what: Objective,
) -> schema.Training:
    """Return what the manifest says of the run; nothing that differs between two equal runs."""
    job, settings = trainer.job, trainer.job.settings
    count = sum(item.numel() for item in job.model.parameters())
    trained = sum(item.numel() for item in trainer.parameters.values())
    return schema.Training(
        strategy={
            **job.strategy.to_dict(),
            "freeze": [patterns] if isinstance(patterns, str) else [*patterns],
            "trained_parameters": trained,
            "frozen_parameters": count - trained,
            "kept_in_eval": len(freezing.kept_in_eval(job.model)),
            **what.record(),
            **({"augment": [*settings.steps]} if settings.augment else {}),
            "keep": settings.keep,
            "kept_epoch": kept.epoch,
            "stopped_early": trainer.stopped_early,
            "cached_before": trainer.stage_path or None,
        },
        seed=settings.seed,
        epochs=len(trainer.history),
        optimizer=settings.optimizer_record(smooths=what.smooths),
        data=data,
        metrics=kept.metrics,
        history=tuple(dict(row) for row in trainer.history),
    )


def _before() -> str:
    return "before the first epoch"


def _silent(event: Event) -> None:
    """Show nothing."""
