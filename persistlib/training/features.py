"""Running the front of a model once a sample: what goes into its last part, kept.

`features` gives what goes into a model's last layer, for whatever is fitted on it. `stage` does it
for training: where nothing before all that trains draws random numbers or depends on the mode, what
goes into the rest of the model is the same in every epoch. It is computed once, and the rest alone
is trained on it. None of this is assumed: it is tried on the first batch (`fronts`), and the whole
model is trained where it does not hold.

Features lie in memory, or, where they are large or a folder is named, on disk (`feature_files`).

Law: training with and without gives the same weights, up to the rounding of batches of other
sizes.
"""

from __future__ import annotations

import os
import secrets
import shutil
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from persistlib.errors import Code, PersistlibError, TargetError, error, warn
from persistlib.training import feature_files, fronts, nests
from persistlib.training.batches import Batches
from persistlib.training.cuts import alike_in_both_modes
from persistlib.training.events import RunsOnce
from persistlib.training.finite import require_finite
from persistlib.training.fitting import FAULTS, told
from persistlib.training.head import entered_last
from persistlib.training.memory import is_out_of_memory
from persistlib.training.own_dtypes import own_dtype
from persistlib.training.sharing import go_on, in_turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from persistlib.files import StrPath
    from persistlib.training.batch import Batch
    from persistlib.training.batches import Samples
    from persistlib.training.cuts import Cut

# The most that all features together take in memory; what is larger goes to disk.
MEMORY = 1 << 30
# Of the space that is left, what features may take.
_SHARE = 0.9


class Features(NamedTuple):
    """What goes into a part of a model, for every sample.

    Attributes:
        path: of the part.
        values: a row a sample, in the order of the samples; mapped where they are stored.
        targets: of the samples, a tensor or a nest of them.
        stored: the folder that they lie in; None for memory.
        reused: whether they were found there.
    """

    path: str
    values: torch.Tensor
    targets: Any
    stored: str | None = None
    reused: bool = False


class Stage(NamedTuple):
    """What is trained, on what: the whole model, or its last part on that part's inputs.

    Attributes:
        path: of the part; empty for the whole model.
        module: the part.
        train: its training batches.
        valid: its held-out batches.
        kept: the features of both, where there are any.
    """

    path: str
    module: torch.nn.Module
    train: Batches
    valid: Batches | None
    kept: tuple[Features, ...] = ()

    def told(self) -> RunsOnce:
        """Return what the watchers are told of the features."""
        return RunsOnce(
            self.path,
            samples=sum(len(some.values) for some in self.kept),
            size=sum(some.values.nbytes for some in self.kept),
            stored=tuple(some.stored for some in self.kept if some.stored is not None),
            reused=all(some.reused for some in self.kept),
        )


class Keeping(NamedTuple):
    """Where features may lie.

    Attributes:
        folder: for those that are more than memory may hold; None for nowhere.
        always: whether all go there, to be found again by another run.
        between: called after each batch whose features were computed; what it raises ends that.
    """

    folder: str | None = None
    always: bool = False
    between: Callable[[], None] | None = None


