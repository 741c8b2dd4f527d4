"""Reading a manifest by its published JSON Schema alone, for what must answer at once.

Importing pydantic and building the schema's classes takes longer than `persistlib inspect` may take
in all. `schema.json` is made from these classes, and what it says is enough to accept a well-formed
manifest; what is not accepted here is for `document.read` to judge and to explain.

Law: if `read(data)` is not None, `document.read(data)` has the same fields, and raises nothing.
"""

from __future__ import annotations

import json
import os
import re
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn, cast

from persistlib.canonical import encode_parsed, parse
from persistlib.digests import PREFIX, digest
from persistlib.errors import PersistlibError
from persistlib.files import name_fault
from persistlib.manifest.consistency import contradictions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from persistlib.manifest.schema import FileEntry, Manifest

Rule = dict[str, Any]

_SCHEMA = os.path.join(os.path.dirname(__file__), "schema.json")
# What is understood here; a rule that says anything else is left to pydantic.
_WORDS = {
    *("type", "enum", "const", "pattern", "minLength", "maxLength", "minimum", "minItems"),
    *("properties", "required", "additionalProperties", "items", "default"),
}


class Record:
    """A section of the manifest, with the attributes and the one method of the schema's classes."""

    def __init__(self, raw: Mapping[str, Any], rule: Rule, values: Mapping[str, Any]) -> None:
        self._raw = raw
        self._rule = rule
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(name)

    def model_dump(
        self, *, mode: str, exclude_defaults: bool = False, exclude: Collection[str] = ()
    ) -> dict[str, Any]:
        """Return the section as plain JSON, as pydantic's method of that name does."""
        assert mode == "json"
        return {
            name: _dumped(self._raw.get(name, rule.get("default")), rule, exclude_defaults)
            for name, rule in self._rule["properties"].items()
            if name not in exclude
            and not (
                exclude_defaults
                and "default" in rule
                and self._raw.get(name, rule["default"]) == rule["default"]
            )
        }


class _Whole(Record):
    """The manifest itself."""

    weights: Any
    state: Any
    graphs: Any
    examples: Any
    unknown = ()
    upgraded_from = None

    def verified_files(self) -> tuple[FileEntry, ...]:
        """Return every file that the manifest vouches for, as `Manifest.verified_files` does."""
        index = (self.weights.index,) if self.weights.index else ()
        graphs = tuple(entry for graph in self.graphs for entry in graph.files)
        examples = self.examples.files if self.examples else ()
        return (*index, *self.weights.files, *self.state.files, *graphs, *examples)


class _UnfitError(Exception):
    """The value is not one that a rule, as understood here, accepts."""


def read(data: bytes) -> Manifest | None:
    """Return the manifest that `data` holds, or None where pydantic must be asked."""
    try:
        raw = parse(data, "manifest.json")
        content = {name: value for name, value in raw.items() if name != "digest"}
        if encode_parsed(raw) != data or raw.get("digest") != PREFIX + digest(
            encode_parsed(content)
        ):
            return None
        rule = schema()
        # Only the version that the schema describes; the rest may need upgrade steps.
        if raw.get("manifest_version") != rule["properties"]["manifest_version"]["default"]:
            return None
        manifest = cast("Manifest", _record(raw, rule, _Whole))
        if _is_beyond_the_schema(manifest, data) or any(contradictions(manifest, "")):
            return None
    except (PersistlibError, _UnfitError, OSError, RecursionError):
        return None
    return manifest


def _is_beyond_the_schema(manifest: Manifest, data: bytes) -> bool:
    """Return whether a rule that is code, not schema, might refuse the manifest."""
    base = manifest.weights.base
    hints = (base.hint,) if base is not None and base.hint is not None else ()
    names = [*(entry.path for entry in manifest.verified_files()), *manifest.documents, *hints]
    return (
        b"\\u0000" in data  # in a tensor's name
        or bool(manifest.extensions)
        or any(name_fault(name) for name in names)
    )


@cache
def schema() -> Rule:
    """Return the published schema of a manifest."""
    with open(_SCHEMA, encoding="utf-8") as file:
        schema: Rule = json.load(file)
    return schema


