"""The versions of a model that stand in one folder: told, and let go of; no torch.

Laws: what stands beside another and is named by it as its base is never removed before it; so after
a crash at any moment every bundle that verified before, and still has its name, verifies.

A version first loses its name, durably, and then its files, so that half of one is never read.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from persistlib import publish
from persistlib.errors import Code, LockedError, PersistlibError, error, error_of
from persistlib.files import read_fault
from persistlib.lock import claim
from persistlib.manifest import document, light
from persistlib.parents import bundles_in, needing
from persistlib.place import FOLDER_FLAGS, close, sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from persistlib.errors import Finding
    from persistlib.files import StrPath
    from persistlib.manifest.schema import Manifest
    from persistlib.place import Place

# What a run was started with, in its folder, and the mark that this file bears.
RUN, RUN_SCHEMA = "run.json", "persistlib.run/1"
FOLDER = "versions"
_LEFT = re.compile(r"\.(.+)\.(?:gone-[0-9a-f]{16}|lock)")
_NUMBER = re.compile(r"(\d+)")


class Version(NamedTuple):
    """A bundle among others of its folder.

    Attributes:
        name: its name there.
        path: where it is.
        manifest: what it says.
        size: bytes of its own files, the manifest's too.
        stored: how many tensors it stores itself.
        base: the name of the version that it stands on; None for one that is whole, or that stands
            on a bundle elsewhere.
        needed_by: the names of those that stand on it.
    """

    name: str
    path: str
    manifest: Manifest
    size: int
    stored: int
    base: str | None
    needed_by: tuple[str, ...]

    @property
    def metrics(self) -> dict[str, float]:
        """How it did on the held-out samples, where its training says so."""
        training = self.manifest.training
        return dict(training.metrics) if training else {}


class Versions(NamedTuple):
    """The versions in a folder.

    Attributes:
        path: the folder.
        versions: the oldest first.
        findings: what is wrong with bundles there whose manifest cannot be read.
    """

    path: str
    versions: tuple[Version, ...]
    findings: tuple[Finding, ...]

    @property
    def best(self) -> Version | None:
        """The one that did best on the held-out samples; None where none says how it did."""
        measured = [version for version in self.versions if version.metrics]
        return max(measured, key=lambda version: rank(version.metrics), default=None)


class Pruned(NamedTuple):
    """What became of the versions in a folder.

    Attributes:
        path: the folder.
        kept: those that stand, the oldest first.
        needed: the names of those that were kept only because another one stands on them.
        removed: those that are gone, or would be.
        freed: bytes.
    """

    path: str
    kept: tuple[Version, ...]
    needed: tuple[str, ...]
    removed: tuple[Version, ...]
    freed: int


def rank(metrics: Mapping[str, float]) -> tuple[float, float]:
    """Return what the best version has most of: accuracy, and of equals the lower loss."""
    return metrics.get("accuracy", 0.0), -metrics.get("loss", 0.0)


def log(run: StrPath) -> Versions:
    """Return the versions that a run kept, or the bundles in any folder.

    Args:
        run: the folder of a run, or one with bundles in it.

    Raises:
        TargetError: there is no such folder, or no bundle in it.
    """
    folder = _folder(run)
    read: list[tuple[str, Manifest, int]] = []
    findings: list[Finding] = []
    try:
        for path, data in bundles_in(folder):
            manifest = _read(path, data)
            if isinstance(manifest, tuple):
                findings += manifest
            else:
                size = sum(entry.size for entry in manifest.verified_files())
                read.append((path, manifest, len(data) + size))
    except OSError as fault:
        raise read_fault(fault, folder) from fault
    if not read and not findings:
        keeping = 'finetune --keep all (keep="all") keeps every epoch in one'
        remedy = f"name a folder with bundles in it; {keeping}"
        raise error(Code.NOT_A_BUNDLE, folder, "no bundle in it", remedy)
    return Versions(folder, _versions(read), tuple(findings))


def prune(run: StrPath, *, keep: int = 1, dry_run: bool = False) -> Pruned:
    """Remove all versions but the newest, the best, and those that these stand on.

    Args:
        run: as `log`.
        keep: how many of the newest stay.
        dry_run: whether nothing is removed, and only said what would be.

    Raises:
        UsageError: none would be kept.
        ManifestError: a manifest there cannot be read, so what it stands on is not known; nothing
            was removed.
        TargetError: a version is in use or cannot be removed; those that others stand on are whole.
    """
    if isinstance(keep, bool) or keep < 1:
        raise error(Code.USAGE, "keep", f"{keep!r} is not a whole number from 1 on", "keep one")
    found = log(run)
    if found.findings:
        raise error_of(found.findings)
    wanted = {version.name for version in found.versions[-keep:]}
    wanted |= {found.best.name} if found.best else set()
    bases = {v.base for v in found.versions if v.name in wanted and v.base is not None}
    kept = tuple(v for v in found.versions if v.name in wanted | bases)
    removed = tuple(v for v in found.versions if v.name not in wanted | bases)
    if not dry_run:
        _sweep(found.path)
        for version in sorted(removed, key=lambda version: bool(version.needed_by)):
            remove(version.path)
    needed = tuple(version.name for version in kept if version.name not in wanted)
    freed = sum(version.size for version in removed)
    return Pruned(found.path, kept, needed, removed, freed)


def remove(path: StrPath) -> None:
    """Remove a bundle on which no other beside it stands; its name goes first, durably.

    Raises:
        TargetError: another stands on it, somebody reads it, or it cannot be removed.
        LockedError: another writer is at work there.
    """
    with publish.held(os.path.realpath(path)) as place:
        fd = os.open(place.name, FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=place.fd)
        try:
            gone = _without_name(place, fd)
        finally:
            close(fd)
        place.sweep(gone)


def _without_name(place: Place, fd: int) -> str:
    """Take the name of a version that nobody reads and on which none stands; return its new one."""
    try:
        claim(fd)
    except BlockingIOError as fault:
        remedy = "wait until it is closed"
        raise error(Code.TARGET_NEEDED, place.path, "somebody reads it", remedy) from fault
    # Whoever saves over it reads it: so this is the last look.
    if others := needing(place.path):
        remedy = f"persistlib materialize {others[0]}"
        raise error(Code.TARGET_NEEDED, place.path, f"{others[0]} stands on it", remedy)
    gone = place.gone()
    place.rename(place.name, gone)
    sync_folder(place.fd)
    return gone


def _sweep(folder: str) -> None:
    """Delete what interrupted removals left, unless somebody is at work there."""
    left = {found[1] for name in os.listdir(folder) if (found := _LEFT.fullmatch(name))}
    for name in sorted(left):
        path = os.path.join(folder, name)
        if not os.path.lexists(path):
            with contextlib.suppress(LockedError), publish.held(path) as place:
                place.sweep(*place.leftovers("gone"))


def _folder(run: StrPath) -> str:
    inner = os.path.join(run, FOLDER)
    return inner if os.path.isdir(inner) else os.fspath(run)


def _read(path: str, data: bytes) -> Manifest | tuple[Finding, ...]:
    """Return what a manifest says, or what is wrong with it."""
    try:
        location = os.path.join(path, document.NAME)
        return light.read(data) or document.read(data, location=location)
    except PersistlibError as fault:
        return fault.findings


def _versions(read: Sequence[tuple[str, Manifest, int]]) -> tuple[Version, ...]:
    names = {os.path.basename(path) for path, _, _ in read}
    bases = {
        os.path.basename(path): base.hint
        for path, manifest, _ in read
        if (base := manifest.weights.base) is not None and base.hint in names
    }
    made = [
        Version(
            name=(name := os.path.basename(path)),
            path=path,
            manifest=manifest,
            size=size,
            stored=sum(record.file is not None for record in manifest.weights.tensors),
            base=bases.get(name),
            needed_by=tuple(other for other, base in bases.items() if base == name),
        )
        for path, manifest, size in read
    ]
    if all(version.name.isdecimal() for version in made):  # a run's epochs, whatever the clock said
        return tuple(sorted(made, key=lambda v: int(v.name)))
    return tuple(sorted(made, key=lambda v: (v.manifest.created, _natural(v.name))))


def _natural(name: str) -> Iterable[tuple[int, str]]:
    """Return what sorts names by the numbers in them."""
    parts = _NUMBER.split(name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
