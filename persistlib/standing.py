"""Whether a model may be used: set in its bundle's manifest, after it was published.

Law: the status never changes the `bundle_id`, nor anything else of the bundle.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from persistlib.bundle import open_bundle
from persistlib.clock import now
from persistlib.compat import Target, standing
from persistlib.compat.facts import Facts
from persistlib.compat.remedies import command
from persistlib.digests import PREFIX
from persistlib.errors import Code, PersistlibError, Severity, error, tell
from persistlib.manifest.schema import Status
from persistlib.upkeep import amend

if TYPE_CHECKING:
    from typing import Literal

    from persistlib.errors import Finding
    from persistlib.files import StrPath
    from persistlib.manifest.schema import Manifest

    State = Literal["active", "superseded-by", "withdrawn"]

STATES = ("active", "superseded-by", "withdrawn")
_IDENTITY = re.compile(PREFIX + "[0-9a-f]{64}")


def set_status(
    path: StrPath,
    state: State,
    *,
    reason: str | None = None,
    successor: StrPath | None = None,
) -> Manifest:
    """Say in a bundle's manifest whether its model may be used, and return the manifest.

    The change is dated today; setting the same status again changes nothing. What was withdrawn
    stays so until it is made active: no other status makes it usable again.

    Args:
        path: the bundle.
        state: "active"; "superseded-by", of which `load` warns; or "withdrawn", which `load`
            refuses.
        reason: why, for people; needed to withdraw. Of a successor that is named by its path, that
            it replaces the model by default.
        successor: what to use instead: a `bundle_id`, or the path of a bundle; needed where the
            model is superseded.

    Raises:
        UsageError: reason or successor are missing, or do not go with the state; or the model was
            withdrawn, and is to be superseded.
        TargetError: nothing stands at a path, or no bundle; or the manifest cannot be written.
        ManifestError: a manifest cannot be read by this release.
        LockedError: another writer is at work there.
    """
    _check(state, reason, successor)
    follower, name = _successor(successor)
    status = Status(
        state=state,
        reason=f"{name} replaces it" if reason is None and name else reason,
        date=None if state == "active" else now().date().isoformat(),
        successor=follower,
    )

    def change(manifest: Manifest) -> Manifest:
        if manifest.bundle_id == follower:
            reason = "a model does not follow itself"
            raise error(Code.USAGE, "successor", reason, "name the bundle that replaces it")
        _require_active(manifest, state, path)
        if manifest.status.model_copy(update={"date": status.date}) == status:
            return manifest
        return manifest.model_copy(update={"status": status})

    return amend(path, change).manifest


def _require_active(manifest: Manifest, state: State, path: StrPath) -> None:
    """Refuse to supersede a withdrawn model, which would make it usable without a word.

    Raises:
        UsageError: it was withdrawn.
    """
    if manifest.status.state == "withdrawn" and state == "superseded-by":
        reason = f"it was withdrawn: {manifest.status.reason}; superseded it could be used again"
        remedy = f"{command('status', os.fspath(path), '--activate')}, if it may be used"
        raise error(Code.USAGE, "superseded-by", reason, remedy)


def tell_status(path: StrPath) -> None:
    """Warn where the model of a bundle is not active: what is made of it may not say so itself.

    What is no readable bundle is left to whoever uses it.
    """
    found: list[Finding] = []
    with contextlib.suppress(PersistlibError), open_bundle(path) as bundle:
        facts = Facts(source=bundle.path, manifest=bundle.manifest)
        found = [*standing.status(facts, Target())]
    tell(replace(one, severity=Severity.WARNING.value) for one in found)


def _check(state: str, reason: str | None, successor: object) -> None:
    """Refuse what cannot be meant together.

    Raises:
        UsageError: it cannot.
    """
    if state not in STATES:
        raise error(Code.USAGE, f"state={state!r}", "is no status", f"use {', '.join(STATES)}")
    if state == "active" and not (reason is None and successor is None):
        raise error(Code.USAGE, "status", "an active model has neither", "leave them out")
    if state == "withdrawn" and not (reason and reason.strip()):
        raise error(Code.USAGE, "reason", "is missing", "say why the model must not be used")
    if state == "superseded-by" and successor is None:
        raise error(Code.USAGE, "successor", "is missing", "name the bundle that replaces it")


def _successor(given: StrPath | None) -> tuple[str | None, str | None]:
    """Return the identity that is meant, and the name of what has it where that is known."""
    if given is None or (isinstance(given, str) and _IDENTITY.fullmatch(given)):
        return given, None
    with open_bundle(given) as bundle:
        manifest = bundle.manifest
    name = manifest.name or os.path.basename(os.path.realpath(given))
    return manifest.bundle_id, name
