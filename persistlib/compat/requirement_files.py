"""Requirements as pip reads them: a text, or a file with comments, markers, hashes and includes.

https://pip.pypa.io/en/stable/reference/requirements-file-format/ is the form. An included file must
lie beside the one that was given, or below it.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from persistlib.compat.mentions import Description, Mention, exactly, within
from persistlib.compat.target_files import read_text
from persistlib.errors import Code, PersistlibError, error

if TYPE_CHECKING:
    from collections.abc import Iterator

_FILES_LIMIT = 50
_REMEDY = "write NAME==VERSION, as pip does"
_COMMENT = re.compile(r"(^|\s)#.*$")
# What pip lets follow a requirement: --hash, --config-settings and the like.
_OPTIONS = re.compile(r"\s--?[A-Za-z].*$")
_INCLUDE = re.compile(r"(-r|-c|--requirement|--constraint)(?:\s+|=|(?<=^-[rc]))(.+)$")
_CONDA = re.compile(r"([\w.-]+)=([^=\s<>!~]+)(=\S*)?$")
_CONDA_FILE = re.compile(r".*/(.+)-([^-/]+)-[^-/]+\.(?:conda|tar\.bz2)(?:#.*)?$")
# What conda calls some of what rules ask for.
_CONDA_NAMES = {"pytorch": "torch", "pytorch-cpu": "torch", "pytorch-gpu": "torch"}


class _Line(NamedTuple):
    text: str
    where: str


class _Found(NamedTuple):
    mentions: list[Mention]
    constraints: list[Mention]


def requirement_file(path: str, text: str) -> Description:
    """Return what a requirements file says, and those that it includes.

    Args:
        path: of the file, by which includes are found.
        text: its text.

    Raises:
        UsageError: a line is no requirement, or an include lies elsewhere or never ends.
        TargetError: an included file cannot be read.
    """
    found = _Found([], [])
    root = os.path.realpath(os.path.dirname(path) or ".")
    _Files(root, found).read(path, text, found.mentions)
    return Description(mentions=tuple(found.mentions), constraints=tuple(found.constraints))


class _Files:
    """The files of one reading; each is read once."""

    def __init__(self, root: str, found: _Found) -> None:
        self.root = root
        self.found = found
        self.seen: set[tuple[str, bool]] = set()

    def read(self, path: str, text: str, into: list[Mention]) -> None:
        for line in _lines(path, text):
            if (include := _INCLUDE.match(line.text)) is not None:
                self._include(path, include, line.where, into)
            else:
                into += mentions(line.text, line.where)

    def _include(self, path: str, include: re.Match[str], where: str, into: list[Mention]) -> None:
        name = include[2].strip().strip("\"'")
        if re.match(r"[A-Za-z][\w+.-]+:", name):
            raise _refused(where, f"{name} lies elsewhere", "fetch it, and name it beside")
        other = os.path.realpath(os.path.join(os.path.dirname(path), name))
        if os.path.commonpath([self.root, other]) != self.root:
            remedy = f"give both files: --target {path} {name}"
            raise _refused(where, f"{name} does not lie beside it", remedy)
        is_limit = into is self.found.constraints or include[1] in {"-c", "--constraint"}
        if (other, is_limit) in self.seen:
            return
        self.seen.add((other, is_limit))
        if len(self.seen) > _FILES_LIMIT:
            raise _refused(where, f"includes more than {_FILES_LIMIT} files", "give fewer")
        self.read(other, read_text(other), self.found.constraints if is_limit else into)


def _lines(path: str, text: str) -> Iterator[_Line]:
    """Yield the lines of a file without comments, those that a backslash continues as one."""
    parts: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        continued = line.endswith("\\") and not line.lstrip().startswith("#")
        parts.append(line[:-1] if continued else line)
        if not continued:
            joined = " ".join(_COMMENT.sub("", part).strip() for part in parts).strip()
            parts.clear()
            if joined:
                yield _Line(joined, f"{path}:{number}")
    if joined := " ".join(parts).strip():
        yield _Line(joined, path)


def mentions(text: str, where: str) -> Iterator[Mention]:
    """Yield the package of one requirement; none of an option, or an address without a version.

    Raises:
        UsageError: it is no requirement.
    """
    # Its parser takes as long to load as all else that `inspect` needs of packaging.
    from packaging.requirements import InvalidRequirement, Requirement

    if text.startswith("-"):
        return
    if (conda := _CONDA.match(text) or _CONDA_FILE.match(text)) is not None:
        yield conda_mention(conda[1], conda[2], where, is_exact=conda.lastindex == 3)
        return
    if text == "@EXPLICIT" or re.match(r"[./~]|\w+\+?\w*:", text) or text.endswith(".whl"):
        yield from _of_file(text, where)
        return
    try:
        requirement = Requirement(_OPTIONS.sub("", text))
    except InvalidRequirement as fault:
        reason = f"{text!r} is no requirement"
        raise _refused(where, reason, _REMEDY) from fault
    markers = () if requirement.marker is None else (requirement.marker,)
    if requirement.url is not None:
        yield from (one._replace(markers=markers) for one in _of_file(requirement.url, where))
        return
    name = str(canonicalize_name(requirement.name))
    yield Mention(name, requirement.specifier, where, markers)


def conda_mention(name: str, version: str, where: str, *, is_exact: bool) -> Mention:
    """Return a package as conda names it: `numpy=1.26` is any 1.26, with a build it is that one.

    Raises:
        UsageError: it has no version that Python's packages could have.
    """
    known = str(canonicalize_name(name))
    text = version.removesuffix(".*")
    versions = exactly(text, where) if is_exact else within(f"=={text}.*", where)
    return Mention(_CONDA_NAMES.get(known, known), versions, where)


def _of_file(address: str, where: str) -> Iterator[Mention]:
    """Yield the package of a wheel; of anything else the version is not known."""
    name = unquote(re.split("[?#]", address, maxsplit=1)[0]).rpartition("/")[2]
    try:
        package, version, *_ = parse_wheel_filename(name)
    except InvalidWheelFilename:
        return
    yield Mention(str(package), exactly(str(version), where), where)


def _refused(where: str, reason: str, remedy: str) -> PersistlibError:
    return error(Code.TARGET_TEXT, where, reason, remedy)
