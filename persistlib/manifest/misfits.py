"""How many values of a manifest its schema refuses, counted before pydantic explains each.

Law: what the schema accepts has no misfits, and a long list has none that anybody could save.

pydantic collects every problem of a document at hundreds of bytes each, so two bytes of a manifest
could ask for a thousand. A well-meant manifest has no problem, or one of a kind in few places.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from persistlib.errors import Code, error
from persistlib.manifest import light
from persistlib.manifest.consistency import REFETCH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.manifest.light import Rule

PROBLEMS_LIMIT = 1_000
# Elements of one list or map; no more than 100,000 tensors are read.
LENGTH_LIMIT = 1 << 18

Path = tuple[str | int, ...]


def require_few(raw: Any, location: object) -> None:
    """Require that not more values are refused than anybody reads about.

    Raises:
        ManifestError: they are more.
    """
    found = list(islice(misfits(raw, light.schema(), (str(location),)), PROBLEMS_LIMIT + 1))
    if len(found) > PROBLEMS_LIMIT:
        reason = f"malformed, and at least {PROBLEMS_LIMIT} other values are"
        raise error(Code.MANIFEST_FIELD, _place(found[0]), reason, REFETCH)


def misfits(value: Any, rule: Rule, path: Path) -> Iterator[Path]:
    """Yield the places whose value a rule of the schema refuses.

    Unknown fields are none, since they may be waived.

    Args:
        value: a part of the manifest.
        rule: its rule.
        path: what errors name, and the fields that lead to it.

    Raises:
        ManifestError: a list or map is longer than any that is saved.
    """
    rule = light.resolved(rule)
    choices = [light.resolved(choice) for choice in rule.get("anyOf", (rule,))]
    inner = [choice for choice in choices if _holds(value, choice)]
    if not inner:
        if rule and not light.accepts(value, rule):
            yield path
        return
    if len(value) > LENGTH_LIMIT:
        reason = f"{len(value)} elements, at most {LENGTH_LIMIT} are read"
        raise error(Code.MANIFEST_FIELD, _place(path), reason, REFETCH)
    for choice in inner:
        yield from _inside(value, choice, path)


def _place(path: Path) -> str:
    location, *fields = path
    return f"{location}: {'.'.join(str(part) for part in fields)}"


def _holds(value: Any, rule: Rule) -> bool:
    """Return whether a value is a container whose parts have rules."""
    if type(value) is list:
        return "items" in rule
    has_rules = "properties" in rule or isinstance(rule.get("additionalProperties"), dict)
    return type(value) is dict and has_rules


def _inside(value: Any, rule: Rule, path: Path) -> Iterator[Path]:
    if type(value) is list:
        for index, item in enumerate(value):
            yield from misfits(item, rule["items"], (*path, index))
        return
    known, others = rule.get("properties", {}), rule.get("additionalProperties")
    yield from ((*path, name) for name in rule.get("required", ()) if name not in value)
    for name, item in value.items():
        if name in known:
            yield from misfits(item, known[name], (*path, name))
        elif isinstance(others, dict):
            yield from misfits(item, others, (*path, name))
