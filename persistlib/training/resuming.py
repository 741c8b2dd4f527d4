"""Going on from a checkpoint: everything by name, and what is not as it was is said.

Laws: with the same model, data and settings nothing is said, and the run goes on as if it had never
stopped; a tensor of a checkpoint goes only to the tensor of the same name, shape and dtype.

A model with another last layer, another freeze or other settings goes on too: what fits is taken
over, all else begins anew, and each such thing is a warning. Other data, and frozen weights that
are not those the run began with, are errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from persistlib.architecture.module_state import dtype_of, tensor_bytes
from persistlib.digests import digest
from persistlib.errors import Code, PersistlibError, Severity, error, error_of, finding, tell
from persistlib.training import generators, optimizers, plain, randomness, remembered
from persistlib.training.checkpoints import Snapshot
from persistlib.training.job import Kept
from persistlib.training.remembered import Memory
from persistlib.training.settings import LAST
from persistlib.training.tallies import Tally
from persistlib.wording import with_rest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from persistlib.errors import Finding
    from persistlib.processes import Group
    from persistlib.training.run_folder import RunFolder
    from persistlib.training.trainer import Trainer

_SHOWN = 5
_MOST = 1 << 53  # of epochs, batches and steps
_WIDE = 120  # characters of a setting in a message
# What well-formed bytes of strange content lead to.
_FAULTS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
# Settings on which the place within an epoch depends.
_PLACE = ("seed", "batch_size", "accumulate")
_OTHER_DATA = (
    "give the data as they were (--resume without --data takes those of the run),"
    " or begin a new run from the saved weights"
)
# What makes no difference to the weights.
_FREE = ("workers", "checkpoint_every")


def resume(trainer: Trainer, folder: RunFolder | None) -> str | None:
    """Bring a new trainer to the newest whole checkpoint; return its path, None without any.

    Args:
        trainer: a new one; of several processes each has one and calls this.
        folder: of the run; None in all processes but the first, which is the one that reads.

    Raises:
        TrainingError: no checkpoint is whole, the data are others, or the frozen weights are.
    """
    group = trainer.job.group
    chosen = _received(group, None if folder is None else _chosen(folder))
    if chosen is None:
        return None
    path, snapshot, best = chosen
    try:
        findings = _restore(trainer, snapshot, best)
        if group.is_first:
            tell(findings)
    except _FAULTS as fault:
        reason = f"cannot be gone on from: {type(fault).__name__} {fault}"
        raise error(Code.CHECKPOINT_DAMAGED, path, reason, "begin anew") from fault
    if folder is not None:
        folder.drop_after(path, trainer.best.epoch if trainer.best else 0)
    return path


_Chosen: TypeAlias = "tuple[str, Snapshot, Snapshot | None]"


def _chosen(folder: RunFolder) -> _Chosen | None:
    """Return the newest whole checkpoint; say which are damaged."""
    damaged: list[Finding] = []
    chosen = _newest_whole(folder, damaged)
    if chosen is None and damaged:
        reason = "no checkpoint is whole"
        remedy = "overwrite=True (--overwrite) begins anew"
        raise error(Code.CHECKPOINT_DAMAGED, folder.path, reason, remedy)
    tell(damaged)
    return chosen


def _received(group: Group, chosen: _Chosen | None) -> _Chosen | None:
    """Return in every process what the first one chose."""
    if group.is_alone:
        return chosen
    what = "the checkpoint"
    path, *parts = chosen or (None, None, None)
    facts = [None if part is None else plain.encode(dict(part.facts)) for part in parts]
    path, facts = group.from_first([path, facts], what)
    snapshot, best = (
        None if some is None else _snapshot(group, part, some)
        for part, some in zip(parts, facts, strict=True)
    )
    return None if snapshot is None else (path, snapshot, best)


def _snapshot(group: Group, own: Snapshot | None, facts: Any) -> Snapshot:
    """Return the first process' snapshot, which it has itself."""
    tensors = group.tensors_from_first(own.tensors if own else {}, "the checkpoint")
    return Snapshot(tensors, plain.decode(facts))


def _newest_whole(folder: RunFolder, damaged: list[Finding]) -> _Chosen | None:
    """Return the newest checkpoint of which all is whole, its best weights too.

    Where no best weights are, the newest whole one without them. What is wrong with others is
    added to `damaged`.
    """
    without: tuple[str, Snapshot, Snapshot | None] | None = None
    for path, found in folder.snapshots():
        if not isinstance(found, tuple):
            damaged.append(found)
            continue
        best = found.facts.get("best")
        try:
            return path, found, folder.best(int(best["epoch"])) if best else None
        except (PersistlibError, KeyError, TypeError, ValueError) as fault:
            why = fault.reason if isinstance(fault, PersistlibError) else f"{fault}"
            reason = f"its best weights: {why}; the one before is taken"
            warning = finding(Code.CHECKPOINT_DAMAGED, path, reason, severity=Severity.WARNING)
            damaged.append(warning)
            without = without or (path, found, None)
    return without