def resolved(rule: Rule) -> Rule:
    """Return a rule, or the one that it refers to."""
    if "$ref" in rule:
        definition: Rule = schema()["$defs"][rule["$ref"].removeprefix("#/$defs/")]
        return definition
    return rule


def accepts(value: Any, rule: Rule) -> bool:
    """Return whether a rule accepts a value."""
    try:
        _value(value, rule)
    except _UnfitError:
        return False
    return True


def _value(value: Any, rule: Rule) -> Any:
    """Return a JSON value as the schema's classes hold it.

    Raises:
        _UnfitError: the rule does not accept it, or is not understood.
    """
    rule = resolved(rule)
    if "anyOf" in rule:
        return _first(value, rule["anyOf"])
    if not rule:
        return value  # any JSON
    kind = rule.get("type")
    if rule.keys() - _WORDS or kind not in _KINDS:
        raise _UnfitError
    if ("const" in rule and value != rule["const"]) or (
        "enum" in rule and value not in rule["enum"]
    ):
        raise _UnfitError
    return _KINDS[kind](value, rule)


def _first(value: Any, choices: list[Rule]) -> Any:
    """Return what the first choice that accepts a value makes of it."""
    if not choices:
        raise _UnfitError
    try:
        return _value(value, choices[0])
    except _UnfitError:
        return _first(value, choices[1:])


def _record(value: Any, rule: Rule, kind: type[Record] = Record) -> Record:
    properties = rule["properties"]
    if rule.get("additionalProperties") is not False or value.keys() - properties.keys():
        raise _UnfitError
    if set(rule.get("required", ())) - value.keys():
        raise _UnfitError
    values = {
        name: _value(value[name] if name in value else part["default"], part)
        for name, part in properties.items()
    }
    return kind(value, rule, values)


def _object(value: Any, rule: Rule) -> Any:
    if type(value) is not dict:
        raise _UnfitError
    if "properties" in rule:
        return _record(value, rule)
    members = rule["additionalProperties"]
    if members is True:
        return value
    return {name: _value(member, members) for name, member in value.items()}


def _array(value: Any, rule: Rule) -> tuple[Any, ...]:
    if type(value) is not list or len(value) < rule.get("minItems", 0):
        raise _UnfitError
    return tuple(_value(item, rule["items"]) for item in value)


def _string(value: Any, rule: Rule) -> str:
    least, most = rule.get("minLength", 0), rule.get("maxLength", 1 << 32)
    if type(value) is not str or not least <= len(value) <= most:
        raise _UnfitError
    # ASCII classes and both ends bound: at most what pydantic's engine accepts.
    if "pattern" in rule and not re.fullmatch(rule["pattern"], value, re.ASCII):
        raise _UnfitError
    return value


def _integer(value: Any, rule: Rule) -> int:
    if type(value) is not int or value < rule.get("minimum", value):
        raise _UnfitError
    return value


def _number(value: Any, _: Rule) -> float:
    if type(value) not in {int, float}:
        raise _UnfitError
    return float(value)


def _boolean(value: Any, _: Rule) -> bool:
    if type(value) is not bool:
        raise _UnfitError
    return value


def _null(value: Any, _: Rule) -> None:
    if value is not None:
        raise _UnfitError


_KINDS: dict[str, Callable[[Any, Rule], Any]] = {
    "object": _object,
    "array": _array,
    "string": _string,
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "null": _null,
}


def _dumped(value: Any, rule: Rule, exclude_defaults: bool) -> Any:
    """Return a value that a rule accepts as plain JSON, members with their default left out."""
    rule = resolved(rule)
    if "anyOf" in rule:
        if value is None:
            return None
        rule = next(resolved(c) for c in rule["anyOf"] if c.get("type") != "null")
    if "items" in rule:
        return [_dumped(item, rule["items"], exclude_defaults) for item in value]
    if "properties" in rule:
        record = Record(value, rule, {})
        return record.model_dump(mode="json", exclude_defaults=exclude_defaults)
    if isinstance(rule.get("additionalProperties"), dict):
        members = rule["additionalProperties"]
        return {n: _dumped(member, members, exclude_defaults) for n, member in value.items()}
    return value
