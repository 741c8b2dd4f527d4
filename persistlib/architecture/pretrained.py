"""Weights to begin from: those of a checkpoint file, and what is recorded of any.

Law: after `load(module, reader, path)` the module holds the file's bits under the file's names,
every one of them but those of submodules kept apart, or nothing of it has changed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import torch

from persistlib import checkpoint
from persistlib.architecture.module_state import tensor_bytes
from persistlib.architecture.structure import dtype_name
from persistlib.digests import TensorRow, digest, weights_identity
from persistlib.dtypes import of_torch
from persistlib.errors import Code, finding
from persistlib.manifest.schema import Lineage
from persistlib.selection import without_wrappers
from persistlib.sources import open_file

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from torch import nn

    from persistlib.architecture.recipe import Recipe
    from persistlib.checkpoint import CheckpointReader
    from persistlib.errors import Finding

_FINE_TUNED = "fine-tuned-from"
# torch fills it with 0 for checkpoints older than 2018, which lack it.
_COUNTER = "num_batches_tracked"


class Opened(NamedTuple):
    """A checkpoint that is open, and the path that it was opened by."""

    reader: CheckpointReader
    path: str


class Unfit(NamedTuple):
    """Why a checkpoint does not fit a module."""

    findings: tuple[Finding, ...]


def resolved(recipe: Recipe, module: nn.Module, trust: Collection[str]) -> Recipe:
    """Return the recipe with all that `weights=` configured silently.

    Raises:
        ArchitectureError: the weights configured what no recipe says.
    """
    from persistlib.architecture.candidates import fit

    return fit(module, recipe, trust)


def fetched_from(recipe: Recipe, weights: object, module: nn.Module) -> Lineage:
    """Return the lineage of a module with torchvision's weights."""
    rows = [
        TensorRow(name, dtype, tuple(tensor.shape), digest(tensor_bytes(tensor)))
        for name, tensor in module.state_dict(keep_vars=True).items()
        if (dtype := of_torch(str(tensor.dtype))) is not None
    ]
    source = f"{recipe.builder}:{getattr(weights, 'name', weights)}"
    return Lineage(relation=_FINE_TUNED, id=weights_identity(rows), source=source)


def open_checkpoint(path: str) -> CheckpointReader:
    """Return a reader of a weights file, what wrappers put before its names taken off.

    Raises:
        FormatError: the file is not well-formed.
        TargetError: it cannot be read.
    """
    return without_wrappers(open_file(path))


def load(
    module: nn.Module, reader: CheckpointReader, path: str, *, apart: Collection[str] = ()
) -> Lineage | Unfit:
    """Give a module the values of a checkpoint, or say why it does not fit and change nothing.

    Args:
        module: changed in place.
        reader: of the checkpoint.
        path: that it was opened by.
        apart: paths of submodules that keep their values, whatever the checkpoint has there.
    """

    def counts(name: str) -> bool:
        return not any(name.startswith(f"{path}.") for path in apart)

    whole: Mapping[str, torch.Tensor] = module.state_dict(keep_vars=True)
    state = {name: tensor for name, tensor in whole.items() if counts(name)}
    stored = {entry.name: entry.name for entry in reader.entries} | dict(reader.aliases)
    names = {name: owner for name, owner in stored.items() if counts(name)}
    if found := tuple(_mismatches(state, names, reader)):
        return Unfit(found)
    take(module, reader, names)
    with torch.no_grad():
        for name in state.keys() - names.keys():
            state[name].zero_()
    return loaded_from(reader, path)


def take(module: nn.Module, reader: CheckpointReader, names: Iterable[str]) -> None:
    """Copy tensors of a checkpoint into a module that has them in the same shapes and dtypes."""
    state: Mapping[str, torch.Tensor] = module.state_dict(keep_vars=True)
    with torch.no_grad():
        for name in names:
            owner = reader.aliases.get(name, name)
            state[name].copy_(_tensor(reader, owner, state[name].dtype))


def loaded_from(reader: CheckpointReader, path: str) -> Lineage:
    """Return the lineage of a module with a checkpoint's values."""
    source = os.path.basename(path)
    return Lineage(relation=_FINE_TUNED, id=checkpoint.identity(reader), source=source)


def is_counter(name: str) -> bool:
    """Return whether a tensor is one that old checkpoints lack, and that is 0 then."""
    return name.rpartition(".")[2] == _COUNTER


def _mismatches(
    state: Mapping[str, torch.Tensor], names: Mapping[str, str], reader: CheckpointReader
) -> Iterator[Finding]:
    for name, tensor in state.items():
        if name not in names:
            if not is_counter(name):
                yield _unfit(name, "the checkpoint lacks this tensor")
            continue
        entry = reader.tensors[names[name]]
        ours = (dtype_name(tensor), tuple(tensor.shape))
        theirs = (entry.dtype.name, entry.shape)
        if ours != theirs:
            yield _unfit(name, f"{_text(*theirs)} in the checkpoint, {_text(*ours)} in the model")
    for name in names:
        if name not in state:
            yield _unfit(name, "the model has no such tensor")


def _unfit(name: str, reason: str) -> Finding:
    return finding(
        Code.WEIGHTS_MISMATCH, name, reason, "give the builder's arguments that the weights need"
    )


def _text(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype} {list(shape)}"


def _tensor(reader: CheckpointReader, name: str, dtype: torch.dtype) -> torch.Tensor:
    entry = reader.tensors[name]
    if not entry.nbytes:
        return torch.empty(entry.shape, dtype=dtype)
    data = torch.frombuffer(bytearray(reader.read_bytes(name)), dtype=dtype)
    return data.reshape(entry.shape)
