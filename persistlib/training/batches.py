"""Samples as batches, whatever the caller has: arrays, a data set, or batches already.

Law: one (seed, epoch) gives one order; sizes of batches differ by at most one, so that no lone
last sample breaks BatchNorm.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from blake3 import blake3
from torch.utils.data import DataLoader, IterableDataset

from persistlib.errors import Code, PersistlibError, error

# What `finetune` takes as training or held-out data: a pair (inputs, labels) of arrays or tensors,
# a map-style data set of such pairs, or a DataLoader or other lasting iterable of their batches.
Samples: TypeAlias = Any
_PAIR = 2


class Batch(NamedTuple):
    """Inputs as the model takes them, and what it should answer."""

    inputs: Any
    targets: torch.Tensor


class Batches:
    """Samples that can be gone through again and again.

    Attributes:
        name: what errors call them.
        count: batches an epoch, or None where only going through them tells.
        size: samples, or None where the batches are the caller's own.
        batch_size: samples a batch, at most.
        fixed: whether a sample is known to be the same in every epoch.
    """

    def __init__(self, samples: Samples, name: str, batch_size: int, device: torch.device) -> None:
        if isinstance(samples, IterableDataset):
            samples = DataLoader(samples, batch_size=batch_size)
        self.name = name
        self.batch_size = batch_size
        self._device = device
        self._pair = _as_pair(samples, name)
        self._samples = samples
        self.fixed = self._pair is not None or getattr(samples, "fixed", False) is True
        self.size: int | None = None
        if self._pair is not None:
            self.size = len(self._pair.targets)
        elif hasattr(samples, "__getitem__") and hasattr(samples, "__len__"):
            self.size = len(samples)
        elif not isinstance(samples, Iterable) or isinstance(samples, Iterator):
            kind = type(samples).__name__
            raise _invalid(name, f"{kind}: neither arrays, nor a data set, nor lasting batches")
        if self.size == 0:
            raise _invalid(name, "holds no samples")
        self.count = _length(samples) if self.size is None else -(-self.size // batch_size)

    def in_order(self) -> Iterator[Batch]:
        """Yield the batches once, in the order of the samples."""
        return self._batches(None)

    def shuffled(self, seed: int, epoch: int) -> Iterator[Batch]:
        """Yield the batches once, in the epoch's order; batches made by the caller as they come."""
        drawn = blake3(b"%d:%d" % (seed, epoch)).digest(length=7)
        return self._batches(torch.Generator().manual_seed(int.from_bytes(drawn, "big")))

    def _batches(self, order: torch.Generator | None) -> Iterator[Batch]:
        empty = True
        for batch in self._raw(order):
            empty = False
            yield self._checked(batch)
        if empty:
            raise _invalid(self.name, "gave no batch")

    def _raw(self, order: torch.Generator | None) -> Iterable[Any]:
        if self.size is None or self.count is None:
            batches: Iterable[Any] = self._samples
            return batches
        indices = torch.arange(self.size)
        if order is not None:
            indices = torch.randperm(self.size, generator=order)
        chunks = torch.tensor_split(indices, self.count)
        if (pair := self._pair) is not None:
            return (Batch(pair.inputs[chunk], pair.targets[chunk]) for chunk in chunks)
        batches = [chunk.tolist() for chunk in chunks]
        # A generator of its own: a loader draws a seed, which must not shift dropout's numbers.
        return DataLoader(self._samples, batch_sampler=batches, generator=torch.Generator())

    def _checked(self, batch: Any) -> Batch:
        if not isinstance(batch, Sequence) or len(batch) != _PAIR:
            raise _invalid(self.name, "a batch is not a pair of inputs and targets")
        targets = torch.as_tensor(batch[1])
        if not targets.is_floating_point():
            targets = targets.long()
        return Batch(_moved(batch[0], self._device), targets.to(self._device))


def call(model: torch.nn.Module, inputs: Any) -> Any:
    """Return the model's outputs for inputs of a batch: one tensor, several, or named ones."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (list, tuple)) else model(inputs)


def first_samples(inputs: Any, count: int) -> Any:
    """Return the first samples of a batch's inputs, on the host, in the same form."""
    if isinstance(inputs, Mapping):
        return {name: first_samples(value, count) for name, value in inputs.items()}
    if isinstance(inputs, (list, tuple)):
        return tuple(first_samples(value, count) for value in inputs)
    return inputs[:count].detach().cpu().clone() if isinstance(inputs, torch.Tensor) else inputs


def _moved(inputs: Any, device: torch.device) -> Any:
    if isinstance(inputs, Mapping):
        return {name: _moved(value, device) for name, value in inputs.items()}
    if isinstance(inputs, (list, tuple)):
        return tuple(_moved(value, device) for value in inputs)
    if isinstance(inputs, np.ndarray):
        inputs = torch.from_numpy(inputs)
    return inputs.to(device) if isinstance(inputs, torch.Tensor) else inputs


def _as_pair(samples: Samples, name: str) -> Batch | None:
    """Return (inputs, labels) given as arrays, as tensors; None when it is something else."""
    arrays = (np.ndarray, torch.Tensor)
    if not isinstance(samples, (list, tuple)) or len(samples) != _PAIR:
        return None
    inputs, targets = samples
    if not isinstance(inputs, arrays) or not isinstance(targets, (*arrays, list, tuple)):
        return None
    try:
        pair = Batch(torch.as_tensor(inputs), torch.as_tensor(targets))
    except (TypeError, ValueError, RuntimeError) as fault:
        raise _invalid(name, f"not numbers: {fault}") from fault
    if 0 in {pair.inputs.ndim, pair.targets.ndim} or len(pair.inputs) != len(pair.targets):
        shapes = f"{tuple(pair.inputs.shape)} and {tuple(pair.targets.shape)}"
        raise _invalid(name, f"inputs and labels of shapes {shapes}")
    return pair


def _length(samples: Iterable[Any]) -> int | None:
    try:
        return len(samples)  # type: ignore[arg-type]  # TypeError says that it has none
    except TypeError:
        return None


def _invalid(name: str, reason: str) -> PersistlibError:
    remedy = "give (inputs, labels), a data set of such pairs, or a DataLoader"
    return error(Code.DATA_INVALID, name, reason, remedy)
