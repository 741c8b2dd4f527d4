"""The end of a load: the tensors that a state_dict leaves out, and that none is without values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.architecture.module_state import (
    left_on_meta,
    set_unsaved,
    tensor_bytes,
    tensor_of,
    unsaved_tensors,
    with_strides,
)
from persistlib.digests import digest
from persistlib.dtypes import DType
from persistlib.errors import Code, error, error_of, finding, warn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from persistlib.manifest.schema import State

SAME_VERSIONS = "load it with the versions it was saved with, or pass strict=False"


def restore_unsaved(
    model: nn.Module, state: State, views: Mapping[str, memoryview], *, strict: bool
) -> None:
    """Put back the tensors outside the state_dict; compare those that building makes.

    Raises:
        CompatibilityError: one of these has other values, and `strict` is set.
    """
    records = state.unsaved_buffers
    made = dict(unsaved_tensors(model)) if records else {}
    set_unsaved(
        model,
        {
            name: with_strides(
                tensor_of(views[name], DType[record.dtype], record.shape),
                state.strides.get(name),
            )
            for name, record in records.items()
            if record.file is not None
        },
    )
    for name, record in records.items():
        if record.file is not None:
            continue
        tensor = made.get(name)
        if (
            tensor is not None
            and not tensor.is_meta
            and digest(tensor_bytes(tensor)) == record.blake3
        ):
            continue
        reason = "this buffer is no part of the weights, and is rebuilt with other values"
        if strict:
            raise error(Code.STRUCTURE_DRIFT, name, reason, SAME_VERSIONS)
        warn(Code.STRUCTURE_DRIFT, name, reason, SAME_VERSIONS)


def refuse_meta(model: nn.Module) -> None:
    """Refuse a module of which a tensor was left without values.

    Raises:
        ArchitectureError: every such tensor is in `findings`.
    """
    if empty := left_on_meta(model):
        raise error_of(
            finding(Code.LEFT_ON_META, name, "nothing gave it values", "report the architecture")
            for name in empty
        )
