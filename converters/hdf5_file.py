"""HDF5 files of weights, of persistlib's layout (docs/hdf5.md), of anybody's, and of Keras.

Law: `open_file(write(x)) == x` for names, order, dtypes, shapes, bytes, aliases and metadata.

Nothing of a file is parsed in this process: see `isolated`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.converters import isolation

if TYPE_CHECKING:
    from persistlib.converters.isolation import IsolatedReader
    from persistlib.files import StrPath

__all__ = ["open_file"]


def open_file(path: StrPath, *, layout: str | None = None) -> IsolatedReader:
    """Return a reader of the HDF5 file at `path`; no tensor is read yet.

    Args:
        path: an HDF5 file.
        layout: of a Keras file, whose layout the tensors are turned into.

    Raises:
        FormatError: the file breaks a rule, a limit or its parser.
        TargetError: the file cannot be read.
    """
    return isolation.open_file(path, "hdf5", {"layout": layout} if layout else {})
