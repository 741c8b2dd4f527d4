"""The tensors of a manifest as a table: every one, or folded so that a model fits on a screen."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from persistlib.cli.answer import Span, Style, Table
from persistlib.cli.folding import depth_for, fold, truncate
from persistlib.cli.text import number, shape, size
from persistlib.dtypes import DType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from persistlib.manifest.schema import Manifest, TensorRecord

ROWS = 14  # of the folded table, so that the whole report fits on a screen


@dataclass(frozen=True, slots=True)
class _Part:
    """The tensors under one path."""

    path: str
    tensors: tuple[TensorRecord, ...]

    @property
    def status(self) -> str:
        """Whether its parameters train."""
        frozen = {record.frozen for record in self.tensors if record.role == "parameter"}
        names = {frozenset[bool](): "", frozenset({False}): "trained", frozenset({True}): "frozen"}
        return names.get(frozenset(frozen), "partly frozen")


def every_tensor(manifest: Manifest) -> Table:
    """Return a row a tensor, in the order of the state_dict."""
    rows = tuple(
        (
            record.name,
            shape(record.dtype, record.shape),
            size(_nbytes(record)),
            _status_span(_Part(record.name, (record,)).status or "buffer"),
        )
        for record in manifest.weights.tensors
    )
    aliases = tuple(
        (alias, f"= {name}", "", _status_span("tied"))
        for alias, name in manifest.weights.aliases.items()
    )
    return Table(("tensor", "dtype and shape", "size", ""), rows + aliases, frozenset({2}))


def folded_tensors(manifest: Manifest) -> Table:
    """Return a row for each group of like-named modules, at most `ROWS` where that can be."""
    records = manifest.weights.tensors
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
    head = ("part", "tensors", "parameters", "size", "")
    return Table(head, tuple(rows), frozenset({1, 2, 3}))


def _parts(records: Sequence[TensorRecord], paths: Sequence[str]) -> list[_Part]:
    grouped: dict[str, list[TensorRecord]] = {}
    for record, path in zip(records, paths, strict=True):
        grouped.setdefault(path, []).append(record)
    return [_Part(path, tuple(tensors)) for path, tensors in grouped.items()]


def _row(pattern: str, tensors: Sequence[TensorRecord], status: str) -> tuple[str | Span, ...]:
    parameters = sum(prod(record.shape) for record in tensors if record.role == "parameter")
    return (
        pattern,
        number(len(tensors)),
        number(parameters) if parameters else "",
        size(sum(_nbytes(record) for record in tensors)),
        _status_span(status),
    )


def _status_span(status: str) -> Span:
    return Span(status, Style.GOOD if status == "trained" else Style.FAINT)


def _nbytes(record: TensorRecord) -> int:
    return DType[record.dtype].nbytes(record.shape)