def features(
    model: torch.nn.Module,
    samples: Samples,
    *,
    at: str | None = None,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    cache: StrPath | None = None,
    memory: int = MEMORY,
    workers: int = 0,
    seed: int = 0,
    between: Callable[[], None] | None = None,
) -> Features:
    """Return what goes into a model's last layer, each sample run once.

    Args:
        model: run in evaluation, and left in the modes that it has.
        samples: (inputs, targets) as arrays or tensors, a data set of such pairs, or a DataLoader.
        at: path of the part whose inputs are wanted; None for the smallest that ends the model.
        batch_size: samples a batch.
        device: where to compute; None stays where the model is.
        cache: a folder in which features are kept, and found again for the same samples and the
            same model before the part; without, they are kept in memory.
        memory: the most bytes that they may take there.
        workers: processes that load the samples of a data set.
        seed: of what a data set draws for its samples.
        between: called after each batch; what it raises ends the work.

    Raises:
        TrainingError: no part ends the model, or that at `at` does not; or the samples do not fit,
            or are not finite.
        PersistlibError: they are more than memory may hold, or the folder cannot be written.
    """
    place = torch.device(device) if device is not None else _device(model)
    sized: dict[str, Any] = {"seed": seed, "workers": workers, "dtype": own_dtype(model)}
    batches = Batches(samples, "samples", batch_size, place, **sized)
    modes = [(module, module.training) for module in model.modules()]
    model.to(place)
    try:
        require_finite(model, batches)
        cut = _fitting_cut(model, batches, at)
        if cache is None and (size := _bytes(cut, batches.size)) > memory:
            reason = f"{size:,} bytes of features; {memory:,} may be kept in memory"
            raise error(Code.NO_MEMORY, cut.path, reason, "give cache=, a folder to keep them in")
        folder = None if cache is None else os.fspath(cache)
        where = Keeping(folder, always=batches.size is not None, between=between)
        return _kept(model, cut, batches, where)
    finally:
        for module, mode in modes:
            module.training = mode


def _device(model: torch.nn.Module) -> torch.device:
    return next((item.device for item in model.parameters()), torch.device("cpu"))


def _judged_cut(model: torch.nn.Module, samples: Batches, at: str | None) -> Cut:
    """Return the cut before the part whose inputs are features.

    Raises:
        TrainingError: there is none.
    """
    batch = next(samples.in_order())
    if at is not None and at not in dict(model.named_modules()):
        raise error(Code.HEAD_UNKNOWN, at, "the model has no such part", "name one of its layers")
    paths = [at] if at is not None else [*entered_last(model, batch.inputs)]
    for path in paths:
        if (cut := fronts.judged_cut(model, path, batch)) is not None:
            return cut
    tried = ", ".join(paths) or "its parts"
    reason = f"the outputs are not what {tried} makes of one tensor with a row a sample"
    remedy = "let the model return what its last layer gives"
    raise error(Code.HEAD_UNKNOWN, at or "model", reason, remedy)


def _fitting_cut(model: torch.nn.Module, batches: Batches, at: str | None) -> Cut:
    """Return what `_judged_cut` does.

    Raises:
        TrainingError: the model does not take the samples, or no part ends it.
        RuntimeError: memory ran out.
    """
    try:
        return _judged_cut(model, batches, at)
    except FAULTS as fault:
        if isinstance(fault, PersistlibError) or is_out_of_memory(fault):
            raise
        first = next(batches.in_order()).inputs
        raise error(Code.DATA_INVALID, batches.name, *told(fault, model, first)) from fault


def stage(
    model: torch.nn.Module,
    train: Batches,
    valid: Batches | None,
    *,
    known: str | None = None,
    keeping: Keeping | None = None,
) -> Stage:
    """Return the smallest rest of a frozen model that need be run in each epoch.

    Args:
        model: left in evaluation; its tensors are untouched.
        train: training batches.
        valid: held-out batches.
        known: the rest's path where an earlier trial found it, empty for the whole model.
        keeping: where features may lie; memory alone without.
    """
    whole = Stage("", model, train, valid)
    where = keeping or Keeping()
    if known == "" or not (train.fixed and (valid is None or valid.fixed)):
        return whole
    count = (train.size or 0) + ((valid.size or 0) if valid else 0)
    large: Cut | None = None
    with alike_in_both_modes():
        for cut in fronts.trained_cuts(model, next(train.in_order())):
            if known not in {None, cut.path}:
                continue
            if _bytes(cut, count) <= MEMORY:
                return _staged(model, cut, whole, where)
            large = large or cut
        if large is None:
            return whole
        has_room = _has_room(where.folder, _bytes(large, count))
        if not train.group.from_first(has_room, "room for features"):
            return whole
        return _staged(model, large, whole, where._replace(always=True))


