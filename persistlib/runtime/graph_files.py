"""An ONNX file that stands in no bundle, read for a session.

Nothing vouches for its bytes, unless it says so itself: what persistlib notes of its weights, and
the checksum that a file may say of the data beside it, are compared. Its structure is bounded
before it is built, and the data beside it is opened as the converters do: plain names in its own
folder, regular files with one name each, never the model itself.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from persistlib import model_notes
from persistlib.checkpoint import identity
from persistlib.errors import Code, error
from persistlib.formats import FORMATS, by_content

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistlib.converters.onnx_graph import OnnxReader
    from persistlib.converters.onnx_model import OnnxModel
    from persistlib.files import StrPath
    from persistlib.manifest.schema import Interface
    from persistlib.model_notes import ModelNote


class GraphFile(NamedTuple):
    """The bytes of a graph, and what it notes of its model.

    Attributes:
        model: of the file itself.
        external: of the files beside it, by name.
        note: what it says of the model; None where it says nothing.
    """

    model: memoryview
    external: dict[str, memoryview]
    note: ModelNote | None

    @property
    def interface(self) -> Interface | None:
        """Preprocessing and class names; None where it notes none."""
        return None if self.note is None else self.note.interface


def read_graph_file(
    path: StrPath,
    *,
    mapped: bool = True,
    verify: bool = True,
    accept: Callable[[ModelNote], None] | None = None,
) -> GraphFile:
    """Return what a session needs of an ONNX file.

    Args:
        path: the file; a link to one is followed, since it was named by the caller.
        mapped: whether the bytes are a private mapping of the files or a private copy.
        verify: whether they are compared with what the file says of them.
        accept: called with what the file notes of its model, before a weight is read; raises what
            stands in the way of using it.

    Raises:
        FormatError: it is no ONNX file, is larger than well meant, or refers to what is never read.
        IntegrityError: its weights or its data differ from what it says of them.
        TargetError: it, or what lies beside it, cannot be read.
        UsageError: it is a file of another format, which has no graph.
    """
    row = by_content(path)
    if row.name != "onnx":
        remedy = "name an ONNX file, or a bundle (persistlib convert makes either)"
        raise error(Code.USAGE, path, f"{row.title} holds no graph to run", remedy)
    speaker = FORMATS["onnx"].module()
    model: OnnxModel
    with speaker.open_model(path, {}) as model:
        note = model_notes.parse(model.metadata, os.fspath(path))
        if note is not None and accept is not None:
            accept(note)
        if verify:
            _compare_checksums(model)
        if note is None:
            return _file(model, None, mapped=mapped)
    reader: OnnxReader
    with speaker.open_file(path) as reader:
        if verify and identity(reader) != note.weights:
            reason = "its weights differ from those that it was made with"
            remedy = "fetch the file, and what lies beside it, again"
            raise error(Code.FILE_DIGEST, path, reason, remedy)
        return _file(reader.model, note, mapped=mapped)


def _compare_checksums(model: OnnxModel) -> None:
    """Compare every file beside a model with the checksum that the model says of it."""
    for tensor in model.everywhere.values():
        if tensor.place is not None and tensor.place.checksum:
            model.folder.bytes_of(tensor.place, model.location)


def _file(model: OnnxModel, note: ModelNote | None, *, mapped: bool) -> GraphFile:
    (_, own), *beside = model.mapped().items()
    views = {name: view if mapped else _copy(view) for name, view in beside}
    return GraphFile(own if mapped else _copy(own), views, note)


def _copy(view: memoryview) -> memoryview:
    return memoryview(bytearray(view))
