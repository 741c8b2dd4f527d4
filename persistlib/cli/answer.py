"""What a verb gives back: an outcome as data, and the same outcome laid out for people.

A verb computes and prints nothing; `output` is the one place that prints.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from persistlib.errors import Finding

JSON = str | int | float | bool | None | list["JSON"] | dict[str, "JSON"]


class Exit(IntEnum):
    """The exit codes, the same for every verb."""

    OK = 0
    FAILED = 1
    USAGE = 2
    DEGRADED = 3
    INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class Style(Enum):
    """How a span of text stands out where colour is wanted."""

    PLAIN = "plain"
    STRONG = "strong"
    FAINT = "faint"
    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Span:
    """A text and its style; the text may come from a file."""

    text: str
    style: Style = Style.PLAIN


@dataclass(frozen=True, slots=True)
class Line:
    """One paragraph, with a part that is set flush right where the width allows."""

    spans: tuple[Span, ...]
    right: str = ""


@dataclass(frozen=True, slots=True)
class Fields:
    """Labels and what they stand for, in two columns; a label may have several lines."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Columns with a heading; the first is set left, those named in `right` flush right."""

    head: tuple[str, ...]
    rows: tuple[tuple[str | Span, ...], ...]
    right: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Findings:
    """Findings as part of a report: each with its remedy on a line of its own."""

    findings: tuple[Finding, ...]


Block = Line | Fields | Table | Findings


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The outcome of a verb.

    Attributes:
        data: what the envelope's `data` holds.
        report: what a person reads.
        brief: what `--quiet` leaves of it, for a pipe: one name or path a line.
        findings: those that the report shows itself; warnings raised meanwhile are not among.
        hints: the next commands to try.
        exit: the exit code.
    """

    data: Mapping[str, JSON]
    report: tuple[Block, ...]
    brief: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    hints: tuple[str, ...] = ()
    exit: Exit = Exit.OK


def verdict(text: str, exit_code: Exit, right: str = "") -> Line:
    """Return the first line of a report: a mark and the verdict, coloured by the outcome."""
    mark, style = _MARKS[exit_code]
    return Line((Span(f"{mark} {text}", style),), right)


_MARKS = {
    Exit.OK: ("✓", Style.GOOD),
    Exit.DEGRADED: ("!", Style.WARNING),
    Exit.FAILED: ("✗", Style.BAD),
}
