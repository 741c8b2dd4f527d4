"""Nothing half-written: a file or a folder appears whole, or what stood there stands unchanged.

Law: after a crash at any system call the target is the whole old version or the whole new one; when
the context manager returns, the new one survives a power cut.

A folder is written as a hidden sibling, every file and then the folder is fsynced, and it is
published: a plain rename where nothing stood, `renameat2(RENAME_EXCHANGE)` where an old version
stands; the parent is fsynced last and the old version swept. Where the file system cannot exchange,
the old version steps aside and the new one takes its place; `open_folder` mends the gap between the
two renames. A failed fsync is never retried: the kernel may have dropped the pages and would report
success (https://lwn.net/Articles/752063/).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import secrets
import stat
import sys
import time
from typing import TYPE_CHECKING

from persistlib.errors import Code, LockedError, PersistlibError, error
from persistlib.files import Folder, StrPath, read_fault
from persistlib.lock import locked

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from typing_extensions import Buffer

_RENAME_EXCHANGE = 2  # linux/fs.h
_CANNOT_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}
# One write call moves at most about 2 GiB on Linux; smaller pieces let hashing keep up.
_PIECE = 64 << 20
# How long a reader waits for a writer that is between two renames.
_GAP_SECONDS = 5.0
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)


class OutFile:
    """A new file being written.

    Attributes:
        fd: its descriptor.
        size: bytes written so far.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.size = 0

    def write(self, data: Buffer) -> int:
        """Write all of `data` and return its length in bytes."""
        view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
        done = 0
        while done < len(view):
            count = os.write(self.fd, view[done : done + _PIECE])
            if count == 0:
                raise OSError(errno.EIO, "the disk takes no bytes")
            done += count
        self.size += done
        return done


class NewFolder:
    """A folder being written beside its target.

    Attributes:
        fd: its descriptor.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @contextlib.contextmanager
    def create(self, name: str) -> Generator[OutFile]:
        """Yield a new file `name`, made durable on leaving."""
        fd = os.open(name, _WRITE_FLAGS, 0o666, dir_fd=self.fd)
        try:
            yield OutFile(fd)
            _sync(fd)
        finally:
            os.close(fd)


class _Site:
    """The parent folder of a target and the names that belong to the target there."""

    def __init__(self, path: StrPath) -> None:
        self.path = os.fspath(path)
        absolute = os.path.abspath(self.path)
        self.parent, self.name = os.path.split(absolute)
        if not self.name:
            raise error(Code.TARGET_KIND, self.path, "the root folder", "name a folder in it")
        self.lock = f".{self.name}.lock"
        self.fd = -1

    def open(self) -> None:
        self.fd = os.open(self.parent, _FOLDER_FLAGS)

    def close(self) -> None:
        os.close(self.fd)

    def fresh(self, kind: str) -> str:
        return f".{self.name}.{kind}-{secrets.token_hex(8)}"

    def leftovers(self, *kinds: str) -> list[str]:
        prefixes = tuple(f".{self.name}.{kind}-" for kind in kinds)
        return sorted(name for name in os.listdir(self.fd) if name.startswith(prefixes))

    def mode(self) -> int | None:
        """Return the target's own mode, or None where nothing stands."""
        try:
            return os.lstat(self.name, dir_fd=self.fd).st_mode
        except FileNotFoundError:
            return None


def write_fault(fault: OSError, location: StrPath) -> PersistlibError:
    """Return our error for a failed write."""
    reason = fault.strerror or type(fault).__name__
    if fault.errno in _NO_SPACE:
        return error(Code.TARGET_SPACE, location, reason, "free some space and save again")
    if fault.errno in _NO_PERMISSION:
        return error(Code.TARGET_PERMISSION, location, reason, "choose a folder you may write to")
    return error(Code.TARGET_WRITE, location, reason, "check the disk and save again")


