"""Bundles that earlier releases wrote are read by this one, for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

import persistlib
from persistlib.manifest import document

FIXTURES = Path(__file__).parent.parent / "fixtures"
BUNDLES = sorted(path.parent for path in FIXTURES.glob("v*/*/manifest.json"))


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_kept_bundle_is_intact_and_still_computes_what_it_did(bundle: Path) -> None:
    report = persistlib.verify(bundle, behaviour=True)
    assert report.findings == ()


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_kept_manifest_is_written_back_byte_for_byte(bundle: Path) -> None:
    data = (bundle / "manifest.json").read_bytes()
    assert document.write(document.read(data)) == data


def test_every_schema_has_its_bundles() -> None:
    assert {path.parent.name for path in BUNDLES} >= {"v1"}
