"""`persistlib diff`: what differs between two models, the weights tensor by tensor."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import TYPE_CHECKING

import click

import persistlib
from persistlib.cli.answer import Answer, Exit, Fields, Line, Span, Style, Table, verdict
from persistlib.cli.command import Spread, Verb
from persistlib.cli.folding import fold
from persistlib.cli.text import command as words
from persistlib.cli.text import listing, number, shape
from persistlib.selection import wrapper_of
from persistlib.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.cli.answer import JSON, Block
    from persistlib.deviation import Deviation
    from persistlib.difference import ChangedTensor, Difference, Shown, Side

ROWS = 12  # of a table, unless all are asked for
_PATTERNS = 5  # of folded names on one line
_NUMBERS = {"change", "relative", "cosine", "largest"}


@click.command("diff", cls=Verb)
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--only", cls=Spread, metavar="PATTERN...", help="Only the tensors so named in A.")
@click.option(
    "--rename",
    cls=Spread,
    metavar="PATTERN=NAME...",
    help="What the tensors of B are called in A: 'module.*=*'.",
)
@click.option("--key", metavar="PATH", help="Which part of a training checkpoint, such as model.")
@click.option("--layout", metavar="LAYOUT", help="torch: of Keras files, torch's names and axes.")
@click.option("--all", "show_all", is_flag=True, help="List every difference.")
def command(
    first: str,
    second: str,
    *,
    only: tuple[str, ...],
    rename: tuple[str, ...],
    key: str | None,
    layout: str | None,
    show_all: bool,
) -> Answer:
    """Show what differs between A and B, each a bundle or a weights file of any format.

    Exits with 0 where nothing does, with 1 where something does. Of two bundles the manifests are
    compared too: the recipe, what is frozen, preprocessing, labels and metrics.
    """
    found = persistlib.diff(
        first, second, only=only or None, rename=rename or None, key=key, layout=layout
    )
    return Answer(
        data=_data(found),
        report=tuple(_blocks(found, None if show_all else ROWS)),
        brief=("same" if found.same else "different",),
        hints=_hints(found),
        exit=Exit.OK if found.same else Exit.FAILED,
    )


def _data(found: Difference) -> dict[str, JSON]:
    return {
        "same": found.same,
        "identity": [found.before.identity, found.after.identity],
        "before": _side_data(found.before),
        "after": _side_data(found.after),
        "added": [_shown_data(row) for row in found.added],
        "removed": [_shown_data(row) for row in found.removed],
        "changed": [_changed_data(row) for row in found.changed],
        "identical": found.identical,
        "ties": [{"names": [*tie.names], "where": tie.where} for tie in found.ties],
        "manifest": [
            {"field": row.field, "before": _plain(row.before), "after": _plain(row.after)}
            for row in found.manifest
        ],
    }


def _side_data(side: Side) -> dict[str, JSON]:
    return {
        "source": side.source,
        "format": side.format,
        "container": side.container,
        "identity": side.identity,
        "tensors": side.tensors,
        "notes": [*side.notes],
    }


def _shown_data(row: Shown) -> dict[str, JSON]:
    return {"name": row.name, "dtype": row.dtype, "shape": [*row.shape]}


def _changed_data(row: ChangedTensor) -> dict[str, JSON]:
    lies: dict[str, JSON] = {}
    if (far := row.deviation) is not None:
        lies = {
            "differing": far.differing,
            "bits": far.bits,
            "nan": far.nan,
            "infinite": far.infinite,
            "absolute": far.absolute,
            "relative": far.relative,
            "change": far.change,
            "cosine": far.cosine,
            "at": None if far.at is None else [*far.at],
        }
    before, after = _shown_data(row.before), _shown_data(row.after)
    del before["name"], after["name"]
    return {"name": row.name, "kind": row.kind, "before": before, "after": after, **lies}


def _plain(value: object) -> JSON:
    plain: JSON = json.loads(json.dumps(value))
    return plain


def _blocks(found: Difference, limit: int | None) -> Iterator[Block]:
    """Yield the report: the verdict, the two, and what differs."""
    yield _verdict(found)
    yield Fields((*_side("A", found.before), *_side("B", found.after), *_lists(found, limit)))
    if found.changed:
        yield Line((Span(""),))
        yield _tensors(found, limit)
    if found.manifest:
        yield Line((Span(""),))
        yield _manifest(found, limit)


def _verdict(found: Difference) -> Line:
    if found.same:
        ties = "; ties differ" if found.ties else ""
        return verdict(f"same: {counted(found.before.tensors, 'tensor')}, every bit{ties}", Exit.OK)
    whole = len(found.changed) + found.identical
    counts = [
        f"{number(len(found.changed))} of {counted(whole, 'tensor')} changed"
        if found.changed
        else f"{counted(found.identical, 'tensor')} identical",
        *(f"{number(len(rows))} {word}" for rows, word in _lone(found) if rows),
    ]
    fields = dict.fromkeys(
        ".".join(row.field.split(" ")[0].split(".")[:2]) for row in found.manifest
    )
    values = ", no value differs" if found.changed and not _has_other_values(found) else ""
    parts = [", ".join(counts) + values]
    if fields:
        parts.append(f"manifest: {listing((*fields,), 4)}")
    return Line((Span(f"≠ different: {'; '.join(parts)}", Style.WARNING),))


def _lone(found: Difference) -> tuple[tuple[tuple[Shown, ...], str], ...]:
    return (found.added, "added"), (found.removed, "removed")


def _has_other_values(found: Difference) -> bool:
    return bool(found.added or found.removed) or any(
        row.deviation is None or row.deviation.differing for row in found.changed
    )


def _side(label: str, side: Side) -> Iterator[tuple[str, str]]:
    is_said = side.container in {"", side.format}
    kind = side.format if is_said else f"{side.format}, {side.container}"
    yield label, f"{side.source} · {kind} · {counted(side.tensors, 'tensor')}"
    yield "", side.identity
    for note in side.notes:
        yield "", note


def _lists(found: Difference, limit: int | None) -> Iterator[tuple[str, str]]:
    """Yield what one side alone has: tensors, folded, and ties."""
    for rows, word in _lone(found):
        if rows:
            yield word, _names(tuple(row.name for row in rows), limit)
    for tie in found.ties[:limit]:
        yield "tied", f"{' = '.join(tie.names)}, in {'A' if tie.where == 'before' else 'B'} alone"
    if limit is not None and len(found.ties) > limit:
        yield "", f"… {number(len(found.ties) - limit)} more (--all)"
    if found.identical and found.changed:
        yield "identical", counted(found.identical, "tensor")


def _names(names: tuple[str, ...], limit: int | None) -> str:
    if limit is None:
        return f"{number(len(names))}: {', '.join(names)}"
    patterns = tuple(folded.pattern for folded in fold(names))
    return f"{number(len(names))}: {listing(patterns, _PATTERNS)}"


def _tensors(found: Difference, limit: int | None) -> Table:
    """Return a row for each tensor that changed, the largest change first."""
    rows = [_row(row) for row in found.changed[:limit]]
    rest = found.changed[limit:] if limit is not None else ()
    head = ("tensor", "shape", "change", "relative", "cosine", "largest", "at", "elements")
    used = [i for i in range(len(head)) if i < len(("name", "shape")) or any(r[i] for r in rows)]
    shown = [tuple(row[i] for i in used) for row in rows]
    if rest:
        kinds = Counter(row.kind for row in rest)
        what = ", ".join(f"{kind} {number(count)}" for kind, count in kinds.most_common())
        shown.append((f"… {number(len(rest))} more (--all)", what, *[""] * (len(used) - 2)))
    right = frozenset(place for place, i in enumerate(used) if head[i] in _NUMBERS)
    return Table(tuple(head[i] for i in used), tuple(shown), right)


def _row(row: ChangedTensor) -> tuple[str, ...]:
    far = row.deviation
    if far is None:
        return row.name, _type(row), *[""] * 6
    if not far.differing:
        what = f"{number(far.bits)} in bits alone" if far.bits else "equal values"
        return row.name, _type(row), *[""] * 5, what
    return (
        row.name,
        _type(row),
        "from 0" if far.change is None else f"{far.change:.2g}",
        f"{far.relative:.2g}",
        "" if far.cosine is None else _cosine(far.cosine),
        f"{float(far.absolute):.3g}",
        "" if far.at is None else ",".join(map(str, far.at)),
        _elements(far, math.prod(row.before.shape)),
    )


def _type(row: ChangedTensor) -> str:
    """Return the shape, and where dtypes differ those too."""
    before, after = row.before, row.after
    if before.dtype == after.dtype:
        pair = [shape("", part.shape).strip() for part in (before, after)]
    elif before.shape == after.shape:
        pair = [before.dtype, shape(after.dtype, after.shape)]
    else:
        pair = [shape(part.dtype, part.shape) for part in (before, after)]
    return " → ".join(dict.fromkeys(pair))


def _cosine(value: float) -> str:
    """Return a cosine; what is not quite 1 is never shown as 1."""
    shown = f"{value:.4f}"
    return ">0.9999" if shown == "1.0000" and value < 1 else shown


def _elements(far: Deviation, count: int) -> str:
    """Return how many elements differ, unless all do, and which are no plain numbers."""
    special = (far.nan, "NaN"), (far.infinite, "infinite"), (far.bits, "in bits alone")
    shown = [f"{number(count)} {what}" for count, what in special if count]
    share = f"{number(far.differing)} of {number(count)}"
    return ", ".join([*([share] if far.differing < count or shown else []), *shown])


def _manifest(found: Difference, limit: int | None) -> Table:
    """Return a row for each field, those that changed alike as one."""
    changes = {
        (_field(row.field, limit), _text(row.before), _text(row.after)): None
        for row in found.manifest
    }
    fields, values = [field for field, _, _ in changes], [(a, b) for _, a, b in changes]
    folds = fold(fields, values)
    rows = [(folded.pattern, *values[folded.members[0]]) for folded in folds[:limit]]
    if limit is not None and len(folds) > limit:
        rows.append((f"… {number(len(folds) - limit)} more (--all)", "", ""))
    return Table(("manifest", "A", "B"), tuple(rows))


def _field(field: str, limit: int | None) -> str:
    """Return a field as a row names it: of a tensor's flag, unless all are listed, its module."""
    return field.rpartition(".")[0] if limit and field.startswith("frozen ") else field


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _hints(found: Difference) -> tuple[str, ...]:
    """Return what to try where the two have no name in common."""
    if found.changed or found.identical or not (found.added and found.removed):
        return ()
    mine, theirs = (wrapper_of(row.name for row in rows) for rows in (found.removed, found.added))
    if mine == theirs:
        return ()
    sources = found.before.source, found.after.source
    return (words("persistlib", "diff", *sources, "--rename", f"{theirs}*={mine}*"),)