def _staged(model: torch.nn.Module, cut: Cut, whole: Stage, where: Keeping) -> Stage:
    kept: list[Features] = []
    try:
        kept.append(_kept(model, cut, whole.train, where))
        if whole.valid is not None:
            kept.append(_kept(model, cut, whole.valid, where, is_tried=False))
    except TargetError as fault:
        if not whole.train.group.is_alone:  # the others are told, and stop
            raise
        remedy = "nothing: the whole model is run in each epoch"
        warn(Code.TARGET_WRITE, fault.location, f"features were not kept: {fault.reason}", remedy)
        return whole
    train, *valid = [
        Batches(
            (found.values, found.targets),
            samples.name,
            samples.batch_size,
            cut.features.device,
            seed=samples.seed,
            group=samples.group,
        )
        for found, samples in zip(kept, (whole.train, whole.valid), strict=False)
        if samples is not None
    ]
    return Stage(cut.path, cut.tail, train, valid[0] if valid else None, tuple(kept))


def _kept(
    model: torch.nn.Module, cut: Cut, samples: Batches, where: Keeping, *, is_tried: bool = True
) -> Features:
    """Return the features of all samples, from where they lie or computed.

    Args:
        model: the whole.
        cut: of it.
        samples: in batches.
        where: they may lie.
        is_tried: whether the cut was tried on the first of these samples.
    """
    model.eval()
    path, computed = cut.path, _Computing(cut, samples, where.between)
    if where.folder is None or not where.always:
        return Features(path, computed.together(), computed.targets())
    like = cut.features if is_tried else computed.first()
    assert samples.size is not None
    key = feature_files.key_of(model, cut, samples)
    key = samples.group.from_first(key, "features")
    fresh = samples.group.from_first(secrets.token_hex(16), "features")
    place = feature_files.place_of(where.folder, key or fresh)
    rows = feature_files.read(place, like, samples.size) if key else None
    if not samples.group.is_any(rows is None, "features that are found"):
        return Features(path, cast("torch.Tensor", rows), samples.targets(), place, reused=True)
    if samples.group.is_first:
        feature_files.write(place, iter(computed), like, samples.size)
    else:
        for _ in computed:
            """Computes its part."""
    samples.group.from_first(None, "features that are written")
    rows = feature_files.read(place, like, samples.size)
    if rows is None:
        raise error(Code.TARGET_WRITE, place, "what was written does not read back the same")
    return Features(path, rows, computed.targets(), place)


class _Computing:
    """Features, computed batch by batch; the targets are kept meanwhile."""

    def __init__(self, cut: Cut, samples: Batches, between: Callable[[], None] | None) -> None:
        self._head = cut.head
        self._samples = samples
        self._between = between
        self._targets: list[Any] = []

    def first(self) -> torch.Tensor:
        """Return those of the first batch."""
        return self._of(next(self._samples.in_order()))

    def __iter__(self) -> Iterator[torch.Tensor]:
        self._targets = []
        then = self._between or go_on
        for rows, batch in in_turn(self._samples, lambda _, batch: self._of(batch), then):
            self._targets.append(batch.targets)
            yield rows

    def together(self) -> torch.Tensor:
        """Return all, in one tensor that is filled as they come."""
        if self._samples.size is None:
            return torch.cat(list(self))
        rows: Any = None
        done = 0
        for batch in self:
            if rows is None:
                rows = batch.new_empty((self._samples.size, *batch.shape[1:]))
            rows[done : done + len(batch)] = batch
            done += len(batch)
        whole: torch.Tensor = rows
        return whole

    def targets(self) -> Any:
        """Return the targets of all samples, which were gone through."""
        return nests.joined(self._targets)

    @torch.no_grad()
    def _of(self, batch: Batch) -> torch.Tensor:
        return self._head(batch.inputs)


def _bytes(cut: Cut, count: int | None) -> int:
    """Return the size of the features of so many samples."""
    return cut.features[0].nbytes * (count or 0)


def _has_room(folder: str | None, size: int) -> bool:
    """Return whether features of a size may go to a folder."""
    if folder is None:
        return False
    there = os.path.abspath(folder)
    while not os.path.exists(there):
        there = os.path.dirname(there)
    return size <= _SHARE * shutil.disk_usage(there).free
