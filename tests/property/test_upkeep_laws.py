"""The laws of `persistlib.upkeep`, `upgrading` and `standing`, on manifests of every shape."""

from __future__ import annotations

import json
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import persistlib
from older_schemas import STEPS, older, sealed
from persistlib.manifest import document, upgrades
from persistlib.upkeep import amend
from property.strategies import json_objects, manifests, texts

if TYPE_CHECKING:
    from collections.abc import Generator

    from persistlib.manifest.schema import Manifest

slowly = settings(
    max_examples=20,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
# Fields that no release knows and that need not be understood, by the section they stand in.
waived = st.dictionaries(
    st.sampled_from(["", "writer", "weights", "state", "architecture", "environment"]),
    json_objects.map(lambda members: members | {"must_understand": False}),
)
reasons = texts.filter(str.strip)


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this release know an older schema."""
    monkeypatch.setitem(upgrades.STEPS, "0.9", STEPS["0.9"])


@contextmanager
def bundle_of(data: bytes) -> Generator[Path]:
    """Yield a folder that holds a manifest alone: nothing here reads another file."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "model"
        bundle.mkdir()
        (bundle / "manifest.json").write_bytes(data)
        yield bundle


def files(bundle: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in bundle.iterdir()}


def with_unknown(manifest: Manifest, places: dict[str, Any]) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(document.write(manifest)) | {"manifest_version": "1.9"}
    for place, value in places.items():
        (raw[place] if place else raw)["unheard-of"] = value
    return raw


def unknown(read: Manifest) -> dict[str, Any]:
    return {".".join(map(str, path[:-1])): value for path, value in read.unknown}


@given(manifests(), waived)
@slowly
def test_an_upgrade_keeps_the_bundle_id_and_the_old_manifest_and_is_done_once(
    manifest: Manifest, places: dict[str, Any]
) -> None:
    old = older(sealed(with_unknown(manifest, places)))
    with bundle_of(old) as bundle:
        promised = persistlib.upgrade(bundle, dry_run=True)
        assert files(bundle) == {"manifest.json": old}
        assert persistlib.upgrade(bundle) == promised
        (done,) = promised.bundles
        assert done.bundle_id == manifest.bundle_id
        after = files(bundle)
        assert after.keys() == {"manifest.json", done.kept}
        assert after[str(done.kept)] == old
        read = document.read(after["manifest.json"])
        assert read.documents == (*manifest.documents, done.kept)
        assert unknown(read) == places
        assert not persistlib.upgrade(bundle).bundles[0].is_older
        assert files(bundle) == after


@given(manifests(), waived, reasons)
@slowly
def test_a_status_changes_nothing_else(
    manifest: Manifest, places: dict[str, Any], reason: str
) -> None:
    before = sealed(with_unknown(manifest, places))
    with bundle_of(before) as bundle:
        persistlib.set_status(bundle, "withdrawn", reason=reason)
        raw = json.loads(files(bundle)["manifest.json"])
        assert raw["status"]["reason"] == reason
        assert raw["bundle_id"] == manifest.bundle_id
        persistlib.set_status(bundle, "active")
        assert files(bundle) == {"manifest.json": before}


@given(manifests(), waived, json_objects)
@slowly
def test_what_is_not_known_survives_every_change(
    manifest: Manifest, places: dict[str, Any], evaluation: dict[str, Any]
) -> None:
    with bundle_of(sealed(with_unknown(manifest, places))) as bundle:
        for _ in range(2):
            amend(
                bundle,
                lambda m: m.model_copy(update={"evaluations": (*m.evaluations, evaluation)}),
            )
        read = document.read(files(bundle)["manifest.json"])
        assert unknown(read) == places
        assert read.evaluations == (*manifest.evaluations, evaluation, evaluation)
        assert (read.bundle_id, read.manifest_version) == (manifest.bundle_id, "1.9")
