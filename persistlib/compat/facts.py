"""What rules know of a model: its manifest, or its file's header, and its graphs' structure.

Law: no value of a weight is among it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from persistlib.dtypes import DType

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    import onnx

    from persistlib.checkpoint import Entry
    from persistlib.licenses import Pattern
    from persistlib.manifest.schema import Manifest
    from persistlib.model_notes import ModelNote


def _none() -> Iterable[onnx.ModelProto]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A model as rules see it.

    Attributes:
        source: its path, as a remedy names it.
        format: "bundle", or the name of the file's format in `formats`.
        manifest: of a bundle; None for a bare file.
        note: of a bare graph, what it notes of its model; None where it notes nothing.
        entries: of a bare file, its tensors; a bundle's are in its manifest.
        structures: opens and yields the graphs, large tensors without values: of a bundle in the
            order of its manifest, of an ONNX file the one that it is.
        runtime: "torch" or "onnxruntime" where that one is meant; None for either.
        forbidden: licences that are not to be used.
        trusted: packages that may be imported to build the recipe; None builds nothing.
    """

    source: str
    format: str = "bundle"
    manifest: Manifest | None = None
    note: ModelNote | None = None
    entries: tuple[Entry, ...] = ()
    structures: Callable[[], Iterable[onnx.ModelProto]] = _none
    runtime: str | None = None
    forbidden: tuple[Pattern, ...] = ()
    trusted: Collection[str] | None = None

    @property
    def said(self) -> Manifest | ModelNote | None:
        """What says the model's name, status, licence and lineage."""
        return self.manifest or self.note

    @cached_property
    def dtypes(self) -> frozenset[DType]:
        """The dtypes of the weights."""
        return frozenset(dtype for dtype, _ in self._tensors())

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all weights, dense; ties count once."""
        return sum(dtype.nbytes(shape) for dtype, shape in self._tensors())

    def _tensors(self) -> Iterator[tuple[DType, tuple[int, ...]]]:
        if self.manifest is None:
            yield from ((entry.dtype, entry.shape) for entry in self.entries)
        else:
            rows = self.manifest.weights.tensors
            yield from ((DType[row.dtype], tuple(row.shape)) for row in rows)
