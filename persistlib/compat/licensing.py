"""The rule on licences: those of a model and of all that it was made from, held against a list."""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib import licenses
from persistlib.errors import Code, Severity, error, finding
from persistlib.licenses import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from persistlib.compat.facts import Facts
    from persistlib.compat.targets import Target
    from persistlib.errors import Finding
    from persistlib.licenses import Pattern

_ASK = "ask who published it under which licence it stands"


def forbidden(names: Iterable[str]) -> tuple[Pattern, ...]:
    """Return the licences that a list forbids.

    Raises:
        UsageError: something in it is no licence.
    """
    return tuple(map(_pattern, names))


def _pattern(name: str) -> Pattern:
    try:
        return licenses.parse_pattern(name)
    except ValueError as fault:
        remedy = "name each by its SPDX identifier, such as CC-BY-NC-4.0 or CC-BY-NC-*"
        raise error(Code.USAGE, f"licence {name!r}", str(fault), remedy) from fault


def terms(facts: Facts, target: Target) -> Iterator[Finding]:  # noqa: ARG001 - a rule's signature
    """Yield each licence that is forbidden, or of which that cannot be told; without a list none.

    What was made from a forbidden model stands under its licence too, so ancestors count alike.
    """
    if not facts.forbidden:
        return
    for place, text in _recorded(facts):
        yield from _held_against(facts.forbidden, place, text)


def _recorded(facts: Facts) -> Iterator[tuple[str, str | None]]:
    """Yield where a licence stands, or should, and what stands there."""
    if facts.said is None:
        yield facts.source, None
        return
    name = facts.said.name or facts.source
    yield f"{name}: license", facts.said.license
    for index, ancestor in enumerate(facts.said.lineage):
        what = f" ({ancestor.relation} {ancestor.source})" if ancestor.source else ""
        yield f"{name}: lineage.{index}.license{what}", ancestor.license


def _held_against(patterns: Sequence[Pattern], place: str, text: str | None) -> Iterator[Finding]:
    if not text:
        reason = "no licence is recorded, so none is known to be allowed"
        yield finding(Code.LICENSE, place, reason, _ASK, Severity.WARNING)
        return
    try:
        expression = licenses.parse(text)
    except ValueError as fault:
        reason = f"{text} is no SPDX expression: {fault}"
        yield finding(Code.LICENSE, place, reason, _ASK, Severity.WARNING)
        return
    rows = [(one, licenses.judge(one, patterns)) for one in licenses.licenses_of(expression)]
    bad = _listed(one for one, verdict in rows if verdict is Verdict.FORBIDDEN)
    verdict = licenses.judge(expression, patterns)
    if verdict is Verdict.FORBIDDEN:
        reason = f"{text}: {bad} is forbidden" if bad != text else f"{text} is forbidden"
        remedy = "use a model that stands under another licence, or ask its owner for one"
        yield finding(Code.LICENSE, place, reason, remedy)
    elif verdict is Verdict.UNKNOWN:
        odd = _listed(one for one, verdict in rows if verdict is Verdict.UNKNOWN)
        reason = f"{odd} is on no list of SPDX, so it cannot be held against the forbidden ones"
        yield finding(Code.LICENSE, place, reason, _ASK, Severity.WARNING)
    elif bad:
        reason = f"{text}: it leaves a choice without {bad}, which is forbidden"
        yield finding(Code.LICENSE, place, reason, "", Severity.NOTE)


def _listed(found: Iterable[licenses.License]) -> str:
    return ", ".join(dict.fromkeys(map(str, found)))
