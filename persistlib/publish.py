"""Nothing half-written: a file or a folder appears whole, or what stood there stands unchanged.

Law: after a crash at any system call the target is the whole old version or the whole new one; when
the context manager returns, the new one survives a power cut.

A folder is written as a hidden sibling, every file and then the folder is fsynced, and it is
published: a plain rename where nothing stood, `renameat2(RENAME_EXCHANGE)` where an old version
stands; the parent is fsynced last and the old version swept, unless somebody reads it still. Where
the file system cannot exchange, the old version steps aside and the new one takes its place;
`gap` sees to what lies between the two renames. A failed fsync is never retried: the kernel may
have dropped the pages and would report success (https://lwn.net/Articles/752063/).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import stat
import sys
import threading
from typing import TYPE_CHECKING

from persistlib.errors import Code, PersistlibError, error
from persistlib.files import Folder, StrPath, name_fault
from persistlib.gap import open_folder
from persistlib.lock import locked
from persistlib.place import FOLDER_FLAGS, Place, close, keep_mode, make_parents, sync, sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from typing_extensions import Buffer

__all__ = [
    "WRITE_FLAGS",
    "NewFolder",
    "OutFile",
    "exchange",
    "file",
    "folder",
    "held",
    "make_durable",
    "open_folder",
    "write_fault",
]

_RENAME_EXCHANGE = 2  # linux/fs.h
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
_CANNOT_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}
_REMEDIES = {
    errno.EBUSY: (Code.TARGET_KIND, "it is a mount point or in use: name a folder in it"),
    errno.EXDEV: (Code.TARGET_KIND, "it is a mount point: name a folder in it"),
    errno.ENAMETOOLONG: (Code.TARGET_WRITE, "choose a shorter name"),
    errno.ENOTDIR: (Code.TARGET_KIND, "a part of the path is a file: name another folder"),
    errno.ELOOP: (Code.TARGET_KIND, "a part of the path is a link to itself: name another folder"),
}
# One write call moves at most about 2 GiB on Linux; smaller pieces let hashing keep up.
_PIECE = 64 << 20
WRITE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class OutFile:
    """A new file being written.

    Attributes:
        fd: its descriptor.
        size: bytes written so far.
        path: where it can be read back before it is published; its name in a `NewFolder`.
        name: what it is called when it is published.
    """

    def __init__(self, fd: int, path: str, name: str) -> None:
        self.fd = fd
        self.path = path
        self.name = name
        self.size = 0
        self._begun = 0

    def write(self, data: Buffer) -> int:
        """Write all of `data` and return its length in bytes."""
        view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
        done = 0
        while done < len(view):
            count = os.write(self.fd, view[done : done + _PIECE])
            if count == 0:
                raise OSError(errno.EIO, "the disk takes no bytes")
            done += count
            self.size += count
            self._begin_writeback()
        return done

    def patch(self, offset: int, data: Buffer) -> None:
        """Write over bytes that were written before."""
        view = memoryview(data)
        if os.pwrite(self.fd, view, offset) != view.nbytes:
            raise OSError(errno.EIO, "the disk takes no bytes")

    def _begin_writeback(self) -> None:
        """Let the disk begin with what is written, so that the fsync at the end waits less."""
        waiting = self.size - self._begun
        if waiting >= _PIECE and (call := getattr(_libc(), "sync_file_range", None)) is not None:
            # Handing pages to the disk takes a while, so another thread does it, through a
            # descriptor of its own since nobody waits for it.
            place = (os.dup(self.fd), self._begun, waiting)
            threading.Thread(target=_hint, args=(call, *place), daemon=True).start()
            self._begun = self.size


def _hint(call: Callable[..., int], fd: int, offset: int, length: int) -> None:
    """Let the disk begin; what it cannot do is left to fsync, which also reports its faults."""
    call(fd, ctypes.c_int64(offset), ctypes.c_int64(length), ctypes.c_uint(_SYNC_FILE_RANGE_WRITE))
    os.close(fd)


class NewFolder:
    """A folder being written beside its target.

    Attributes:
        fd: its descriptor.
        path: where other processes find it until it is published.
    """

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path

    @contextlib.contextmanager
    def create(self, name: str) -> Generator[OutFile]:
        """Yield a new file `name`, made durable on leaving.

        Raises:
            TargetError: the name is one that no reader would open.
        """
        if fault := name_fault(name):
            raise error(Code.NAME_UNSAFE, name, fault, "give the file a plain name")
        fd = os.open(name, WRITE_FLAGS, 0o666, dir_fd=self.fd)
        try:
            yield OutFile(fd, name, name)
            sync(fd)
        finally:
            close(fd)


def write_fault(fault: OSError, location: StrPath) -> PersistlibError:
    """Return our error for a failed write."""
    reason = fault.strerror or type(fault).__name__
    if fault.errno in _NO_SPACE:
        return error(Code.TARGET_SPACE, location, reason, "free some space and save again")
    if fault.errno in _NO_PERMISSION:
        return error(Code.TARGET_PERMISSION, location, reason, "choose a folder you may write to")
    code, remedy = _REMEDIES.get(
        fault.errno or 0, (Code.TARGET_WRITE, "check the disk and save again")
    )
    return error(code, location, reason, remedy)


@contextlib.contextmanager
def folder(
    path: StrPath, *, overwrite: bool, foreign: Callable[[Folder], Sequence[str]]
) -> Generator[NewFolder]:
    """Yield a new folder that takes the place of `path` on leaving, whole and durable.

    It has the umask's modes, or the mode of the folder that it replaces.

    Args:
        path: where it will stand; missing parents are made.
        overwrite: whether an old version may be replaced.
        foreign: given the old version, the names in it that must not be deleted with it.

    Raises:
        TargetError: something stands there and may not be replaced, or writing fails; what stood
            there stands unchanged.
        LockedError: another writer is at work there.
        DurabilityError: the new version is in place, but the last fsync failed.
    """
    with held(path) as place:
        place.undo_gap()
        _check_folder(place, overwrite=overwrite, foreign=foreign)
        place.sweep_leftovers()
        staged = place.fresh()
        fd = -1
        try:
            os.mkdir(staged, 0o777, dir_fd=place.fd)
            fd = os.open(staged, FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=place.fd)
            yield NewFolder(fd, os.path.join(place.parent, staged))
            # Writing takes time: look again before anything that came meanwhile is swept.
            mode = _check_folder(place, overwrite=overwrite, foreign=foreign)
            keep_mode(fd, mode)
            sync_folder(fd)
            replaced = _publish(place, staged)
        except BaseException:
            if not place.holds(fd):
                place.sweep(staged)
            raise
        finally:
            close(fd)
        make_durable(place.fd, place.path)
        place.sweep(replaced)


@contextlib.contextmanager
def file(path: StrPath, *, overwrite: bool = True) -> Generator[OutFile]:
    """Yield a new file that takes the place of `path` on leaving, whole and durable.

    It has the umask's mode, or the mode of the file that it replaces.

    Raises:
        TargetError: a link or a folder stands there, or writing fails; what stood there stands
            unchanged and nothing new is left.
        LockedError: another writer is at work there.
        DurabilityError: the new file is in place, but the last fsync failed.
    """
    with held(path) as place:
        _check_file(place, overwrite=overwrite)
        place.sweep_leftovers()
        staged = place.fresh()
        fd = -1
        try:
            fd = os.open(staged, WRITE_FLAGS, 0o666, dir_fd=place.fd)
            yield OutFile(fd, os.path.join(place.parent, staged), place.name)
            keep_mode(fd, _check_file(place, overwrite=overwrite))
            sync(fd)
            place.rename(staged, place.name)
        except BaseException:
            if not place.holds(fd):
                place.sweep(staged)
            raise
        finally:
            close(fd)
        make_durable(place.fd, place.path)


@contextlib.contextmanager
def held(path: StrPath) -> Generator[Place]:
    """Yield the place of a target with its lock held; a fault of the system becomes ours."""
    place = Place(path)
    try:
        make_parents(place.parent)
        place.open()
        with locked(place.fd, place.lock, place.path):
            yield place
    except OSError as fault:
        raise write_fault(fault, place.path) from fault
    finally:
        place.close()


def _check_folder(
    place: Place, *, overwrite: bool, foreign: Callable[[Folder], Sequence[str]]
) -> int | None:
    """Return the mode of the folder that would be replaced, None where nothing stands."""
    mode = place.mode()
    if mode is None:
        return None
    if not stat.S_ISDIR(mode):
        kind = "a link" if stat.S_ISLNK(mode) else "not a folder"
        raise error(Code.TARGET_KIND, place.path, f"{kind} stands there", "name another folder")
    fd = os.open(place.name, FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=place.fd)
    with Folder(place.path, fd) as old:
        place.check_replaceable(fd)
        if not old.names():
            return mode
        if not overwrite:
            raise error(
                Code.TARGET_EXISTS,
                place.path,
                "a folder that is not empty stands there",
                "pass overwrite=True (--overwrite) or name another folder",
            )
        if strange := foreign(old):
            raise error(
                Code.TARGET_FOREIGN,
                place.path,
                f"overwriting would delete {', '.join(strange[:5])}",
                "move what is yours out of the folder, or name another",
            )
    return mode


def _check_file(place: Place, *, overwrite: bool) -> int | None:
    """Return the mode of the file that would be replaced, None where nothing stands."""
    mode = place.mode()
    if mode is not None and not stat.S_ISREG(mode):
        raise error(
            Code.TARGET_KIND, place.path, "not a regular file, or a link", "name another file"
        )
    if mode is not None and not overwrite:
        raise error(
            Code.TARGET_EXISTS,
            place.path,
            "a file stands there",
            "pass overwrite=True (--overwrite)",
        )
    return mode


def _publish(place: Place, staged: str) -> str:
    """Put the staged folder in the target's place; return the name that is left to sweep."""
    if place.mode() is None:
        place.rename(staged, place.name)
        return staged
    try:
        exchange(place.fd, staged, place.name)
    except OSError as fault:
        if fault.errno not in _CANNOT_EXCHANGE:
            raise
    else:
        return staged
    aside = place.aside()
    place.rename(place.name, aside)
    try:
        place.rename(staged, place.name)
    except BaseException:
        place.rename(aside, place.name)
        raise
    return aside


def exchange(folder_fd: int, one: str, other: str) -> None:
    """Swap two names of a folder in one step (renameat2(2)).

    Raises:
        OSError: ENOSYS where the system has no such call, EINVAL where the file system has none.
    """
    call = getattr(_libc(), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(folder_fd, os.fsencode(one), folder_fd, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@functools.cache
def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None


def make_durable(folder_fd: int, path: str) -> None:
    """Return when the names in a target's folder are on the medium."""
    try:
        sync_folder(folder_fd)
    except OSError as fault:
        raise error(
            Code.DURABILITY,
            path,
            f"the new version is in place, but fsync of its parent failed: {fault.strerror}",
            "check the disk, then save again or copy the bundle elsewhere",
        ) from fault
