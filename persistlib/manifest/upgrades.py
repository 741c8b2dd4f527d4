"""Upgrade steps: pure functions from one version's JSON to the next.

A step is never edited after its release. `STEPS` maps a version to the step that leaves it and the
version it leads to; a file is upgraded step by step until it is of this release's version. How the
version is raised is told in `docs/manifest.md`.

Law: an upgrade never changes the `bundle_id`. No step has a say in it: the one that was written is
put back, and reading refuses a manifest whose other fields make another.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, NamedTuple

from persistlib.errors import Code, error
from persistlib.manifest.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from persistlib.canonical import JSONObject


class Step(NamedTuple):
    """One upgrade: the version it leads to, and the function that does it."""

    to: str
    upgrade: Callable[[JSONObject], JSONObject]


# Schema 1.0 is the first release: nothing older exists.
STEPS: Mapping[str, Step] = {}


def leads_here(version: str, steps: Mapping[str, Step]) -> bool:
    """Return whether the steps lead from `version` to this release's version."""
    for _ in range(len(steps)):
        if version == VERSION or version not in steps:
            break
        version = steps[version].to
    return version == VERSION


def upgrade(raw: JSONObject, steps: Mapping[str, Step], location: object) -> JSONObject:
    """Return `raw` brought to this release's version; the argument is left as it was.

    Args:
        raw: a manifest of a version that leads here.
        steps: the steps to take.
        location: what to name in an error.

    Raises:
        ManifestError: it is not what its version says, so that a step cannot be taken.
    """
    written = {name: raw[name] for name in ("bundle_id",) if name in raw}
    while (version := raw["manifest_version"]) != VERSION and version in steps:
        step = steps[version]
        try:
            raw = step.upgrade(copy.deepcopy(raw)) | written | {"manifest_version": step.to}
        except (LookupError, TypeError, ValueError, AttributeError) as fault:
            raise error(
                Code.MANIFEST_FIELD,
                location,
                f"is no manifest of version {version}: {type(fault).__name__}: {fault}",
                "fetch the bundle again from where it came",
            ) from fault
    return raw
