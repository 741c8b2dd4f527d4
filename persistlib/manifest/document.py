"""From bytes to a `Manifest` and back.

Law: `read(write(manifest)) == manifest`, and `write(read(data)) == data` for all that we wrote.

Reading goes: bytes, strict JSON, canonical form, digest, version gate, upgrade steps, waived fields
set aside, schema, cross-checks. Each gate is passed before the next one looks.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from persistlib.canonical import JSONObject, encode, parse
from persistlib.digests import PREFIX, TensorRow, digest, weights_identity
from persistlib.dtypes import DType
from persistlib.errors import Code, Finding, error, error_of, finding
from persistlib.manifest import upgrades
from persistlib.manifest.schema import MAJOR, VERSION, Manifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from persistlib.manifest.schema import Weights

NAME = "manifest.json"
UNSEALED = PREFIX + "0" * 64
_REFETCH = "fetch the bundle again from where it came"

_STRANGE = "extra_forbidden"  # pydantic's name for a field outside the schema

Location = tuple[str | int, ...]
Unknown = tuple[tuple[Location, Any], ...]


def write(manifest: Manifest) -> bytes:
    """Return the file's bytes; what `read` set aside as unknown stands in its place again."""
    return encode(_with_unknown(manifest))


def seal(manifest: Manifest) -> Manifest:
    """Return the manifest with `bundle_id` and `digest` computed from its content."""
    identified = manifest.model_copy(update={"bundle_id": bundle_id(manifest), "digest": UNSEALED})
    return identified.model_copy(update={"digest": _digest(_with_unknown(identified))})


def bundle_id(manifest: Manifest) -> str:
    """Return what the model is: BLAKE3 of how it is built, its interface, weights and state.

    It covers the architecture without `source`, the interface, the weights identity, the aliases
    and the state, each without the members that hold their default: a later minor version that adds
    an optional field leaves the identity as it is.
    """
    architecture, interface = manifest.architecture, manifest.interface
    weights, state = manifest.weights, manifest.state
    unsaved = {
        name: tensor.model_dump(mode="json", exclude={"file"})
        for name, tensor in state.unsaved_buffers.items()
    }
    content = {
        "architecture": architecture.model_dump(
            mode="json", exclude_defaults=True, exclude={"source"}
        ),
        "interface": interface.model_dump(mode="json", exclude_defaults=True),
        "weights": weights.identity,
        "aliases": weights.aliases,
        "state": state.model_dump(
            mode="json", exclude_defaults=True, exclude={"files", "unsaved_buffers"}
        )
        | ({"unsaved_buffers": unsaved} if unsaved else {}),
    }
    return PREFIX + digest(encode(content))


def identity_of_weights(weights: Weights) -> str:
    """Return the weights identity that the tensor records and aliases make."""
    rows = {
        record.name: TensorRow(record.name, DType[record.dtype], record.shape, record.blake3)
        for record in weights.tensors
    }
    tied = [rows[name]._replace(name=alias) for alias, name in weights.aliases.items()]
    return weights_identity([*rows.values(), *tied])


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
    if encode(raw) != data:
        raise error(Code.MANIFEST_CANONICAL, location, "the bytes are not canonical", _REFETCH)
    version = _gate(raw, location, steps)
    if raw.get("digest") != (found := _digest(raw)):
        raise error(
            Code.MANIFEST_DIGEST,
            location,
            f"its digest says {raw.get('digest')}, its content is {found}",
            _REFETCH,
        )
    current = upgrades.upgrade(raw, steps)
    manifest, unknown = _validate(current, location)
    if findings := tuple(_contradictions(manifest, location)):
        raise error_of(findings)
    return manifest.read_from(unknown, version if current is not raw else None)


def _digest(raw: JSONObject) -> str:
    return PREFIX + digest(encode({key: raw[key] for key in raw if key != "digest"}))


