"""Rules on where a model shall run: torch's build and partners, memory, the order of bytes."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from persistlib.compat import frameworks
from persistlib.compat.offers import fits, offered
from persistlib.compat.recipes import uses
from persistlib.compat.remedies import command
from persistlib.compat.severities import TENSORS, torch_severity
from persistlib.errors import Code, Severity, finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.compat.facts import Facts
    from persistlib.compat.frameworks import Framework
    from persistlib.compat.targets import Target
    from persistlib.errors import Finding

# Built for numpy 2 from this release on: https://github.com/pytorch/pytorch/releases/tag/v2.3.0
_NUMPY_2 = Version("2.3")


def partners(facts: Facts, target: Target) -> Iterator[Finding]:
    """Yield packages of a target that do not go together: torchvision or numpy with torch."""
    there = offered(target)
    torch, vision = there.get("torch"), there.get("torchvision")
    if torch is None or facts.runtime == "onnxruntime" or facts.format not in TENSORS:
        return
    named = target.version("torchvision") is not None and target.version("torch") is not None
    if vision and named and _needs(facts, "torchvision") and not fits(vision, torch.wanted):
        # What is installed here may be another build than the index has.
        is_sure = not target.is_here and (vision.is_exact or vision.is_close)
        severity = torch_severity(facts, target) if is_sure else Severity.WARNING
        judged = "" if vision.is_exact else f", judged as {vision.version},"
        built = f"is built for torch {vision.facts['torch']}, not {torch.wanted}"
        reason = f"{vision.wanted}{judged} {built}"
        remedy = f"pip install 'torchvision=={_partner(torch) or vision.version}'"
        yield finding(Code.PARTNERS, "torchvision", reason, remedy, severity)
    numpy = target.version("numpy")
    if numpy is not None and _is_two(numpy) and Version(torch.version) < _NUMPY_2:
        reason = f"{numpy}: torch {torch.wanted} is built for numpy 1, and takes no arrays of 2"
        yield finding(Code.PARTNERS, "numpy", reason, "pip install 'numpy<2'", Severity.WARNING)


def unknown(facts: Facts, target: Target) -> Iterator[Finding]:
    """Yield each release that is not in the table: by another one nothing is proved of it.

    Where the recipe is built with what is installed here, that proves more: then it is a note.
    """
    if facts.runtime == "onnxruntime" or facts.format not in TENSORS:
        return
    for package, there in offered(target).items():
        if there.is_exact or not (package == "torch" or _needs(facts, package)):
            continue
        is_built = target.is_here and facts.trusted is not None
        reason = f"not proved: {there.wanted} is not in the table; judged as {there.version}"
        remedy = "pip install --upgrade persistlib, whose table may have it"
        if target.is_here and facts.manifest is not None and not is_built:
            remedy = command("check", "--build", facts.source)
        severity = Severity.NOTE if is_built else Severity.WARNING
        yield finding(Code.FRAMEWORK_UNKNOWN, package, reason, remedy, severity)


def _needs(facts: Facts, package: str) -> bool:
    manifest = facts.manifest
    return manifest is not None and any(
        use.package == package for use in uses(manifest.architecture)
    )


def _is_two(numpy: str) -> bool:
    try:
        return Version(numpy).major >= 2
    except InvalidVersion:
        return False


def _partner(torch: Framework) -> str | None:
    """Return the newest torchvision that is built for a torch."""
    among = reversed(frameworks.torchvision_versions())
    return next(
        (one for one in among if fits(frameworks.framework("torchvision", one), torch.wanted)), None
    )


def builds(facts: Facts, target: Target) -> Iterator[Finding]:
    """Yield that a package there is not for that Python, or that the index has no build of it."""
    if facts.runtime == "onnxruntime" or facts.format not in TENSORS or target.is_here:
        return
    for package, release in offered(target).items():
        if target.python is None or target.version(package) is None or not release.is_exact:
            continue
        wanted = str(release.facts["python"])
        where = f"{package} {release.version}"
        later = _first_built(package, release, target)
        remedy = f"pip install '{package}>={later}'" if later else f"use Python {wanted}"
        if not SpecifierSet(wanted).contains(_full(target.python), prereleases=True):
            reason = f"{where} needs Python {wanted}, not {target.python}"
            severity = torch_severity(facts, target)
            yield finding(Code.NO_BUILD, package, reason, remedy, severity)
        elif not _is_built(release, target):
            at = f" on {target.platform} {target.machine}" if _machine(target) else ""
            reason = f"the index has no build of {where} for Python {target.python}{at}"
            yield finding(Code.NO_BUILD, package, reason, remedy, Severity.WARNING)


def _full(python: str) -> str:
    """Return a version of Python that says its third number: 3.11 is taken for a late 3.11."""
    return python if python.count(".") > 1 else f"{python}.99"


def _machine(target: Target) -> str | None:
    if target.platform is None or target.machine is None:
        return None
    return f"{target.platform}-{target.machine}"


def _is_built(release: Framework, target: Target) -> bool:
    """Return whether the index has a build for a target's Python, and for its machine if known."""
    builds = release.facts["wheels"]
    machine = _machine(target)
    pythons = (
        builds.get(machine, ()) if machine else [one for each in builds.values() for one in each]
    )
    major, minor = (*map(int, (target.python or "0").split(".")[:2]), 0)[:2]
    return any(_serves(one, (major, minor)) for one in pythons)


def _serves(built: str, python: tuple[int, int]) -> bool:
    """Return whether a build is for a Python; one without the interpreter's lock is for another."""
    if built.endswith("t"):
        return False
    numbers = tuple(map(int, built.rstrip("+").split(".")))
    return python >= numbers if built.endswith("+") else python == numbers


def _first_built(package: str, release: Framework, target: Target) -> str | None:
    """Return the first later release that the index has a build of for the target, or None."""
    for version in frameworks.versions(package):
        other = frameworks.framework(package, version)
        if other is not None and other.place > release.place and _is_built(other, target):
            return version
    return None


def room(facts: Facts, target: Target) -> Iterator[Finding]:
    """Yield that the weights are more than the memory there, or that its bytes lie the other way.

    Weights are mapped, not read: a model larger than the memory loads, and is read from the disk
    again and again while it runs.
    """
    if target.byteorder == "big" and facts.format != "onnx":
        reason = "weights are little-endian, and are mapped as they lie"
        remedy = "use a little-endian machine"
        yield finding(Code.BYTE_ORDER, "byteorder", reason, remedy)
    if target.memory is not None and facts.nbytes > target.memory:
        sizes = f"{facts.nbytes / 1e9:.1f} GB of weights, {target.memory / 1e9:.1f} GB of memory"
        remedy = shlex.join(("persistlib", "convert", facts.source, "OUT", "--dtype", "bf16"))
        yield finding(Code.MEMORY, facts.source, sizes, remedy, Severity.WARNING)
