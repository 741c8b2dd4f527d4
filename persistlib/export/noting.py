"""What a live module and its inputs are, as a graph notes it; and inputs drawn again from that.

Law: the note of a module is the same whether it is made while the module is saved or from the
bundle that was saved.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from persistlib.architecture.module_state import (
    TensorCheckpoint,
    dtype_of,
    tensor_bytes,
    tensor_of,
)
from persistlib.checkpoint import identity
from persistlib.digests import digest
from persistlib.dtypes import DType
from persistlib.examples import draw_inputs
from persistlib.model_notes import (
    ModelNote,
    NotedInput,
    NotedState,
    Unsaved,
    noted_lineage,
    noted_tensors,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from persistlib.architecture.module_state import ModuleState
    from persistlib.bundle import Bundle
    from persistlib.manifest.schema import TensorSpec

# Elements of one input; more are no example of what a network is usually given.
INPUT_LIMIT = 1 << 24
_SEED = 0
_INPUT = "input."  # before the names of stored inputs


def noted_state(
    state: ModuleState, unsaved: Mapping[str, tuple[torch.Tensor, bool]]
) -> tuple[str, NotedState]:
    """Return the weights identity of a module, and what it remembers beside its weights.

    Args:
        state: all that it holds.
        unsaved: tensors outside the state_dict, each with whether rebuilding makes it.
    """
    outside: dict[str, Unsaved] = {}
    for name, (tensor, is_made) in unsaved.items():
        data = tensor_bytes(tensor)
        outside[name] = Unsaved(
            dtype_of(tensor).name, tuple(tensor.shape), digest(data), None if is_made else data
        )
    noted = NotedState(
        frozen=tuple(item.name for item in state.tensors if item.frozen),
        training=state.training,
        frozen_modules_in_eval=state.kept_in_eval,
        unsaved=noted_tensors(outside),
        strides=dict(state.strides),
    )
    tensors = {item.name: item.tensor for item in state.tensors}
    return identity(TensorCheckpoint(tensors, state.aliases)), noted


def note_of_bundle(bundle: Bundle, inputs: Mapping[str, torch.Tensor]) -> ModelNote:
    """Return what a graph of a bundle's module notes of it.

    Args:
        bundle: its tensors outside the state_dict are read.
        inputs: what the graph is made with, by forward argument.

    Raises:
        IntegrityError: a byte differs from the manifest.
    """
    manifest = bundle.manifest
    stored = bundle.unsaved()
    outside = {
        name: Unsaved(tensor.dtype, tensor.shape, tensor.blake3, stored.get(name))
        for name, tensor in manifest.state.unsaved_buffers.items()
    }
    records = {
        "training": manifest.training,
        "evaluations": manifest.evaluations,
        "resume": manifest.resume,
        "examples": manifest.examples,
        "extensions": manifest.extensions,
    }
    return ModelNote(
        name=manifest.name,
        license=manifest.license,
        status=manifest.status,
        architecture=manifest.architecture,
        interface=manifest.interface,
        weights=manifest.weights.identity,
        state=NotedState(
            frozen=tuple(record.name for record in manifest.weights.tensors if record.frozen),
            training=manifest.state.training,
            frozen_modules_in_eval=manifest.state.frozen_modules_in_eval,
            unsaved=noted_tensors(outside),
            strides=manifest.state.strides,
        ),
        inputs=noted_inputs(inputs),
        requires=manifest.requires,
        lineage=noted_lineage(manifest.lineage),
        left_out=tuple(field for field, content in records.items() if content),
    )


def inputs_of_bundle(bundle: Bundle) -> dict[str, torch.Tensor]:
    """Return what a graph of a bundle is made with: its stored examples, or others that fit.

    Raises:
        IntegrityError: the examples differ from the manifest.
    """
    manifest = bundle.manifest
    if manifest.examples is None:
        return draw_inputs(manifest.interface)
    reader = bundle.reader(manifest.examples.files[0])
    stored = {
        entry.name.removeprefix(_INPUT): tensor_of(
            memoryview(bytearray(reader.read_bytes(entry.name))), entry.dtype, entry.shape
        )
        for entry in reader
        if entry.name.startswith(_INPUT)
    }
    order = [spec.name for spec in manifest.interface.inputs]
    return {name: stored[name] for name in order if name in stored}


def noted_inputs(inputs: Mapping[str, torch.Tensor]) -> tuple[NotedInput, ...]:
    """Return what inputs are like: extents and the range of values."""
    return tuple(_noted_input(tensor.detach().cpu()) for tensor in inputs.values())


def _noted_input(tensor: torch.Tensor) -> NotedInput:
    shape = tuple(tensor.shape)
    if tensor.is_complex() or not tensor.numel():
        return NotedInput(shape=shape)
    if not tensor.is_floating_point():
        whole = tensor.to(torch.int64)
        return NotedInput(shape=shape, low=int(whole.min()), high=int(whole.max()))
    values = tensor.double()
    ends = float(values.min()), float(values.max())
    # In as many digits as every machine computes alike.
    moments = (float(f"{moment:.6g}") for moment in (values.mean(), values.std(correction=0)))
    low, high, mean, deviation = (number + 0.0 for number in (*ends, *moments))  # no negative zero
    if not all(map(math.isfinite, (low, high, mean, deviation))):
        return NotedInput(shape=shape)
    return NotedInput(shape=shape, low=low, high=high, mean=mean, deviation=deviation)


def drawn_inputs(
    noted: Sequence[NotedInput], specs: Sequence[TensorSpec]
) -> dict[str, torch.Tensor]:
    """Return inputs like those that were noted, by name; the same ones each time.

    Args:
        noted: what they are like.
        specs: their names and dtypes, in the same order.
    """
    generator = np.random.default_rng(_SEED)
    return {
        spec.name: _drawn(like, DType[spec.dtype], generator)
        for like, spec in zip(noted, specs, strict=True)
    }


def _drawn(like: NotedInput, dtype: DType, generator: np.random.Generator) -> torch.Tensor:
    kind = dtype.torch
    if kind.is_floating_point:
        deviation = 1.0 if like.deviation is None else like.deviation
        with np.errstate(over="ignore"):
            spread: Any = generator.standard_normal(like.shape) * deviation + (like.mean or 0.0)
        low = -np.inf if like.low is None else like.low
        values: Any = np.clip(spread, low, np.inf if like.high is None else like.high)
    else:
        info = np.iinfo(np.int64 if kind.is_complex or kind is torch.bool else dtype.numpy)
        low, high = (int(np.clip(end or 0, info.min, info.max)) for end in (like.low, like.high))
        values = generator.integers(low, high, like.shape, info.dtype, endpoint=True)
    return torch.from_numpy(np.asarray(values)).to(kind)
