"""The files beside an ONNX model in which values of its tensors lie.

Law: nothing is read but regular files of one name in the model's own folder: never through a link,
never a file that has a second name elsewhere, never the model itself.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from typing import TYPE_CHECKING

from persistlib.checkpoint import WINDOW
from persistlib.errors import Code, PersistlibError, error
from persistlib.files import StrPath, map_private, read_fault
from persistlib.wire import FileBytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from persistlib.graph_tensors import ExternalPlace

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_COPY = "copy the model's whole folder, links resolved (cp -rL), and read that"


class DataFolder:
    """The folder of a model: its data files by name, one open at a time."""

    def __init__(self, path: StrPath, model: int, given: Mapping[str, StrPath]) -> None:
        """Open the folder.

        Args:
            path: of the model.
            model: its descriptor.
            given: data files that lie elsewhere, by the name the model gives them.

        Raises:
            OSError: it cannot be opened.
        """
        self.path = os.path.dirname(os.path.abspath(path))
        self._model = os.fstat(model)
        self._given = given
        self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._seen: dict[str, os.stat_result] = {}
        self._checked: set[str] = set()
        self._open: tuple[str, int] = ("", -1)

    def size(self, name: str, where: str) -> int:
        """Return the bytes of a data file.

        Raises:
            FormatError: it is one that is never read.
            TargetError: it is not there, or cannot be read.
        """
        if name not in self._seen:
            self._file(name, where)
        return self._seen[name].st_size

    def bytes_of(self, place: ExternalPlace, where: str) -> FileBytes:
        """Return the bytes of a data file, compared with the checksum that the model says.

        Raises:
            IntegrityError: they differ from it.
            PersistlibError: as `size`.
        """
        data = FileBytes(self._file(place.name, where), self._seen[place.name].st_size, where)
        # Case says nothing: each spelling of one checksum would cost a reading of the whole file.
        key = f"{place.checksum.lower()} {place.name}"
        if place.checksum and key not in self._checked:
            self._compare(data, place, where)
            self._checked.add(key)
        return data

    def mapped(self, name: str, where: str) -> memoryview:
        """Return the bytes of a data file as private memory.

        Raises:
            PersistlibError: as `size`.
        """
        fd = self._file(name, where)
        return mapped(fd, self._seen[name].st_size, os.path.join(self.path, name))

    def close(self) -> None:
        """Close the folder and the file that is open; idempotent."""
        for fd in (self._open[1], self._fd):
            if fd >= 0:
                os.close(fd)
        self._open, self._fd = ("", -1), -1

    def _file(self, name: str, where: str) -> int:
        if self._open[0] == name:
            return self._open[1]
        if self._open[1] >= 0:
            os.close(self._open[1])
        self._open = ("", -1)
        self._open = (name, self._opened(name, where))
        return self._open[1]

    def _opened(self, name: str, where: str) -> int:
        """Return a descriptor of a data file, once it is known to be one that may be read."""
        given = self._given.get(name)
        try:
            fd = os.open(name if given is None else given, _FLAGS, dir_fd=self._fd)
        except OSError as fault:
            if fault.errno == errno.ELOOP:
                raise _refusal(where, f"external data in {name!r}, a link", _COPY) from fault
            if fault.errno in {errno.ENXIO, errno.ENODEV}:
                raise _refusal(where, f"external data in {name!r}, no regular file") from fault
            raise read_fault(fault, os.path.join(self.path, name)) from fault
        status = os.fstat(fd)
        known = self._seen.setdefault(name, status)
        if reason := self._fault(status, known):
            os.close(fd)
            raise _refusal(where, f"external data in {name!r}, {reason}", _COPY)
        return fd

    def _fault(self, status: os.stat_result, known: os.stat_result) -> str:
        if not stat.S_ISREG(status.st_mode):
            return "no regular file"
        if os.path.samestat(status, self._model):
            return "the model itself"
        if status.st_nlink != 1:
            return "a file that has a second name (a hard link)"
        is_same = os.path.samestat(status, known) and status.st_size == known.st_size
        return "" if is_same else "which was replaced while it was read"

    def _compare(self, data: FileBytes, place: ExternalPlace, where: str) -> None:
        hasher = hashlib.sha1(usedforsecurity=False)
        for start in range(0, data.size, WINDOW):
            hasher.update(data[start : min(start + WINDOW, data.size)])
        if hasher.hexdigest() != place.checksum.lower():
            reason = f"the SHA-1 of {place.name!r} is {hasher.hexdigest()}, the model says another"
            raise error(Code.FILE_DIGEST, where, reason, "fetch both files again")


def mapped(fd: int, size: int, location: str) -> memoryview:
    """Return the bytes of an open file as private memory.

    Raises:
        FormatError: it shrank meanwhile.
        TargetError: it cannot be read.
    """
    try:
        return map_private(fd, size)
    except EOFError as fault:
        remedy = "fetch the file again from where it came"
        raise error(Code.FORMAT_TRUNCATED, location, "it shrank meanwhile", remedy) from fault
    except OSError as fault:
        raise read_fault(fault, location) from fault


def _refusal(where: str, reason: str, remedy: str = "do not use this file") -> PersistlibError:
    return error(Code.GRAPH_UNSAFE, where, reason, remedy)
