"""Features on disk: written as they are computed, found again by what they were made from.

    CACHE/features-KEY/state.safetensors    rows in the order of the samples
    CACHE/features-KEY/state.json           their digests

The key is drawn from all that the rows depend on: the structure and the tensors of the model
before the part, the samples with how they are prepared, the size of batches, and what computes
(release of torch, device, threads, instructions).

Laws: features that are read are the bits that computing them anew would give; what is damaged is
computed again. Code that changed is in no key, so the first batch is computed and compared
whenever features are read.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import torch

from persistlib.architecture import structure
from persistlib.architecture.module_state import dtype_of, tensor_bytes
from persistlib.canonical import encode
from persistlib.checkpoint import CheckpointReader, Entry
from persistlib.digests import digest
from persistlib.errors import Code, PersistlibError, warn
from persistlib.training import checkpoints

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from persistlib.files import StrPath
    from persistlib.training.batches import Batches
    from persistlib.training.cuts import Cut

_SCHEMA = "persistlib.features/1"
_NAME = re.compile(r"features-[0-9a-f]{32}")
_BLOCK = 16 << 20  # bytes that are written, and digested, at a time


def key_of(model: torch.nn.Module, cut: Cut, samples: Batches) -> str | None:
    """Return what tells the features of samples from all others; None where nothing does.

    Args:
        model: the whole.
        cut: whose features they are.
        samples: in batches.
    """
    data = samples.identity()
    if data is None:
        return None
    front = [
        [inner, role, name, digest(tensor_bytes(tensor))]
        for inner, module in structure.paths(model)
        if not structure.is_within(inner, cut.parts)
        for role, name, tensor in structure.rows(module)
    ]
    device = next((item.device for item in model.parameters()), torch.device("cpu"))
    record: dict[str, Any] = {
        "schema": _SCHEMA,
        "structure": structure.structure_digest(model, without=cut.parts),
        "front": sorted(front),
        "part": cut.path,
        "data": data,
        "batch": samples.batch_size,
        "torch": str(torch.__version__),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "precision": _precision(device.type),
    }
    return digest(encode(record))[:32]


def _precision(device: str) -> str:
    """Return what matrices are multiplied in."""
    if torch.is_autocast_enabled(device):
        return str(torch.get_autocast_dtype(device))
    return torch.get_float32_matmul_precision()


def place_of(folder: StrPath, key: str) -> str:
    """Return where features stand."""
    return os.path.join(os.fspath(folder), f"features-{key}")


def is_place(name: str) -> bool:
    """Return whether a folder of that name has features."""
    return _NAME.fullmatch(name) is not None


def read(path: str, like: torch.Tensor, count: int) -> torch.Tensor | None:
    """Return features that were written, their bytes compared; None where they are not whole.

    Args:
        path: their folder.
        like: the features of the first batch, computed now.
        count: how many samples there are.
    """
    if not os.path.isdir(path):
        return None
    try:
        rows, _ = checkpoints.read_rows(path)
    except PersistlibError as fault:
        warn(Code.CHECKPOINT_DAMAGED, path, fault.reason, "nothing: it is computed again")
        return None
    if rows.shape != (count, *like.shape[1:]) or rows.dtype != like.dtype:
        return None
    return rows if _bits(rows[: len(like)]).equal(_bits(like.cpu())) else None


def write(path: str, batches: Iterable[torch.Tensor], like: torch.Tensor, count: int) -> None:
    """Write features as they are computed; memory is a few blocks of them.

    Args:
        path: their folder.
        batches: the features, in order.
        like: those of the first batch.
        count: how many samples there are.

    Raises:
        TargetError: writing failed.
    """
    checkpoints.write_from(path, _Computed(batches, like, count), {"schema": _SCHEMA})


class _Computed(CheckpointReader):
    """Features whose bytes are computed when they are asked for, once, in order."""

    def __init__(self, batches: Iterable[torch.Tensor], like: torch.Tensor, count: int) -> None:
        rows = min(max(_BLOCK // max(like[0].nbytes, 1), 1), count)
        sizes = [min(rows, count - start) for start in range(0, count, rows)]
        dtype = dtype_of(like)
        super().__init__(
            tuple(
                Entry(f"rows.{number:09}", dtype, (size, *like.shape[1:]))
                for number, size in enumerate(sizes)
            )
        )
        self._blocks = _blocks(batches, sizes)

    def read_bytes(self, name: str) -> memoryview:
        """Return the bytes of the next block, whose turn it is."""
        block = next(self._blocks)
        assert block.shape == self.tensors[name].shape
        return tensor_bytes(block)


def _blocks(batches: Iterable[torch.Tensor], sizes: list[int]) -> Iterator[torch.Tensor]:
    """Yield the rows of batches in blocks of other sizes, each in memory of its own."""
    waiting: list[torch.Tensor] = []
    more = iter(batches)
    for size in sizes:
        while sum(map(len, waiting)) < size:
            waiting.append(next(more).cpu())
        rows = torch.cat(waiting)
        yield rows[:size].clone()
        waiting = [rows[size:].clone()]


def _bits(rows: torch.Tensor) -> torch.Tensor:
    """Return rows as bytes: a NaN equals itself, and zeros have signs."""
    return rows.contiguous().reshape(-1).view(torch.uint8)
