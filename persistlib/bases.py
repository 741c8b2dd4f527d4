"""Where a delta's base is looked for, and whether what is found is that base.

Laws: a manifest names no folder but one beside its own, by one plain name that is no link; what
stands there, or where the caller says, counts by its weights identity alone; a base is whole, so a
delta stands on one bundle and never on a chain, and no circle can be told of.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from persistlib.errors import Code, PersistlibError, TargetError, error
from persistlib.gap import open_folder

if TYPE_CHECKING:
    from persistlib.files import Folder, StrPath
    from persistlib.manifest.schema import Base, Manifest


def beside(path: StrPath, name: str) -> str:
    """Return the path of a folder beside a bundle; of a bundle that is a link, beside its goal."""
    return os.path.join(os.path.dirname(os.path.realpath(path)), name)


def open_base(path: StrPath, base: Base, given: StrPath | None) -> Folder:
    """Return the open folder where the base of the delta at `path` should stand.

    Args:
        path: the delta.
        base: what its manifest says of the base.
        given: where the caller says that it is; None for where the manifest does.

    Raises:
        IntegrityError: nothing says where it is, nothing stands there, or a link does.
        TargetError: what the caller named cannot be read.
    """
    if given is not None:
        return open_folder(given)
    if base.hint is None:
        raise _missing(path, f"it stands on {base.identity}, and does not say where that is")
    place = beside(path, base.hint)
    if os.path.islink(place):
        raise error(Code.BASE_WRONG, place, "a link, which is not followed here", _remedy(path))
    try:
        return open_folder(place)
    except TargetError as fault:
        reason = f"{fault.location}, which it stands on: {fault.reason}"
        raise _missing(path, reason) from fault


def require_base(path: StrPath, base: Base, place: StrPath, found: Manifest) -> None:
    """Refuse a bundle that is not the base of the delta at `path`.

    Args:
        path: the delta.
        base: what its manifest says of the base.
        place: where the bundle was found.
        found: what the bundle's manifest says.

    Raises:
        IntegrityError: it has other weights, or is no whole bundle.
    """
    if found.weights.identity != base.identity:
        reason = f"its weights are {found.weights.identity}; {os.fspath(path)} stands on"
        raise error(Code.BASE_WRONG, place, f"{reason} {base.identity}", _remedy(path))
    if found.weights.base is not None:
        reason = "a delta itself, on which no other stands"
        raise error(Code.BASE_WRONG, place, reason, _remedy(place))


def _missing(path: StrPath, reason: str) -> PersistlibError:
    return error(Code.BASE_MISSING, path, reason, _remedy(path))


def _remedy(path: StrPath) -> str:
    return f"pass base=, or persistlib materialize {os.fspath(path)} WHOLE --base BASE"
