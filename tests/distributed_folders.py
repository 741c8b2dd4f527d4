"""Folders of torch.distributed.checkpoint, written by torch, and changed afterwards."""

from __future__ import annotations

import pickle  # noqa: TID251 - reads what the tests themselves have written
import warnings
from typing import TYPE_CHECKING, Any

from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_saver import save as save_state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import torch

    Cut = tuple[tuple[int, ...], tuple[int, ...]]


def save(state: dict[str, Any], folder: Path) -> Path:
    """Save a state by one process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no other process is there
        save_state(state, checkpoint_id=folder, no_dist=True)
    return folder


def change(folder: Path, work: Callable[[Any], Any], protocol: int = 4) -> Path:
    """Change the metadata, or put what `work` returns there instead."""
    path = folder / ".metadata"
    said = pickle.loads(path.read_bytes())
    made = work(said)
    path.write_bytes(pickle.dumps(said if made is None else made, protocol))
    return folder


def save_cut(tensors: Mapping[str, tuple[torch.Tensor, list[Cut]]], folder: Path) -> Path:
    """Save tensors in pieces, each as offsets and sizes, as processes that have one each would."""
    state = {
        f"{name} {number}": tensor[tuple(slice(o, o + s) for o, s in zip(*cut, strict=True))]
        for name, (tensor, cuts) in tensors.items()
        for number, cut in enumerate(cuts)
    }
    save({name: piece.clone() for name, piece in state.items()}, folder)

    def joined(said: Any) -> None:
        stored = {index.fqn: place for index, place in said.storage_data.items()}
        before, said.state_dict_metadata, said.storage_data = said.state_dict_metadata, {}, {}
        said.planner_data = None
        for name, (tensor, cuts) in tensors.items():
            properties = before[f"{name} 0"].properties
            chunks = [ChunkStorageMetadata(*map(size, cut)) for cut in cuts]
            said.state_dict_metadata[name] = TensorStorageMetadata(
                properties, tensor.size(), chunks
            )
            for number, (offsets, _) in enumerate(cuts):
                said.storage_data[MetadataIndex(name, offsets)] = stored[f"{name} {number}"]

    return change(folder, joined)


def size(extents: tuple[int, ...]) -> torch.Size:
    """Return extents as torch keeps them."""
    import torch

    return torch.Size(extents)
