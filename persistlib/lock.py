"""One writer at a time: a lock file beside the target, held by flock(2).

The kernel drops the lock when its holder dies, so a file that is left but not held belonged to a
dead writer. Where flock does not reach other machines (remote file systems) a file left by another
machine proves nothing, and a person has to decide.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from typing import TYPE_CHECKING, Any

from persistlib.errors import Code, error, warn
from persistlib.files import is_remote, read_all

if TYPE_CHECKING:
    from collections.abc import Generator

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
_SIZE_LIMIT = 4096


@contextlib.contextmanager
def locked(folder_fd: int, name: str, target: str) -> Generator[None]:
    """Hold the lock `name` in a folder while the block runs.

    Args:
        folder_fd: the folder that holds the target.
        name: the lock file's name in it.
        target: what the lock is for, to name in an error.

    Raises:
        LockedError: another writer holds it, or one on another machine left it.
        OSError: the lock file cannot be made.
    """
    fd = _acquire(folder_fd, name, target)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder_fd)
        os.close(fd)


def _acquire(folder_fd: int, name: str, target: str) -> int:
    import fcntl

    while True:
        fd = os.open(name, _FLAGS, 0o666, dir_fd=folder_fd)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as fault:
                raise error(
                    Code.LOCK_HELD,
                    target,
                    f"process {_owner(fd).get('pid', '?')} is saving there",
                    "wait until it has finished",
                ) from fault
            if _names(folder_fd, name, fd):
                _check_last_owner(fd, name, target)
                os.ftruncate(fd, 0)
                os.pwrite(fd, json.dumps(_self()).encode(), 0)
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _names(folder_fd: int, name: str, fd: int) -> bool:
    """Return whether the name still leads to the file that was locked."""
    try:
        there = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def _check_last_owner(fd: int, name: str, target: str) -> None:
    """Say that a dead writer's lock is taken over, or refuse where it may be alive elsewhere."""
    owner = _owner(fd)
    if not owner:
        return
    host = owner.get("host")
    if host != socket.gethostname() and is_remote(fd):
        raise error(
            Code.LOCK_STALE,
            target,
            f"a writer on {host} left its lock, and may still be at work",
            f"when no save is running there, delete {name} beside the target",
        )
    warn(
        Code.LOCK_TAKEN_OVER,
        target,
        f"process {owner.get('pid', '?')} died while saving there; its lock was taken over",
    )


def _owner(fd: int) -> dict[str, Any]:
    try:
        value = json.loads(read_all(fd, _SIZE_LIMIT))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _self() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname()}
