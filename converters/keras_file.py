"""Keras' files, `.h5`, `.weights.h5` and `.keras`: weights by path, without Keras or TensorFlow.

Law: a reader's tensors are the file's own bytes, each under the name that docs/keras.md says; with
`layout="torch"`, they are what torch's layers hold to compute the same.

Nothing of a file is parsed in this process (see `isolated`) but its configuration, as inert JSON,
and that only for a layout.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from persistlib.checkpoint import WINDOW, CheckpointReader, Entry
from persistlib.converters import isolation
from persistlib.converters.keras_details import DETAILS, parse_details
from persistlib.converters.keras_torch import torch_tensors
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from persistlib.converters.keras_layout import Made
    from persistlib.dtypes import DType
    from persistlib.files import StrPath

TORCH = "torch"


class KerasReader(CheckpointReader):
    """An open Keras file.

    Attributes:
        config: the model's configuration as the file has it, text; None where it has none.
    """

    def __init__(self, source: CheckpointReader, location: str) -> None:
        """Read a file through its parser.

        Args:
            source: what `isolation` opened.
            location: the file, for messages.
        """
        metadata = dict(source.metadata)
        told = parse_details(metadata.pop(DETAILS, "{}"), len(source.entries), location)
        super().__init__(source.entries, source.aliases, metadata)
        self.format, self.container = source.format, source.container
        self.losses, self.notes = source.losses, source.notes
        self.config, self.details, self.source = told.config, told, source

    def read_bytes(self, name: str) -> memoryview:
        """Return the bytes of an entry; see `IsolatedReader.read_bytes`."""
        return self.source.read_bytes(name)

    def windows(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of an entry; see `CheckpointReader.windows`."""
        return self.source.windows(name)

    def close(self) -> None:
        """End the process that parses the file; bytes handed out before stay valid."""
        self.source.close()


class TorchLayoutReader(CheckpointReader):
    """An open Keras file, its weights turned into those of torch's layers as they are read.

    Attributes:
        config: as `KerasReader.config`.
    """

    def __init__(self, file: KerasReader, location: str) -> None:
        """Find a rule for every weight.

        Raises:
            FormatError: for some weight there is none.
        """
        for alias, name in file.aliases.items():
            reason = f"is the same dataset as {name}; no rule is known for weights in two places"
            raise error(Code.FORMAT_LAYOUT, f"{location}: {alias}", reason, "save it again")
        made, notes = torch_tensors(file.details, file.entries, location)
        super().__init__(
            tuple(Entry(name, tensor.dtype, tensor.shape) for name, tensor in made.items()),
            {},
            file.metadata,
        )
        self.format, self.container, self.losses = file.format, file.container, file.losses
        self.notes, self.config = (*file.notes, *notes), file.config
        self._file, self._made = file, made

    def read_bytes(self, name: str) -> memoryview:
        """Return the bytes of a tensor in memory of their own.

        Raises:
            KeyError: no entry has that name.
            PersistlibError: as `IsolatedReader.read_bytes`.
        """
        tensor = self._made[name]
        if tensor.make is None:
            return self._file.read_bytes(tensor.sources[0])
        return tensor.dtype.pack(self._array(tensor))

    def windows(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of a tensor; in memory is what it is made of, and a window."""
        tensor = self._made[name]
        if tensor.make is None:
            yield from self._file.windows(tensor.sources[0])
        else:
            yield from _pieces(self._array(tensor), tensor.dtype)

    def close(self) -> None:
        """End the process that parses the file; bytes handed out before stay valid."""
        self._file.close()

    def _array(self, tensor: Made) -> np.ndarray:
        assert tensor.make is not None
        return tensor.make(*(self._file.read(source) for source in tensor.sources))


def _pieces(array: np.ndarray, dtype: DType) -> Iterator[memoryview]:
    """Yield the bytes of an array in order, at most a window copied at a time."""
    if array.nbytes <= WINDOW:
        if array.nbytes:
            yield dtype.pack(array)
        return
    rows = max(WINDOW * len(array) // array.nbytes, 1)
    for start in range(0, len(array), rows):
        part = array[start : start + rows]
        yield from _pieces(part[0] if len(part) == 1 and part.nbytes > WINDOW else part, dtype)


def open_file(path: StrPath, *, layout: str | None = None) -> KerasReader | TorchLayoutReader:
    """Return a reader of the `.keras` archive at `path`; no tensor is read yet.

    Args:
        path: an archive of Keras 3.
        layout: "torch" for torch's names and axes.

    Raises:
        UsageError: there is no such layout.
        FormatError: the file breaks a rule, a limit or its parser, or has a weight without rule.
        TargetError: the file cannot be read.
    """
    return read(isolation.open_file(path, "keras", {}), path, layout)


def read(
    source: CheckpointReader, path: StrPath, layout: str | None
) -> KerasReader | TorchLayoutReader:
    """Return a reader of a file that `isolation` opened and found to be Keras'.

    Args:
        source: what was opened; closed when the file is refused.
        path: the file, for messages.
        layout: as in `open_file`.

    Raises:
        PersistlibError: as `open_file`.
    """
    location = os.fspath(path)
    try:
        if layout not in (None, TORCH):
            raise error(Code.USAGE, f"layout={layout}", "no such layout", f"use {TORCH}")  # noqa: TRY301
        file = KerasReader(source, location)
        return file if layout is None else TorchLayoutReader(file, location)
    except BaseException:
        source.close()
        raise
