"""Samples as batches, whatever the caller has: arrays, a data set, or batches already.

Laws: one (seed, epoch) gives one order; a sample's own random numbers (augmentation) follow from
(seed, epoch, index) alone, in this process and in any number of workers; going through an epoch
from a batch on gives the batches that going through the whole gives from there on; sizes of
batches differ by at most one, so that no lone last sample breaks BatchNorm; the shares of several
processes, put together, are the batch that one process has.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate

from persistlib.errors import Code, PersistlibError, error
from persistlib.processes import ALONE
from persistlib.training import generators, nests, randomness
from persistlib.training.batch import Batch
from persistlib.training.drawn import Drawn, worker_end
from persistlib.training.own_dtypes import cast_inputs, cast_targets
from persistlib.training.sample_digests import digest_of
from persistlib.training.sharing import share
from persistlib.training.tensors import array_of, tensor_of
from persistlib.wording import first_line

if TYPE_CHECKING:
    from persistlib.processes import Group

# What `finetune` takes as training or held-out data: a pair (inputs, targets) of arrays or tensors,
# or of mappings of them by name (targets also in a tuple); a map-style data set of such pairs; or
# a DataLoader or other lasting iterable of their batches.
Samples: TypeAlias = Any
_PAIR = 2
_ARRAYS = (np.ndarray, torch.Tensor)
# Whose samples come about without a random number.
_STILL = (TensorDataset, list, tuple)


class Batches:
    """Samples that can be gone through again and again.

    Attributes:
        name: what errors call them.
        count: batches an epoch, or None where only going through them tells.
        size: samples, or None where the batches are the caller's own.
        batch_size: samples a batch, at most.
        device: where batches go.
        seed: of their order, and of what is drawn for a sample.
        fixed: whether a sample is known to be the same in every epoch.
        group: the processes that have a share each of every batch.
        dtype: what arrays of floats become, as NumPy's own float64; None leaves them. Targets keep
            at least float32, and samples of a data set or loader are the caller's own.
    """

    def __init__(
        self,
        samples: Samples,
        name: str,
        batch_size: int,
        device: torch.device,
        *,
        seed: int = 0,
        workers: int = 0,
        group: Group = ALONE,
        dtype: torch.dtype | None = None,
    ) -> None:
        if isinstance(samples, IterableDataset):
            samples = DataLoader(samples, batch_size=batch_size)
        self.name = name
        self.batch_size = batch_size
        self.device = device
        self.seed = seed
        self.group = group
        self._workers = workers
        self._pair = _as_pair(samples, name)
        of_arrays = self._pair is not None or getattr(samples, "of_arrays", False) is True
        self.dtype = dtype if of_arrays else None
        self._samples = samples
        self.fixed = self._pair is not None or getattr(samples, "fixed", False) is True
        self.size: int | None = None
        if self._pair is not None:
            self.size = nests.count(self._pair.targets)
        elif hasattr(samples, "__getitem__") and hasattr(samples, "__len__"):
            self.size = len(samples)
        elif not isinstance(samples, Iterable) or isinstance(samples, Iterator):
            kind = type(samples).__name__
            raise _invalid(name, f"{kind}: neither arrays, nor a data set, nor lasting batches")
        if self.size == 0:
            raise _invalid(name, "holds no samples")
        self.count = _length(samples) if self.size is None else -(-self.size // batch_size)
        self._is_ready = self._pair is not None and self._stays(self._pair)

    @property
    def generators(self) -> list[generators.Own]:
        """The generators of their own that the caller's samples are drawn with."""
        return [] if self._pair is not None else generators.found_in(self._samples)

    def in_order(self) -> Iterator[Batch]:
        """Yield the batches once, in the order of the samples, each the same every time."""
        raw = self._samples if self.size is None else self._loaded(self._chunks(None), 0)
        return self._batches(raw)

    def shuffled(
        self, epoch: int, start: int = 0, then: Callable[[], None] | None = None
    ) -> Iterator[Batch]:
        """Yield the batches of an epoch once, in its order; the caller's own as they come.

        Of each, the share that is this process'. The caller's own are whole in every process.

        Args:
            epoch: counts from 1.
            start: how many batches are passed over; the caller's own are made all the same.
            then: called when they are passed.
        """
        order = torch.Generator().manual_seed(randomness.draw(self.seed, epoch))
        if self.size is None:
            return self._shares(self._batches(self._own(start, then), may_be_empty=start > 0))
        chunks, spare = self._own_parts(self._chunks(order)[start:])
        shares = self._batches(self._loaded(chunks, epoch), may_be_empty=start > 0)
        return (b._replace(is_spare=n in spare) for n, b in enumerate(shares))

    def in_turn(self) -> Iterator[tuple[Batch, int]]:
        """Yield this process' batch of each round, and how many batches the round has.

        The batches go round among the processes, whole and in order. Where a last round has none
        for this process, it is the round's last.
        """
        world = self.group.world
        if self.size is None:
            own = self._compared(self.in_order())
            while around := [*itertools.islice(own, world)]:
                yield around[min(self.group.rank, len(around) - 1)], len(around)
            return
        chunks = self._chunks(None)
        turns = [chunks[start : start + world] for start in range(0, len(chunks), world)]
        mine = [turn[min(self.group.rank, len(turn) - 1)] for turn in turns]
        for turn, batch in zip(turns, self._batches(self._loaded(mine, 0)), strict=True):
            yield batch, len(turn)

    def digest(self) -> str:
        """Return the identity of the samples as far as it can be told (`sample_digests`)."""
        if self._pair is not None:
            return digest_of((self._pair.inputs, self._pair.targets))
        if isinstance(known := getattr(self._samples, "digest", None), str):
            return known
        if self.size is None:
            return ""
        with generators.untouched(self.generators):
            return digest_of(Drawn(self._samples, self.seed, 0), self.size)

    def identity(self) -> str | None:
        """Return what tells the samples from all others; None where nothing surely does."""
        known = getattr(self._samples, "digest", None)
        if self._pair is None and not isinstance(known, str):
            return None
        drawn = "" if self.fixed else f" drawn with {self.seed}"
        return self.digest() + drawn

    def known_targets(self) -> Any:
        """Return the targets of all samples where they are at hand; None where they are not."""
        return None if self._pair is None else cast_targets(self._pair.targets, self.dtype)

    def known_inputs(self) -> Any:
        """Return the inputs of all samples where they are at hand; None where they are not."""
        return None if self._pair is None else self._pair.inputs

    def targets(self) -> Any:
        """Return the targets of all samples, which are gone through where need be."""
        if self._pair is not None:
            return cast_targets(self._pair.targets, self.dtype)
        host = torch.device("cpu")
        return nests.joined([_moved(batch.targets, host) for batch in self.in_order()])

    def _batches(self, raw: Iterable[Any], *, may_be_empty: bool = False) -> Iterator[Batch]:
        empty = not may_be_empty
        for batch in raw:
            empty = False
            yield batch if self._is_ready else self._ready(self._checked(batch))
        if empty:
            raise _invalid(self.name, "gave no batch")

    def _own(self, start: int, then: Callable[[], None] | None) -> Iterator[Any]:
        """Yield the caller's own batches from one on."""
        batches = iter(self._samples)
        for _ in itertools.islice(batches, start):
            pass
        if then is not None:
            then()
        yield from batches

    def _shares(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield this process' shares of batches that every process has whole."""
        for batch in self._compared(batches):
            if self.group.is_alone:
                yield batch
            else:
                whole = (batch.inputs, batch.targets)
                count = nests.count(batch.targets)
                (inputs, targets), is_spare = share(whole, self.group, count)
                yield Batch(inputs, targets, is_spare)

    def _compared(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield batches of the caller's own, the first of which is compared with the others'.

        Raises:
            UsageError: it is not the same one in every process.
        """
        for number, batch in enumerate(batches):
            if not (number or self.group.is_alone):
                remedy = "let every process have the same whole batches: no DistributedSampler, and"
                remedy += " generators that are seeded alike"
                own = {self.name: digest_of([(batch.inputs, batch.targets)], 1)}
                self.group.require_same(own, remedy)
            yield batch

    def _chunks(self, order: torch.Generator | None) -> tuple[torch.Tensor, ...]:
        """Return the indices of each batch."""
        assert self.size is not None
        assert self.count is not None
        indices = torch.arange(self.size)
        if order is not None:
            indices = torch.randperm(self.size, generator=order)
        return torch.tensor_split(indices, self.count)

    def _own_parts(self, chunks: Sequence[torch.Tensor]) -> tuple[Sequence[torch.Tensor], set[int]]:
        """Return this process' part of each batch, and the numbers of those that stand for none."""
        if self.group.is_alone:
            return chunks, set()
        pairs = [share(chunk, self.group, len(chunk)) for chunk in chunks]
        spare = {number for number, (_, is_spare) in enumerate(pairs) if is_spare}
        return [part for part, _ in pairs], spare

    def _loaded(self, chunks: Sequence[torch.Tensor], epoch: int) -> Iterable[Any]:
        """Return batches of the samples at some indices."""
        if (pair := self._pair) is not None:
            return (nests.each(operator.itemgetter(chunk), pair) for chunk in chunks)
        still = self.fixed or type(self._samples) in _STILL
        samples = self._samples if still else Drawn(self._samples, self.seed, epoch)
        # A generator of its own: a loader draws a seed, which must not shift dropout's numbers.
        return DataLoader(
            samples,
            batch_sampler=[chunk.tolist() for chunk in chunks],
            num_workers=min(self._workers, len(chunks)),
            worker_init_fn=worker_end(),
            generator=torch.Generator(),
            collate_fn=_collated,
        )

    def _checked(self, batch: Any) -> Batch:
        if isinstance(batch, Batch):
            batch = batch[:_PAIR]
        if not isinstance(batch, Sequence) or len(batch) != _PAIR:
            raise _invalid(self.name, "a batch is not a pair of inputs and targets")
        targets = _tensors(batch[1], f"{self.name}: targets")
        _require_rows(targets, f"{self.name}: targets of a batch")
        return Batch(batch[0], targets)

    def _stays(self, pair: Batch) -> bool:
        """Return whether samples are as a model takes them, so that batches of them are too."""
        first = nests.each(lambda item: item[:1], pair)
        both = zip(nests.tensors(first), nests.tensors(self._ready(first)), strict=True)
        return all(given is taken for given, taken in both)

    def _ready(self, batch: Batch) -> Batch:
        """Return a batch as a model takes it: where it is to be, in the dtype that is wanted."""
        inputs = cast_inputs(_moved(batch.inputs, self.device), self.dtype)
        targets = _moved(nests.each(_numbers, batch.targets), self.device)
        return Batch(inputs, cast_targets(targets, self.dtype))


def call(model: torch.nn.Module, inputs: Any) -> Any:
    """Return the model's outputs for inputs of a batch: one tensor, several, or named ones."""
    if isinstance(inputs, torch.Tensor):
        return model(inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (list, tuple)) else model(inputs)


def first_samples(inputs: Any, count: int) -> Any:
    """Return the first samples of a batch's inputs, on the host, in the same form."""
    return nests.each(lambda item: item[:count].detach().cpu().clone(), inputs)


def _moved(inputs: Any, device: torch.device) -> Any:
    return nests.each(lambda item: item.to(device), _from_numpy(inputs))


def _from_numpy(nest: Any) -> Any:
    """Return a nest whose arrays are tensors; a list becomes a tuple."""
    if isinstance(nest, torch.Tensor):
        return nest
    if isinstance(nest, Mapping):
        return {name: _from_numpy(item) for name, item in nest.items()}
    if isinstance(nest, (list, tuple)):
        return nests.like(nest, [_from_numpy(item) for item in nest])
    return tensor_of(nest) if isinstance(nest, np.ndarray) else nest


def _numbers(targets: torch.Tensor) -> torch.Tensor:
    return targets if targets.is_floating_point() else targets.long()


def _tensors(targets: Any, location: str) -> Any:
    """Return targets as tensors in their form; numbers in a list are one tensor.

    Raises:
        TrainingError: they are no numbers, or a list of one mapping a sample.
    """
    if isinstance(targets, Mapping):
        return {name: _tensors(item, f"{location}.{name}") for name, item in targets.items()}
    if isinstance(targets, (list, tuple)) and any(map(_is_form, targets)):
        if any(isinstance(item, Mapping) for item in targets):
            reason = "a list with a mapping for each sample, as detection has"
            remedy = "give tensors with a row for each sample: one, or several in a mapping"
            raise error(Code.DATA_INVALID, location, reason, remedy)
        parts = [_tensors(item, f"{location}.{index}") for index, item in enumerate(targets)]
        return nests.like(targets, parts)
    try:
        return tensor_of(targets)
    except (TypeError, ValueError, RuntimeError) as fault:
        raise _invalid(location, f"not numbers: {fault}") from fault


def _is_form(item: Any) -> bool:
    """Return whether an item of a list of targets is one head's, and no number."""
    return isinstance(item, Mapping) or (isinstance(item, _ARRAYS) and item.ndim > 0)


def _as_pair(samples: Samples, name: str) -> Batch | None:
    """Return (inputs, targets) given as arrays, as tensors; None when it is something else."""
    if not isinstance(samples, (list, tuple)) or len(samples) != _PAIR:
        return None
    inputs, targets = map(array_of, samples)
    is_named = isinstance(inputs, Mapping) and inputs
    if is_named:
        inputs = {name: array_of(item) for name, item in inputs.items()}
    elif _are_lists(inputs, targets):
        inputs = _stacked(inputs, name)
    if not all(isinstance(item, _ARRAYS) for item in (inputs.values() if is_named else [inputs])):
        return None
    if not isinstance(targets, (*_ARRAYS, Mapping, list, tuple)):
        return None
    pair = Batch(_tensors(inputs, name), _tensors(targets, name))
    _require_rows(pair, name)
    return pair


def _are_lists(inputs: Any, targets: Any) -> bool:
    """Return whether these are lists of as many; those of a data set of two samples are pairs."""
    both = isinstance(inputs, (list, tuple)) and isinstance(targets, (list, tuple))
    return both and len(inputs) == len(targets) != _PAIR


def _stacked(samples: Any, name: str) -> torch.Tensor:
    """Return the inputs of samples that are given one by one.

    Raises:
        TrainingError: they are no numbers, or not of one shape.
    """
    try:
        return torch.stack([tensor_of(array_of(item)) for item in samples])
    except (TypeError, ValueError, RuntimeError) as fault:
        raise _invalid(name, f"inputs that make no array: {fault}") from fault


def _collated(samples: Any) -> Any:
    """Return a batch of a data set's samples.

    Raises:
        TrainingError: they are no tensors, arrays or numbers, or not of one shape.
    """
    try:
        return default_collate(samples)
    except (TypeError, RuntimeError) as fault:
        remedy = "let the data set give tensors of one shape, or give a DataLoader with collate_fn"
        reason = f"its samples make no batch: {first_line(fault)}"
        raise error(Code.DATA_INVALID, "data set", reason, remedy) from fault


def _require_rows(nest: Any, location: str) -> None:
    """Raise where tensors have no row for each sample, or not the same number of rows."""
    found = nests.tensors(nest)
    parts = (nest.inputs, nest.targets) if isinstance(nest, Batch) else (nest,)
    if (
        not all(map(nests.tensors, parts))
        or any(not item.ndim for item in found)
        or len({*map(len, found)}) != 1
    ):
        shapes = " and ".join(f"{tuple(item.shape)}" for item in found) or "none"
        raise _invalid(location, f"inputs and targets of shapes {shapes}")


def _length(samples: Iterable[Any]) -> int | None:
    try:
        return len(samples)  # type: ignore[arg-type]  # TypeError says that it has none
    except TypeError:
        return None


def _invalid(name: str, reason: str) -> PersistlibError:
    remedy = "give (inputs, targets), a data set of such pairs, or a DataLoader"
    return error(Code.DATA_INVALID, name, reason, remedy)
