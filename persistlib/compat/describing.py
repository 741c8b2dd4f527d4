"""Descriptions of targets, read: pinned versions such as `"torch==2.6,python==3.10"`."""

from __future__ import annotations

from persistlib.compat.targets import PYTHON, Target, here
from persistlib.errors import Code, error


def parse_target(text: str | None) -> Target:
    """Return the target that `NAME==VERSION[,NAME==VERSION...]` describes; None is here.

    Raises:
        UsageError: something in it is no pinned version.
    """
    if text is None:
        return here()
    # Its parser takes as long to load as all else that `inspect` needs of packaging.
    from packaging.requirements import InvalidRequirement, Requirement

    pins: dict[str, str] = {}
    for part in text.split(","):
        try:
            requirement = Requirement(part.strip())
        except InvalidRequirement as fault:
            raise _bad_target(part) from fault
        specifiers = list(requirement.specifier)
        if len(specifiers) != 1 or specifiers[0].operator != "==":
            raise _bad_target(part)
        pins[requirement.name.lower()] = specifiers[0].version.removesuffix(".*")
    return Target(python=pins.pop(PYTHON, None), packages=pins)


def _bad_target(part: str) -> Exception:
    return error(
        Code.USAGE, part.strip() or "target", "is no pinned version", "write onnxruntime==1.17.3"
    )
