"""Tensor names as HDF5 paths, and back.

Law: `name_of(path_of(name, marked)) == name` for every Unicode name without NUL, marked or not, and
`name_of` accepts no other spelling of a path.

A name is cut at its dots: `layer1.0.weight` is the dataset `weight` in the group `0` in the
group `layer1`. What HDF5 cannot hold stands as `%` and two hexadecimal digits, as in URLs: `%25`
for `%`, `%2F` for `/`, `%2E` for the dots beyond the depth of groups that are made. `%00` stands
for nothing: alone for an empty part, and as a mark at the end of a dataset whose path a group
needs, as `a` does beside `a.b`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

from persistlib.digests import encode_name

if TYPE_CHECKING:
    from collections.abc import Iterable

DEPTH = 32
MARK = "%00"


def path_of(name: str, *, is_marked: bool = False) -> str:
    """Return the path of the dataset of a tensor.

    Args:
        name: the tensor's name.
        is_marked: whether a group stands at the plain path.

    Raises:
        FormatError: the name holds NUL, or cannot be encoded.
    """
    encode_name(name)
    parts = [part.replace("%", "%25").replace("/", "%2F") for part in name.split(".", DEPTH)]
    parts[-1] = parts[-1].replace(".", "%2E")
    path = "/".join(part or MARK for part in parts)
    return path + MARK if is_marked else path


def name_of(path: str) -> str | None:
    """Return the name of the tensor at a path, None where it is no path of `path_of`."""
    name = unquote(path.replace("/", ".")).replace("\0", "")
    return name if path in {path_of(name), path_of(name, is_marked=True)} else None


def paths_of(names: Iterable[str]) -> dict[str, str]:
    """Return the path of each name, marked where another name's groups need the plain one.

    Raises:
        FormatError: as `path_of`.
    """
    plain = {name: path_of(name) for name in names}
    groups: set[str] = set()
    for path in plain.values():
        at = path.find("/")
        while at >= 0:
            groups.add(path[:at])
            at = path.find("/", at + 1)
    return {name: path_of(name, is_marked=path in groups) for name, path in plain.items()}