@contextlib.contextmanager
def folder(
    path: StrPath, *, overwrite: bool, foreign: Callable[[Folder], Sequence[str]]
) -> Generator[NewFolder]:
    """Yield a new folder that takes the place of `path` on leaving, whole and durable.

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
    site = _Site(path)
    with _translated(site.path):
        _make_parents(site.parent)
        site.open()
    try:
        with locked(site.fd, site.lock, site.path):
            with _translated(site.path):
                _undo_gap(site)
                _check_target(site, overwrite=overwrite, foreign=foreign)
                _sweep(site, site.leftovers("new", "old"))
                staged = site.fresh("new")
                os.mkdir(staged, 0o777, dir_fd=site.fd)
            replaced = None
            try:
                with _translated(site.path):
                    fd = os.open(staged, _FOLDER_FLAGS, dir_fd=site.fd)
                    try:
                        yield NewFolder(fd)
                        _sync(fd)
                    finally:
                        os.close(fd)
                    replaced = _publish(site, staged)
            except BaseException:
                if replaced is None:
                    _sweep(site, [staged])
                raise
            _make_durable(site)
            _sweep(site, [replaced])
    finally:
        site.close()


@contextlib.contextmanager
def file(path: StrPath, *, overwrite: bool = True) -> Generator[OutFile]:
    """Yield a new file that takes the place of `path` on leaving, whole and durable.

    Raises:
        TargetError: a link or a folder stands there, or writing fails; what stood there stands
            unchanged and nothing new is left.
        DurabilityError: the new file is in place, but the last fsync failed.
    """
    site = _Site(path)
    with _translated(site.path):
        _make_parents(site.parent)
        site.open()
    try:
        mode = site.mode()
        if mode is not None and not stat.S_ISREG(mode):
            raise error(
                Code.TARGET_KIND, site.path, "not a regular file, or a link", "name another file"
            )
        if mode is not None and not overwrite:
            raise error(Code.TARGET_EXISTS, site.path, "a file stands there", "pass overwrite=True")
        staged = site.fresh("new")
        published = False
        try:
            with _translated(site.path):
                fd = os.open(staged, _WRITE_FLAGS, 0o666, dir_fd=site.fd)
                try:
                    yield OutFile(fd)
                    _sync(fd)
                finally:
                    os.close(fd)
                os.rename(staged, site.name, src_dir_fd=site.fd, dst_dir_fd=site.fd)
                published = True
        except BaseException:
            if not published:
                _sweep(site, [staged])
            raise
        _make_durable(site)
    finally:
        site.close()


def open_folder(path: StrPath) -> Folder:
    """Return the folder at `path`; a gap that a killed writer left is mended first.

    Raises:
        TargetError: nothing stands there, or no folder, or it cannot be read.
    """
    deadline = time.monotonic() + _GAP_SECONDS
    while (fd := _open_directory(path)) is None:
        aside = _mend(path)
        if aside:
            with contextlib.suppress(OSError):
                return Folder(path, os.open(aside, _FOLDER_FLAGS))
        if aside is None or time.monotonic() > deadline:
            raise error(Code.SOURCE_MISSING, path, "nothing stands there", "check the path")
        time.sleep(0.001)
    return Folder(path, fd)


def _open_directory(path: StrPath) -> int | None:
    """Return a descriptor of the folder, or None where nothing stands."""
    try:
        return os.open(path, _FOLDER_FLAGS)
    except FileNotFoundError:
        return None
    except NotADirectoryError as fault:
        raise error(
            Code.NOT_A_BUNDLE, path, "not a folder", "name the folder that save made"
        ) from fault
    except OSError as fault:
        raise read_fault(fault, path) from fault


def _mend(path: StrPath) -> str | None:
    """Mend the gap of a writer that was killed between two renames.

    Returns:
        None when there is no gap; the path of the old version where it cannot be put back; an empty
        string when trying again may find the target.
    """
    try:
        site = _Site(path)
        site.open()
    except (OSError, PersistlibError):
        return None
    try:
        if not site.leftovers("old"):
            return None
        with locked(site.fd, site.lock, site.path):
            _undo_gap(site)
    except LockedError:
        return ""
    except (OSError, PersistlibError):
        old = site.leftovers("old")
        return os.path.join(site.parent, old[-1]) if old else ""
    finally:
        site.close()
    return ""


def _undo_gap(site: _Site) -> None:
    """Put an old version back that stepped aside for a new one which never came."""
    old = site.leftovers("old")
    if site.mode() is None and old:
        os.rename(old[-1], site.name, src_dir_fd=site.fd, dst_dir_fd=site.fd)
        _sync(site.fd)


def _check_target(
    site: _Site, *, overwrite: bool, foreign: Callable[[Folder], Sequence[str]]
) -> None:
    mode = site.mode()
    if mode is None:
        return
    if not stat.S_ISDIR(mode):
        kind = "a link" if stat.S_ISLNK(mode) else "not a folder"
        raise error(Code.TARGET_KIND, site.path, f"{kind} stands there", "name another folder")
    fd = os.open(site.name, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=site.fd)
    with Folder(site.path, fd) as old:
        if not old.names():
            return
        if not overwrite:
            raise error(
                Code.TARGET_EXISTS,
                site.path,
                "a folder that is not empty stands there",
                "pass overwrite=True (--overwrite) or name another folder",
            )
        if strange := foreign(old):
            raise error(
                Code.TARGET_FOREIGN,
                site.path,
                f"overwriting would delete {', '.join(strange[:5])}",
                "move what is yours out of the folder, or name another",
            )


def _publish(site: _Site, staged: str) -> str:
    """Put the staged folder in the target's place; return the name that is left to sweep."""
    if site.mode() is None:
        os.rename(staged, site.name, src_dir_fd=site.fd, dst_dir_fd=site.fd)
        return staged
    try:
        exchange(site.fd, staged, site.name)
    except OSError as fault:
        if fault.errno not in _CANNOT_EXCHANGE:
            raise
    else:
        return staged
    aside = site.fresh("old")
    os.rename(site.name, aside, src_dir_fd=site.fd, dst_dir_fd=site.fd)
    try:
        os.rename(staged, site.name, src_dir_fd=site.fd, dst_dir_fd=site.fd)
    except BaseException:
        os.rename(aside, site.name, src_dir_fd=site.fd, dst_dir_fd=site.fd)
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


