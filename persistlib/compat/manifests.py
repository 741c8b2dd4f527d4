"""The verdict before the weights: does a bundle load and run here, or on a described target?

Only the manifest is read. A target is this environment, or a list of pinned versions such as
`"torch==2.6,torchvision==0.21,python==3.10"`.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from persistlib.errors import Code, Finding, Severity, error, finding
from persistlib.installed import package_version

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from persistlib.manifest.schema import Manifest

VERDICTS = ("ok", "ok-after-upgrade", "degraded", "refused")


@dataclass(frozen=True)
class Report:
    """A verdict and what led to it.

    Attributes:
        verdict: "ok", "ok-after-upgrade", "degraded" or "refused".
        findings: every finding, also notes.
    """

    verdict: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether the model can be used, perhaps degraded."""
        return self.verdict != "refused"


@dataclass(frozen=True)
class Target:
    """Versions to check against.

    Attributes:
        described: pinned versions by package name; None for this environment.
    """

    described: Mapping[str, str] | None = None

    def version(self, package: str) -> str | None:
        """Return the version of a package (or "python") there, or None when absent or not said."""
        if self.described is not None:
            return self.described.get(package)
        return platform.python_version() if package == "python" else package_version(package)


def parse_target(text: str | None) -> Target:
    """Return the target that `NAME==VERSION[,NAME==VERSION...]` describes; None is here.

    Raises:
        UsageError: something in it is no pinned version.
    """
    if text is None:
        return Target()
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
    return Target(pins)


def _bad_target(part: str) -> Exception:
    return error(
        Code.USAGE, part.strip() or "target", "is no pinned version", "write onnxruntime==1.17.3"
    )


def check_manifest(manifest: Manifest, target: Target, *, runtime: str | None = None) -> Report:
    """Return the verdict on a manifest.

    Args:
        manifest: of the bundle.
        target: where it shall load.
        runtime: "torch" or "onnxruntime" when that one is meant; None for either.
    """
    findings = (
        *_status(manifest),
        *_requirements(manifest, target, runtime),
        *_drift(manifest, target),
    )
    return verdict_of(findings, upgraded=bool(manifest.upgraded_from))


def verdict_of(findings: Iterable[Finding], *, upgraded: bool = False) -> Report:
    """Return the verdict that follows from findings.

    Args:
        findings: all of them.
        upgraded: whether the manifest was of an older version.
    """
    found = tuple(findings)
    severities = {f.severity for f in found}
    if Severity.ERROR.value in severities:
        verdict = "refused"
    elif Severity.WARNING.value in severities:
        verdict = "degraded"
    else:
        verdict = "ok-after-upgrade" if upgraded else "ok"
    return Report(verdict, found)


def _status(manifest: Manifest) -> Iterator[Finding]:
    status = manifest.status
    if status.state == "active":
        return
    withdrawn = status.state == "withdrawn"
    reason = f": {status.reason}" if status.reason else ""
    yield finding(
        Code.STATUS,
        manifest.name or "model",
        f"{status.state}{reason}",
        f"use {status.successor}" if status.successor else "ask who published it",
        Severity.ERROR if withdrawn else Severity.WARNING,
    )


def _requirements(manifest: Manifest, target: Target, runtime: str | None) -> Iterator[Finding]:
    for package, wanted in manifest.requires.items():
        if package == "torch" and runtime == "onnxruntime":
            continue
        version = target.version(package)
        if version is None:
            yield from _absent(package, target, has_graph=bool(manifest.graphs), runtime=runtime)
        elif not _satisfies(version, wanted):
            yield finding(
                Code.PYTHON_VERSION if package == "python" else Code.PACKAGE_VERSION,
                package,
                f"{version} is outside {wanted}",
                f"pip install '{package}{wanted}'" if package != "python" else "use a newer Python",
            )


def _absent(
    package: str, target: Target, *, has_graph: bool, runtime: str | None
) -> Iterator[Finding]:
    if target.described is not None:
        return
    usable = has_graph and runtime is None
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


def _drift(manifest: Manifest, target: Target) -> Iterator[Finding]:
    for package, saved in manifest.environment.packages.items():
        version = target.version(package)
        if version is not None and _release(version) != _release(saved):
            yield finding(
                Code.PACKAGE_DRIFT,
                package,
                f"{version}, saved with {saved}",
                "persistlib verify --behaviour BUNDLE compares the outputs",
                Severity.NOTE,
            )


def _release(version: str) -> tuple[int, ...] | str:
    try:
        return Version(version).release
    except InvalidVersion:
        return version
