"""Patterns over dotted names: which tensors a freeze, a partial load or a conversion means.

A pattern is a glob over the whole name, or names a module and with it all below; a leading `!`
takes back; the last pattern that matches decides. `["*", "!fc.*"]` selects all but `fc`.
"""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TypeAlias

    Patterns: TypeAlias = str | Sequence[str]


def as_tuple(patterns: Patterns) -> tuple[str, ...]:
    """Return one pattern or several as a tuple."""
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def matches(patterns: Patterns, name: str) -> bool:
    """Return whether a dotted name is selected."""
    selected = False
    for pattern in as_tuple(patterns):
        bare = pattern.removeprefix("!")
        if fnmatchcase(name, bare) or fnmatchcase(name, f"{bare}.*"):
            selected = bare == pattern
    return selected


def select(patterns: Patterns, names: Iterable[str]) -> tuple[str, ...]:
    """Return the selected names in their order.

    Raises:
        TrainingError: a pattern matches no name at all.
    """
    known = tuple(names)
    for pattern in as_tuple(patterns):
        bare = pattern.removeprefix("!")
        if not any(matches(bare, name) for name in known):
            near = difflib.get_close_matches(bare, _stems(known), 1)
            raise error(
                Code.PATTERN_UNMATCHED,
                pattern,
                "matches no tensor of the model",
                f"did you mean {near[0]}?" if near else f"names begin with {_first(known)}",
            )
    return tuple(name for name in known if matches(patterns, name))


def _stems(names: Iterable[str]) -> list[str]:
    stems: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            stem = ".".join(parts[:count])
            stems[stem] = stems[f"{stem}.*"] = None
    return list(stems)


def _first(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(name.split(".")[0] for name in names)) or "nothing"
