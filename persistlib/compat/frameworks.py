"""What each release of torch and torchvision offers: builders, keywords, dtypes, what loading does.

The table is shipped (`frameworks.xz`, from the releases' own wheels, which
`fixtures/make_frameworks.py` reads); neither package is imported for it.
"""

from __future__ import annotations

import importlib.resources
import json
import lzma
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from packaging.version import InvalidVersion, Version

if TYPE_CHECKING:
    from collections.abc import Mapping

PACKAGES = ("torch", "torchvision")
_FORWARDED = 8  # names that one stands for, and callables whose keywords one takes


class Definition(NamedTuple):
    """What a name stands for.

    Attributes:
        name: `module:name` of where it is defined.
        defaults: source of each keyword's default; None where it must be given; no keywords for
            what is not called with any.
        is_open: whether it swallows keywords that it does not know.
        like: callables of other packages whose keywords it takes as well.
        code: a digest of its code and of all that it uses; empty for a value.
    """

    name: str
    defaults: Mapping[str, str | None]
    is_open: bool = True
    like: tuple[str, ...] = ()
    code: str = ""


@dataclass(frozen=True)
class Framework:
    """A release of torch or torchvision.

    Attributes:
        package: its name.
        version: of the release that the facts are of.
        wanted: the version that was asked for.
        facts: what the wheel says of itself.
        place: of the release in the table.
    """

    package: str
    version: str
    wanted: str
    facts: Mapping[str, Any]
    place: int

    @property
    def is_exact(self) -> bool:
        """Whether the facts are of the version that was asked for."""
        return _number(self.wanted) == Version(self.version)

    @property
    def is_newer(self) -> bool:
        """Whether the version that was asked for is newer than every release of the table."""
        return _number(self.wanted) > Version(versions(self.package)[-1])

    @property
    def is_close(self) -> bool:
        """Whether the version that was asked for differs from the release in its last number."""
        return minor(self.wanted) == minor(self.version)

    @property
    def is_later(self) -> bool:
        """Whether the version that was asked for is newer than the release that stands in."""
        return _number(self.wanted) > Version(self.version)

    def find(self, name: str) -> Definition | None:
        """Return what `module:name` stands for in this release, or None where it is nowhere."""
        for _ in range(_FORWARDED):
            row = self._rows.get(name)
            if row is None:
                return None
            kind, *rest = row
            if kind == "alias":
                name = rest[0]
                continue
            if kind == "value":
                return Definition(name, {})
            defaults, is_open, like, code = rest
            return Definition(name, defaults, bool(is_open), tuple(like), code)
        return None

    def names(self) -> frozenset[str]:
        """Return every name of the release."""
        return frozenset(self._rows)

    @cached_property
    def _rows(self) -> Mapping[str, list[Any]]:
        return {
            f"{module}:{name}": rest
            for mask, module, name, *rest in _masked(self.package)
            if mask >> self.place & 1
        }


@cache
def _table() -> Mapping[str, Any]:
    packed = importlib.resources.files("persistlib.compat").joinpath("frameworks.xz").read_bytes()
    table: Mapping[str, Any] = json.loads(lzma.decompress(packed))
    return table


@cache
def _masked(package: str) -> list[list[Any]]:
    return [[int(mask, 16), *row] for mask, *row in _table()[package]["rows"]]


def versions(package: str) -> tuple[str, ...]:
    """Return every release of a package that the table has, oldest first."""
    return tuple(_table()[package]["releases"])


@cache
def framework(package: str, version: str | None) -> Framework | None:
    """Return what is known of a version: of the newest release that is not newer, or the oldest.

    None where nothing is asked for, or what is no version.
    """
    try:
        wanted = _number(version or "")
    except InvalidVersion:
        return None
    known = versions(package)
    older = [one for one in known if Version(one) <= wanted]
    nearest = older[-1] if older else known[0]
    place = known.index(nearest)
    facts = _table()[package]["facts"][place]
    return Framework(package, nearest, str(version), facts, place)


def _number(version: str) -> Version:
    """Return a version without what a build adds: 2.6.0 of 2.6.0+cpu, and of 2.6.0rc1."""
    return Version(Version(version).base_version)


def minor(version: str) -> str:
    """Return the first two numbers of a version: 2.6 of 2.6.1+cpu."""
    number = Version(version)
    return f"{number.major}.{number.minor}"


def torch_versions() -> tuple[str, ...]:
    """Return every release of torch that the table has, oldest first."""
    return versions("torch")


def torchvision_versions() -> tuple[str, ...]:
    """Return every release of torchvision that the table has, oldest first."""
    return versions("torchvision")


class Accepted(NamedTuple):
    """The keywords that a callable takes, those of what it hands them on to among them.

    Attributes:
        defaults: source of each keyword's default; None where it must be given.
        is_open: whether it may take others.
    """

    defaults: Mapping[str, str | None]
    is_open: bool


def accepted(definition: Definition, among: Mapping[str, Framework]) -> Accepted:
    """Return the keywords of a callable.

    Args:
        definition: of the callable.
        among: the releases there by package; what lies in none of them is not known.
    """
    defaults, is_open = dict(definition.defaults), definition.is_open
    waiting = list(definition.like)
    for _ in range(_FORWARDED):
        if not waiting:
            break
        name = waiting.pop()
        owner = among.get(name.partition(".")[0])
        found = owner.find(name) if owner else None
        if found is None:
            is_open = True
            continue
        defaults = {**found.defaults, **defaults}
        is_open |= found.is_open
        waiting += found.like
    return Accepted(defaults, is_open)
