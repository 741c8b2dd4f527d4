"""One writer at a time, and no version swept while somebody reads it: flock(2).

A writer holds a lock file beside its target. The kernel drops the lock when its holder dies, so a
file that is left but not held belonged to a dead writer. Where flock does not reach other machines
(remote file systems) a file left by another machine proves nothing, and where there is no flock at
all no file does: there a person has to decide.

A reader pins the folder it has opened; a writer claims a version before sweeping it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
from typing import TYPE_CHECKING, Any

from persistlib.errors import Code, error, warn
from persistlib.files import is_remote, leads_to, read_all

if TYPE_CHECKING:
    from collections.abc import Generator

    from persistlib.errors import PersistlibError

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_SIZE_LIMIT = 4096
_NO_FLOCK = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}


@contextlib.contextmanager
def locked(folder_fd: int, name: str, target: str) -> Generator[None]:
    """Hold the lock `name` in a folder while the block runs.

    Args:
        folder_fd: the folder that holds the target.
        name: the lock file's name in it.
        target: what the lock is for, to name in an error.

    Raises:
        LockedError: another writer holds it, or left it where nobody can tell whether it lives.
        OSError: the lock file cannot be made.
    """
    fd = _acquire(folder_fd, name, target)
    try:
        yield
    finally:
        try:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=folder_fd)
        finally:
            _close(fd)


def pin(folder_fd: int) -> None:
    """Keep an open folder from being swept until it is closed, where the system can."""
    with contextlib.suppress(OSError):
        fcntl.flock(folder_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)


def claim(folder_fd: int) -> None:
    """Make sure that nobody reads an open folder, where the system can tell.

    Raises:
        BlockingIOError: somebody does.
    """
    try:
        fcntl.flock(folder_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return


def _acquire(folder_fd: int, name: str, target: str) -> int:
    """Return a descriptor that holds the lock."""
    while True:
        fd, made = _open(folder_fd, name)
        try:
            _seize(fd, name, target, made=made)
            if leads_to(name, fd, folder_fd=folder_fd):
                _check_last_owner(fd, name, target)
                _sign(fd, folder_fd, name)
                return fd
        except BaseException:
            _close(fd)
            raise
        _close(fd)  # its holder had finished and removed it meanwhile


def _close(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)


def _open(folder_fd: int, name: str) -> tuple[int, bool]:
    """Return a descriptor of the lock file, and whether it was made just now."""
    while True:
        with contextlib.suppress(FileExistsError):
            flags = _FLAGS | os.O_CREAT | os.O_EXCL
            return os.open(name, flags, 0o666, dir_fd=folder_fd), True
        with contextlib.suppress(FileNotFoundError):
            return os.open(name, _FLAGS, dir_fd=folder_fd), False


def _seize(fd: int, name: str, target: str, *, made: bool) -> None:
    """Take the lock, or say who holds it."""
    there = os.fstat(fd)
    if not stat.S_ISREG(there.st_mode) or there.st_nlink > 1:
        raise error(
            Code.TARGET_KIND, target, f"{name} beside it is no lock of ours", f"remove {name}"
        )
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as fault:
        raise error(
            Code.LOCK_HELD,
            target,
            f"process {_owner(fd).get('pid', '?')} is saving there",
            "wait until it has finished",
        ) from fault
    except OSError as fault:
        if fault.errno not in _NO_FLOCK:
            raise
        if not made:
            raise _stale(_owner(fd), name, target) from fault


def _sign(fd: int, folder_fd: int, name: str) -> None:
    """Write into the lock who holds it; without room for that the lock is given back."""
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(_self()).encode(), 0)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder_fd)
        raise


def _check_last_owner(fd: int, name: str, target: str) -> None:
    """Say that a dead writer's lock is taken over, or refuse where it may be alive elsewhere."""
    owner = _owner(fd)
    if not owner:
        return
    if owner.get("host") != socket.gethostname() and is_remote(fd):
        raise _stale(owner, name, target)
    warn(
        Code.LOCK_TAKEN_OVER,
        target,
        f"process {owner.get('pid', '?')} died while saving there; its lock was taken over",
    )


def _stale(owner: dict[str, Any], name: str, target: str) -> PersistlibError:
    return error(
        Code.LOCK_STALE,
        target,
        f"a writer on {owner.get('host', '?')} left its lock, and may still be at work",
        f"when no save is running there, delete {name} beside the target",
    )


def _owner(fd: int) -> dict[str, Any]:
    try:
        value = json.loads(read_all(fd, _SIZE_LIMIT))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _self() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname()}
