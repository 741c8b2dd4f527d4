"""The neutral value between all formats: named tensors, read lazily.

Every format is one spoke with `open_file(path) -> CheckpointReader` and `write_to(checkpoint,
out)`, which streams: it holds one window of one tensor at a time.

Law: `read(write(x)) == x` for the entries, their order and bytes, the aliases and the metadata, for
all that the format promises to keep.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from persistlib.digests import RunningDigest, TensorRow, weights_identity
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType

    import numpy as np
    from typing_extensions import Self

    from persistlib.dtypes import DType

_RENAME = "rename the tensor where it was saved"
_EMPTY: Mapping[str, str] = MappingProxyType({})
# Bytes that are read at a time: a tensor that is smaller is one window.
WINDOW = 16 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor without its values.

    Attributes:
        name: any Unicode without NUL.
        dtype: element type.
        shape: extents, each at least 0; empty for a scalar.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the dense little-endian row-major tensor."""
        return self.dtype.nbytes(self.shape)


class CheckpointReader(ABC):
    """An open checkpoint: what it holds is known, the bytes are fetched on demand.

    Attributes:
        entries: the tensors in the file's order, aliases not among them.
        aliases: second names, each to the name of an entry.
        metadata: string to string, as the file holds it.
        tensors: the entries by name.
        format: name of the file's format in `formats`.
        container: the format's variant and version, in words.
        losses: what the file holds and a checkpoint does not, each beginning with the word by which
            its loss is allowed, such as "value epoch, which is no tensor".
        notes: what whoever reads the file should know, a sentence each.
    """

    format: str = ""
    container: str = ""
    losses: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        entries: tuple[Entry, ...],
        aliases: Mapping[str, str] = _EMPTY,
        metadata: Mapping[str, str] = _EMPTY,
    ) -> None:
        self.entries = entries
        self.aliases = aliases
        self.metadata = metadata
        self.tensors = {entry.name: entry for entry in entries}
        if len(self.tensors) != len(entries):
            names = Counter(entry.name for entry in entries)
            twice = max(names, key=names.__getitem__)
            raise error(Code.FORMAT_NAME, twice, "the name stands twice", _RENAME)
        for alias, name in aliases.items():
            if alias in self.tensors or name not in self.tensors:
                raise error(Code.FORMAT_NAME, alias, f"not an alias of a tensor: {name}", _RENAME)

    @abstractmethod
    def read_bytes(self, name: str) -> memoryview:
        """Return the little-endian row-major bytes of an entry (format "B"), a view if possible.

        Raises:
            KeyError: no entry has that name.
            FormatError: the bytes are not to be had.
        """

    def windows(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of an entry in order, at most `WINDOW` at a time.

        A window may change when the next one is asked for. What a checksum of the file says of the
        bytes is known, and raised, at the latest before the iteration ends.

        Raises:
            KeyError: no entry has that name.
            PersistlibError: as `read_bytes`.
        """
        data = self.read_bytes(name)
        for start in range(0, data.nbytes, WINDOW):
            yield data[start : start + WINDOW]

    def close(self) -> None:  # noqa: B027 - most readers hold nothing that needs closing
        """Let go of the file; views handed out before stay valid."""

    def read(self, name: str) -> np.ndarray:
        """Return an entry as an array of its dtype and shape, a view if possible."""
        entry = self.tensors[name]
        count = math.prod(entry.shape)
        return entry.dtype.unpack(self.read_bytes(name), count).reshape(entry.shape)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(eq=False)
class MemoryCheckpoint(CheckpointReader):
    """A checkpoint in memory: entries and their bytes.

    Attributes:
        buffers: the bytes of each entry, by name.
    """

    entries: tuple[Entry, ...]
    buffers: Mapping[str, memoryview]
    aliases: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.entries, self.aliases, self.metadata)
        for entry in self.entries:
            if self.buffers[entry.name].nbytes != entry.nbytes:
                raise error(
                    Code.FORMAT_SHAPE,
                    entry.name,
                    f"{self.buffers[entry.name].nbytes} bytes, its shape needs {entry.nbytes}",
                )

    def read_bytes(self, name: str) -> memoryview:
        """Return the bytes of an entry."""
        return self.buffers[name]


def joined(windows: Iterable[memoryview]) -> memoryview:
    """Return windows as one; each may change when the next is asked for."""
    data = bytearray()
    for window in windows:
        data += window
    return memoryview(data)


def check_booleans(view: memoryview, location: object) -> memoryview:
    """Return the bytes of a BOOL tensor, every one of which is 0 or 1.

    Raises:
        FormatError: some byte is no boolean.
    """
    if bytes(view).translate(None, b"\0\1"):
        raise error(
            Code.FORMAT_VALUE, location, "a boolean that is neither 0 nor 1", "write it again"
        )
    return view


def tensor_rows(checkpoint: CheckpointReader) -> tuple[TensorRow, ...]:
    """Return a row for each entry and each alias: every tensor is read and hashed once."""
    return expand(checkpoint, {entry.name: _digest(checkpoint, entry) for entry in checkpoint})


def expand(checkpoint: CheckpointReader, digests: Mapping[str, str]) -> tuple[TensorRow, ...]:
    """Return a row for each entry and each alias, given the digest of each entry."""
    named = {name: name for name in digests} | dict(checkpoint.aliases)
    return tuple(
        TensorRow(name, (entry := checkpoint.tensors[kept]).dtype, entry.shape, digests[kept])
        for name, kept in named.items()
    )


def _digest(checkpoint: CheckpointReader, entry: Entry) -> str:
    running = RunningDigest()
    for window in checkpoint.windows(entry.name):
        running.update(window)
    return running.hexdigest()


def identity(checkpoint: CheckpointReader) -> str:
    """Return the weights identity of a checkpoint."""
    return weights_identity(tensor_rows(checkpoint))
