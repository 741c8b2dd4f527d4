"""Rules on a recipe: whether what it names exists there, takes its arguments, and does the same.

torch and torchvision are known by the table of their releases (`frameworks`); other packages are
not, apart from the sources that lie here (`own_sources`).
"""

from __future__ import annotations

import ast
import difflib
from collections import defaultdict
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from packaging.specifiers import SpecifierSet

from persistlib.compat import frameworks
from persistlib.compat.frameworks import minor
from persistlib.compat.recipes import Use, uses
from persistlib.compat.severities import torch_severity
from persistlib.errors import Code, Finding, Severity, finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from persistlib.compat.facts import Facts
    from persistlib.compat.frameworks import Definition, Framework
    from persistlib.compat.targets import Target

    Offered = Mapping[str, Framework]

# Where weights come from and how their download is shown is no part of a recipe.
_FETCHING = frozenset(
    {"weights", "weights_backbone", "pretrained", "pretrained_backbone", "progress"}
)

_LONGEST = 200  # of a name that others are compared with


class Held(NamedTuple):
    """What a recipe is held against.

    Attributes:
        there: the releases of the target, by package.
        saved: those that saved the model.
        severity: of what cannot be built.
        source: path of the model, as remedies name it.
    """

    there: Offered
    saved: Offered
    severity: Severity
    source: str

    def grade(self, release: Framework) -> Severity:
        """Return how much it matters that something is not in a release that the table has."""
        return Severity.WARNING if release.is_newer else self.severity


def recipe(facts: Facts, target: Target) -> Iterator[Finding]:
    """Yield what a recipe names that the target's torch and torchvision have not, or otherwise."""
    manifest = facts.manifest
    if manifest is None or facts.runtime == "onnxruntime":
        return
    saved = {
        package: found
        for package, version in manifest.environment.packages.items()
        if package in frameworks.PACKAGES and (found := frameworks.framework(package, version))
    }
    held = Held(offered(target), saved, torch_severity(facts, target), facts.source)
    used = [use for use in uses(manifest.architecture) if use.package in held.there]
    groups: dict[tuple[str, str, str], list[Finding]] = defaultdict(list)
    for use in used:
        for one in _judged(use, held):
            groups[use.name, one.code, one.message].append(one)
    for first, *more in groups.values():
        also = f" (and {len(more)} more)" if more else ""
        yield replace(first, location=first.location + also)


def offered(target: Target) -> Offered:
    """Return the releases of torch and torchvision of a target, by package.

    Where only one of the two is named the other is the one that belongs to it. Of a range of one
    the newest is taken that belongs to the other, as pip would install it.
    """
    torch = frameworks.framework("torch", _torch(target))
    vision = frameworks.framework("torchvision", _vision(target, torch))
    if torch is None and vision is not None:
        torch = frameworks.framework("torch", str(vision.facts["torch"]).removeprefix(">="))
    pairs = {"torch": torch, "torchvision": vision}
    return {package: found for package, found in pairs.items() if found is not None}


def _torch(target: Target) -> str | None:
    """Return the version of torch that a target has; of a range one for the torchvision there."""
    version, vision = target.version("torch"), target.version("torchvision")
    if "torch" not in target.choices or vision is None or "torchvision" in target.choices:
        return version
    there = frameworks.framework("torchvision", vision)
    fitting = [one for one in target.choices["torch"] if fits(there, one)]
    return fitting[-1] if fitting else version


def _vision(target: Target, torch: Framework | None) -> str | None:
    """Return the version of torchvision that a target has, or that belongs to its torch."""
    version = target.version("torchvision")
    if torch is None or target.lacks("torchvision"):
        return version
    if version is not None and "torchvision" not in target.choices:
        return version
    among = target.choices.get("torchvision", frameworks.torchvision_versions())
    fitting = [one for one in among if fits(frameworks.framework("torchvision", one), torch.wanted)]
    return fitting[-1] if fitting else version


def fits(vision: Framework | None, torch: str) -> bool:
    """Return whether a release of torchvision is built for a version of torch.

    Of a release that the table lacks the nearest one tells it: within one minor version all are
    built for one minor version of torch, a later one for none that is older, an earlier one for
    none that is as new.
    """
    if vision is None:
        return True
    wanted = str(vision.facts["torch"])
    number = wanted.lstrip("<>=!~")
    if not vision.is_exact and not vision.is_close:
        wanted = f">={number}" if vision.is_later else f"<{number}"
    elif wanted == number:
        wanted = f"=={number if vision.is_exact else minor(number)}.*"
    return SpecifierSet(wanted).contains(torch, prereleases=True)


def _judged(use: Use, held: Held) -> Iterator[Finding]:
    release = held.there[use.package]
    before = held.saved.get(use.package)
    now, then = release.find(use.name), before.find(use.name) if before else None
    if now is None:
        yield _absent(use, release, then, held)
        return
    if use.keywords is not None:
        yield from _keywords(use, now, then, held)
    if then is not None and before and use.package == "torchvision" and then.code != now.code:
        reason = f"its code in {release.package} {release.version} is not that of {before.version}"
        remedy = f"persistlib verify --behaviour {held.source}"
        yield finding(Code.SOURCE_DRIFT, use.name, reason, remedy, Severity.NOTE)


