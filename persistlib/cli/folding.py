"""Long lists of names in few lines: `layer3.0.conv1` to `layer3.5.conv2` as one pattern.

Law: the patterns of `fold` stand for the given names, each once, and for no other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

# A number as a counter writes it: no leading zero, and short enough for any machine's integer.
_NUMBER = re.compile(r"(?<![0-9])(0|[1-9][0-9]{0,8})(?![0-9])")
_NUMBERS = 16  # in one name; the digits after that are text


@dataclass(frozen=True, slots=True)
class Fold:
    """A pattern and which of the given names it stands for.

    Attributes:
        pattern: the name, its numbers as ranges: `layer[1,3-4].0`.
        members: indices into what was given.
    """

    pattern: str
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    """The product of its number sets, between fixed texts."""

    key: Hashable
    texts: tuple[str, ...]
    sets: tuple[tuple[int, ...], ...]
    members: tuple[int, ...]

    def fold(self) -> Fold:
        numbers = (_ranges(numbers) for numbers in self.sets)
        pieces = zip(self.texts, (*numbers, ""), strict=True)
        return Fold("".join(text + shown for text, shown in pieces), self.members)


def fold(names: Sequence[str], keys: Sequence[Hashable] | None = None) -> tuple[Fold, ...]:
    """Return patterns for the names, in the order of their first members.

    Args:
        names: each once.
        keys: names fold together only where their keys are equal.
    """
    rows = [
        _row(index, name, keys[index] if keys is not None else None)
        for index, name in enumerate(names)
    ]
    for position in range(1, 1 + max((len(row.sets) for row in rows), default=0)):
        rows = _merge(rows, position)
    return tuple(row.fold() for row in rows)


def truncate(path: str, depth: int) -> str:
    """Return the first `depth` components of a dotted path, `.*` for the rest."""
    components = path.split(".")
    return path if len(components) <= depth else ".".join([*components[:depth], "*"])


def depth_for(paths: Sequence[str], limit: int) -> int:
    """Return the greatest depth at which the folded paths fill at most `limit` lines, or 1."""
    deepest = max((path.count(".") + 1 for path in paths), default=1)
    for depth in range(min(deepest, _NUMBERS), 1, -1):
        cut = tuple(dict.fromkeys(truncate(path, depth) for path in paths))
        if len(fold(cut)) <= limit:
            return depth
    return 1


def _row(index: int, name: str, key: Hashable) -> _Row:
    pieces = _NUMBER.split(name, maxsplit=_NUMBERS)
    sets = tuple((int(digits),) for digits in pieces[1::2])
    return _Row(key, tuple(pieces[::2]), sets, (index,))


def _merge(rows: Iterable[_Row], position: int) -> list[_Row]:
    """Join the rows that differ in nothing but the number at `position` from the end.

    Both are products and agree in every other factor, so that the union is a product too.
    """
    groups: dict[Hashable, list[_Row]] = {}
    for row in rows:
        at = len(row.sets) - position
        if at < 0:
            groups[row.key, row.members] = [row]
            continue
        others = row.sets[:at] + row.sets[at + 1 :]
        groups.setdefault((row.key, row.texts, others), []).append(row)
    return [_join(group, position) for group in groups.values()]


def _join(group: list[_Row], position: int) -> _Row:
    first = group[0]
    if len(group) == 1:
        return first
    at = len(first.sets) - position
    union = tuple(sorted({number for row in group for number in row.sets[at]}))
    sets = (*first.sets[:at], union, *first.sets[at + 1 :])
    members = tuple(member for row in group for member in row.members)
    return _Row(first.key, first.texts, sets, members)


def _ranges(numbers: tuple[int, ...]) -> str:
    """Return `3` for one number, `[0-2,5]` for several in ascending order."""
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[tuple[int, int]] = []
    for value in numbers:
        if runs and runs[-1][1] == value - 1:
            runs[-1] = (runs[-1][0], value)
        else:
            runs.append((value, value))
    return f"[{','.join(str(a) if a == b else f'{a}-{b}' for a, b in runs)}]"
