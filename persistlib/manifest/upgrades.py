"""Upgrade steps: pure functions from one version's JSON to the next.

A step is never edited after its release. `STEPS` maps a version to the step that leaves it and the
version it leads to; a file is upgraded step by step until it is of this release's version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from persistlib.manifest.schema import VERSION

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
        if version not in steps:
            break
        version = steps[version].to
    return version == VERSION


def upgrade(raw: JSONObject, steps: Mapping[str, Step]) -> JSONObject:
    """Return `raw` brought to this release's version; the argument is left as it was."""
    while (step := steps.get(raw["manifest_version"])) is not None:
        raw = step.upgrade(dict(raw)) | {"manifest_version": step.to}
    return raw
