"""Writing the files of a new bundle: hashed while written, each byte once; no torch.

Law: the same tensors, metadata and limits give the same bytes.
"""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persistlib.digests import digest
from persistlib.formats import FORMATS
from persistlib.manifest.schema import FileEntry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from typing_extensions import Buffer

    from persistlib.checkpoint import CheckpointReader, Entry
    from persistlib.publish import NewFolder, OutFile

# Pieces that may wait for their digest while the next is written: enough to keep both cores busy,
# and a bound on what an accelerator's tensors take on the host.
_IN_FLIGHT = 2


@dataclass(frozen=True)
class Written:
    """Tensor files of a bundle.

    Attributes:
        files: in order of the shards.
        index: the shard index, when there is more than one file.
        digests: BLAKE3 of each tensor's bytes, by name.
        placed: index into `files`, by name.
    """

    files: tuple[FileEntry, ...]
    index: FileEntry | None
    digests: Mapping[str, str]
    placed: Mapping[str, int]


def write_tensors(
    folder: NewFolder, checkpoint: CheckpointReader, *, stem: str, limit: int, sha256: bool = False
) -> Written:
    """Write tensors as one safetensors file, or as shards of at most `limit` bytes and their index.

    Args:
        folder: where to.
        checkpoint: what; read once, in the order of the file's bytes.
        stem: `STEM.safetensors`, or `STEM-00001-of-00002.safetensors` and so on.
        limit: bytes of tensors in one file; a larger tensor has a file of its own.
        sha256: whether entries also get that digest.
    """
    safetensors = FORMATS["safetensors"].module()
    shards: list[list[Entry]] = safetensors.split(checkpoint.entries, limit)
    names: list[str] = [f"{stem}.safetensors"]
    if len(shards) > 1:
        names = safetensors.shard_names(stem, len(shards))
    parts = dict(zip(names, shards, strict=True))
    files, digests = write_shards(folder, checkpoint, parts, sha256=sha256)
    placed = {entry.name: number for number, shard in enumerate(shards) for entry in shard}
    index = None
    if len(files) > 1:
        text: bytes = safetensors.render_index(checkpoint.entries, names, placed)
        index = write_file(folder, f"{stem}.safetensors.index.json", text, sha256=sha256)
    return Written(tuple(files), index, digests, placed)


def write_shards(
    folder: NewFolder,
    checkpoint: CheckpointReader,
    shards: Mapping[str, Sequence[Entry]],
    *,
    sha256: bool = False,
) -> tuple[list[FileEntry], dict[str, str]]:
    """Write safetensors files; return their entries and the digest of each tensor.

    Args:
        folder: where to.
        checkpoint: what; read once, file by file, in the order of the file's bytes.
        shards: the tensors of each file, by its name.
        sha256: whether entries also get that digest.
    """
    files: list[FileEntry] = []
    digests: dict[str, str] = {}
    with ThreadPoolExecutor(1) as blake, ThreadPoolExecutor(1) as sha:
        for name, shard in shards.items():
            with folder.create(name) as out:
                tee = _Tee(out, blake, sha if sha256 else None)
                head, found = _write_shard(tee, checkpoint, shard)
                digests |= found
            files.append(
                FileEntry(path=name, size=out.size, header_blake3=head, sha256=tee.sha256())
            )
    return files, digests


class _Tee:
    """A file being written, and hashed meanwhile on other threads."""

    def __init__(
        self, out: OutFile, blake: ThreadPoolExecutor, sha: ThreadPoolExecutor | None
    ) -> None:
        self._out = out
        self._blake = blake
        self._sha = sha
        self._sha_state = hashlib.sha256()
        self._busy: deque[Future[Any]] = deque()

    def write(self, data: Buffer) -> Future[str]:
        """Write a piece; the future is its BLAKE3."""
        result = self._blake.submit(digest, data)
        self._busy.append(result)
        if self._sha is not None:
            self._busy.append(self._sha.submit(self._sha_state.update, data))
        self._out.write(data)
        while len(self._busy) > _IN_FLIGHT:
            self._busy.popleft().result()
        return result

    def sha256(self) -> str | None:
        """Return the SHA-256 of all that was written, where it was asked for."""
        while self._busy:
            self._busy.popleft().result()
        return self._sha_state.hexdigest() if self._sha is not None else None


def _write_shard(
    tee: _Tee, checkpoint: CheckpointReader, shard: Sequence[Entry]
) -> tuple[str, dict[str, str]]:
    """Write one safetensors file; return the digests of its header and of its tensors."""
    safetensors = FORMATS["safetensors"].module()
    order: tuple[Entry, ...] = safetensors.data_order(shard)
    inside = {entry.name for entry in shard}
    aliases = {alias: name for alias, name in checkpoint.aliases.items() if name in inside}
    head = tee.write(safetensors.render_header(order, checkpoint.metadata, aliases))
    futures = {entry.name: tee.write(checkpoint.read_bytes(entry.name)) for entry in order}
    return head.result(), {name: future.result() for name, future in futures.items()}


def write_file(folder: NewFolder, name: str, data: Buffer, *, sha256: bool = False) -> FileEntry:
    """Write one file whole and return its entry."""
    view = memoryview(data)
    with folder.create(name) as out:
        out.write(view)
    return FileEntry(
        path=name,
        size=view.nbytes,
        blake3=digest(view),
        sha256=hashlib.sha256(view).hexdigest() if sha256 else None,
    )
