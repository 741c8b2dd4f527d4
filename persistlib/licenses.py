"""Licence expressions of SPDX, held against licences that somebody forbids.

Law: `A OR B` is forbidden only where both are, `A AND B` where either is, `A WITH E` where `A` is.

Names are compared, and no law is interpreted: what a name allows, and whether it goes with another,
is for people to know. Sources: SPDX 3.0, annex B (the grammar; operators in any case, as
`packaging.licenses` reads them), and https://spdx.org/licenses/ (deprecated names of GNU licences).
"""

from __future__ import annotations

import re
from enum import IntEnum
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_LONGEST = 2_000  # characters; the longest that are published have some hundred
_DEEPEST = 50  # parentheses
_NAME = re.compile(r"(DocumentRef-[\w.-]+:)?[A-Za-z0-9][A-Za-z0-9.-]*\+?", re.ASCII)
_PATTERN = re.compile(r"[A-Za-z0-9.*?+-]+", re.ASCII)
_GNU = re.compile(r"((?:a|l)?gpl|gfdl)-\d\.\d(\+?)")
_SAYS_NOTHING = {"none", "noassertion"}


class Verdict(IntEnum):
    """Whether a licence is forbidden; an `AND` is as bad as its worst part, an `OR` as its best."""

    FREE = 0
    UNKNOWN = 1
    FORBIDDEN = 2


class License(NamedTuple):
    """One licence of an expression, and the exception that it is granted with.

    Attributes:
        name: as it stands there.
        exception: as it stands there, or None.
    """

    name: str
    exception: str | None = None

    def __str__(self) -> str:
        return f"{self.name} WITH {self.exception}" if self.exception else self.name


class Group(NamedTuple):
    """Parts of an expression.

    Attributes:
        is_choice: whether one part may be chosen (`OR`), or all hold (`AND`).
        parts: two or more.
    """

    is_choice: bool
    parts: tuple[Expression, ...]


Expression = License | Group


class Pattern(NamedTuple):
    """A licence that somebody forbids; `*` and `?` stand for any characters.

    Attributes:
        name: in lower case, a deprecated one as its successor.
        exception: in lower case; None for a licence with any exception, or without.
    """

    name: str
    exception: str | None

    def matches(self, one: License) -> bool:
        """Return whether a licence is meant."""
        if self.exception is not None and not (
            one.exception and fnmatchcase(one.exception.lower(), self.exception)
        ):
            return False
        return any(fnmatchcase(name, self.name) for name in _spellings(one.name))


def parse(text: str) -> Expression:
    """Return the expression that a text is.

    Raises:
        ValueError: it is none; the message says why.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"{len(text)} characters, at most {_LONGEST} are read")
    words = text.replace("(", " ( ").replace(")", " ) ").split()
    rest = list(reversed(words))
    found = _group(rest, 0)
    if rest:
        raise ValueError(f"{rest[-1]!r} is not expected there")
    return found


def parse_pattern(text: str) -> Pattern:
    """Return what a text forbids: one licence, with an exception or without.

    Raises:
        ValueError: it is no name of a licence.
    """
    name, *rest = text.split() or [""]
    if rest and (len(rest) != 2 or rest[0].upper() != "WITH"):
        raise ValueError("not one licence; each is forbidden by itself")
    for word in (name, *rest[1:]):
        if not _PATTERN.fullmatch(word):
            raise ValueError("no name of a licence")
    return Pattern(_current(name.lower()), rest[1].lower() if rest else None)


def judge(expression: Expression, forbidden: Sequence[Pattern]) -> Verdict:
    """Return whether an expression is forbidden."""
    if isinstance(expression, Group):
        verdicts = [judge(part, forbidden) for part in expression.parts]
        return min(verdicts) if expression.is_choice else max(verdicts)
    if any(pattern.matches(expression) for pattern in forbidden):
        return Verdict.FORBIDDEN
    return Verdict.FREE if is_known(expression.name) else Verdict.UNKNOWN


def licenses_of(expression: Expression) -> Iterator[License]:
    """Yield every licence of an expression, in order."""
    if isinstance(expression, License):
        yield expression
    else:
        for part in expression.parts:
            yield from licenses_of(part)


@cache
def is_known(name: str) -> bool:
    """Return whether SPDX lists a licence, or a document gives it a name of its own.

    Before `packaging` 24.2, which brought the list, every name is taken for one.
    """
    if name.lower() in _SAYS_NOTHING:
        return False
    try:
        from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
    except ImportError:
        return True
    try:
        canonicalize_license_expression(name.rpartition(":")[2])
    except InvalidLicenseExpression:
        return False
    return True


def _spellings(name: str) -> Iterator[str]:
    """Yield what a pattern may call a licence, in lower case: `A+` is also an `A`."""
    current = _current(name.lower())
    yield current
    if current.endswith("+"):
        yield current[:-1]


def _current(name: str) -> str:
    """Return a deprecated name of a GNU licence as the one that took its place."""
    if found := _GNU.fullmatch(name):
        return f"{name.rstrip('+')}-{'or-later' if found[2] else 'only'}"
    return name


def _group(rest: list[str], depth: int) -> Expression:
    """Take an expression off the end of `rest`, which is reversed: `AND` binds before `OR`."""
    choices = [_all(rest, depth)]
    while rest and rest[-1].upper() == "OR":
        rest.pop()
        choices.append(_all(rest, depth))
    return choices[0] if len(choices) == 1 else Group(True, tuple(choices))


def _all(rest: list[str], depth: int) -> Expression:
    parts = [_one(rest, depth)]
    while rest and rest[-1].upper() == "AND":
        rest.pop()
        parts.append(_one(rest, depth))
    return parts[0] if len(parts) == 1 else Group(False, tuple(parts))


def _one(rest: list[str], depth: int) -> Expression:
    if depth > _DEEPEST:
        raise ValueError(f"nested deeper than {_DEEPEST}")
    word = rest.pop() if rest else ""
    if word == "(":
        inner = _group(rest, depth + 1)
        if not rest or rest.pop() != ")":
            raise ValueError("a parenthesis is not closed")
        return inner
    name = _checked(word)
    if rest and rest[-1].upper() == "WITH":
        rest.pop()
        return License(name, _checked(rest.pop() if rest else ""))
    return License(name)


def _checked(word: str) -> str:
    """Return a word that is a name.

    Raises:
        ValueError: it is an operator, nothing, or no name.
    """
    if word.upper() in {"", "AND", "OR", "WITH", ")"} or not _NAME.fullmatch(word):
        raise ValueError(f"a licence's name is expected, not {word!r}" if word else "it ends early")
    return word
