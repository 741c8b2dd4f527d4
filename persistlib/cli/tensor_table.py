"""Tensors as a table: every one, or folded so that a model fits on a screen."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Protocol

from persistlib.cli.answer import Span, Style, Table
from persistlib.cli.folding import depth_for, fold, truncate
from persistlib.cli.text import number, shape, size
from persistlib.dtypes import DType

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from persistlib.checkpoint import CheckpointReader

# What a tensor is shown as that is no parameter.
_ROLES = {"buffer": "buffer", "tensor": ""}
ROWS = 14  # of the folded table, so that the whole report fits on a screen


class TensorRow(Protocol):
    """What is shown of a tensor: a manifest's record has it."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def dtype(self) -> str:
        """Its dtype's name."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its extents."""
        ...

    @property
    def role(self) -> str:
        """What it is in the model: "parameter", "buffer", or "tensor" where nothing says."""
        ...

    @property
    def frozen(self) -> bool:
        """Whether it is a parameter that does not train."""
        ...


@dataclass(frozen=True, slots=True)
class FileTensor:
    """A tensor of a file, which says nothing of its role."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: str = "tensor"
    frozen: bool = False


def file_tensors(checkpoint: CheckpointReader) -> tuple[FileTensor, ...]:
    """Return the tensors of an open file, ties not among them."""
    return tuple(FileTensor(e.name, e.dtype.name, e.shape) for e in checkpoint)


@dataclass(frozen=True, slots=True)
class _Part:
    """The tensors under one path."""

    path: str
    tensors: tuple[TensorRow, ...]

    @property
    def status(self) -> str:
        """Whether its parameters train."""
        frozen = {record.frozen for record in self.tensors if record.role == "parameter"}
        names = {frozenset[bool](): "", frozenset({False}): "trained", frozenset({True}): "frozen"}
        return names.get(frozenset(frozen), "partly frozen")


def every_tensor(tensors: Sequence[TensorRow], aliases: Mapping[str, str]) -> Table:
    """Return a row a tensor, in their order, ties after them."""
    rows = tuple(
        (
            record.name,
            shape(record.dtype, record.shape),
            size(_nbytes(record)),
            _status_span(_Part(record.name, (record,)).status or _ROLES[record.role]),
        )
        for record in tensors
    )
    tied = tuple((alias, f"= {name}", "", _status_span("tied")) for alias, name in aliases.items())
    return Table(("tensor", "dtype and shape", "size", ""), rows + tied, frozenset({2}))


def folded_tensors(records: Sequence[TensorRow]) -> Table:
    """Return a row for each group of like-named modules, at most `ROWS` where that can be."""
    owners = [record.name.rpartition(".")[0] or record.name for record in records]
    depth = depth_for(tuple(dict.fromkeys(owners)), ROWS)
    parts = _parts(records, [truncate(owner, depth) for owner in owners])
    folds = fold([part.path for part in parts], [part.status for part in parts])
    rows: list[tuple[str | Span, ...]] = []
    for folded in folds[:ROWS]:
        tensors = [record for member in folded.members for record in parts[member].tensors]
        rows.append(_row(folded.pattern, tensors, parts[folded.members[0]].status))
    if rest := folds[ROWS:]:
        tensors = [r for folded in rest for m in folded.members for r in parts[m].tensors]
        rows.append(_row(f"… {number(len(rest))} more parts (--all)", tensors, ""))
    is_model = any(record.role != "tensor" for record in records)
    head = ("part", "tensors", "parameters" if is_model else "elements", "size", "")
    return Table(head, tuple(rows), frozenset({1, 2, 3}))


def _parts(records: Sequence[TensorRow], paths: Sequence[str]) -> list[_Part]:
    grouped: dict[str, list[TensorRow]] = {}
    for record, path in zip(records, paths, strict=True):
        grouped.setdefault(path, []).append(record)
    return [_Part(path, tuple(tensors)) for path, tensors in grouped.items()]


def _row(pattern: str, tensors: Sequence[TensorRow], status: str) -> tuple[str | Span, ...]:
    # A file does not say which of its tensors are parameters: all count.
    counts = {"parameter", "tensor"}
    elements = sum(prod(record.shape) for record in tensors if record.role in counts)
    return (
        pattern,
        number(len(tensors)),
        number(elements) if elements else "",
        size(sum(_nbytes(record) for record in tensors)),
        _status_span(status),
    )


def _status_span(status: str) -> Span:
    return Span(status, Style.GOOD if status == "trained" else Style.FAINT)


def _nbytes(record: TensorRow) -> int:
    return DType[record.dtype].nbytes(record.shape)
