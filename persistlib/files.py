"""Reading files once, from one open folder; nothing here writes (that is `publish`).

A folder is opened once and everything is read through its descriptor, so a path that is replaced
meanwhile cannot mix two versions. Names from a manifest are guests: one plain component each.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
import unicodedata
from typing import TYPE_CHECKING

from persistlib.errors import Code, error

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

StrPath = str | os.PathLike[str]

# Reserved by Windows whatever the extension; refused everywhere so that a bundle can travel.
_RESERVED = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"
}
_FORBIDDEN = frozenset('<>:"/\\|?*')
_NAME_LIMIT = 255
# In place changes by another machine can tear a mapping of these; a private copy is made instead.
_REMOTE = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "vboxsf", "prl_fs"),
    *("afs", "beegfs", "ceph", "gfs2", "gpfs", "lustre", "ocfs2"),
}
_CHUNK = 1 << 30


def name_fault(name: str) -> str | None:
    """Return why `name` is not one plain file name on every system, or None when it is."""
    if not name or len(name.encode("utf-8", "replace")) > _NAME_LIMIT:
        return "empty or longer than 255 bytes"
    if name.startswith(".") or name.endswith((".", " ")):
        return "begins with a dot, or ends with a dot or a space"
    if not name.isprintable() or _FORBIDDEN & set(name):
        return "holds a separator, a colon, a wildcard or a control character"
    if name.split(".", maxsplit=1)[0].rstrip(" ").casefold() in _RESERVED:
        return "reserved by Windows"
    if unicodedata.normalize("NFC", name) != name:
        return "not in Unicode normal form C"
    return None


class Folder:
    """An open directory; its files are reached through it alone.

    Attributes:
        path: the path it was opened by.
        fd: its descriptor.
    """

    def __init__(self, path: StrPath, fd: int) -> None:
        self.path = os.fspath(path)
        self.fd = fd

    def names(self) -> list[str]:
        """Return the names of everything in it, sorted.

        Raises:
            TargetError: the disk fails.
        """
        try:
            return sorted(os.listdir(self.fd))
        except OSError as fault:
            raise read_fault(fault, self.path) from fault

    def open(self, name: str, *, follow: bool = True) -> int:
        """Return a descriptor of the regular file `name`.

        Args:
            name: one plain component.
            follow: whether a link to a regular file is followed.

        Raises:
            TargetError: the name is no plain component, or reading is not allowed.
            IntegrityError: it is missing, or no regular file.
        """
        location = os.path.join(self.path, name)
        if flaw := name_fault(name):
            raise error(Code.NAME_UNSAFE, location, flaw, "do not use this bundle")
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
        try:
            fd = os.open(name, flags, dir_fd=self.fd)
        except FileNotFoundError as fault:
            raise error(
                Code.FILE_MISSING, location, "not there", "fetch the bundle again"
            ) from fault
        except OSError as fault:
            if fault.errno == errno.ELOOP:
                raise error(
                    Code.FILE_KIND, location, "a link, which is not followed here", "copy the file"
                ) from fault
            if fault.errno in {errno.ENXIO, errno.ENODEV}:
                raise error(Code.FILE_KIND, location, "not a regular file", "remove it") from fault
            raise read_fault(fault, location) from fault
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise error(Code.FILE_KIND, location, "not a regular file", "remove it")
        return fd

    def read(self, name: str, *, limit: int, follow: bool = True) -> bytes:
        """Return the bytes of a small file, one more than `limit` at most.

        Raises:
            TargetError: as `open`, or the disk fails.
            IntegrityError: as `open`.
        """
        fd = self.open(name, follow=follow)
        try:
            return read_all(fd, min(os.fstat(fd).st_size, limit) + 1)
        except OSError as fault:
            raise read_fault(fault, os.path.join(self.path, name)) from fault
        finally:
            os.close(fd)

    def is_current(self) -> bool:
        """Return whether the path still names this very directory."""
        return leads_to(self.path, self.fd, follow=True)

    def close(self) -> None:
        """Close the descriptor; idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def leads_to(name: str, fd: int, *, folder_fd: int | None = None, follow: bool = False) -> bool:
    """Return whether a name leads to the very file or folder that is open."""
    try:
        there = os.stat(name, dir_fd=folder_fd, follow_symlinks=follow)
    except OSError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def read_all(fd: int, limit: int) -> bytes:
    """Return up to `limit` bytes from the start of a file."""
    parts: list[bytes] = []
    offset = 0
    while offset < limit and (part := os.pread(fd, min(limit - offset, _CHUNK), offset)):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def map_private(fd: int, size: int, *, mapped: bool = True) -> memoryview:
    """Return the first `size` bytes of a file as writable private memory.

    Args:
        fd: an open regular file; may be closed afterwards.
        size: bytes, at most the file's size.
        mapped: a private mapping of the file, which costs no reading but in which changes made in
            place by others may show; otherwise, and on remote file systems, a copy.

    Raises:
        OSError: reading failed.
        EOFError: the file is shorter.
    """
    if size == 0:
        return memoryview(bytearray())
    if os.fstat(fd).st_size < size:
        raise EOFError
    if mapped and not is_remote(fd):
        return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_COPY))
    # Not the default, which is shared with forked children.
    view = memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    done = 0
    while done < size:
        count = os.preadv(fd, [view[done : done + _CHUNK]], done)
        if count == 0:
            raise EOFError
        done += count
    return view


def is_remote(fd: int) -> bool:
    """Return whether a file lies where another machine may change it under a mapping.

    Linux names the file system of a device in `/proc/self/mountinfo` (proc(5)); where that cannot
    be read the file counts as local, except on Windows, where a mapping blocks its replacement.
    """
    if sys.platform == "win32":
        return True
    device = os.fstat(fd).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as lines:
            fields = (line.split(" ") for line in lines)
            kinds = [f[f.index("-") + 1] for f in fields if f[2] == wanted and "-" in f]
    except OSError:
        return False
    return any(kind in _REMOTE or kind.startswith("fuse") for kind in kinds)


def read_fault(fault: OSError, location: StrPath) -> Exception:
    """Return our error for a failed open or read."""
    reason = fault.strerror or type(fault).__name__
    if isinstance(fault, (FileNotFoundError, NotADirectoryError)):
        return error(Code.SOURCE_MISSING, location, reason, "check the path")
    if isinstance(fault, PermissionError):
        return error(Code.SOURCE_READ, location, reason, "ask for permission to read it")
    return error(Code.SOURCE_READ, location, reason, "copy it to a healthy disk and try again")
