"""HDF5 files of weights, of persistlib's layout (docs/hdf5.md), of anybody's, and of Keras.

Law: `open_file(write(x)) == x` for names, order, dtypes, shapes, bytes, aliases and metadata.

Nothing of a file is parsed in this process: see `isolated`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib import publish
from persistlib.converters import isolation, keras_file

if TYPE_CHECKING:
    from persistlib.checkpoint import CheckpointReader
    from persistlib.files import StrPath
    from persistlib.publish import OutFile


def open_file(path: StrPath, *, layout: str | None = None) -> CheckpointReader:
    """Return a reader of the HDF5 file at `path`; no tensor is read yet.

    Args:
        path: an HDF5 file.
        layout: of a Keras file, whose layout the tensors are turned into.

    Raises:
        FormatError: the file breaks a rule, a limit or its parser.
        TargetError: the file cannot be read.
    """
    reader = isolation.open_file(path, "hdf5", {"layout": layout} if layout else {})
    return keras_file.read(reader, path, layout) if reader.format == "keras" else reader


def write(checkpoint: CheckpointReader, path: StrPath, *, compression: str | None = None) -> None:
    """Write a checkpoint as one HDF5 file, whole and durable.

    Raises:
        FormatError: a name cannot be carried.
        UsageError: there is no such compression.
        TargetError: writing failed; what stood at `path` stands unchanged.
    """
    with publish.file(path) as out:
        write_to(checkpoint, out, compression=compression)


def write_to(checkpoint: CheckpointReader, out: OutFile, *, compression: str | None = None) -> None:
    """Write a checkpoint into a new file; see `hdf5_write.write_to`."""
    from persistlib.converters import hdf5_write

    hdf5_write.write_to(checkpoint, out, compression=compression)