def _gate(raw: JSONObject, location: object, steps: Mapping[str, upgrades.Step]) -> str:
    """Return the version, which is one that this release can read."""
    version = raw.get("manifest_version")
    parts = version.split(".") if isinstance(version, str) else []
    if len(parts) != 2 or not all(p.isascii() and p.isdigit() and len(p) < 5 for p in parts):
        raise error(
            Code.MANIFEST_FIELD, f"{location}: manifest_version", "missing or malformed", _REFETCH
        )
    version = ".".join(parts)
    newer_minor = int(parts[0]) == MAJOR and int(parts[1]) >= int(VERSION.split(".")[1])
    if not newer_minor and not upgrades.leads_here(version, steps):
        raise error(
            Code.MANIFEST_MAJOR,
            location,
            f"manifest version {version}; this release reads {MAJOR}.x",
            "pip install --upgrade persistlib",
        )
    return version


def _validate(raw: JSONObject, location: object) -> tuple[Manifest, Unknown]:
    """Return the schema's value, and the unknown fields that were waived."""
    unknown: Unknown = ()
    while True:
        try:
            return Manifest.model_validate_json(encode(raw)), unknown
        except ValidationError as fault:
            problems = fault.errors(include_url=False, include_context=False)
        strange = [tuple(p["loc"]) for p in problems if p["type"] == _STRANGE]
        waived = [path for path in strange if _is_waived(_at(raw, path))]
        if not waived:
            raise error_of(_problem(p["type"], p["loc"], p["msg"], location) for p in problems)
        raw = copy.deepcopy(raw)
        unknown += tuple((path, _at(raw, path[:-1]).pop(path[-1])) for path in waived)


def _problem(kind: str, path: Location, message: str, location: object) -> Finding:
    where = f"{location}: {'.'.join(str(part) for part in path)}"
    if kind == _STRANGE:
        reason = "a field that this release does not know and that must be understood"
        return finding(Code.MANIFEST_UNKNOWN, where, reason, "pip install --upgrade persistlib")
    return finding(Code.MANIFEST_FIELD, where, message[:1].lower() + message[1:], _REFETCH)


def _is_waived(value: object) -> bool:
    return isinstance(value, dict) and value.get("must_understand") is False


def _at(raw: Any, path: Location) -> Any:
    for part in path:
        raw = raw[part]
    return raw


def _with_unknown(manifest: Manifest) -> JSONObject:
    raw: JSONObject = manifest.model_dump(mode="json")
    for path, value in manifest.unknown:
        _at(raw, path[:-1])[path[-1]] = value
    return raw


def _contradictions(manifest: Manifest, location: object) -> Iterator[Finding]:
    """Yield every place where two fields of the manifest cannot both be true."""
    structural = [
        finding(Code.MANIFEST_FIELD, f"{location}: {field}", reason, _REFETCH)
        for field, reason in (*_loose_ends(manifest), *_file_faults(manifest))
    ]
    yield from structural
    if structural:
        return
    derived = {
        "weights.identity": (manifest.weights.identity, identity_of_weights(manifest.weights)),
        "bundle_id": (manifest.bundle_id, bundle_id(manifest)),
    }
    for field, (recorded, found) in derived.items():
        if recorded != found:
            reason = f"says {recorded}, its parts make {found}"
            yield finding(Code.MANIFEST_IDENTITY, f"{location}: {field}", reason, _REFETCH)


def _loose_ends(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the fields that refer to what is not there."""
    weights, state = manifest.weights, manifest.state
    names = {record.name for record in weights.tensors}
    if len(names) != len(weights.tensors):
        yield "weights.tensors", "a name stands twice"
    for index, record in enumerate(weights.tensors):
        if record.file >= len(weights.files):
            yield f"weights.tensors.{index}.file", "there is no such file"
    for alias, name in weights.aliases.items():
        if alias in names or name not in names:
            yield f"weights.aliases.{alias}", f"is no second name of the tensor {name}"
    for name, tensor in state.unsaved_buffers.items():
        if tensor.file is not None and tensor.file >= len(state.files):
            yield f"state.unsaved_buffers.{name}.file", "there is no such file"


def _file_faults(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the file entries that cannot all stand in one folder, or lack their digest."""
    files = manifest.verified_files()
    names = [NAME, *(entry.path for entry in files), *manifest.documents]
    if len({name.casefold() for name in names}) != len(names):
        yield "files", "a file name stands twice, or is the manifest's own"
    for entry in files:
        if (entry.header_blake3 is None) == (entry.blake3 is None):
            yield entry.path, "needs one digest, of its header or of all its bytes"
