"""A checkpoint in several files and the index that says which tensor is where.

Law: `open_index(write_shards(x)) == x` for names, dtypes, shapes, bytes, aliases and metadata.

An index (`model.safetensors.index.json`, `pytorch_model.bin.index.json`) is a guest: its names are
plain names in its own folder, which is opened once. What it says and what the shards hold must be
the same: no tensor missing, none beside those it names, none in two shards.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from persistlib.canonical import parse
from persistlib.checkpoint import CheckpointReader
from persistlib.converters.file_bytes import Ahead, FileBytes
from persistlib.converters.safetensors_header import data_order, render_header
from persistlib.converters.safetensors_reader import of_file
from persistlib.errors import Code, error
from persistlib.files import Folder, name_fault, read_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from persistlib.checkpoint import Entry
    from persistlib.publish import OutFile

INDEX = ".safetensors.index.json"
SHARD_BYTES = 5_000_000_000  # what the Hub's libraries take
_INDEX_LIMIT = 16 << 20
_SHARDS = 10_000
_DERIVED = {"total_size", "total_parameters"}  # said again by the shards
_TORCH = (b"PK\3\4", b"\x80")
_AGAIN = "fetch the index and its shards again, all from one place"


class Index(NamedTuple):
    """What an index says.

    Attributes:
        weight_map: the shard of each tensor.
        total_size: bytes of all tensors, None where it does not say.
        others: its other metadata.
    """

    weight_map: Mapping[str, str]
    total_size: int | None
    others: tuple[str, ...]


class ShardedReader(CheckpointReader):
    """Open shards, as one checkpoint: entries in the order of the shards' names.

    Attributes:
        shards: the reader of each shard.
    """

    def __init__(self, shards: Mapping[str, CheckpointReader], index: Index, location: str) -> None:
        owners: dict[str, CheckpointReader] = {}
        aliases: dict[str, str] = {}
        metadata: dict[str, str] = {}
        losses = [f"metadata {key}" for key in index.others]
        for name, reader in shards.items():
            _require_agreement(index.weight_map, name, reader, location)
            owners |= dict.fromkeys(reader.tensors, reader)
            for alias, kept in reader.aliases.items():
                if aliases.setdefault(alias, kept) != kept:
                    _refuse(f"{location}: {alias}", f"tied otherwise in another shard than {name}")
            for key, value in reader.metadata.items():
                if metadata.setdefault(key, value) != value:
                    losses.append(f"metadata {key} of {name}")
            losses += [loss for loss in reader.losses if loss not in losses]
        super().__init__(
            tuple(entry for reader in shards.values() for entry in reader), aliases, metadata
        )
        self.shards = shards
        self.losses = tuple(losses)
        self.notes = tuple(f"{n}: {note}" for n, reader in shards.items() for note in reader.notes)
        self._owners = owners
        first = next(iter(shards.values()))
        self.format = first.format
        self.container = f"index of {len(shards)} shards, each {first.container}"

    def read_bytes(self, name: str) -> memoryview:
        """Return the bytes of an entry, as its shard does."""
        return self._owners[name].read_bytes(name)

    def windows(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of an entry, as its shard does."""
        return self._owners[name].windows(name)

    def close(self) -> None:
        """Close every shard."""
        for reader in self.shards.values():
            reader.close()


def is_index(data: FileBytes) -> bool:
    """Return whether a file begins as JSON does, and not as a safetensors header of that length."""
    head = data[:16]
    return head.lstrip()[:1] == b"{" and head[8:9] != b"{"


def open_index(
    data: FileBytes, external: Mapping[str, str] | None = None, *, mapped: bool = True
) -> ShardedReader:
    """Return a reader of all shards that an index names.

    Args:
        data: the index; closed here.
        external: where shards are read instead of beside it, by name.
        mapped: as of `FileBytes`.

    Raises:
        FormatError: the index or a shard is malformed, or they differ.
        TargetError: a shard cannot be read.
    """
    location = data.location
    index = parse_index(data[: _INDEX_LIMIT + 1], location)
    data.close()
    from persistlib.converters import torch_file

    ahead = Ahead()
    with ExitStack() as opened:
        folder = opened.enter_context(_folder(location))
        shards: dict[str, CheckpointReader] = {}
        for name in sorted(set(index.weight_map.values())):
            where = os.path.join(os.path.dirname(location), name)
            if external is not None and name in external:
                part = FileBytes.open(external[name], mapped=mapped, ahead=ahead)
            elif name not in folder.names():
                _refuse(f"{location}: {name}", "the index names a shard that is not there")
            else:
                part = FileBytes(folder.open(name), where, mapped=mapped, ahead=ahead)
            is_torch = part[:4].startswith(_TORCH)
            shards[name] = torch_file.of_file(part, key="") if is_torch else of_file(part)
    if len({reader.format for reader in shards.values()}) > 1:
        _refuse(location, "shards of two formats")
    return _sized(ShardedReader(shards, index, location), index, location)


def _sized(reader: ShardedReader, index: Index, location: str) -> ShardedReader:
    """Return the reader, whose tensors must have the size that the index says."""
    once = sum(entry.nbytes for entry in reader)
    tied = sum(reader.tensors[name].nbytes for name in reader.aliases.values())
    if index.total_size not in (None, once, once + tied):
        reader.close()
        _refuse(location, f"total_size is {index.total_size}, the shards hold {once} bytes")
    return reader


