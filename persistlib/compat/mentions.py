"""What descriptions of a target say, and the target that it comes to.

A pin is taken as it is. A range is read as the newest known release that it admits, as pip would
install it, and a finding says so; what the oldest would do is judged besides (`judging`). A range
of Python's versions is a limit and no wish: it is read as the Python that runs here, if admitted.
Packages that nothing is known of are taken only where they are pinned.
"""

from __future__ import annotations

import platform
from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import and_
from typing import TYPE_CHECKING, NamedTuple

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from persistlib.compat.known import known
from persistlib.compat.targets import PYTHON, Target
from persistlib.errors import Code, PersistlibError, Severity, error, finding
from persistlib.installed import package_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from packaging.markers import Marker

    from persistlib.errors import Finding

_PIN = "write NAME==VERSION"


class Mention(NamedTuple):
    """A package that a description names.

    Attributes:
        name: normalised.
        versions: that it may have.
        where: the file and line, or the text.
        markers: of which one must hold there; none where it always counts.
    """

    name: str
    versions: SpecifierSet
    where: str
    markers: tuple[Marker, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Description:
    """What one file or text says.

    Attributes:
        mentions: each package as often as it is named.
        constraints: versions of packages that count only where the package is mentioned.
        is_lock: whether several mentions of one package are alternatives and not one range.
        groups: of dependencies that are installed where nobody asks for others.
        target: what else is known; it is complete where everything that is installed is named.
    """

    mentions: tuple[Mention, ...] = ()
    constraints: tuple[Mention, ...] = ()
    is_lock: bool = False
    groups: frozenset[str] = frozenset()
    target: Target = field(default_factory=Target)


def exactly(version: str, where: str) -> SpecifierSet:
    """Return the versions that are this one.

    Raises:
        UsageError: it is no version.
    """
    try:
        return SpecifierSet(f"=={Version(version)}")
    except InvalidVersion as fault:
        raise error(Code.TARGET_TEXT, where, f"{version!r} is no version", _PIN) from fault


def within(text: str, where: str) -> SpecifierSet:
    """Return the versions that a text such as ">=3.10,<3.13" admits.

    Raises:
        UsageError: it is no range of versions.
    """
    try:
        return SpecifierSet(text)
    except InvalidSpecifier as fault:
        reason = f"{text!r} is no range of versions"
        raise error(Code.TARGET_TEXT, where, reason, "write >=3.10,<3.13") from fault


def described(descriptions: Sequence[Description]) -> Target:
    """Return the target that descriptions come to; what a later one says replaces the earlier.

    Raises:
        UsageError: nothing satisfies what is said of a package.
    """
    target = Target()
    said: dict[str, Sequence[SpecifierSet]] = {}
    python = _python(descriptions)
    for one in descriptions:
        target = _joined(target, one.target)
        said |= _versions(one, markers_there(python, one.target))
    for name, ranges in said.items():
        target = _with(target, name, ranges)
    return target


def _joined(target: Target, other: Target) -> Target:
    """Return a target with what another knows besides."""
    nothing = vars(Target())
    known_there = {name: value for name, value in vars(other).items() if value != nothing[name]}
    return replace(target, **known_there)


def _python(descriptions: Sequence[Description]) -> str | None:
    """Return the version of Python that descriptions pin, or None."""
    pinned = [one.target.python for one in descriptions]
    pinned += [
        _pin(mention.versions)
        for one in descriptions
        for mention in one.mentions
        if mention.name == PYTHON
    ]
    return next((version for version in reversed(pinned) if version), None)


def markers_there(python: str | None, target: Target) -> Mapping[str, str]:
    """Return what markers are held against: the target's values where known, else this machine's.

    Args:
        python: its version of Python, if known.
        target: what else is known of it.
    """
    from packaging.markers import default_environment

    there = {**default_environment(), "extra": ""}
    if python is not None:
        release = [*python.split("."), "0", "0"]
        there |= {
            "python_version": ".".join(release[:2]),
            "python_full_version": ".".join(release[: max(3, len(release) - 2)]),
        }
    if target.platform is not None:
        there["platform_system"] = target.platform
        there["sys_platform"] = {"Windows": "win32"}.get(target.platform, target.platform.lower())
        there["os_name"] = "nt" if target.platform == "Windows" else "posix"
    if target.machine is not None:
        there["platform_machine"] = target.machine
    return {name: str(value) for name, value in there.items()}


def _versions(one: Description, there: Mapping[str, str]) -> dict[str, Sequence[SpecifierSet]]:
    """Return for each package the ranges of which one holds: a single one where it is no lock."""
    found: dict[str, list[SpecifierSet]] = defaultdict(list)
    limits: dict[str, list[SpecifierSet]] = defaultdict(list)
    asked: dict[str, str | frozenset[str]] = {**there}
    asked |= {"extras": frozenset(), "dependency_groups": one.groups}
    for mention in one.mentions:
        if _counts(mention, asked):
            found[mention.name].append(mention.versions)
    for mention in one.constraints:
        if _counts(mention, asked):
            limits[mention.name].append(mention.versions)
    if one.is_lock:
        return dict(found)
    return {name: [reduce(and_, [*some, *limits[name]])] for name, some in found.items()}


def _counts(mention: Mention, there: Mapping[str, str | frozenset[str]]) -> bool:
    """Return whether a marker of a mention holds, or there is none."""
    from packaging.markers import UndefinedComparison, UndefinedEnvironmentName

    try:
        return not mention.markers or any(marker.evaluate({**there}) for marker in mention.markers)
    except (UndefinedComparison, UndefinedEnvironmentName, KeyError):
        return True  # compares what no environment says


def _with(target: Target, name: str, ranges: Sequence[SpecifierSet]) -> Target:
    """Return a target with a package whose version is of one of the ranges."""
    pins = [_pin(versions) for versions in ranges]
    exact = [pin for pin in pins if pin is not None]
    package = package_of(name)
    if len(exact) == len(ranges):
        for pin, versions in zip(exact, ranges, strict=True):
            _require_possible(name, versions, [pin])
        chosen = _in_order(name, exact)
    else:
        chosen = _admitted(name, ranges[0], known(package))
    if not chosen:
        return target
    version = _likeliest(package, chosen)
    target = target.with_release(name, version)
    if len(chosen) == 1:
        return target
    said = " or ".join(str(versions) or "any version" for versions in ranges)
    found = _choice(name, said, version, chosen)
    choices = {**target.choices, name: tuple(chosen)}
    return replace(target, choices=choices, findings=(*target.findings, found))


def _pin(versions: SpecifierSet) -> str | None:
    """Return the one version of a range, or None where it admits several."""
    exact = [
        one.version
        for one in versions
        if one.operator == "===" or (one.operator == "==" and not one.version.endswith(".*"))
    ]
    return exact[0] if exact else None


def _admitted(name: str, versions: SpecifierSet, releases: Iterable[str]) -> list[str]:
    """Return the releases of a range, oldest first: known ones, or else those that it names.

    Raises:
        UsageError: no version at all is in it.
    """
    if found := [release for release in releases if versions.contains(release)]:
        return found
    named = [one.version.removesuffix(".*") for one in versions if one.operator != "!="]
    named = [version for version in named if versions.contains(version, prereleases=True)]
    fixed = any(one.operator in {"==", "~="} for one in versions)
    if releases or fixed:
        _require_possible(name, versions, named)
        return [max(named, key=Version)]
    return []


def _in_order(name: str, versions: Iterable[str]) -> list[str]:
    try:
        return sorted(set(versions), key=Version)
    except InvalidVersion as fault:
        raise error(Code.TARGET_TEXT, name, str(fault), _PIN) from fault


def _require_possible(name: str, versions: SpecifierSet, found: Sequence[str]) -> None:
    if not any(versions.contains(version, prereleases=True) for version in found):
        raise _impossible(name, versions)


def _impossible(name: str, versions: SpecifierSet) -> PersistlibError:
    reason = f"no known release is {versions}"
    return error(Code.TARGET_TEXT, name, reason, f"pin one: {name}==VERSION")


def _likeliest(package: str, chosen: Sequence[str]) -> str:
    """Return the newest release, or of Python the one that runs here where it is among them."""
    running = ".".join(platform.python_version_tuple()[:2])
    return running if package == PYTHON and running in chosen else chosen[-1]


def _choice(name: str, said: str, version: str, chosen: Sequence[str]) -> Finding:
    kind = "the one that runs here" if name == PYTHON else "the newest known release"
    reason = f"{said} is read as {version}, {kind}; {chosen[0]}, the oldest, is judged besides"
    remedy = f"pin it: {name}=={version}"
    return finding(Code.TARGET_CHOICE, name, reason, remedy, Severity.NOTE)
