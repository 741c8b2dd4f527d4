"""Changing what a bundle's manifest says, and nothing else of the bundle.

Laws: the `bundle_id` and every other file stay as they are, and so do fields that this release does
not know and need not; after a crash at any moment the manifest is the whole old one or the whole
new one; a manifest of an older version is kept beside the new one.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from persistlib.amendment import amended
from persistlib.bundle import CARD, EXAMPLES, GRAPH, STATE, WEIGHTS, not_a_bundle
from persistlib.canonical import SIZE_LIMIT
from persistlib.digests import digest
from persistlib.errors import PersistlibError
from persistlib.manifest import document

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistlib.files import Folder, StrPath
    from persistlib.manifest.schema import Manifest

_KEPT = re.compile(r"manifest-[0-9]{1,4}\.[0-9]{1,4}(-[0-9a-f]{16})?\.json")


class Amended(NamedTuple):
    """A manifest and what became of it.

    Attributes:
        manifest: what it says now.
        before: its bytes before.
        after: its bytes now, the same where nothing was to be changed.
        version: the schema's version that it was of.
        kept: the name of the file that keeps an older version's bytes, or None.
    """

    manifest: Manifest
    before: bytes
    after: bytes
    version: str
    kept: str | None


def amend(path: StrPath, change: Callable[[Manifest], Manifest]) -> Amended:
    """Change a bundle's manifest under the bundle's lock; what changes nothing writes nothing.

    Args:
        path: the bundle.
        change: given the manifest, read as this release's version, what it shall say.

    Raises:
        ManifestError: it cannot be read by this release.
        IntegrityError: it differs from its digest.
        TargetError: it cannot be written; what stands there stands unchanged.
        LockedError: another writer is at work there.
        DurabilityError: the new manifest is in place, but the last fsync failed.
    """
    with amended(path, document.NAME) as amendment:
        done = planned(amendment.folder, change)
        if done.kept is not None and done.kept not in amendment.folder.names():
            amendment.add(done.kept, done.before)
        if done.after != done.before:
            amendment.write(done.after)
    return done


def planned(folder: Folder, change: Callable[[Manifest], Manifest]) -> Amended:
    """Return what `amend` makes of the manifest in a folder; nothing is written.

    Raises:
        TargetError: there is none.
        PersistlibError: it cannot be read, or no reader would accept the new one.
    """
    if document.NAME not in folder.names():
        raise not_a_bundle(folder.path)
    where = os.path.join(folder.path, document.NAME)
    before = folder.read(document.NAME, limit=SIZE_LIMIT)
    old = document.read(before, location=where)
    new, kept = change(old), None
    if old.upgraded_from is not None:
        kept = _kept_name(folder, old, before)
        new = new.model_copy(update={"documents": (*new.documents, kept)})
    elif new == old:
        return Amended(old, before, before, old.manifest_version, None)
    sealed = document.seal(new)
    after = document.write(sealed)
    again = document.read(after, location=where)  # what no reader would accept is not published
    return Amended(again, before, after, old.upgraded_from or old.manifest_version, kept)


def is_left_copy(folder: Folder, name: str) -> bool:
    """Return whether a file is the copy of the manifest that an interrupted upgrade left."""
    return _KEPT.fullmatch(name) is not None and _holds(
        folder, name, folder.read(document.NAME, limit=SIZE_LIMIT)
    )


def foreign_files(folder: Folder) -> list[str]:
    """Return the names in an old bundle that are not persistlib's to delete."""
    names = set(folder.names())
    own = {document.NAME, CARD, EXAMPLES, STATE, GRAPH}
    with contextlib.suppress(PersistlibError):
        data = folder.read(document.NAME, limit=SIZE_LIMIT)
        manifest = document.read(data)
        own |= {entry.path for entry in manifest.verified_files()} | set(manifest.documents)
        return sorted(name for name in names - own if not is_left_copy(folder, name))
    ours = names - own
    return sorted(
        n for n in ours if not n.startswith(f"{WEIGHTS}-") and n != f"{WEIGHTS}.safetensors"
    )


def _kept_name(folder: Folder, old: Manifest, data: bytes) -> str:
    """Return a name that is free, or has these very bytes since an upgrade was interrupted."""
    name = f"manifest-{old.upgraded_from}.json"
    if name not in {document.casefold() for document in old.documents} and (
        name not in {present.casefold() for present in folder.names()} or _holds(folder, name, data)
    ):
        return name
    return f"manifest-{old.upgraded_from}-{digest(data)[:16]}.json"


def _holds(folder: Folder, name: str, data: bytes) -> bool:
    with contextlib.suppress(PersistlibError):  # a folder, or a link to nowhere
        return folder.read(name, limit=len(data)) == data
    return False
