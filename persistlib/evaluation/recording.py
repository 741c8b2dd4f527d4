"""Keeping a result in the manifest of the bundle that it is about.

Law: nothing of the bundle changes but its list of evaluations and its manifest's digest; after a
crash at any moment the manifest is the whole old one or the whole new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib import upkeep
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from pydantic import JsonValue

    from persistlib.files import StrPath
    from persistlib.manifest.schema import Manifest


def keep(path: StrPath, bundle_id: str, record: dict[str, JsonValue]) -> Manifest:
    """Append a result to a bundle's evaluations, unless it stands there, and return its manifest.

    Args:
        path: the bundle.
        bundle_id: of the model that was judged.
        record: the result.

    Raises:
        TargetError: another model stands at `path` by now, or its manifest cannot be written.
        LockedError: another writer is at work there.
        PersistlibError: the manifest cannot be read.
    """

    def change(manifest: Manifest) -> Manifest:
        if manifest.bundle_id != bundle_id:
            reason = f"{manifest.bundle_id} stands there by now; {bundle_id} was judged"
            raise error(Code.TARGET_WRITE, path, reason, "evaluate it again")
        if record in manifest.evaluations:
            return manifest
        return manifest.model_copy(update={"evaluations": (*manifest.evaluations, record)})

    return upkeep.amend(path, change).manifest
