"""Stored tensors that do not all fit a model: those that do are taken, the rest is told by name.

Law: every name of the model and every stored name stands in exactly one of: taken, missing,
reshaped; or, where the model has no such name, unexpected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from persistlib.adaptation.record import Reshaped
from persistlib.architecture import module_state, pretrained
from persistlib.architecture.skeleton import with_values
from persistlib.architecture.structure import dtype_name
from persistlib.errors import Code, TrainingError, error, finding, warn
from persistlib.patterns import renamed
from persistlib.selection import require_distinct

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    import torch
    from torch import nn

    from persistlib.architecture.module_state import StateTensor
    from persistlib.checkpoint import CheckpointReader
    from persistlib.errors import Finding
    from persistlib.manifest.schema import Architecture
    from persistlib.patterns import Rules

    Shapes = Mapping[str, tuple[int, ...]]

REPORT = "report"


class Fit(NamedTuple):
    """What of a model's tensors stored ones fit, in the order of the model's."""

    taken: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[Reshaped, ...]


def fit(wanted: Shapes, stored: Shapes, location: str) -> Fit:
    """Return which stored tensors a model can take; warn once where those are not all.

    Args:
        wanted: shapes of the model's tensors.
        stored: shapes of those that are there.
        location: what they are stored in, for the messages.

    Raises:
        TrainingError: not one fits.
    """
    shared = [name for name in wanted if name in stored]
    found = Fit(
        tuple(name for name in shared if wanted[name] == stored[name]),
        tuple(name for name in wanted if name not in stored),
        tuple(name for name in stored if name not in wanted),
        tuple(
            Reshaped(name, stored[name], wanted[name])
            for name in shared
            if wanted[name] != stored[name]
        ),
    )
    words = [
        f"{len(names)} {what}"
        for what, names in (
            ("missing", found.missing),
            ("unexpected", found.unexpected),
            ("of another shape", found.reshaped),
        )
        if names
    ]
    reason = f"{len(found.taken)} of the model's {len(wanted)} tensors were taken"
    if not found.taken:
        remedy = 'compare the names, and give adapt={"rename": {"PATTERN": "NAME"}}'
        raise error(Code.WEIGHTS_MISMATCH, location, "; ".join((reason, *words)), remedy)
    if words:
        remedy = "persistlib.adaptation_of(MODEL) lists them"
        warn(Code.PARTLY_LOADED, location, "; ".join((reason, *words)), remedy)
    return found


def new_names(rules: Rules | None, names: Collection[str]) -> dict[str, str]:
    """Return the new name of each name, all of them different.

    Raises:
        FormatError: two names become one.
        PersistlibError: as `patterns.renamed`.
    """
    if rules is None:
        return {name: name for name in names}
    chosen = renamed(rules, names)
    require_distinct(chosen)
    return chosen


class Partly(NamedTuple):
    """A module, a tensor for each of its names, and which of these were stored."""

    module: nn.Module
    tensors: Mapping[str, StateTensor]
    fit: Fit


def complete(
    model: nn.Module,
    architecture: Architecture,
    stored: Mapping[str, StateTensor],
    location: str,
    *,
    trust: Collection[str],
) -> Partly:
    """Return a module with stored tensors where they fit and initial values elsewhere.

    Initial values are those of a fresh process with seed 0, in the dtype of the tensors that were
    taken where these have one.

    Args:
        model: what the recipe builds, without values; it is used up.
        architecture: the recipe.
        stored: the tensors that are there.
        location: what they are stored in, for the messages.
        trust: packages that may be imported beyond the allow-list.

    Raises:
        TrainingError: nothing fits.
        ArchitectureError: the module cannot be built.
    """
    found = fit(_shapes(_named(model)), _shapes(stored), location)
    if not (found.missing or found.reshaped):
        return Partly(model, {name: stored[name] for name in found.taken}, found)
    module = with_values(architecture, trust=trust)
    wanted = _named(module)
    taken = {name: stored[name] for name in found.taken}
    dtypes = {item.tensor.dtype for item in taken.values() if item.tensor.is_floating_point()}
    # A tie of the module's stays one, where any of its names was stored.
    ties = {id(wanted[name].tensor): item for name, item in taken.items()}
    dtype = dtypes.pop() if len(dtypes) == 1 else None
    filled = {
        name: taken.get(name) or ties.get(id(item.tensor)) or _cast(item, dtype)
        for name, item in wanted.items()
    }
    return Partly(module, filled, found)


def _cast(item: StateTensor, dtype: torch.dtype | None) -> StateTensor:
    if dtype is None or not item.tensor.is_floating_point():
        return item
    tensor = item.tensor.detach().to(dtype).requires_grad_(item.tensor.requires_grad)
    return item._replace(tensor=tensor)


def _named(model: nn.Module) -> dict[str, StateTensor]:
    return {item.name: item for item in module_state.state_tensors(model)}


def _shapes(items: Mapping[str, StateTensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(item.tensor.shape) for name, item in items.items()}


def take_file(module: nn.Module, reader: CheckpointReader, location: str) -> Fit:
    """Give a module the tensors of a checkpoint that fit it; the others keep their values.

    BatchNorm's counters, where the file lacks them, become 0 as torch has it.

    Raises:
        TrainingError: nothing fits, or a tensor that does is of another dtype.
    """
    state: Mapping[str, torch.Tensor] = module.state_dict(keep_vars=True)
    owners = {entry.name: entry.name for entry in reader.entries} | dict(reader.aliases)
    stored = {name: reader.tensors[owner].shape for name, owner in owners.items()}
    counters = [n for n in state if n not in stored and pretrained.is_counter(n)]
    wanted = {name: tuple(t.shape) for name, t in state.items() if name not in counters}
    found = fit(wanted, stored, location)
    if other := tuple(_other_dtypes(state, found, reader, owners)):
        raise TrainingError(other)
    pretrained.take(module, reader, found.taken)
    for name in counters:
        state[name].zero_()
    return found


def _other_dtypes(
    state: Mapping[str, torch.Tensor],
    found: Fit,
    reader: CheckpointReader,
    owners: Mapping[str, str],
) -> Iterator[Finding]:
    for name in found.taken:
        ours, theirs = dtype_name(state[name]), reader.tensors[owners[name]].dtype.name
        if ours != theirs:
            yield finding(
                Code.WEIGHTS_MISMATCH,
                name,
                f"{theirs} in the checkpoint, {ours} in the model",
                f"persistlib convert FILE OUT --dtype {ours.lower()} casts the file first",
            )
