"""Safetensors: https://github.com/huggingface/safetensors#format, read by stricter rules.

Law: `open_file(write(x)) == x` for names, dtypes, shapes, bytes, aliases and metadata; the entries
stand in the file's own order (element size falling, then name), so the same tensors give the same
bytes. One file holds them all, or shards and an index beside them (`safetensors_shards`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib import publish
from persistlib.converters.file_bytes import FileBytes
from persistlib.converters.safetensors_header import (
    HEADER_LIMIT,
    Header,
    data_order,
    header_bytes,
    parse_header,
    render_header,
)
from persistlib.converters.safetensors_reader import SafetensorsReader, of_file, read_memory
from persistlib.converters.safetensors_shards import (
    INDEX,
    SHARD_BYTES,
    ShardedReader,
    is_index,
    open_index,
    render_index,
    shard_names,
    split,
    write_one,
    write_shards,
)
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from persistlib.checkpoint import CheckpointReader
    from persistlib.files import StrPath

__all__ = [
    "HEADER_LIMIT",
    "Header",
    "SafetensorsReader",
    "ShardedReader",
    "data_order",
    "header_bytes",
    "open_file",
    "parse_header",
    "read_memory",
    "render",
    "render_header",
    "render_index",
    "shard_names",
    "split",
    "write",
    "write_to",
]


def open_file(
    path: StrPath, *, external: Mapping[str, str] | None = None, mapped: bool = True
) -> SafetensorsReader | ShardedReader:
    """Return a reader of the file at `path`; no tensor is read yet.

    Args:
        path: a safetensors file, or an index of shards, of safetensors or of torch.
        external: of an index, where its shards are read instead of beside it, by name.
        mapped: whether `read_bytes` gives views of a private mapping, or of a private copy.

    Raises:
        FormatError: the file breaks a rule of the format, or shards differ from their index.
        TargetError: the file cannot be read.
    """
    data = FileBytes.open(path, mapped=mapped)
    if is_index(data):
        return open_index(data, external, mapped=mapped)
    return of_file(data)


def write(checkpoint: CheckpointReader, path: StrPath) -> None:
    """Write a checkpoint as one safetensors file, whole and durable.

    Raises:
        FormatError: a name cannot be carried, or metadata collides with an alias.
        TargetError: writing failed; what stood at `path` stands unchanged.
    """
    with publish.file(path) as out:
        write_to(checkpoint, out)


def write_to(
    checkpoint: CheckpointReader,
    out: publish.OutFile,
    *,
    beside: Callable[[str], publish.OutFile] | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Write a checkpoint into a new file, a window of a tensor at a time.

    Args:
        checkpoint: what.
        out: the file, or the index where its name is that of one.
        beside: makes a new file of a name in the same folder; shards need it.
        shard_bytes: the most bytes of tensors in one shard.

    Raises:
        FormatError: a name or dtype cannot be carried, or metadata collides with an alias.
        UsageError: shards were asked for under a name that is no index's.
        OSError: writing failed.
    """
    if beside is not None and out.name.endswith(INDEX):
        limit = SHARD_BYTES if shard_bytes is None else shard_bytes
        write_shards(checkpoint, out, beside, limit=limit)
    elif shard_bytes is not None:
        reason = "means shards and an index beside them"
        raise error(Code.USAGE, "shard_bytes=", reason, f"name the index: MODEL{INDEX}")
    else:
        write_one(checkpoint, out)


def render(checkpoint: CheckpointReader) -> bytes:
    """Return a small checkpoint as the bytes of one safetensors file."""
    order = data_order(checkpoint.entries)
    head = render_header(order, checkpoint.metadata, checkpoint.aliases)
    return b"".join([head, *(checkpoint.read_bytes(entry.name) for entry in order)])