def _restore(trainer: Trainer, snapshot: Snapshot, best: Snapshot | None) -> list[Finding]:
    """Bring a trainer to a checkpoint; return what is not as it was."""
    facts = snapshot.facts
    _require_sense(trainer, facts)
    plan, now = facts["plan"], trainer.job.plan
    _require_same_data(plan["data"], now["data"])
    _require_same_frozen(trainer, facts["frozen"])
    changes = [*_changes(plan["settings"], now["settings"])]
    changes += _changes({"processes": 1, **plan["context"]}, now["context"])
    tensors = snapshot.below("model")
    taken = _take_over(trainer, tensors)
    changes += _tensor_changes(trainer, tensors, taken, facts["frozen"])
    changes += _put_optimizer(trainer, snapshot, taken)
    changes += _put_memory(trainer, snapshot)
    changes += _put_random(trainer, snapshot)
    trainer.history = [dict(row) for row in facts["history"]]
    trainer.done, trainer.steps = int(facts["epoch"]), int(facts["steps"])
    changes += _put_place(trainer, snapshot)
    changes += _put_best(trainer, facts["best"], best)
    # What has changed once is kept from here on, though it may become again what it is now.
    trainer.began = trainer.began.without(_memory(snapshot).numbers)
    # Of the phase that was at work; another one looks anew at what need be run.
    phase, done = trainer.job.strategy.phase, trainer.done
    is_same_phase = phase(done + 1 if facts["batch"] else max(done, 1)) == phase(done + 1)
    trainer.stage_path = facts["stage"] if is_same_phase and not changes else None
    return changes


def _require_sense(trainer: Trainer, facts: Mapping[str, Any]) -> None:
    """Raise ValueError where what is written cannot have been a moment of a run."""
    counts = [facts[name] for name in ("epoch", "batch", "steps")]
    if any(type(count) is not int or not 0 <= count < _MOST for count in counts):
        raise ValueError("a count that is none")
    rows = [dict(row) for row in facts["history"]]
    metrics = [*rows, dict(facts["best"]["metrics"] if facts["best"] else {})]
    if len(rows) != facts["epoch"] or any(row["train_loss"] is None for row in rows):
        raise ValueError("a history of another length")
    if any(type(value) not in {int, float} for some in metrics for value in some.values()):
        raise ValueError("a metric that is no number")
    if facts["stage"] is not None:
        trainer.job.model.get_submodule(facts["stage"])


