"""Patterns over dotted names: which tensors a freeze, a partial load or a conversion means.

A pattern is a glob over the whole name, or names a module and with it all below; a leading `!`
takes back; the last pattern that matches decides. `["*", "!fc.*"]` selects all but `fc`.

A rule of `rename` is such a pattern and what takes its place, where each `*` stands for what the
pattern's wildcard of the same number matched: `module.*=*` takes a prefix off, `fc=head` renames a
module with all below it.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import TypeAlias

    Patterns: TypeAlias = str | Sequence[str]
    Rules: TypeAlias = Mapping[str, str] | Sequence[str] | Sequence[tuple[str, str]]


_WILDCARDS = re.compile(r"(\*|\?|\[!?\]?[^\]]*\])")
# What regular expressions are written with, and globs are not.
_REGULAR = frozenset("()|\\^$+")


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
            remedy = _unmatched(bare, known)
            raise error(Code.PATTERN_UNMATCHED, pattern, "matches no tensor of the model", remedy)
    return tuple(name for name in known if matches(patterns, name))


def renamed(rules: Rules, names: Iterable[str]) -> dict[str, str]:
    """Return the new name of each name, its own where no rule matches; the last match decides.

    Args:
        rules: pattern to replacement, pairs of them, or texts `PATTERN=REPLACEMENT`.
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
    if isinstance(rules, Mapping):
        return list(rules.items())
    return [
        _divided(rule) if isinstance(rule, str) else (rule[0], rule[1])
        for rule in ([rules] if isinstance(rules, str) else rules)
    ]


def _divided(rule: str) -> tuple[str, str]:
    pattern, equals, replacement = rule.rpartition("=")
    if not equals or not pattern:
        raise error(Code.USAGE, rule, "no rule", "say PATTERN=REPLACEMENT")
    return pattern, replacement


class _Run(NamedTuple):
    """What stands between two `*` of a pattern: of fixed width, a group for each wildcard."""

    regex: re.Pattern[str]
    width: int


def _rule(pattern: str, replacement: str) -> Callable[[str], str | None]:
    """Return what renames one name, or gives None where the pattern does not match."""
    runs = _runs(pattern)
    count = sum(run.regex.groups for run in runs) + len(runs) - 1
    pieces = replacement.split("*")
    if len(pieces) - 1 > count:
        reason = f"the replacement has {len(pieces) - 1} wildcards, the pattern {count}"
        raise error(Code.USAGE, f"{pattern}={replacement}", reason, "take one away")

    def rename(name: str) -> str | None:
        if (found := _matched(runs, name)) is None:
            return None
        texts, below = found
        filled = (part for pair in zip(texts, pieces[1:], strict=False) for part in pair)
        return "".join((pieces[0], *filled, below))

    return rename


def _runs(pattern: str) -> list[_Run]:
    runs: list[list[str]] = [[]]
    width = [0]
    for number, part in enumerate(_WILDCARDS.split(pattern)):
        if part == "*":
            runs.append([])
            width.append(0)
        else:
            runs[-1].append(_character(part) if number % 2 else re.escape(part))
            width[-1] += 1 if number % 2 else len(part)
    try:
        return [
            _Run(re.compile("".join(run), re.DOTALL), n) for run, n in zip(runs, width, strict=True)
        ]
    except re.error as fault:
        raise error(Code.USAGE, pattern, f"no pattern: {fault.msg}", "see docs/cli.md") from fault


def _character(wildcard: str) -> str:
    """Return the group that matches what `?` or `[...]` does."""
    if wildcard == "?":
        return "(.)"
    inner = wildcard[1:-1].replace("\\", r"\\")
    return f"([^{inner[1:]}])" if inner.startswith("!") else f"([{inner}])"


def _matched(runs: Sequence[_Run], name: str) -> tuple[list[str], str] | None:
    """Return what each wildcard matches, an earlier `*` the longest, and what follows below.

    Runs are placed from the right, each as far right as it fits. None is tried again at another
    place, so that no pattern takes longer than its length times that of the name.
    """
    first, *others = runs
    head = first.regex.match(name)
    if head is None:
        return None
    if not others:
        below = name[first.width :]
        return (list(head.groups()), below) if below[:1] in {"", "."} else None
    limit = end = _end(others[-1], name, first.width)
    placed: list[re.Match[str]] = []
    for run in reversed(others):
        match = _rightmost(run, name, range(limit - run.width, first.width - 1, -1))
        if match is None:
            return None
        placed.insert(0, match)
        limit = match.start()
    texts = list(head.groups())
    for before, match in itertools.pairwise((head, *placed)):
        texts += [name[before.end() : match.start()], *match.groups()]
    return texts, name[end:]


def _end(last: _Run, name: str, low: int) -> int:
    """Return where a match may end: with the name, or before what stands below; -1 if nowhere."""
    ends = (len(name), *(at for at in range(len(name) - 1, -1, -1) if name[at] == "."))
    starts = (end - last.width for end in ends)
    match = _rightmost(last, name, (start for start in starts if start >= low))
    return -1 if match is None else match.end()


def _rightmost(run: _Run, name: str, starts: Iterable[int]) -> re.Match[str] | None:
    return next((m for at in starts if (m := run.regex.match(name, at))), None)


def _unmatched(pattern: str, known: Sequence[str]) -> str:
    if _REGULAR & set(pattern):
        return "patterns are globs, no regular expressions: 'module.*=*' takes a prefix off"
    near = difflib.get_close_matches(pattern, _stems(known), 1)
    return f"did you mean {near[0]}?" if near else f"names begin with {_first(known)}"


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
