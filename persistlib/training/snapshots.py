"""A trainer's state as a checkpoint holds it; `resuming` is the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from persistlib.architecture.module_state import dtype_of, tensor_bytes
from persistlib.digests import digest_all
from persistlib.training import generators, optimizers, randomness, remembered
from persistlib.training.checkpoints import Snapshot

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from persistlib.training.job import Kept
    from persistlib.training.remembered import Memory
    from persistlib.training.trainer import Trainer


def take(trainer: Trainer) -> Snapshot:
    """Return what has to be known to go on from here."""
    names = {id(item): name for name, item in trainer.parameters.items()}
    slots, plain_slots = optimizers.take_state(trainer.optimizer, names)
    random = randomness.capture(trainer.job.device)
    kinds = {"model": trainer.moving(), "optimizer": slots, "random": random.tensors}
    memory = remembered.take(trainer.job.model).since(trainer.began)
    samples = [some for some in (trainer.job.train, trainer.job.valid) if some is not None]
    own = [generators.states(some.name, some.generators) for some in samples]
    kinds |= {
        "memory": memory.tensors,
        "own": {name: item for states in own for name, item in states.items()},
        "tally": trainer.tally.state(),
        "entry": trainer.entry.tensors if trainer.entry else {},
    }
    facts = {
        "plan": trainer.job.plan,
        "frozen": trainer.frozen_digests,
        "memory": memory.numbers,
        "epoch": trainer.done,
        "batch": trainer.batch,
        "steps": trainer.steps,
        # As pairs: the order of metrics is theirs.
        "history": [_pairs(row) for row in trainer.history],
        "optimizer": plain_slots,
        "groups": optimizers.group_numbers(trainer.optimizer),
        "scheduler": trainer.scheduler.state() if trainer.scheduler else {},
        "scaler": trainer.precision.state(),
        "random": random.numbers,
        "entry": trainer.entry.numbers if trainer.entry else {},
        "stage": trainer.stage_path,
        "best": trainer.best
        and {"epoch": trainer.best.epoch, "metrics": _pairs(trainer.best.metrics)},
    }
    tensors = {f"{k}/{name}": item for k, some in kinds.items() for name, item in some.items()}
    return Snapshot(tensors, facts)


def weights(kept: Kept, began: Memory) -> Snapshot:
    """Return the weights of an epoch alone, and what the model remembered.

    Args:
        kept: the epoch's.
        began: what it remembered when the run began.
    """
    memory = kept.memory.since(began)
    tensors = {f"model/{name}": item for name, item in kept.tensors.items()}
    tensors |= {f"memory/{name}": item for name, item in memory.tensors.items()}
    return Snapshot(tensors, {"epoch": kept.epoch, "memory": memory.numbers})


def frozen_digests(
    model: torch.nn.Module, trained: Mapping[str, torch.Tensor]
) -> dict[str, list[Any]]:
    """Return dtype, shape and digest of every parameter that never trains, by name."""
    still = {name: item for name, item in model.named_parameters() if name not in trained}
    found = digests(still)
    return {n: [dtype_of(item).name, list(item.shape), found[n]] for n, item in still.items()}


def digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the digest of each tensor's bytes, by name."""
    found = digest_all([tensor_bytes(item) for item in tensors.values()])
    return dict(zip(tensors, found, strict=True))


def _pairs(row: Mapping[str, float]) -> list[list[Any]]:
    return [[name, value] for name, value in row.items()]
