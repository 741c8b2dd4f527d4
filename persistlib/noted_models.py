"""The module that a graph notes, rebuilt and given the file's weights and the noted state.

Law: `noted_module(note_of(module), weights_of(module)) == module` in all that a bundle keeps.

Nothing that the note says is believed: the weights must have the noted identity, and every name and
number is held against the module that the recipe builds before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from persistlib.architecture.module_state import (
    StateTensor,
    TensorCheckpoint,
    assign,
    dtype_of,
    left_on_meta,
    restore_training,
    set_unsaved,
    state_tensors,
    tensor_bytes,
    tensor_of,
    unsaved_tensors,
    with_strides,
)
from persistlib.architecture.skeleton import skeleton
from persistlib.architecture.structure import structure_digest
from persistlib.checkpoint import identity
from persistlib.digests import digest
from persistlib.dtypes import DType
from persistlib.errors import Code, PersistlibError, error, error_of, finding, warn
from persistlib.manifest.consistency import is_dense
from persistlib.model_notes import refusal, values_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import nn

    from persistlib.checkpoint import CheckpointReader
    from persistlib.model_notes import ModelNote

Tensors = dict[str, torch.Tensor]


def noted_module(
    note: ModelNote, weights: CheckpointReader, location: str, *, trust: Collection[str]
) -> nn.Module:
    """Return the module of a note, on the CPU, with weights that have the noted identity.

    Args:
        note: what a file says of its model.
        weights: the file's.
        location: of the file, for errors.
        trust: packages that may be imported to build the module.

    Raises:
        PersistlibError: the recipe is unknown or not trusted, the weights are not those that were
            noted, or the state does not fit the module.
    """
    tensors = _tensors(note, weights, location)
    model = skeleton(note.architecture, trust=trust)
    dtypes = {name: dtype_of(tensor).name for name, tensor in tensors.items()}
    has_drifted = structure_digest(model, dtypes) != note.architecture.structure
    assign(model, _state(note, model, tensors, location))
    if has_drifted:
        warn(
            Code.STRUCTURE_DRIFT,
            note.architecture.builder,
            "what the recipe builds here is configured otherwise than what was exported",
            "the proof that is made now compares its outputs with the graph's",
        )
    _restore_unsaved(note, model, location)
    if empty := left_on_meta(model):
        reason = "nothing gave it values"
        raise error_of(finding(Code.LEFT_ON_META, name, reason) for name in empty)
    kept = note.state.frozen_modules_in_eval
    if unknown := set(kept) - {path for path, _ in model.named_modules()}:
        raise refusal(location, f"no module {min(unknown)!r} to keep in evaluation")
    restore_training(model, note.state.training, kept)
    return model


def _tensors(note: ModelNote, weights: CheckpointReader, location: str) -> Tensors:
    """Return the file's tensors by every name, ties as one.

    Raises:
        FormatError: they are not the noted ones, or a layout does not fit.
    """
    made = {
        entry.name: tensor_of(weights.read_bytes(entry.name), entry.dtype, entry.shape)
        for entry in weights
    }
    found = identity(TensorCheckpoint(made, weights.aliases))
    if found != note.weights:
        reason = f"its weights are {found}, noted are {note.weights}"
        remedy = "take the weights alone, or name the module (--architecture)"
        raise error(Code.GRAPH_NOTES, location, reason, remedy)
    for name, strides in note.state.strides.items():
        if name in made:
            made[name] = _laid_out(made[name], strides, f"{location}: {name}")
    return made | {alias: made[name] for alias, name in weights.aliases.items()}


def _laid_out(tensor: torch.Tensor, strides: tuple[int, ...], where: str) -> torch.Tensor:
    """Return a tensor in another order of memory, of no more memory than it has.

    Raises:
        FormatError: the strides leave bytes out, or repeat them.
    """
    extents = tuple(tensor.shape)
    # An axis of one element may say any stride, also one that no machine has room for.
    is_sane = len(strides) == len(extents) and max(strides, default=0) <= max(tensor.numel(), 1)
    if not (is_sane and is_dense(extents, strides)):
        raise refusal(where, f"strides {strides} for the shape {extents}")
    return with_strides(tensor, strides)


def _state(
    note: ModelNote, model: nn.Module, tensors: Tensors, location: str
) -> dict[str, StateTensor]:
    """Return the state_dict by every name, each parameter training or not as it did.

    Raises:
        FormatError: what is said to be frozen is no parameter.
        ArchitectureError: a parameter's dtype cannot train.
    """
    roles = {item.name: item.is_parameter for item in state_tensors(model)}
    frozen = set(note.state.frozen)
    if unknown := frozen - {name for name, is_parameter in roles.items() if is_parameter}:
        raise refusal(location, f"{min(unknown)!r} is no parameter that could be frozen")
    for name, tensor in tensors.items():
        if roles.get(name) and name not in frozen:
            if not (tensor.is_floating_point() or tensor.is_complex()):
                reason = f"a parameter of {tensor.dtype} cannot train"
                raise error(Code.TENSOR_MISMATCH, f"{location}: {name}", reason)
            tensor.requires_grad_()
    return {
        name: StateTensor(name, tensor, roles.get(name, False)) for name, tensor in tensors.items()
    }


def _restore_unsaved(note: ModelNote, model: nn.Module, location: str) -> None:
    """Put back the tensors outside the state_dict, and compare those that building makes.

    Raises:
        PersistlibError: one has other values, or no place in the module.
    """
    made = dict(unsaved_tensors(model)) if note.state.unsaved else {}
    given: Tensors = {}
    for name, noted in note.state.unsaved.items():
        where = f"{location}: {name}"
        data = values_of(noted, where)
        if data is not None:
            tensor = tensor_of(data, DType[noted.dtype], noted.shape)
            strides = note.state.strides.get(name)
            given[name] = tensor if strides is None else _laid_out(tensor, strides, where)
        elif not _is_made(made.get(name), noted.blake3):
            raise _lost(where)
    set_unsaved(model, given)


def _is_made(tensor: torch.Tensor | None, blake3: str) -> bool:
    return tensor is not None and not tensor.is_meta and digest(tensor_bytes(tensor)) == blake3


def _lost(where: str) -> PersistlibError:
    return error(
        Code.STRUCTURE_DRIFT,
        where,
        "no part of the weights, too large to be noted, and not what building it makes here",
        "convert with the versions that exported it, or copy the bundle",
    )
