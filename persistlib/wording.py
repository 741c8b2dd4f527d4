"""Words of messages, alike wherever they are said: of faults, of counts, of names that are many.

Laws: what is shown of names is their beginning, and says so where there are more; what a fault says
is one line, and never empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def first_line(fault: BaseException) -> str:
    """Return the first line of what an exception says; the name of its class where it says none."""
    lines = str(fault).strip().splitlines()
    return lines[0] if lines else type(fault).__name__


def first_of(names: Sequence[str], most: int) -> str:
    """Return names, the first ones of many: `a, b, ...`."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def with_rest(names: Sequence[str], most: int) -> str:
    """Return names, of many the first ones and how many more there are: `a, b and 3 more`."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def counted(count: int, noun: str) -> str:
    """Return a number and its noun: 1 file, 2 files, 2 classes."""
    if count != 1:
        noun += "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}"
