"""Bringing the manifests of bundles to this release's version, in place.

Laws: an upgraded bundle is the same model, with every file that it had; upgrading it again changes
nothing. Everything else that is true of a changed manifest stands in `upkeep`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persistlib.bundle import not_a_bundle
from persistlib.canonical import parse
from persistlib.errors import Finding, PersistlibError, Severity
from persistlib.gap import open_folder
from persistlib.manifest.comparison import ManifestRow, json_rows
from persistlib.manifest.consistency import NAME
from persistlib.upkeep import Amended, amend, planned

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.files import StrPath
    from persistlib.manifest.schema import Manifest


@dataclass(frozen=True)
class BundleUpgrade:
    """What an upgrade made, or would make, of one bundle.

    Attributes:
        path: the bundle.
        before: the schema's version that its manifest was of.
        after: the version that it is of now; the same where nothing was to be done.
        bundle_id: of the model, which no upgrade changes.
        kept: the file in the bundle that has the old manifest, or None.
        changes: the fields that differ, by their path; the two digests aside.
    """

    path: str
    before: str
    after: str
    bundle_id: str
    kept: str | None
    changes: tuple[ManifestRow, ...]

    @property
    def is_older(self) -> bool:
        """Whether the manifest was of an older version."""
        return self.before != self.after


@dataclass(frozen=True)
class UpgradeReport:
    """What became of every bundle at a path.

    Attributes:
        bundles: those that were upgraded, or had nothing to be upgraded, in the order of paths.
        findings: why others could not be.
    """

    bundles: tuple[BundleUpgrade, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every bundle is, or could be made, of this release's version."""
        return all(found.severity != Severity.ERROR.value for found in self.findings)


def upgrade(path: StrPath, *, dry_run: bool = False) -> UpgradeReport:
    """Bring a bundle's manifest to this release's version, or those of all bundles below a folder.

    The old manifest is kept in the bundle, as `manifest-VERSION.json` among its documents. The
    `bundle_id` stays, and so does every other file. A manifest of this version, or of a newer minor
    one, is left as it is.

    Args:
        path: a bundle, or a folder with bundles below it, in which links and hidden folders are not
            followed.
        dry_run: whether to say what would change and write nothing.

    Raises:
        TargetError: nothing stands at `path`, or no bundle; or the bundle cannot be written.
        LockedError: another writer is at work at the bundle.
        ManifestError: the bundle's manifest cannot be read by this release.
        IntegrityError: the bundle's manifest differs from its digest.
        DurabilityError: the new manifest is in place, but the last fsync failed.
    """
    with open_folder(path) as folder:
        if NAME in folder.names():
            return UpgradeReport((_upgrade(folder.path, dry_run=dry_run),))
    tried = [_tried(bundle, dry_run=dry_run) for bundle in _below(os.fspath(path))]
    if not tried:
        raise not_a_bundle(path)
    done = tuple(bundle for report in tried for bundle in report.bundles)
    return UpgradeReport(done, tuple(found for report in tried for found in report.findings))


def _tried(path: str, *, dry_run: bool) -> UpgradeReport:
    try:
        return UpgradeReport((_upgrade(path, dry_run=dry_run),))
    except PersistlibError as fault:
        return UpgradeReport((), fault.findings)


def _upgrade(path: str, *, dry_run: bool) -> BundleUpgrade:
    with open_folder(path) as folder:
        done = planned(folder, _unchanged)
    if done.after != done.before and not dry_run:
        done = amend(path, _unchanged)
    return BundleUpgrade(
        path=path,
        before=done.version,
        after=done.manifest.manifest_version,
        bundle_id=done.manifest.bundle_id,
        kept=done.kept,
        changes=tuple(_changes(done)),
    )


def _unchanged(manifest: Manifest) -> Manifest:
    return manifest


def _changes(done: Amended) -> Iterator[ManifestRow]:
    before, after = parse(done.before, NAME), parse(done.after, NAME)
    return (row for row in json_rows("", before, after) if row.field != "digest")


def _below(path: str) -> Iterator[str]:
    """Yield the bundles below a folder, sorted; what is in a bundle is not looked at."""
    for parent, folders, names in os.walk(path):
        if NAME in names and parent != path:
            folders.clear()
            yield parent
        folders[:] = sorted(name for name in folders if not name.startswith("."))