def _sync(fd: int) -> None:
    """Return when the file's content is on the medium."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync(2) there stops at the drive's own cache
    else:
        os.fsync(fd)


def _make_durable(site: _Site) -> None:
    try:
        _sync(site.fd)
    except OSError as fault:
        raise error(
            Code.DURABILITY,
            site.path,
            f"the new version is in place, but fsync of its parent failed: {fault.strerror}",
            "check the disk, then save again or copy the bundle elsewhere",
        ) from fault


def _make_parents(path: str) -> None:
    """Make a folder and its missing parents, each durable in its own parent."""
    missing: list[str] = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for made in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(made)
        fd = os.open(os.path.dirname(made), _FOLDER_FLAGS)
        try:
            _sync(fd)
        finally:
            os.close(fd)


def _sweep(site: _Site, names: Sequence[str]) -> None:
    """Delete what is no longer needed; what cannot be deleted is swept by the next save."""
    for name in names:
        with contextlib.suppress(OSError):
            _remove(site.fd, name)


def _remove(parent_fd: int, name: str) -> None:
    """Delete a file, a link, or a folder with what is in it; links are never followed."""
    try:
        fd = os.open(name, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=parent_fd)
    except FileNotFoundError:
        return
    except OSError:
        os.unlink(name, dir_fd=parent_fd)
        return
    try:
        for inner in os.listdir(fd):
            _remove(fd, inner)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent_fd)


@contextlib.contextmanager
def _translated(path: str) -> Generator[None]:
    try:
        yield
    except OSError as fault:
        raise write_fault(fault, path) from fault
