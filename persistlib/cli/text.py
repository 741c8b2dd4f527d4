"""Numbers, sizes and lines of text as people read them.

Law: no line that `wrap` or `clip` returns is wider than asked for, whatever the text holds.
"""

from __future__ import annotations

import math
import shlex
import unicodedata
from typing import TYPE_CHECKING

from persistlib.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_THOUSAND = 1000
_SHOWN = 999.95  # rounds to 1000.0


def size(count: int) -> str:
    """Return a number of bytes in SI units: 517 B, 9.1 MB."""
    if count < _THOUSAND:
        return f"{count} B"
    value, unit = float(count), 0
    while value >= _SHOWN and unit < len(_UNITS) - 1:
        value, unit = value / _THOUSAND, unit + 1
    return f"{value:.1f} {_UNITS[unit]}"


def number(count: int) -> str:
    """Return an integer with its thousands set apart."""
    return f"{count:,}"


def percent(share: float) -> str:
    """Return a share of one as a percentage; a part is never shown as all, nor as nothing."""
    if share != share:  # noqa: PLR0124 - NaN is the only value that differs from itself
        return "not a number"
    shown = f"{share:.1%}"
    if share < 1 and shown == "100.0%":
        shown = "99.9%"
    if share > 0 and shown == "0.0%":
        shown = "<0.1%"
    return f"{shown[:-1]} %"


def bounded(share: float, interval: tuple[float, float] | None, digits: int = 1) -> str:
    """Return a share with its interval, if it has one: 91.3 % (88.1 to 94.0)."""
    return f"{percent(share)} {ends(interval, digits)}".rstrip()


def narrow(share: float | None, interval: tuple[float, float] | None) -> str:
    """Return a share with its interval in few columns, without a sign: 97.2 (85 to 100)."""
    if share is None:
        return "-"
    figure = percent(share).removesuffix(" %").replace("100.0", "100")
    return f"{figure} {ends(interval, 0)}".rstrip()


def measured(value: float | None, interval: tuple[float, float] | None) -> str:
    """Return a number that is no share, with its interval: 0.0123 (0.01 to 0.015)."""
    if value is None:
        return "-"
    bounds = "" if interval is None else f"({interval[0]:.3g} to {interval[1]:.3g})"
    return f"{value:.3g} {bounds}".rstrip()


def figure(value: float) -> str:
    """Return a loss or a figure of an epoch: 0.4298, and in six digits from 100 on: 28038.5."""
    return f"{value:.4f}" if not 100 <= abs(value) < math.inf else f"{value:.6g}"


def rounded_up(value: float) -> str:
    """Return a bound in two digits, never below it: 0.0042, 9.7e-06."""
    if not 0 < value < math.inf:
        return f"{value:.2g}"
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(round(value / unit, 6)) * unit:.2g}"


def milliseconds(value: float) -> str:
    """Return a time in three digits, and in whole milliseconds from 100 on: 0.0123, 1.82, 1,490."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def ends(interval: tuple[float, float] | None, digits: int = 1) -> str:
    """Return the bounds of a share in percent, rounded outwards: (88.1 to 94.0)."""
    if interval is None:
        return ""
    scale = 10 ** (digits + 2)
    low, high = (round(bound * scale, 6) for bound in interval)
    bounds = (f"{count / 10**digits:.{digits}f}" for count in (math.floor(low), math.ceil(high)))
    return f"({' to '.join(bounds)})"


def shape(dtype: str, extents: tuple[int | str, ...]) -> str:
    """Return a dtype and shape: F32 [batch, 3, 96, 96]."""
    return f"{dtype} [{', '.join(str(extent) for extent in extents)}]"


def command(*words: str) -> str:
    """Return a command line that a shell reads as these words."""
    return shlex.join(words)


def listing(names: tuple[str, ...], limit: int = 10) -> str:
    """Return names in one line, those after the first `limit` as a number."""
    shown = ", ".join(names[:limit])
    more = len(names) - limit
    return f"{shown}, … {number(more)} more" if more > 0 else shown


def width(text: str) -> int:
    """Return the columns that a terminal uses for a printable text."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def clip(text: str, columns: int) -> str:
    """Return the text, printable, its middle left out when it is wider than `columns`."""
    text = printable(text)
    if width(text) <= columns:
        return text
    head, tail = (columns - 1) // 2, columns - 1 - (columns - 1) // 2
    return f"{_take(text, head)}…{_take(text[::-1], tail)[::-1]}"


def pad(text: str, columns: int, *, right: bool = False) -> str:
    """Return the text with blanks up to `columns`."""
    blanks = " " * (columns - width(text))
    return blanks + text if right else text + blanks


def wrap(text: str, columns: int) -> list[str]:
    """Return the text, printable, in lines broken between words, and within those too long."""
    lines = [""]
    for word in printable(text).split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if width(joined) <= columns:
            lines[-1] = joined
            continue
        rest = word
        if not lines[-1]:
            lines.pop()
        elif width(word) > columns or width(lines[-1]) == 1:
            # What is broken anyway leaves no line half empty; a mark never stands alone.
            piece = _take(word, max(columns - width(lines[-1]) - 1, 0))
            lines[-1] = f"{lines[-1]} {piece}".rstrip()
            rest = rest[len(piece) :]
        while width(rest) > columns:
            piece = _take(rest, columns)
            lines.append(piece)
            rest = rest[len(piece) :]
        lines.append(rest)
    return lines


# How a remedy that is a command begins.
_COMMANDS = ("→ persistlib ", "→ pip ", "→ make ")


def wrap_command(text: str, columns: int) -> list[str]:
    """Return a remedy in lines; those of a command end as a shell continues them, to be pasted."""
    lines = wrap(text, columns - 2) if text.startswith(_COMMANDS) else []
    # Within a quoted word, or a word too long for a line, a shell would read something else.
    if len(lines) < 2 or " ".join(lines) != printable(text) or any(q in text for q in "'\""):
        return wrap(text, columns)
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


def _take(text: str, columns: int) -> str:
    """Return the longest beginning that fits."""
    used = 0
    for index, character in enumerate(text):
        used += _columns(character)
        if used > columns:
            return text[:index]
    return text


def trusting(packages: Iterable[str]) -> list[str]:
    """Return the words of a command that trust packages."""
    return [word for package in packages for word in ("--trust", package)]
