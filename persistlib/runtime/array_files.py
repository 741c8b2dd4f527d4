"""Arrays for a session in `.npy` and `.npz` files; nothing in them is unpickled."""

from __future__ import annotations

import io
import os
import stat
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from persistlib import publish
from persistlib.dtypes import by_name
from persistlib.errors import Code, PersistlibError, error
from persistlib.files import read_fault
from persistlib.wording import first_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from persistlib.files import StrPath

_ARCHIVE, _ARRAY = b"PK\x03\x04", b"\x93NUMPY"
_MOST = 8 << 30  # bytes of all arrays of an archive together: they are held in memory
_FAULTS = (
    *(ValueError, EOFError, KeyError, TypeError, SyntaxError, MemoryError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)


def read_arrays(words: Sequence[str]) -> dict[str, NDArray[Any]] | list[NDArray[Any]]:
    """Return the arrays that words like `NAME=FILE.npy` name.

    Args:
        words: each `NAME=FILE`, or a FILE alone: an archive gives its arrays by their own names,
            and the only array of all needs none.

    Returns:
        Arrays by name, or the only one without a name in a list. A file that is no archive is
        mapped, so that it may be larger than the memory.

    Raises:
        SessionError: a file holds no arrays, or two have one name.
        TargetError: it cannot be read.
        UsageError: one of several has no name.
    """
    named: dict[str, NDArray[Any]] = {}
    nameless: list[NDArray[Any]] = []
    for word in words:
        name, path = _split(word)
        found = read_file(path)
        if not isinstance(found, dict):
            nameless += [] if name else [found]
            found = {name: found} if name else {}
        elif name:
            found = {name: _member(found, name, path)}
        if twice := named.keys() & found.keys():
            reason = "given twice"
            raise error(Code.SESSION_INPUT, min(twice), reason, "give each input once")
        named |= found
    if nameless and (named or len(nameless) > 1):
        reason = "several arrays, and one has no name"
        raise error(Code.USAGE, "--input", reason, "give each as NAME=FILE.npy")
    return nameless or named


def read_file(path: StrPath) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """Return the array of a `.npy` file, mapped, or the arrays of a `.npz` file by name.

    Raises:
        SessionError: it is neither, or holds more than arrays of numbers.
        TargetError: it cannot be read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise error(Code.SOURCE_READ, path, "not a regular file", "name a file")
        with open(path, "rb") as file:
            start = file.read(len(_ARRAY))
        is_archive = start.startswith(_ARCHIVE)
        if not is_archive:
            _require_array(start, path)
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            return array
        return _members(path)
    except OSError as fault:
        raise read_fault(fault, path) from fault
    except _FAULTS as fault:
        reason = f"no .npy or .npz file of plain numbers: {first_line(fault)}"
        raise error(Code.SESSION_INPUT, path, reason, "write it with numpy.save") from fault


def _require_array(start: bytes, path: StrPath) -> None:
    """Refuse what is no `.npy` file, of which numpy would say that unpickling it may help.

    Raises:
        SessionError: so it is.
    """
    if start != _ARRAY:
        remedy = "write it with numpy.save; rows of a .csv file are given without --input"
        reason = "no .npy and no .npz file: it begins otherwise"
        raise error(Code.SESSION_INPUT, path, reason, remedy)


def _members(path: StrPath) -> dict[str, NDArray[Any]]:
    """Return the arrays of an archive by name."""
    with zipfile.ZipFile(path) as archive:
        size = sum(item.file_size for item in archive.infolist())
    if size > _MOST:
        reason = f"{size} bytes of arrays; at most {_MOST} are read"
        raise error(Code.SESSION_INPUT, path, reason, "give .npy files, which are mapped")
    with np.load(path, allow_pickle=False) as members:
        found = dict(members.items())
    if odd := [name for name, array in found.items() if not isinstance(array, np.ndarray)]:
        raise ValueError(f"{odd[0]} is no array")
    return found


def write_arrays(
    path: StrPath, arrays: Mapping[str, NDArray[Any]], *, overwrite: bool = False
) -> tuple[str, ...]:
    """Write arrays as a `.npz` file, whole or not at all.

    What numpy's format has no name for (bfloat16, the small floats) is widened to float32, which
    holds each of its values.

    Args:
        path: the file.
        arrays: by name.
        overwrite: whether a file that stands there is replaced.

    Returns:
        The names of the arrays that were widened.

    Raises:
        TargetError: writing failed; what stood there stands unchanged.
    """
    widened = tuple(name for name, array in arrays.items() if _is_nameless(array))
    plain = {
        name: array.astype(np.float32) if name in widened else array
        for name, array in arrays.items()
    }
    buffer = io.BytesIO()
    # Not numpy.savez, to which some names are its own arguments.
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in plain.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
    with publish.file(path, overwrite=overwrite) as out:
        out.write(buffer.getbuffer())
    return widened


def _is_nameless(array: NDArray[Any]) -> bool:
    row = by_name("numpy", array.dtype.name)
    return row is not None and row.value.extension


def _split(word: str) -> tuple[str, str]:
    """Return the name and the path of `NAME=PATH`; a path that exists has no name before it."""
    name, equals, path = word.partition("=")
    return (name, path) if equals and name and not os.path.exists(word) else ("", word)


def _member(found: Mapping[str, NDArray[Any]], name: str, path: str) -> NDArray[Any]:
    if name in found:
        return found[name]
    if len(found) == 1:
        return next(iter(found.values()))
    raise _absent(found, name, path)


def _absent(found: Mapping[str, NDArray[Any]], name: str, path: str) -> PersistlibError:
    reason = f"no array {name!r} in it, but {', '.join(found) or 'none'}"
    return error(Code.SESSION_INPUT, path, reason, "give the file alone, or another name")
