"""Lock files: pylock.toml, uv.lock, poetry.lock, pdm.lock and Pipfile.lock; pyproject.toml besides.

Only names, versions and markers are read. A lock names everything that is installed from it, so
what it does not name is absent there. Where it has several versions of a package, each for other
environments, those whose marker holds are alternatives.

- pylock.toml: https://packaging.python.org/en/latest/specifications/pylock-toml/
- uv.lock, Pipfile.lock, poetry.lock, pdm.lock: no specification; read as uv 0.13 and pipenv 2026.10
  write them, and as Poetry 1.8 and PDM 2 wrote those of their own repositories.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from packaging.markers import InvalidMarker, Marker
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from persistlib.compat.mentions import Description, Mention, exactly, within
from persistlib.compat.requirement_files import mentions
from persistlib.compat.target_files import refused
from persistlib.compat.targets import PYTHON, Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_AGAIN = "write it again with the tool that made it"
_NO_LOCK = "give a requirements.txt, pylock.toml, uv.lock, poetry.lock or Pipfile.lock"
_COMPLETE = Target(is_complete=True)
# Poetry's own way to write a range of Python's versions.
_CARET = re.compile(r"\^\s*(\d+)((?:\.\d+)*)$")


def toml_description(path: str, document: Mapping[str, Any]) -> Description:
    """Return what a lock file in TOML says, or the dependencies of a pyproject.toml.

    Raises:
        UsageError: it is none, or a member of it is malformed.
    """
    groups: object = []
    match document:
        case {"lock-version": _, "packages": list(packages)}:
            python, groups = document.get("requires-python"), document.get("default-groups", [])
        case {"package": list(packages)}:
            python = document.get("requires-python", _older_python(document.get("metadata")))
        case {"project": dict(project)}:
            return _project(path, project)
        case _:
            raise refused(path, "no lock file of a known form", _NO_LOCK)
    found = (*_locked(path, packages), *_python(path, python))
    named = frozenset(map(str, groups)) if isinstance(groups, list) else frozenset[str]()
    return Description(mentions=found, is_lock=True, groups=named, target=_COMPLETE)


def _older_python(metadata: object) -> object:
    """Return the range of Python's versions as Poetry and PDM write it, or None."""
    match metadata:
        case {"python-versions": python} | {"targets": [{"requires_python": python}, *_]}:
            return python
        case _:
            return None


def _locked(path: str, packages: Iterable[Any]) -> Iterator[Mention]:
    for number, package in enumerate(packages):
        where = f"{path}: package {number}"
        match package:
            case {"name": str(name), "version": str(version)}:
                markers = _markers(where, package)
                named = str(canonicalize_name(name))
                yield Mention(named, exactly(version, f"{where}, {name}"), where, markers)
            case {"name": str()}:  # a folder or a repository: its version is not written down
                continue
            case _:
                raise refused(where, "no name and version", _AGAIN)


def _markers(where: str, package: Mapping[str, Any]) -> tuple[Marker, ...]:
    """Return the markers of which one must hold for a package."""
    said = [package.get(key) for key in ("marker", "markers", "resolution-markers")]
    texts: list[Any] = []
    for value in said:
        if isinstance(value, dict):  # of poetry: one a group
            texts += value.values()
        elif isinstance(value, list):
            texts += value
        elif value is not None:
            texts.append(value)
    return tuple(_marker(where, text) for text in texts)


def _marker(where: str, text: Any) -> Marker:
    try:
        return Marker(str(text))
    except (InvalidMarker, RecursionError) as fault:
        remedy = f"{_AGAIN}; or pip install --upgrade packaging, which may know it"
        raise refused(where, f"{text!r} is no marker", remedy) from fault


def _python(path: str, text: object) -> Iterator[Mention]:
    """Yield the range of Python's versions, where it can be read."""
    if not isinstance(text, str):
        return
    if (caret := _CARET.match(text)) is not None:
        text = f">={caret[1]}{caret[2]},<{int(caret[1][:9]) + 1}"
    try:
        versions = SpecifierSet(text)
    except InvalidSpecifier:  # poetry's `||` and `~`
        return
    yield Mention(PYTHON, versions, path)


def _project(path: str, project: Mapping[str, Any]) -> Description:
    """Return the dependencies of a project, extras left out."""
    found = [*_python(path, project.get("requires-python"))]
    dependencies = project.get("dependencies", [])
    if not isinstance(dependencies, list):
        raise refused(path, "its dependencies are no list", _NO_LOCK)
    for number, text in enumerate(dependencies):
        found += mentions(str(text), f"{path}: dependency {number}")
    return Description(mentions=tuple(found))


def pipfile(path: str, document: Mapping[str, Any]) -> Description:
    """Return what a Pipfile.lock says of its default packages.

    Raises:
        UsageError: a member of it is malformed.
    """
    found: list[Mention] = []
    packages = document.get("default")
    if not isinstance(packages, dict):
        raise refused(path, "no default packages", _AGAIN)
    for name, package in packages.items():
        where = f"{path}: {name}"
        match package:
            case {"version": str(version)}:
                markers = _markers(where, package)
                named = str(canonicalize_name(name))
                found.append(Mention(named, within(version, where), where, markers))
            case dict():
                continue
            case _:
                raise refused(where, "no object", _AGAIN)
    match document:
        case {"_meta": {"requires": {"python_full_version": str(python)}}}:
            found.append(Mention(PYTHON, exactly(python, path), path))
        case {"_meta": {"requires": {"python_version": str(python)}}}:
            found.append(Mention(PYTHON, exactly(python, path), path))
        case _:
            pass
    return Description(mentions=tuple(found), is_lock=True, target=_COMPLETE)
