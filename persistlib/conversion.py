"""From a bundle or a weights file to a weights file, without torch.

Law: `identity(open(convert(x))) == identity(x)`; what a format does not keep is in `losses`, and an
error unless it was allowed.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from persistlib import formats
from persistlib.bundle import reading
from persistlib.checkpoint import CheckpointReader, Entry, MemoryCheckpoint, identity
from persistlib.dtypes import DType
from persistlib.errors import Code, error
from persistlib.patterns import select

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from persistlib.bundle import Bundle
    from persistlib.files import StrPath
    from persistlib.formats import Format
    from persistlib.patterns import Patterns


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
        source: what was read.
        destination: what was written.
        format: the written format's name.
        tensors: how many tensors were written, ties included.
        identity: the weights identity on both sides; of a graph, that of the weights it is made of.
        losses: what the written file does not keep; empty when nothing was lost.
        proof: of a graph, how its outputs were compared.
    """

    source: str
    destination: str
    format: str
    tensors: int
    identity: str
    losses: tuple[str, ...] = ()
    proof: Mapping[str, Any] = field(default_factory=dict)


def bundle_checkpoint(bundle: Bundle) -> CheckpointReader:
    """Return the verified weights of a bundle, in the order of its state_dict.

    Raises:
        IntegrityError: a byte differs from the manifest.
    """
    weights = bundle.manifest.weights
    entries = tuple(Entry(t.name, DType[t.dtype], t.shape) for t in weights.tensors)
    return MemoryCheckpoint(entries, bundle.tensors(), dict(weights.aliases), {"format": "pt"})


def is_folder(source: StrPath) -> bool:
    """Return whether a source is a bundle rather than a file."""
    return os.path.isdir(source) or not os.path.exists(source)


def convert_weights(
    source: StrPath,
    destination: StrPath,
    target: Format,
    *,
    only: Patterns | None = None,
    allow_loss: Collection[str] = (),
    verify: bool = True,
) -> ConversionReport:
    """Write the weights of a bundle or file as another file, and read them back.

    Args:
        source: a bundle, a safetensors file or a PyTorch checkpoint.
        destination: the file to write.
        target: its format.
        only: patterns of the names to write; None for all.
        allow_loss: what may be lost.
        verify: whether the written file is read back and compared.

    Raises:
        LossError: the target does not keep something that was not allowed to be lost.
        PersistlibError: reading or writing failed; no file is left.
    """

    def write(checkpoint: CheckpointReader) -> ConversionReport:
        chosen = checkpoint if only is None else _subset(checkpoint, only)
        losses = _losses(chosen, target)
        if refused := [loss for loss in losses if not _is_allowed(loss, allow_loss)]:
            raise error(
                Code.LOSS,
                destination,
                f"{target.title} does not keep: {'; '.join(refused)}",
                f"--allow-loss {_kind(refused[0])}",
            )
        target.module().write(chosen, destination)
        before = identity(chosen)
        if verify:
            _read_back(destination, target, before)
        count = len(chosen.entries) + len(chosen.aliases)
        return ConversionReport(
            os.fspath(source), os.fspath(destination), target.name, count, before, tuple(losses)
        )

    if is_folder(source):
        return reading(source, lambda bundle: write(bundle_checkpoint(bundle)))
    with formats.by_content(source).module().open_file(source) as checkpoint:
        return write(checkpoint)


def _subset(checkpoint: CheckpointReader, only: Patterns) -> CheckpointReader:
    """Return a checkpoint of the selected names; a tie to what is left out becomes a tensor."""
    names = tuple(entry.name for entry in checkpoint.entries)
    chosen = select(only, (*names, *checkpoint.aliases))
    kept: dict[str, str] = {}
    aliases: dict[str, str] = {}
    for name in chosen:
        owner = checkpoint.aliases.get(name, name)
        if owner in kept:
            aliases[name] = kept[owner]
        else:
            kept[owner] = name
    entries = tuple(
        Entry(name, checkpoint.tensors[owner].dtype, checkpoint.tensors[owner].shape)
        for owner, name in kept.items()
    )
    buffers = {name: checkpoint.read_bytes(owner) for owner, name in kept.items()}
    return MemoryCheckpoint(entries, buffers, aliases, checkpoint.metadata)


def _losses(checkpoint: CheckpointReader, target: Format) -> list[str]:
    losses = [f"value {name}, which is no tensor" for name in getattr(checkpoint, "others", ())]
    if "metadata" not in target.keeps:
        losses += [f"metadata {key}" for key in checkpoint.metadata if key != "format"]
    return losses


def _kind(loss: str) -> str:
    """Return the word by which a loss is allowed."""
    return loss.partition(" ")[0]


def _is_allowed(loss: str, allowed: Collection[str]) -> bool:
    return "all" in allowed or _kind(loss) in allowed


def _read_back(destination: StrPath, target: Format, expected: str) -> None:
    with target.module().open_file(destination) as written:
        found = identity(written)
    if found != expected:
        with contextlib.suppress(OSError):
            os.unlink(destination)
        raise error(
            Code.READBACK,
            destination,
            f"reads back as {found}, written was {expected}; it was removed",
            "check the disk and convert again",
        )
