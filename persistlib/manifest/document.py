"""From bytes to a `Manifest` and back.

Law: `read(write(manifest)) == manifest`, and `write(read(data)) == data` for all that we wrote.

Reading goes: bytes, strict JSON, canonical form, digest, version gate, upgrade steps, waived fields
set aside, schema, cross-checks. Each gate is passed before the next one looks.
"""

from __future__ import annotations

import contextlib
import copy
import re
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from persistlib.canonical import JSONObject, encode, encode_parsed, parse
from persistlib.digests import PREFIX, digest
from persistlib.errors import Code, Finding, error, error_of, finding
from persistlib.manifest import upgrades
from persistlib.manifest.consistency import NAME, REFETCH, contradictions
from persistlib.manifest.identity import bundle_id, identity_of_weights
from persistlib.manifest.misfits import require_few
from persistlib.manifest.schema import Manifest
from persistlib.manifest.version import MAJOR, MINOR

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NAME", "UNSEALED", "bundle_id", "identity_of_weights", "read", "seal", "write"]

UNSEALED = PREFIX + "0" * 64

_VERSION = re.compile(r"(0|[1-9][0-9]{0,3})\.(0|[1-9][0-9]{0,3})")
_STRANGE = "extra_forbidden"  # pydantic's name for a field outside the schema

Location = tuple[str | int, ...]
Unknown = tuple[tuple[Location, Any], ...]


def write(manifest: Manifest) -> bytes:
    """Return the file's bytes; what `read` set aside as unknown stands in its place again."""
    return encode(_with_unknown(manifest))


def seal(manifest: Manifest) -> Manifest:
    """Return the manifest with `bundle_id` and `digest` computed from its content."""
    identified = manifest.model_copy(update={"bundle_id": bundle_id(manifest), "digest": UNSEALED})
    content = _with_unknown(identified)
    encode(content)  # refuses what the canonical form cannot say
    return identified.model_copy(update={"digest": _digest(content)})


def read(
    data: bytes,
    *,
    location: object = NAME,
    steps: Mapping[str, upgrades.Step] = upgrades.STEPS,
) -> Manifest:
    """Return the manifest that `data` holds.

    Args:
        data: the whole file.
        location: what to name in an error.
        steps: the upgrade steps to use.

    Raises:
        ManifestError: not strict JSON, not canonical, another major version, an unknown field that
            is not waived, or a malformed one; every problem found is in `findings`.
        IntegrityError: the digest, or an identity derived from other fields, differs.
    """
    raw = parse(data, location)
    if encode_parsed(raw) != data:
        reason = "not as persistlib writes it: it was edited by hand, or by another program"
        raise error(Code.MANIFEST_CANONICAL, location, reason, REFETCH)
    version = _gate(raw, location, steps)
    if raw.get("digest") != (found := _digest(raw)):
        raise error(
            Code.MANIFEST_DIGEST,
            location,
            f"its digest says {raw.get('digest')}, its content is {found}",
            REFETCH,
        )
    current = upgrades.upgrade(raw, steps, location)
    require_few(current, location)
    manifest, unknown = _validate(data if current is raw else encode(current), current, location)
    if findings := tuple(contradictions(manifest, location)):
        raise error_of(findings)
    return manifest.read_from(unknown, version if current is not raw else None)


def _digest(raw: JSONObject) -> str:
    return PREFIX + digest(encode_parsed({key: raw[key] for key in raw if key != "digest"}))


def _gate(raw: JSONObject, location: object, steps: Mapping[str, upgrades.Step]) -> str:
    """Return the version, which is one that this release can read."""
    recorded = raw.get("manifest_version")
    parts = _VERSION.fullmatch(recorded) if isinstance(recorded, str) else None
    if parts is None:
        raise error(
            Code.MANIFEST_FIELD, f"{location}: manifest_version", "missing or malformed", REFETCH
        )
    version = parts[0]
    newer_minor = int(parts[1]) == MAJOR and int(parts[2]) >= MINOR
    if not newer_minor and not upgrades.leads_here(version, steps):
        raise error(
            Code.MANIFEST_MAJOR,
            location,
            f"manifest version {version}; this release reads {MAJOR}.x",
            "pip install --upgrade persistlib",
        )
    return version


def _validate(data: bytes, raw: JSONObject, location: object) -> tuple[Manifest, Unknown]:
    """Return the schema's value, and the unknown fields that were waived."""
    unknown: Unknown = ()
    while True:
        try:
            return Manifest.model_validate_json(data), unknown
        except ValidationError as fault:
            problems = fault.errors(include_url=False, include_context=False)
        strange = [tuple(p["loc"]) for p in problems if p["type"] == _STRANGE]
        waived = [path for path in strange if _is_waived(_at(raw, path))]
        if not waived:
            raise error_of(_problem(p["type"], p["loc"], p["msg"], location) for p in problems)
        raw = copy.deepcopy(raw)
        unknown += tuple((path, _at(raw, path[:-1]).pop(path[-1])) for path in waived)
        data = encode_parsed(raw)


def _problem(kind: str, path: Location, message: str, location: object) -> Finding:
    where = f"{location}: {'.'.join(str(part) for part in path)}"
    if kind == _STRANGE:
        reason = "a field that this release does not know and that must be understood"
        return finding(Code.MANIFEST_UNKNOWN, where, reason, "pip install --upgrade persistlib")
    return finding(Code.MANIFEST_FIELD, where, message[:1].lower() + message[1:], REFETCH)


def _is_waived(value: object) -> bool:
    return isinstance(value, dict) and value.get("must_understand") is False


def _at(raw: Any, path: Location) -> Any:
    for part in path:
        raw = raw[part]
    return raw


def _with_unknown(manifest: Manifest) -> JSONObject:
    raw: JSONObject = manifest.model_dump(mode="json")
    for path, value in manifest.unknown:
        # A section that was taken away since takes its unknown fields with it.
        with contextlib.suppress(LookupError, TypeError):
            _at(raw, path[:-1])[path[-1]] = value
    return raw
