"""Changing a folder in place: one of its files written anew, others added, all or nothing.

Law: after a crash at any system call the file is the whole old version or the whole new one; what
was added stands before the new version does, and by itself means nothing. When the context manager
returns, all of it survives a power cut.

Everything is written beside the folder, so that a crash leaves no half-written file in it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from persistlib.errors import Code, error
from persistlib.files import leads_to, name_fault
from persistlib.gap import open_folder
from persistlib.place import close, keep_mode, sync, sync_folder
from persistlib.publish import WRITE_FLAGS, OutFile, held, make_durable

if TYPE_CHECKING:
    from collections.abc import Generator

    from typing_extensions import Buffer

    from persistlib.files import Folder, StrPath
    from persistlib.place import Place


class Amendment:
    """A folder whose file is written anew, and what is added to it.

    Attributes:
        folder: the folder, open.
    """

    def __init__(self, folder: Folder, place: Place, name: str) -> None:
        self.folder = folder
        self._place = place
        self._name = name
        self._fd = -1
        self._new = ""
        self._added: dict[str, str] = {}  # the name in the folder -> the name beside it
        self._placed: list[str] = []  # those that have their names

    def write(self, data: Buffer) -> None:
        """Write the new version of the file; once."""
        self._new = self._place.fresh()
        self._fd = self._stage(self._new, data)

    def add(self, name: str, data: Buffer) -> None:
        """Write another file, which has its name before the new version has.

        Raises:
            TargetError: the name is one that no reader would open.
        """
        if fault := name_fault(name):
            raise error(Code.NAME_UNSAFE, name, fault, "give the file a plain name")
        self._added[name] = self._place.fresh()
        close(self._stage(self._added[name], data))

    def publish(self) -> None:
        """Give all files their names, the new version last; without a new version none.

        Raises:
            TargetError: the file is a link, or the name of an addition is taken.
            DurabilityError: all have their names, but the last fsync failed.
        """
        if not self._new:
            return
        for name, staged in self._added.items():
            if name in self.folder.names():
                reason = "something stands there already"
                raise error(Code.TARGET_EXISTS, self._path(name), reason, "move it elsewhere")
            self._rename(staged, name)
            self._placed.append(name)
        if self._placed:
            sync_folder(self.folder.fd)
        self._rename(self._new, self._name)
        make_durable(self.folder.fd, self._place.path)

    def close(self) -> None:
        """Take away what has no name in the folder, and what was added for nothing."""
        if self._placed and not leads_to(self._name, self._fd, folder_fd=self.folder.fd):
            for name in self._placed:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=self.folder.fd)
        close(self._fd)
        self._place.sweep(*filter(None, (*self._added.values(), self._new)))

    def _stage(self, staged: str, data: Buffer) -> int:
        """Write a file beside the folder, durable and with the old version's mode; return it."""
        mode = self._mode()
        fd = os.open(staged, WRITE_FLAGS, 0o666, dir_fd=self._place.fd)
        try:
            OutFile(fd, os.path.join(self._place.parent, staged), staged).write(data)
            keep_mode(fd, mode)
            sync(fd)
        except BaseException:
            close(fd)
            raise
        return fd

    def _mode(self) -> int:
        """Return the mode of the file that is replaced; a link would be lost by that."""
        mode = os.lstat(self._name, dir_fd=self.folder.fd).st_mode
        if not stat.S_ISREG(mode):
            remedy = "copy the folder with its links followed (cp -rL) and change the copy"
            raise error(Code.TARGET_KIND, self._path(self._name), "a link, or no file", remedy)
        return mode

    def _path(self, name: str) -> str:
        return os.path.join(self.folder.path, name)

    def _rename(self, staged: str, name: str) -> None:
        os.rename(staged, name, src_dir_fd=self._place.fd, dst_dir_fd=self.folder.fd)


@contextlib.contextmanager
def amended(path: StrPath, name: str) -> Generator[Amendment]:
    """Yield the amendment of a folder's file `name`, published on leaving.

    No other writer replaces the folder meanwhile. A link to the folder is followed, a link that
    stands for the file is not.

    Raises:
        TargetError: no folder stands there, or writing fails; all stands as it did.
        LockedError: another writer is at work there.
        DurabilityError: the new version is in place, but the last fsync failed.
    """
    open_folder(path).close()  # else its missing parents would be made for the lock
    with held(os.path.realpath(path)) as place:
        place.undo_gap()
        place.sweep_leftovers()
        with open_folder(place.path) as folder:
            amendment = Amendment(folder, place, name)
            try:
                yield amendment
                amendment.publish()
            finally:
                amendment.close()
