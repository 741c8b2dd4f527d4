"""Bundles that earlier releases wrote are kept as they are, and read by this one, for ever."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import persistlib
from persistlib.canonical import parse
from persistlib.digests import digest
from persistlib.manifest import document, upgrades
from persistlib.manifest.version import VERSION

FIXTURES = Path(__file__).parent.parent / "fixtures"
BUNDLES = sorted(path.parent for path in FIXTURES.glob("v*/*/manifest.json"))


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_kept_bundle_is_intact_and_still_computes_what_it_did(bundle: Path) -> None:
    report = persistlib.verify(bundle, behaviour=True)
    assert report.findings == ()


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_kept_manifest_is_written_back_byte_for_byte_or_upgraded_once(
    bundle: Path, tmp_path: Path
) -> None:
    data = (bundle / "manifest.json").read_bytes()
    read = document.read(data)
    if read.upgraded_from is None:
        assert document.write(read) == data
        assert persistlib.upgrade(bundle).bundles[0].kept is None
        return
    shutil.copytree(bundle, tmp_path / "copy")
    (done,) = persistlib.upgrade(tmp_path / "copy").bundles
    assert (done.after, done.bundle_id) == (VERSION, read.bundle_id)
    assert (tmp_path / "copy" / str(done.kept)).read_bytes() == data
    assert persistlib.verify(tmp_path / "copy").findings == ()
    assert not persistlib.upgrade(tmp_path / "copy").bundles[0].is_older


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_kept_bundle_is_fit_for_use_and_told_when_it_is_older(bundle: Path) -> None:
    report = persistlib.check(bundle)
    is_older = parse((bundle / "manifest.json").read_bytes(), "")["manifest_version"] != VERSION
    assert report.ok
    assert ("PL108" in {found.code for found in report.findings}) == is_older


def test_every_schema_has_its_bundles() -> None:
    """Each version that this release reads was written by the release that had it."""
    versions = [(bundle, parse((bundle / "manifest.json").read_bytes(), "")) for bundle in BUNDLES]
    assert {raw["manifest_version"] for _, raw in versions} == {VERSION, *upgrades.STEPS}
    for bundle, raw in versions:
        assert bundle.parent.name == f"v{raw['manifest_version'].split('.')[0]}"


# -- append only -------------------------------------------------------------------------------


def kept() -> set[str]:
    """Return the files that never change: bundles, the scripts that wrote them, and vectors."""
    files = [
        *(path for path in FIXTURES.glob("v[0-9]*/*/*") if path.is_file()),
        *FIXTURES.glob("v[0-9]*/*.py"),
        *FIXTURES.glob("vectors/*.json"),
    ]
    return {path.relative_to(FIXTURES).as_posix() for path in files}


def listed() -> dict[str, str]:
    lines = (FIXTURES / "digests.txt").read_text(encoding="utf-8").splitlines()
    return {name: found for found, name in (line.split("  ", 1) for line in lines)}


def test_no_kept_file_has_changed_or_gone_and_each_is_listed() -> None:
    table = listed()
    for name, recorded in table.items():
        path = FIXTURES / name
        assert path.is_file(), f"{name} is gone: put it back"
        assert digest(path.read_bytes()) == recorded, f"{name} has changed: put it back"
    assert kept() == set(table), "add the new files' lines to fixtures/digests.txt"
    assert list(table) == sorted(table)


def test_no_line_of_the_list_and_no_kept_file_was_ever_changed() -> None:
    """The list can be edited together with a file; the history cannot."""
    where = ["fixtures/v[0-9]*/*/*", "fixtures/v[0-9]*/*.py", "fixtures/vectors/*.json"]
    told = subprocess.run(
        ["git", "log", "--format=", "--name-status", "--diff-filter=MDRT", "--", *where],
        cwd=FIXTURES.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode != 0:
        pytest.skip("not a git checkout")
    assert told.stdout == ""
