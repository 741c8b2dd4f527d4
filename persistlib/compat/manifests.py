"""Rules on a manifest: what it requires, and which versions saved it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from persistlib.compat.remedies import command
from persistlib.errors import Code, Severity, finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.compat.facts import Facts
    from persistlib.compat.targets import Target
    from persistlib.errors import Finding


def requirements(facts: Facts, target: Target) -> Iterator[Finding]:
    """Yield each package that a bundle requires and the target has not, or of another version."""
    if facts.manifest is None:
        return
    for package, wanted in facts.manifest.requires.items():
        if package == "torch" and facts.runtime == "onnxruntime":
            continue
        version = target.version(package)
        if version is None:
            yield from _absent(package, facts, target)
        elif not _satisfies(version, wanted):
            yield finding(
                Code.PYTHON_VERSION if package == "python" else Code.PACKAGE_VERSION,
                package,
                f"{version} is outside {wanted}",
                f"pip install '{package}{wanted}'"
                if package != "python"
                else f"use Python {wanted}",
            )


def _absent(package: str, facts: Facts, target: Target) -> Iterator[Finding]:
    if not target.lacks(package) or facts.manifest is None:
        return
    usable = bool(facts.manifest.graphs) and facts.runtime is None
    yield finding(
        Code.PACKAGE_ABSENT,
        package,
        "not installed; the model runs in ONNX Runtime alone" if usable else "not installed",
        f"pip install 'persistlib[{package}]'" if package == "torch" else f"pip install {package}",
        Severity.NOTE if usable else Severity.ERROR,
    )


def _satisfies(version: str, wanted: str) -> bool:
    try:
        return SpecifierSet(wanted).contains(Version(version), prereleases=True)
    except (InvalidVersion, ValueError):
        return False


def drift(facts: Facts, target: Target) -> Iterator[Finding]:
    """Yield each package whose version is another than the one that saved."""
    if facts.manifest is None:
        return
    for package, saved in facts.manifest.environment.packages.items():
        version = target.version(package)
        if version is not None and _release(version) != _release(saved):
            yield finding(
                Code.PACKAGE_DRIFT,
                package,
                f"{version}, saved with {saved}",
                command("verify", "--behaviour", facts.source),
                Severity.NOTE,
            )


def _release(version: str) -> tuple[int, ...] | str:
    try:
        return Version(version).release
    except InvalidVersion:
        return version
