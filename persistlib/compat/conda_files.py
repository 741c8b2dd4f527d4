"""`environment.yml` as conda writes it: a small part of YAML, read line by line.

No reader of YAML is among what persistlib needs. What conda writes is keys, lists of plain texts
and one list inside for pip; whatever else stands there is refused by its line, never guessed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from persistlib.compat.mentions import Description, Mention, within
from persistlib.compat.requirement_files import conda_mention, mentions
from persistlib.compat.target_files import refused

if TYPE_CHECKING:
    from collections.abc import Iterator

_REMEDY = "conda list --json > packages.json, and give that file"
_KEY = re.compile(r"([\w-]+):(?:\s+(\S.*))?$")
_ITEM = re.compile(r"(\s*)-\s+(\S.*)$")
_SPEC = re.compile(r"(?:[\w./-]+::)?([\w.-]+)(?:\s*(=?=?)([\w.!+*]+)(=\S*)?)?$")


def conda_file(path: str, text: str) -> Description:
    """Return what an `environment.yml` says of its packages.

    Raises:
        UsageError: a line is not as conda writes it.
    """
    found: list[Mention] = []
    for item, where, is_pip in _items(path, text):
        if is_pip:
            found += mentions(item, where)
        else:
            found += _conda(item, where)
    return Description(mentions=tuple(found))


def _items(path: str, text: str) -> Iterator[tuple[str, str, bool]]:
    """Yield each dependency, where it stands, and whether it is pip's."""
    outer = -1
    is_pip = False
    for line, where in _dependencies(path, text):
        if (item := _ITEM.match(line)) is None:
            raise refused(where, f"{line.strip()!r} is no item of a list", _REMEDY)
        indent, value = len(item[1]), item[2].strip("\"'")
        outer = indent if outer < 0 else outer
        if indent < outer or (indent > outer and not is_pip):
            raise refused(where, "an item at another depth", _REMEDY)
        if indent > outer:
            yield value, where, True
            continue
        is_pip = value == "pip:"
        if not is_pip:
            yield value, where, False


def _dependencies(path: str, text: str) -> Iterator[tuple[str, str]]:
    """Yield the lines below the key `dependencies`, and where they stand."""
    is_within = False
    for number, line in enumerate(text.splitlines(), 1):
        plain = re.sub(r"(^|\s)#.*$", "", line).rstrip()
        where = f"{path}:{number}"
        if (key := _KEY.match(plain)) is not None:
            is_within = key[1] == "dependencies"
            if is_within and key[2] not in {None, "[]"}:
                raise refused(where, "no list on lines of its own", _REMEDY)
        elif is_within and plain:
            yield plain, where


def _conda(item: str, where: str) -> Iterator[Mention]:
    """Yield a package as conda names it: `numpy`, `numpy=1.26`, `numpy=1.26.4=py311`, `>=1.26`."""
    if (spec := _SPEC.match(item)) is None:
        ranged = re.match(r"(?:[\w./-]+::)?([\w.-]+)\s*([<>!~=].*)$", item)
        if ranged is None:
            raise refused(where, f"{item!r} is no package", _REMEDY)
        one = conda_mention(ranged[1], "0", where, is_exact=True)
        yield one._replace(versions=within(ranged[2].replace(" ", ""), where))
    elif spec[3] is not None:
        is_exact = spec[4] is not None or spec[2] == "=="
        yield conda_mention(spec[1], spec[3], where, is_exact=is_exact)
