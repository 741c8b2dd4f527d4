"""ONNX files: the weights out of any graph, and into the graph of a given file.

Law: `open_file(write(x, template)) == x` for names, order, dtypes, shapes, bytes, aliases, and
metadata beside the template's own.

A graph of persistlib's notes which of its tensors are the state_dict (`graph_notes`): they come
back as that, in its order, ties and complex tensors among them, and the exporter's constants only
with `key=""`. Other programs' graphs give their initializers by the names that stand there.
Nothing is mapped and no protobuf message is built: a tensor is read window by window.
"""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING

from persistlib.checkpoint import CheckpointReader, check_booleans
from persistlib.converters.onnx_model import NODE, OnnxModel, open_model
from persistlib.converters.onnx_template import write_to
from persistlib.converters.onnx_weights import Weights, place, weights_of
from persistlib.digests import RunningDigest
from persistlib.dtypes import DType
from persistlib.errors import Code, error
from persistlib.graph_notes import KEYS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from persistlib.files import StrPath

__all__ = ["OnnxReader", "open_file", "write_to"]

_BYTE = 8


class OnnxReader(CheckpointReader):
    """An open ONNX file; tensors are read from its descriptor.

    Attributes:
        model: the file, its structure walked.
    """

    format = "onnx"

    def __init__(self, model: OnnxModel, weights: Weights) -> None:
        consumed = KEYS if weights.notes is not None else frozenset[str]()
        super().__init__(
            tuple(weights.tensors[n].entry for n in weights.names if n not in weights.aliases),
            weights.aliases,
            {key: text for key, text in model.metadata.items() if key not in consumed},
        )
        self.model = model
        self.container = model.container
        self.losses = tuple(f"value {name}, which is no tensor" for name in weights.texts)
        if any(field.number == NODE for field in model.inside(model.span)):
            self.losses += ("graph the network itself",)
        self.notes = tuple(_remarks(model, weights))
        self._stored = weights.tensors
        self._twins: dict[str, list[str]] = {}
        for alias, name in weights.aliases.items():
            there = place(self._stored[alias])
            if there is None or there != place(self._stored[name]):
                self._twins.setdefault(name, []).append(alias)
        self._is_open = True
        self._finish = weakref.finalize(self, model.close)

    def read_bytes(self, name: str) -> memoryview:
        """Return the bytes of an entry, read now.

        Raises:
            KeyError: no entry has that name.
            PersistlibError: as `windows`.
        """
        data = bytearray(self.tensors[name].nbytes)
        at = 0
        for window in self.windows(name):
            data[at : at + window.nbytes] = window
            at += window.nbytes
        return memoryview(data)

    def windows(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of an entry, compared with those of its second names.

        Raises:
            KeyError: no entry has that name.
            FormatError: bytes that are no value of their dtype, or a noted tie that is none.
            TargetError: the file, or the one beside it, cannot be read.
            UsageError: the reader was closed.
        """
        entry = self.tensors[name]
        where = f"{self.model.location}: {name}"
        if not self._is_open:
            raise error(Code.USAGE, where, "the reader is closed", "read before closing it")
        left = entry.nbytes
        for window in self._stored[name].values.windows():
            left -= window.nbytes
            if entry.dtype is DType.BOOL:
                check_booleans(window, where)
            elif entry.dtype.is_packed and not left:
                self._check_last(entry.dtype, entry.shape, window[-1], where)
            yield window
        for alias in self._twins.get(name, ()):
            self._compare(name, alias)

    def close(self) -> None:
        """Close the file and what is open beside it; idempotent."""
        self._is_open = False
        self._finish()

    def _check_last(self, dtype: DType, shape: tuple[int, ...], last: int, where: str) -> None:
        used = math.prod(shape) * dtype.value.bits % _BYTE
        if used and last >> used:
            reason = "bits beyond the last element are set"
            raise error(Code.FORMAT_VALUE, where, reason, "write it again")

    def _compare(self, name: str, alias: str) -> None:
        if self._digest(name) != self._digest(alias):
            raise error(
                Code.GRAPH_INVALID,
                f"{self.model.location}: {alias}",
                f"noted as tied to {name!r}, and holds other values",
                "do not use this file; export the model again",
            )

    def _digest(self, name: str) -> str:
        running = RunningDigest()
        for window in self._stored[name].values.windows():
            running.update(window)
        return running.hexdigest()


def open_file(
    path: StrPath, *, key: str | None = None, external: Mapping[str, StrPath] | None = None
) -> OnnxReader:
    """Return a reader of the weights in an ONNX file; no tensor is read yet.

    Args:
        path: an ONNX file; its external data lies in files of plain names beside it.
        key: empty for the whole file: the exporter's constants, values of Constant nodes, and
            what stands in subgraphs and functions, under names made of the place (see
            `OnnxModel.tensors`). By default the state_dict that persistlib's own graphs note, or
            the main graph's initializers.
        external: where data files lie that are not beside it, by the name the model gives them.

    Raises:
        UsageError: `key` names a part.
        FormatError: the file breaks a rule, or refers to what is never read.
        TargetError: the file, or the one beside it, cannot be read.
    """
    if key:
        reason = f"an ONNX file has no part {key!r}"
        raise error(Code.USAGE, "key=", reason, "leave it out, or give an empty one for all of it")
    model = open_model(path, external or {})
    try:
        return OnnxReader(model, weights_of(model, whole=key is not None))
    except BaseException:
        model.close()
        raise


def _remarks(model: OnnxModel, weights: Weights) -> Iterator[str]:
    """Yield what whoever reads the file should know."""
    if weights.misfit:
        yield f"another tool changed the graph since its state_dict was noted: {weights.misfit}"
    if weights.notes is None:
        writer = model.producer or "a program that does not say its name"
        yield f"the names are the graph's own, by {writer}; they need not be a state_dict's"
    if weights.inner:
        places = "in Constant nodes, subgraphs or functions"
        yield f"{weights.inner} tensors stand {places}; their names are made of the place"
