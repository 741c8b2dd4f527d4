"""Patterns over dotted names: which tensors a freeze, a partial load or a conversion means.

A pattern is a glob over the whole name, or names a module and with it all below; a leading `!`
takes back; the last pattern that matches decides. `["*", "!fc.*"]` selects all but `fc`.

A rule of `rename` is such a pattern and what takes its place, where each `*` stands for what the
pattern's wildcard of the same number matched: `module.*=*` takes a prefix off, `fc=head` renames a
module with all below it.
"""

from __future__ import annotations

import difflib
import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import TypeAlias

    Patterns: TypeAlias = str | Sequence[str]
    Rules: TypeAlias = Mapping[str, str] | Sequence[str]


_WILDCARDS = {"*": "(.*)", "?": "(.)"}


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


def renamed(rules: Rules, names: Iterable[str]) -> dict[str, str]:
    """Return the new name of each name, its own where no rule matches; the last match decides.

    Args:
        rules: pattern to replacement, or texts `PATTERN=REPLACEMENT`.
        names: the names as they are.

    Raises:
        UsageError: a rule is none, or its replacement has more wildcards than its pattern.
        TrainingError: a pattern matches no name at all.
    """
    known = tuple(names)
    result = {name: name for name in known}
    for pattern, replacement in _pairs(rules):
        select(pattern, known)
        rename = _rule(pattern, replacement)
        result |= {name: new for name in known if (new := rename(name)) is not None}
    return result


def _pairs(rules: Rules) -> list[tuple[str, str]]:
    if not isinstance(rules, (list, tuple, str)):
        return list(rules.items())  # type: ignore[union-attr] # what is left is the mapping
    pairs = [rule.rpartition("=") for rule in ([rules] if isinstance(rules, str) else rules)]
    for pattern, equals, replacement in pairs:
        if not equals or not pattern:
            raise error(Code.USAGE, f"{pattern}{replacement}", "no rule", "say PATTERN=REPLACEMENT")
    return [(pattern, replacement) for pattern, _, replacement in pairs]


def _rule(pattern: str, replacement: str) -> Callable[[str], str | None]:
    """Return what renames one name, or gives None where the pattern does not match."""
    parts = re.split(r"(\*|\?|\[!?\]?[^\]]*\])", pattern)
    text = "".join(
        _WILDCARDS.get(part, f"({part.replace('[!', '[^', 1)})") if index % 2 else re.escape(part)
        for index, part in enumerate(parts)
    )
    pieces = replacement.split("*")
    count = len(parts) // 2
    if len(pieces) - 1 > count:
        reason = f"the replacement has {len(pieces) - 1} wildcards, the pattern {count}"
        raise error(Code.USAGE, f"{pattern}={replacement}", reason, "take one away")
    compiled = re.compile(f"{text}(?P<below>\\..*)?", re.DOTALL)

    def rename(name: str) -> str | None:
        if (match := compiled.fullmatch(name)) is None:
            return None
        filled = [pieces[0]]
        for group, piece in zip(match.groups(), pieces[1:], strict=False):
            filled += [group, piece]
        return "".join(filled) + (match["below"] or "")

    return rename


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