def _require_same_data(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise where samples are known not to be those that the run began with."""
    faults = [
        finding(
            Code.DATA_CHANGED,
            name,
            f"their digest is {now[name]}, and was {known} when the run began",
            _OTHER_DATA,
        )
        for name, known in before.items()
        if known and now.get(name) and known != now[name]
    ]
    if faults:
        raise error_of(faults)


def _require_same_frozen(trainer: Trainer, frozen: Mapping[str, list[Any]]) -> None:
    """Raise where a tensor that had not trained is not what it was: the rest was made for it."""
    named = dict(trainer.job.model.named_parameters(remove_duplicate=False))
    faults: list[Finding] = []
    for name, (dtype, shape, known) in frozen.items():
        item = named.get(name)
        if item is None or [dtype_of(item).name, list(item.shape)] != [dtype, shape]:
            continue
        if digest(tensor_bytes(item)) != known:
            remedy = "begin from the weights that the run began from"
            faults.append(finding(Code.FROZEN_CHANGED, name, "differs from what it was", remedy))
    if faults:
        raise error_of(faults)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Finding]:
    for name in dict.fromkeys((*before, *now)):
        was, is_now = before.get(name), now.get(name)
        if was != is_now and name not in _FREE:
            yield _said(name, f"was {_shown(was)}, is now {_shown(is_now)}")


def _shown(value: Any) -> str:
    """Return a setting as text, a strategy by its phases."""
    if not isinstance(value, dict) or "phases" not in value:
        return f"{value}"
    phases = (
        f"from epoch {p['epoch']} on frozen {', '.join(p['freeze'])}" for p in value["phases"]
    )
    text = f"{value['kind']} ({'; '.join(phases)})"
    return text if len(text) <= _WIDE else f"{text[: _WIDE - 1]}…"


def _take_over(trainer: Trainer, tensors: Mapping[str, torch.Tensor]) -> set[str]:
    """Give the model the tensors that fit by name, shape and dtype; return their names."""
    places = _places(trainer)
    taken: set[str] = set()
    with torch.no_grad():
        for name, value in tensors.items():
            if name in places and _fits(places[name], value):
                places[name].copy_(value)
                taken.add(name)
    return taken


def _places(trainer: Trainer) -> dict[str, torch.Tensor]:
    model = trainer.job.model
    named: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return named | dict(model.named_buffers(remove_duplicate=False))


def _fits(place: torch.Tensor, value: torch.Tensor) -> bool:
    return (place.shape, place.dtype) == (value.shape, value.dtype)


def _tensor_changes(
    trainer: Trainer,
    tensors: Mapping[str, torch.Tensor],
    taken: set[str],
    frozen: Mapping[str, Any],
) -> Iterator[Finding]:
    """Yield what of the model the checkpoint has not, and the reverse."""
    places = _places(trainer)
    misfit = [n for n in tensors if n in places and n not in taken]
    gone = [n for n in tensors if n not in places]
    known = {id(places[name]) for name in (*taken, *frozen) if name in places}
    new = [n for n, item in places.items() if id(item) not in known and n not in misfit]
    if misfit:
        reason = "has another shape or dtype: it keeps the model's new values"
        yield _said(with_rest(misfit, _SHOWN), reason)
    if gone:
        yield _said(with_rest(gone, _SHOWN), "is not in the model: it was left out")
    if new:
        yield _said(with_rest(new, _SHOWN), "is not in the checkpoint: it keeps the model's values")


def _put_optimizer(trainer: Trainer, snapshot: Snapshot, taken: set[str]) -> Iterator[Finding]:
    """Give the optimizer, the scheduler and the scaler their states back, where they are alike."""
    facts, job = snapshot.facts, trainer.job
    before, now = facts["plan"]["settings"], job.plan["settings"]
    stored: Mapping[str, Any] = facts["optimizer"]
    if before["optimizer"] != now["optimizer"]:
        yield _said("optimizer state", "is another optimizer's: it begins anew")
    else:
        fit = {name: item for name, item in trainer.parameters.items() if name in taken}
        optimizers.put_state(trainer.optimizer, fit, snapshot.below("optimizer"), stored)
        if left := [name for name in stored if name not in fit]:
            reason = "no longer trains, or is another: its optimizer state is gone"
            yield _said(with_rest(left, _SHOWN), reason)
    own = trainer.optimizer.param_groups
    scales = [group["scale"] for group in facts["groups"]]
    alike = scales == [group["scale"] for group in own] and all(
        before[name] == now[name] for name in ("optimizer", "optimizer_options", *_RATES)
    )
    if alike:
        optimizers.put_group_numbers(trainer.optimizer, facts["groups"])
    if trainer.scheduler is not None:
        if alike:
            trainer.scheduler.restore(facts["scheduler"])
        else:
            yield _said("schedule", "begins anew")
    if before["precision"] == now["precision"]:
        trainer.precision.restore(facts["scaler"])


_RATES = ("lr", "weight_decay", "schedule", "schedule_options", "epochs")


def _memory(snapshot: Snapshot) -> Memory:
    return Memory(snapshot.below("memory"), snapshot.facts.get("memory", {}))


def _put_memory(trainer: Trainer, snapshot: Snapshot) -> Iterator[Finding]:
    """Let the model remember what it did outside its weights."""
    if left := remembered.put(trainer.job.model, _memory(snapshot)):
        reason = "was remembered, and the model has no such place: it was left out"
        yield _said(with_rest(left, _SHOWN), reason)


def _put_random(trainer: Trainer, snapshot: Snapshot) -> Iterator[Finding]:
    """Put the random generators where they were; an accelerator that was none keeps its own."""
    state = randomness.RandomState(snapshot.below("random"), snapshot.facts["random"])
    device = trainer.job.device
    host = torch.device("cpu")
    randomness.restore(state, device if "device" in state.tensors else host)
    known = snapshot.below("own")
    for some in (trainer.job.train, trainer.job.valid):
        if some is not None and not generators.put_all(some.name, some.generators, known):
            reason = "are drawn with other generators than before, which begin anew"
            yield _said(f"{some.name} samples", reason)


def _put_place(trainer: Trainer, snapshot: Snapshot) -> Iterator[Finding]:
    """Go to the place within the epoch, where batches are still the same ones."""
    facts = snapshot.facts
    if not facts["batch"]:
        return
    before, now = facts["plan"]["settings"], trainer.job.plan["settings"]
    if any(before[name] != now[name] for name in _PLACE):
        epoch = trainer.done + 1
        yield _said(f"epoch {epoch}", "begins anew: its batches are no longer the same ones")
        return
    trainer.batch = int(facts["batch"])
    trainer.tally = Tally(trainer.job.heads, snapshot.below("tally"))
    if entry := snapshot.below("entry"):
        trainer.entry = randomness.RandomState(entry, facts["entry"])


def _put_best(
    trainer: Trainer, facts: Mapping[str, Any] | None, best: Snapshot | None
) -> Iterator[Finding]:
    """Remember the best weights so far, where they are weights of this model."""
    if facts is None or trainer.job.settings.keep == LAST:
        return
    if best is None:
        yield _said("best weights", "are damaged: the best is looked for anew")
        return
    moving, stored = trainer.moving(), best.below("model")
    if not all(name in moving and _fits(moving[name], item) for name, item in stored.items()):
        yield _said("best weights", "are not of what trains now: the best is looked for anew")
        return
    # What trains only now had then the values that it has still.
    tensors = {name: item.clone() for name, item in moving.items()} | stored
    memory = _memory(best).over(trainer.began)
    trainer.best = Kept(int(facts["epoch"]), dict(facts["metrics"]), tensors, memory)


def _said(location: str, reason: str) -> Finding:
    return finding(Code.RUN_CHANGED, location, reason, severity=Severity.WARNING)
