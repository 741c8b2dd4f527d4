"""From the blocks of a report to lines of a given width.

Law: every text is printable, and no line is wider than asked for. Both are kept here, so that no
verb can forget them: names come from files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.cli.answer import Fields, Line, Span, Style, Table
from persistlib.cli.text import clip, pad, width, wrap, wrap_command
from persistlib.errors import Severity, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from persistlib.cli.answer import Block
    from persistlib.errors import Finding

SHOWN = 10  # findings; all stand in the envelope
_INDENT = "  "
_GAP = "  "
_BELOW = "    "
_NARROWEST = 8  # columns of a clipped cell
_ANSI = {
    Style.STRONG: "\x1b[1m",
    Style.FAINT: "\x1b[2m",
    Style.GOOD: "\x1b[32m",
    Style.WARNING: "\x1b[33m",
    Style.BAD: "\x1b[31m",
}
_SEVERITY = {
    Severity.ERROR.value: ("✗", Style.BAD),
    Severity.WARNING.value: ("!", Style.WARNING),
    Severity.NOTE.value: ("·", Style.FAINT),
}


def render(blocks: Iterable[Block], columns: int, *, colour: bool) -> Iterator[str]:
    """Yield the lines of a report."""
    for block in blocks:
        if isinstance(block, Line):
            lines = _line(block, columns)
        elif isinstance(block, Fields):
            lines = _fields(block, columns)
        elif isinstance(block, Table):
            lines = _table(block, columns)
        else:
            lines = _findings(block.findings, columns)
        for spans in lines:
            yield _paint(spans, colour=colour)


def severity_style(severity: str) -> Style:
    """Return the style in which a finding of that severity stands out."""
    return _SEVERITY[severity][1]


def paint(text: str, style: Style, *, colour: bool) -> str:
    """Return the text, printable, in its style where colour is wanted."""
    return _paint((Span(printable(text), style),), colour=colour)


def _paint(spans: tuple[Span, ...], *, colour: bool) -> str:
    while spans and not spans[-1].text.rstrip():
        spans = spans[:-1]
    return "".join(
        f"{_ANSI[span.style]}{span.text}\x1b[0m" if colour and span.style in _ANSI else span.text
        for span in spans
    )


def _line(line: Line, columns: int) -> Iterator[tuple[Span, ...]]:
    spans = tuple(Span(printable(span.text), span.style) for span in line.spans)
    right = printable(line.right)
    used = sum(width(span.text) for span in spans)
    if used + len(_GAP) + width(right) <= columns:
        blanks = pad(right, columns - used, right=True) if right else ""
        yield (*spans, Span(blanks))
        return
    # Too long for one line: each span is wrapped as a paragraph of its own, the right part last.
    for span in (*spans, Span(right)):
        if span.text.strip():
            yield from ((Span(text, span.style),) for text in wrap(span.text.strip(), columns))


def _fields(fields: Fields, columns: int) -> Iterator[tuple[Span, ...]]:
    labels = max((width(label) for label, _ in fields.rows), default=0)
    rest = max(columns - len(_INDENT) - labels - len(_GAP), _NARROWEST)
    for label, value in fields.rows:
        if rest < _longest(value) <= columns - width(_BELOW):
            # A digest or a path: whole below its label, so that it can be marked and copied.
            if label:
                yield Span(_INDENT), Span(label, Style.FAINT)
            yield from ((Span(_BELOW), Span(text)) for text in wrap(value, columns - width(_BELOW)))
            continue
        for index, text in enumerate(wrap(value, rest)):
            shown = pad(label if index == 0 else "", labels)
            yield Span(_INDENT), Span(shown, Style.FAINT), Span(_GAP + text)


def _longest(value: str) -> int:
    """Return the columns of the widest word."""
    return max(width(word) for word in printable(value).split(" "))


def _table(table: Table, columns: int) -> Iterator[tuple[Span, ...]]:
    heads = [Span(text, Style.FAINT) for text in table.head]
    rows = [heads] if any(table.head) else []
    rows += [[c if isinstance(c, Span) else Span(c) for c in row] for row in table.rows]
    cells = [[Span(printable(cell.text), cell.style) for cell in row] for row in rows]
    widths = _widths(cells, columns)
    for row in cells:
        spans = [Span(_INDENT)]
        for index, (cell, columns_of) in enumerate(zip(row, widths, strict=True)):
            is_last = index == len(widths) - 1
            text = clip(cell.text, columns_of)
            if index in table.right or not is_last:
                text = pad(text, columns_of, right=index in table.right)
            spans += [Span(text, cell.style), Span("" if is_last else _GAP)]
        yield tuple(spans)


def _widths(cells: list[list[Span]], columns: int) -> list[int]:
    """Return the columns' widths; the widest gives way first until all fit."""
    widths = [max(width(cell.text) for cell in column) for column in zip(*cells, strict=True)]
    room = columns - len(_INDENT) - len(_GAP) * (len(widths) - 1)
    excess = sum(widths) - room
    while excess > 0 and max(widths) > _NARROWEST:
        widest = widths.index(max(widths))
        others = [w for index, w in enumerate(widths) if index != widest]
        step = min(excess, widths[widest] - max([_NARROWEST, *others]) or 1)
        widths[widest] -= step
        excess -= step
    return widths


def _findings(findings: tuple[Finding, ...], columns: int) -> Iterator[tuple[Span, ...]]:
    for found in findings[:SHOWN]:
        yield from _finding(found, columns)
    if (more := len(findings) - SHOWN) > 0:
        yield Span(_INDENT), Span(f"and {more} more: --json shows them", Style.FAINT)


def _finding(found: Finding, columns: int) -> Iterator[tuple[Span, ...]]:
    mark, style = _SEVERITY[found.severity]
    body = f"{found.code} {found.location}: {found.message}"
    rest = columns - len(_INDENT) - 2
    for index, text in enumerate(wrap(body, rest)):
        yield Span(_INDENT), Span(f"{mark} " if index == 0 else "  ", style), Span(text)
    if found.remedy:
        for text in wrap_command(f"→ {found.remedy}", rest):
            yield Span(_INDENT + "  "), Span(text, Style.FAINT)
