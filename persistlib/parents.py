"""What a new bundle may refer to instead of storing it, and which bundles refer to one already.

Laws: a delta stands on a whole bundle, also where it is saved over another delta; nothing that
another bundle beside it stands on is replaced.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from persistlib.bundle import reading
from persistlib.canonical import SIZE_LIMIT, encode
from persistlib.errors import Code, PersistlibError, error
from persistlib.files import name_fault
from persistlib.gap import open_folder
from persistlib.manifest import document
from persistlib.manifest.schema import Base

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from persistlib.bundle import Bundle
    from persistlib.files import StrPath
    from persistlib.manifest.schema import Manifest, TensorRecord

_T = TypeVar("_T")


class Parent(NamedTuple):
    """A whole bundle that a new one may stand on.

    Attributes:
        record: what the new manifest says of it.
        tensors: what it has, by name.
    """

    record: Base
    tensors: Mapping[str, TensorRecord]


def with_parent(base: StrPath | None, target: StrPath, work: Callable[[Parent | None], _T]) -> _T:
    """Return what `work` makes of the parent of a new bundle at `target`; none for no base.

    The parent is not swept meanwhile. Of a delta the parent is its own base.

    Raises:
        PersistlibError: as `reading`, and as `work`.
    """
    if base is None:
        return work(None)
    return reading(base, lambda bundle: work(_parent(bundle, target)))


def _parent(bundle: Bundle, target: StrPath) -> Parent:
    whole = bundle if bundle.manifest.weights.base is None else bundle.base()
    folder, name = os.path.split(os.path.realpath(whole.path))
    path = os.path.realpath(target)
    if path == os.path.join(folder, name):
        remedy = "name another folder, or save it whole"
        raise error(Code.USAGE, f"base={whole.path}", "a bundle cannot stand on itself", remedy)
    weights = whole.manifest.weights
    for entry in weights.files:
        whole.mapped(entry)  # there, and of its size
    is_beside = os.path.dirname(path) == folder and name_fault(name) is None
    record = Base(identity=weights.identity, hint=name if is_beside else None)
    return Parent(record, {row.name: row for row in weights.tensors})


def bundles_in(folder: StrPath) -> Iterator[tuple[str, bytes]]:
    """Yield the path and the manifest's bytes of every bundle in a folder, in order of names.

    Hidden folders and links are passed over, and so is what cannot be read.
    """
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name.startswith(".") or os.path.islink(path) or not os.path.isdir(path):
            continue
        try:
            with open_folder(path) as found:
                yield path, found.read(document.NAME, limit=SIZE_LIMIT)
        except PersistlibError:
            continue


def needing(path: StrPath) -> list[str]:
    """Return the paths of the bundles beside one that name it as their base."""
    folder, name = os.path.split(os.path.realpath(path))
    if not os.path.isdir(folder):
        return []
    mark = encode({"hint": name}).strip()[1:-1]
    return [other for other, data in bundles_in(folder) if mark in data and _base(data) == name]


def require_unneeded(path: StrPath) -> None:
    """Refuse to replace a bundle that others beside it stand on.

    Raises:
        TargetError: some do.
    """
    if not (needed_by := needing(path)):
        return
    others = f" and {len(needed_by) - 1} more" if len(needed_by) > 1 else ""
    reason = f"{needed_by[0]}{others} stands on it"
    remedy = f"persistlib materialize {needed_by[0]} makes that whole; or save elsewhere"
    raise error(Code.TARGET_NEEDED, path, reason, remedy)


def _base(data: bytes) -> str | None:
    """Return the name of the base that a manifest says; None also where it cannot be read."""
    try:
        manifest: Manifest = document.read(data)
    except PersistlibError:
        return None
    return manifest.weights.base.hint if manifest.weights.base else None
