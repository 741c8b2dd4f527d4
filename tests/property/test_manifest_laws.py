"""The laws of `persistlib.manifest`."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from older_schemas import sealed
from persistlib.errors import Code, PersistlibError
from persistlib.manifest import document
from persistlib.manifest.schema import Environment, Manifest
from property.strategies import json_objects, json_values, manifests, texts

KNOWN = {code.identifier for code in Code}
slowly = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def outcome(data: bytes) -> Manifest | PersistlibError:
    """Return what reading gives; any other exception fails the test."""
    try:
        return document.read(data)
    except PersistlibError as fault:
        return fault


@given(manifests())
@slowly
def test_reading_what_was_written_gives_it_back(manifest: Manifest) -> None:
    data = document.write(manifest)
    read = document.read(data)
    assert read == manifest
    assert document.write(read) == data
    assert document.seal(read) == manifest


@given(manifests(), st.data())
@slowly
def test_every_mutant_of_a_manifest_is_refused(manifest: Manifest, data: st.DataObject) -> None:
    written = document.write(manifest)
    place = data.draw(st.integers(0, len(written) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != written[place]))
    fault = outcome(written[:place] + bytes([byte]) + written[place + 1 :])
    assert isinstance(fault, PersistlibError)
    assert {finding.code for finding in fault.findings} <= KNOWN


@given(manifests(), st.data())
@slowly
def test_every_other_value_in_a_sealed_manifest_is_read_or_refused(
    manifest: Manifest, data: st.DataObject
) -> None:
    """An attacker can compute the digest too: what counts then is that nothing else is raised."""
    raw = json.loads(document.write(manifest))
    path = data.draw(st.sampled_from(sorted(paths(raw), key=repr)))
    inner: Any = raw
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = data.draw(json_values)
    result = outcome(sealed(raw))
    if isinstance(result, Manifest):
        assert document.read(document.write(document.seal(result))).bundle_id == result.bundle_id


def paths(value: Any, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    """Return where anything stands in a JSON value."""
    members = value.items() if isinstance(value, dict) else enumerate(value)
    found: set[tuple[str | int, ...]] = set()
    for part, inner in members:
        found.add((*path, part))
        if isinstance(inner, (dict, list)):
            found |= paths(inner, (*path, part))
    return found


@given(json_objects)
def test_any_object_is_refused_with_its_digest_right(raw: dict[str, Any]) -> None:
    assert isinstance(outcome(sealed(raw)), PersistlibError)
    assert isinstance(outcome(sealed(raw | {"manifest_version": "1.0"})), PersistlibError)


@given(manifests(), st.data())
@slowly
def test_waived_fields_anywhere_are_kept_and_others_refused(
    manifest: Manifest, data: st.DataObject
) -> None:
    raw = json.loads(document.write(manifest)) | {"manifest_version": "1.1"}
    place = data.draw(st.sampled_from(["", "writer", "weights", "state", "architecture"]))
    section = raw[place] if place else raw
    name = data.draw(texts.filter(lambda name: name not in section))
    waived = data.draw(json_objects) | {"must_understand": False}
    section[name] = waived
    written = sealed(raw)
    read = document.read(written)
    assert document.write(read) == written
    assert [value for _, value in read.unknown] == [waived]
    assert read.bundle_id == manifest.bundle_id
    section[name] = data.draw(json_values.filter(lambda v: not isinstance(v, dict)))
    fault = outcome(sealed(raw))
    assert isinstance(fault, PersistlibError)
    assert fault.code == "PL105"


@given(manifests(), st.lists(json_objects, max_size=2), texts)
@slowly
def test_what_came_later_never_changes_the_bundle_id(
    manifest: Manifest, evaluations: list[Any], platform: str
) -> None:
    changed = manifest.model_copy(
        update={
            "evaluations": tuple(evaluations),
            "graphs": (),
            "documents": ("NOTES.md",),
            "environment": Environment(python="3.99", platform=platform),
            "training": None,
            "extensions": {"org.example.other": evaluations},
        }
    )
    assert document.bundle_id(changed) == manifest.bundle_id


@given(manifests(), manifests())
@slowly
def test_models_that_differ_have_different_bundle_ids(one: Manifest, other: Manifest) -> None:
    parts = [
        (
            m.architecture.model_copy(update={"source": None}),
            m.interface,
            m.weights.identity,
            m.weights.aliases,
            m.state.model_copy(update={"files": (), "unsaved_buffers": {}}),
        )
        for m in (one, other)
    ]
    assume(parts[0] != parts[1])
    assert one.bundle_id != other.bundle_id


@given(manifests())
@slowly
def test_reading_and_sealing_leave_their_argument_as_it_was(manifest: Manifest) -> None:
    before = copy.deepcopy(manifest)
    document.seal(manifest)
    document.write(manifest)
    assert manifest == before
    with pytest.raises(ValueError, match="frozen"):
        manifest.name = "other"
