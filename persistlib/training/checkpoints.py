"""One checkpoint of a run: tensors as safetensors, all else as JSON, every byte digested.

Law: `read(path)` after `write(path, snapshot)` gives the snapshot, bit for bit; a checkpoint of
which any byte differs, or is missing, is refused.

A checkpoint is published as a bundle is (`publish`): it stands whole and durable, or not at all.
Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from persistlib import publish
from persistlib.architecture.module_state import TensorCheckpoint, tensor_of
from persistlib.canonical import encode as canonical
from persistlib.canonical import parse
from persistlib.digests import PREFIX, digest, digest_all
from persistlib.errors import Code, PersistlibError, error
from persistlib.files import Folder, StrPath, map_private, read_fault
from persistlib.formats import FORMATS
from persistlib.training import plain
from persistlib.writing import write_tensors

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from persistlib.checkpoint import CheckpointReader

FACTS = "state.json"
TENSORS = "state.safetensors"
_SCHEMA = "persistlib.checkpoint/1"
# Histories of long runs and names of large models; as of a manifest.
_LIMIT = 64 << 20
_NO_LIMIT = 1 << 62
_FILES = {FACTS, TENSORS}


class Snapshot(NamedTuple):
    """A moment of a run.

    Attributes:
        tensors: by name; the part before the first `/` says of what.
        facts: plain values.
    """

    tensors: Mapping[str, torch.Tensor]
    facts: Mapping[str, Any]

    def below(self, kind: str) -> dict[str, torch.Tensor]:
        """Return the tensors of one kind, by the rest of their names."""
        prefix = f"{kind}/"
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }


def write(path: StrPath, snapshot: Snapshot) -> None:
    """Write a checkpoint; what stood there is replaced.

    Raises:
        TargetError: writing failed; what stood there stands unchanged.
    """
    write_from(path, TensorCheckpoint(snapshot.tensors, {}), snapshot.facts)


def write_from(path: StrPath, tensors: CheckpointReader, facts: Mapping[str, Any]) -> None:
    """Write a checkpoint of tensors that are asked for one by one, in the order of their names.

    Raises:
        TargetError: writing failed; what stood there stands unchanged.
    """
    with publish.folder(path, overwrite=True, foreign=_foreign) as folder:
        written = write_tensors(
            folder, tensors, stem=TENSORS.removesuffix(".safetensors"), limit=_NO_LIMIT
        )
        (entry,) = written.files
        record = {
            "schema": _SCHEMA,
            "facts": plain.encode(dict(facts)),
            "tensors": {
                "size": entry.size,
                "header": entry.header_blake3,
                "digests": dict(written.digests),
            },
        }
        with folder.create(FACTS) as out:
            out.write(seal(record))


def read(path: StrPath) -> Snapshot:
    """Return a checkpoint, each byte of it compared.

    Raises:
        TargetError: nothing stands there, or it cannot be read.
        TrainingError: it is damaged, or of another release's schema.
    """
    with _opened(path) as (folder, facts, record):
        # A copy: what goes on training must not change with the file.
        header, data = _verified(folder, record, mapped=False)
        return Snapshot(
            {
                entry.name: tensor_of(
                    data[slice(*header.spans[entry.name])], entry.dtype, entry.shape
                )
                for entry in header.entries
            },
            facts,
        )


def read_rows(path: StrPath) -> tuple[torch.Tensor, Mapping[str, Any]]:
    """Return a checkpoint whose tensors are parts of one, along its first axis, as that one.

    The file is mapped: its bytes are compared, and come into memory as they are used.

    Returns:
        The whole, and the facts.

    Raises:
        PersistlibError: as `read`.
    """
    with _opened(path) as (folder, facts, record):
        header, data = _verified(folder, record, mapped=True)
        kinds = {(entry.dtype, entry.shape[1:]) for entry in header.entries}
        ((dtype, shape),) = kinds
        # Side by side in the file, which has no holes.
        flat = torch.frombuffer(data[header.length :], dtype=torch.uint8)
        return flat.view(dtype.torch).reshape(-1, *shape), facts


@contextlib.contextmanager
def _opened(path: StrPath) -> Generator[tuple[Folder, dict[str, Any], Mapping[str, Any]]]:
    """Yield the folder of a checkpoint, its facts, and what it says of its tensors."""
    with publish.open_folder(path) as folder:
        try:
            record = unseal(folder.read(FACTS, limit=_LIMIT), os.path.join(path, FACTS), _SCHEMA)
            yield folder, dict(plain.decode(record["facts"])), record["tensors"]
        except PersistlibError as fault:
            raise _damaged(path, fault.reason) from fault
        except (KeyError, TypeError, ValueError, EOFError, AttributeError) as fault:
            raise _damaged(path, f"{type(fault).__name__} {fault}") from fault


def seal(record: Mapping[str, Any]) -> bytes:
    """Return a record as canonical JSON with the digest of its other members."""
    identity = PREFIX + digest(canonical(dict(record)))
    return canonical({**record, "digest": identity})


def unseal(data: bytes, location: StrPath, schema: str) -> dict[str, Any]:
    """Return a record of which no byte differs from what `seal` gave.

    Raises:
        TrainingError: some byte does, or it has another schema.
    """
    record = parse(data, location, code=Code.CHECKPOINT_DAMAGED, limit=_LIMIT)
    if (found := record.get("schema")) != schema:
        remedy = "go on with the release of persistlib that wrote it"
        raise error(Code.CHECKPOINT_DAMAGED, location, f"schema {found}, not {schema}", remedy)
    claimed = record.pop("digest", None)
    if seal(record) != data or claimed != PREFIX + digest(canonical(record)):
        raise _damaged(location, "its bytes differ from its digest")
    return record


def _verified(folder: Folder, record: Mapping[str, Any], *, mapped: bool) -> tuple[Any, memoryview]:
    """Return a file's header and its bytes, which were compared with their digests."""
    location = os.path.join(folder.path, TENSORS)
    safetensors = FORMATS["safetensors"].module()
    fd = folder.open(TENSORS, follow=False)
    try:
        size = os.fstat(fd).st_size
        if size != record["size"]:
            raise _damaged(location, f"{size} bytes instead of {record['size']}")
        raw = safetensors.header_bytes(fd, size, location)
        if digest(raw) != record["header"]:
            raise _damaged(location, "its header differs from its digest")
        header = safetensors.parse_header(raw, size, location)
        data = map_private(fd, size, mapped=mapped)
    except OSError as fault:
        raise read_fault(fault, location) from fault
    finally:
        os.close(fd)
    views = {entry.name: data[slice(*header.spans[entry.name])] for entry in header.entries}
    if dict(zip(views, digest_all([*views.values()]), strict=True)) != record["digests"]:
        raise _damaged(location, "a tensor differs from its digest")
    return header, data


def _foreign(folder: Folder) -> list[str]:
    return sorted(set(folder.names()) - _FILES)


def _damaged(location: StrPath, reason: str) -> PersistlibError:
    return error(Code.CHECKPOINT_DAMAGED, location, reason, "go on from the one before")
