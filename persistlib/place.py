"""Where a target stands: its parent folder, and the hidden names there that belong to the target.

Beside a target `NAME` there may stand `.NAME.lock` while somebody writes, `.NAME.new-*` which is
being written, or was just replaced by it, `.NAME.old-*` which stepped aside for a new version, and
`.NAME.gone-*` which is being deleted. All but the lock are deleted by the next save.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import sys
from typing import TYPE_CHECKING

from persistlib.digests import digest
from persistlib.errors import Code, error
from persistlib.files import StrPath, leads_to
from persistlib.lock import claim

if TYPE_CHECKING:
    from collections.abc import Iterable

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# A file name has at most 255 bytes, and ours put `.`, a kind and 16 digits around the target's.
_NAME_ROOM = 220


class Place:
    """The parent folder of a target, and the target's names in it.

    Attributes:
        path: the target as it was named.
        parent: its folder, links resolved; opened by `open`.
        name: its name there.
        lock: its lock's name there.
        fd: the parent's descriptor while it is open.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = os.fspath(path)
        self.parent, self.name = _split(self.path)
        encoded = os.fsencode(self.name)
        stem = self.name if len(encoded) <= _NAME_ROOM else digest(encoded)[:32]
        self._prefix = f".{stem}."
        self.lock = f"{self._prefix}lock"
        self.fd = -1

    def open(self) -> None:
        """Open the parent folder."""
        self.fd = os.open(self.parent, FOLDER_FLAGS)

    def close(self) -> None:
        """Close the parent folder; idempotent."""
        fd, self.fd = self.fd, -1
        close(fd)

    def mode(self) -> int | None:
        """Return the target's own mode, of a link and not of what it leads to; None if absent."""
        try:
            return os.lstat(self.name, dir_fd=self.fd).st_mode
        except FileNotFoundError:
            return None

    def holds(self, fd: int) -> bool:
        """Return whether the open file or folder stands at the target."""
        return fd >= 0 and leads_to(self.name, fd, folder_fd=self.fd)

    def check_replaceable(self, fd: int) -> None:
        """Refuse a folder whose name, or whose content, could not be taken away later.

        Raises:
            TargetError: a mount point, the current folder, or one that is read-only.
        """
        if os.fstat(fd).st_dev != os.fstat(self.fd).st_dev:
            raise error(
                Code.TARGET_KIND, self.path, "a mount point stands there", "name a folder in it"
            )
        if leads_to(os.curdir, fd):
            raise error(
                Code.TARGET_KIND,
                self.path,
                "it is the current folder, which cannot be replaced from within",
                "change to its parent, or name a folder in it",
            )
        if not os.access(self.name, os.W_OK | os.X_OK, dir_fd=self.fd, effective_ids=True):
            raise error(
                Code.TARGET_PERMISSION,
                self.path,
                "the folder there is read-only",
                "chmod u+wx it, or name another folder",
            )

    def fresh(self) -> str:
        """Return an unused name for a version to be written."""
        return self._name("new", secrets.randbits(64))

    def aside(self) -> str:
        """Return a name for the version that steps aside, greater than all that did before."""
        before = self.leftovers("old")
        return self._name("old", int(before[-1][-16:], 16) + 1 if before else 0)

    def gone(self) -> str:
        """Return an unused name for a version that is to be deleted."""
        return self._name("gone", secrets.randbits(64))

    def leftovers(self, *kinds: str, among: Iterable[str] | None = None) -> list[str]:
        """Return the names of these kinds that stand in the parent, sorted.

        Args:
            kinds: some of "new", "old" and "gone".
            among: names in the parent; listed when not given.
        """
        # The whole name must match: `.a.new-b.lock` belongs to a target named `a.new-b`.
        ours = re.compile(f"{re.escape(self._prefix)}({'|'.join(kinds)})-[0-9a-f]{{16}}")
        names = os.listdir(self.fd) if among is None else among
        return sorted(name for name in names if ours.fullmatch(name))

    def rename(self, old: str, new: str) -> None:
        """Rename within the parent."""
        os.rename(old, new, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def undo_gap(self) -> None:
        """Put a version back that stepped aside for a new one which never came."""
        old = self.leftovers("old")
        if old and self.mode() is None:
            self.rename(old[-1], self.name)
            sync_folder(self.fd)

    def sweep_leftovers(self) -> None:
        """Delete what killed writers left.

        What they had published may not be durable yet, and what they left may be the version that
        a power cut would bring back: so the parent is fsynced first.
        """
        if names := self.leftovers("new", "old", "gone"):
            sync_folder(self.fd)
            self.sweep(*names)

    def sweep(self, *names: str) -> None:
        """Delete versions that are not needed; what cannot be deleted is left to the next save.

        One that stepped aside gets another name before its first file goes, lest a reader takes
        the rest for a whole version.
        """
        for name in names:
            with contextlib.suppress(OSError):
                doomed = name
                if self.leftovers("old", among=[name]):
                    doomed = self.gone()
                    self.rename(name, doomed)
                _remove(self.fd, doomed)

    def _name(self, kind: str, number: int) -> str:
        return f"{self._prefix}{kind}-{number:016x}"


def _split(path: str) -> tuple[str, str]:
    """Return the parent, links resolved, and the name in it; a link there is not followed."""
    if not path or "\0" in path:
        raise error(Code.NAME_UNSAFE, path, "an empty path, or one with NUL", "name a folder")
    try:
        os.fsencode(path)
        head, name = os.path.split(path.rstrip(os.sep))
        if name in {"", os.curdir, os.pardir}:
            head, name = os.path.split(os.path.realpath(path))
        parent = os.path.realpath(head)
    except UnicodeEncodeError as fault:
        raise error(Code.NAME_UNSAFE, ascii(path), "not valid Unicode", "rename it") from fault
    except FileNotFoundError as fault:
        raise error(
            Code.TARGET_WRITE, path, "the current folder was deleted", "change to another folder"
        ) from fault
    if not name:
        raise error(Code.TARGET_KIND, path, "the root folder", "name a folder in it")
    return parent, name


def make_parents(path: str) -> None:
    """Make a folder and its missing parents, each durable in its own parent."""
    missing: list[str] = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for made in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(made)
        fd = os.open(os.path.dirname(made), FOLDER_FLAGS)
        try:
            sync_folder(fd)
        finally:
            close(fd)


def sync(fd: int) -> None:
    """Return when the file's content is on the medium; a failure is final (see `publish`)."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync(2) there stops at the drive's own cache
    else:
        os.fsync(fd)


def sync_folder(fd: int) -> None:
    """Return when the folder's names are on the medium, where the file system can say so."""
    try:
        os.fsync(fd)
    except OSError as fault:
        # "fd is bound to a special file which does not support synchronization": fsync(2).
        if fault.errno != errno.EINVAL:
            raise


def keep_mode(fd: int, replaced: int | None) -> None:
    """Give the new version the mode of the one that it replaces: what was private stays so."""
    if replaced is not None and stat.S_IMODE(replaced) != stat.S_IMODE(os.fstat(fd).st_mode):
        os.fchmod(fd, stat.S_IMODE(replaced))


def close(fd: int) -> None:
    """Close a descriptor if it is one; nothing is lost by a failure once its file is fsynced."""
    if fd >= 0:
        with contextlib.suppress(OSError):
            os.close(fd)


def _remove(parent_fd: int, name: str) -> None:
    """Delete a file, a link, or a folder with what is in it; links are never followed.

    Raises:
        BlockingIOError: somebody reads the folder; nothing in it was deleted.
        OSError: something could not be deleted.
    """
    try:
        fd = os.open(name, FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=parent_fd)
    except FileNotFoundError:
        return
    except OSError:
        os.unlink(name, dir_fd=parent_fd)
        return
    try:
        claim(fd)
        for inner in os.listdir(fd):
            _remove(fd, inner)
        os.rmdir(name, dir_fd=parent_fd)
    finally:
        close(fd)