def _folder(location: str) -> Folder:
    path = os.path.dirname(os.path.abspath(location))
    try:
        return Folder(path, os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as fault:
        raise read_fault(fault, path) from fault


def parse_index(data: bytes, location: str) -> Index:
    """Return what the bytes of an index say.

    Raises:
        FormatError: they break a rule.
    """
    raw = parse(data, location, code=Code.FORMAT_HEADER, limit=_INDEX_LIMIT)
    metadata, weight_map = raw.pop("metadata", {}), raw.pop("weight_map", None)
    if raw or not isinstance(metadata, dict):
        _refuse(location, "an index has metadata and weight_map, and nothing else")
    if not isinstance(weight_map, dict) or not weight_map:
        _refuse(location, "weight_map is no map from tensor to shard")
    for tensor, shard in weight_map.items():
        if isinstance(shard, list):
            reason = "an index of Keras' sharded weights, which are not read"
            raise error(Code.FORMAT_UNKNOWN, location, reason, "save one .keras or .weights.h5")
        if type(shard) is not str:
            _refuse(f"{location}: {tensor}", "its shard is no name")
    shards = set(weight_map.values())
    if len(shards) > _SHARDS:
        raise error(Code.FORMAT_LIMIT, location, f"{len(shards)} shards", _AGAIN)
    for shard in sorted(shards):
        if flaw := name_fault(shard):
            raise error(Code.FORMAT_UNSAFE, f"{location}: {shard!r}", f"the name {flaw}", _AGAIN)
    return Index(weight_map, _total(metadata, location), tuple(sorted({*metadata} - _DERIVED)))


def _total(metadata: Mapping[str, Any], location: str) -> int | None:
    total = metadata.get("total_size")
    if total is None:
        return None
    if type(total) not in (int, float) or total != int(total) or total < 0:
        _refuse(location, f"total_size is {total!r}")
    return int(total)


def _require_agreement(
    weight_map: Mapping[str, str], shard: str, reader: CheckpointReader, location: str
) -> None:
    """Require that a shard holds what the index says, and nothing else."""
    held = {*reader.tensors, *reader.aliases}
    for tensor, said in weight_map.items():
        if said == shard and tensor not in held:
            _refuse(f"{location}: {tensor}", f"missing in {shard}, where the index says it is")
    named = held if reader.format == "torch" else reader.tensors
    for tensor in named:
        said = weight_map.get(tensor, "")
        if said != shard:
            told = f"the index says {said}" if said else "the index does not name it"
            _refuse(f"{location}: {tensor}", f"stands in {shard}, {told}")


def _refuse(where: str, reason: str) -> NoReturn:
    raise error(Code.FORMAT_HEADER, where, reason, _AGAIN)


def split(entries: Iterable[Entry], limit: int) -> list[list[Entry]]:
    """Return the entries in their order, cut where a file would grow over `limit` bytes."""
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.nbytes
    return shards


def shard_names(stem: str, count: int) -> list[str]:
    """Return the names of shards as the Hub's libraries give them."""
    return [f"{stem}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]


def render_index(
    entries: Iterable[Entry], names: Sequence[str], placed: Mapping[str, int]
) -> bytes:
    """Return an index as the Hub's libraries write it.

    Args:
        entries: the tensors of all shards.
        names: of the shards.
        placed: number of the shard of each tensor.
    """
    document = {
        "metadata": {"total_size": sum(entry.nbytes for entry in entries)},
        "weight_map": {name: names[number] for name, number in sorted(placed.items())},
    }
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


def write_shards(
    checkpoint: CheckpointReader,
    out: OutFile,
    beside: Callable[[str], OutFile],
    *,
    limit: int,
) -> None:
    """Write a checkpoint as shards, and their index into `out`.

    Args:
        checkpoint: what; its tensors are read once, in their order.
        out: the index, called `STEM.safetensors.index.json`.
        beside: makes a new file of a name in the same folder.
        limit: the most bytes of tensors in one shard; a larger tensor has a shard of its own.

    Raises:
        FormatError: a name or dtype cannot be carried, or metadata collides with an alias.
        UsageError: the limit is not positive.
        OSError: writing failed.
    """
    if limit <= 0:
        raise error(Code.USAGE, "shard_bytes=", f"{limit} is not positive", "give 5000000000")
    shards = split(checkpoint.entries, limit)
    names = shard_names(out.name.removesuffix(INDEX), len(shards))
    for file_name, shard in zip(names, shards, strict=True):
        write_one(checkpoint, beside(file_name), shard)
    placed = {entry.name: number for number, shard in enumerate(shards) for entry in shard}
    out.write(render_index(checkpoint.entries, names, placed))


def write_one(
    checkpoint: CheckpointReader, out: OutFile, entries: Iterable[Entry] | None = None
) -> None:
    """Write some entries of a checkpoint, or all, with their ties as one safetensors file.

    Raises:
        FormatError: a name or dtype cannot be carried, or metadata collides with an alias.
        OSError: writing failed.
    """
    order = data_order(checkpoint.entries if entries is None else entries)
    inside = {entry.name for entry in order}
    aliases = {alias: name for alias, name in checkpoint.aliases.items() if name in inside}
    out.write(render_header(order, checkpoint.metadata, aliases))
    for entry in order:
        for window in checkpoint.windows(entry.name):
            out.write(window)