def _absent(use: Use, release: Framework, then: Definition | None, held: Held) -> Finding:
    reason = f"{release.package} {release.version} has no such name"
    if first := _first_with(use.name, release.package, release.place):
        remedy = f"pip install '{release.package}>={first}'"
    elif then is None and (near := _near(use, release)):
        remedy = f"did you mean {near}?"
    else:
        remedy = f"persistlib convert {held.source} OUT.onnx"
    return finding(Code.BUILDER_ABSENT, _place(use), reason, remedy, held.grade(release))


def _near(use: Use, release: Framework) -> str | None:
    """Return the name of a module that is most like one that it lacks; None where none is."""
    if use.place or len(use.name) > _LONGEST:
        return None
    module = use.name.partition(":")[0]
    among = [name for name in release.names() if name.partition(":")[0] == module]
    return next(iter(difflib.get_close_matches(use.name, among, 1)), None)


@lru_cache(maxsize=4096)
def _first_with(name: str, package: str, after: int, keyword: str | None = None) -> str | None:
    """Return the first release after a place that has a name, and takes a keyword; or None."""
    for version in frameworks.versions(package)[after + 1 :]:
        other = frameworks.framework(package, version)
        found = other.find(name) if other else None
        if other is None or found is None:
            continue
        if keyword is None or keyword in frameworks.accepted(found, {package: other}).defaults:
            return version
    return None


def _keywords(use: Use, now: Definition, then: Definition | None, held: Held) -> Iterator[Finding]:
    """Yield what a callable does not take, what it needs besides, and what defaults changed."""
    taken = frameworks.accepted(now, held.there)
    before = frameworks.accepted(then, held.saved) if then is not None else None
    known = before.defaults if before else {}
    for name, value in (use.keywords or {}).items():
        if name not in taken.defaults and (not taken.is_open or name in known):
            yield _refused(use, name, held, taken, left_out=is_default(known.get(name), value))
    release, saved = held.there[use.package], held.saved.get(use.package)
    for name in _missing(use, taken):
        reason = f"{release.package} {release.version} needs {name}, which the recipe does not give"
        remedy = _saved_with(saved)
        yield finding(Code.ARGUMENT_ABSENT, _place(use), reason, remedy, held.grade(release))
    if before is not None and saved is not None:
        yield from _defaults(use, (before, taken), release, saved)


def _refused(
    use: Use, name: str, held: Held, taken: frameworks.Accepted, *, left_out: bool
) -> Finding:
    """Return what becomes of an argument that a callable does not have."""
    release = held.there[use.package]
    where = f"{release.package} {release.version}"
    if left_out:
        reason = f"{where} has no argument {name}; its value was the default, and it is left out"
        return finding(Code.ARGUMENT_ABSENT, _place(use), reason, "", Severity.NOTE)
    first = _first_with(use.name, release.package, release.place, name)
    remedy = (
        f"pip install '{release.package}>={first}'"
        if first
        else _saved_with(held.saved.get(use.package))
    )
    if taken.is_open:
        reason = f"{where} ignores the argument {name}"
        return finding(Code.ARGUMENT_ABSENT, _place(use), reason, remedy, Severity.WARNING)
    reason = f"{where} takes no argument {name}"
    return finding(Code.ARGUMENT_ABSENT, _place(use), reason, remedy, held.grade(release))


def _missing(use: Use, taken: frameworks.Accepted) -> Iterator[str]:
    if use.is_partial:
        return
    given = {*(use.keywords or ()), *use.implied, *_FETCHING}
    for name, default in list(taken.defaults.items())[use.positions :]:
        if default is None and name not in given:
            yield name


def _defaults(
    use: Use,
    kinds: tuple[frameworks.Accepted, frameworks.Accepted],
    release: Framework,
    saved: Framework,
) -> Iterator[Finding]:
    before, now = kinds
    given = {*(use.keywords or ()), *use.implied, *_FETCHING}
    for name, default in before.defaults.items():
        other = now.defaults.get(name, default)
        if name not in given and other is not None and _value(other) != _value(default):
            reason = f"{name} is {other} by default in {release.package} {release.version}"
            reason += f", {default} in {saved.version}"
            remedy = _saved_with(saved)
            yield finding(Code.DEFAULT_DRIFT, _place(use), reason, remedy, Severity.WARNING)


def is_default(source: str | None, value: Any) -> bool:
    """Return whether an encoded value is the one that a default's source says."""
    if source is None:
        return False
    said = _value(source)
    if isinstance(said, tuple):
        said = {"$tuple": list(said)}
    return type(said) is type(value) and bool(said == value)


def _value(source: str | None) -> Any:
    """Return the value of a literal, or the source itself of anything else."""
    try:
        return ast.literal_eval(source or "")
    except (ValueError, SyntaxError):
        return {"source": source}


def _saved_with(saved: Framework | None) -> str:
    return f"pip install '{saved.package}=={saved.version}'" if saved else ""


def _place(use: Use) -> str:
    return f"{use.place}: {use.name}" if use.place else use.name
