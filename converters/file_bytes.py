"""The bytes of an open file, read by position: nothing is mapped until somebody asks for a view.

Law: `b"".join(windows(a, b)) == file[a:b]`, with `BUFFERS` buffers of `STEP` bytes in memory.

Pages of a mapping count as memory of the process and vanish under it when the file shrinks, so what
is only passed on is read into buffers that are used again. The next buffer is filled on another
thread while the one before is written or hashed.
"""

from __future__ import annotations

import os
import stat
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from persistlib.errors import Code, PersistlibError, error
from persistlib.files import StrPath, map_private, read_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

# Bytes of a window: a multiple of every element's, small enough to stay in the processor's caches.
STEP = 2 << 20
BUFFERS = 3
# Below this a thread costs more than it saves.
_THREADED = 1 << 20


class Ahead:
    """The thread that reads ahead and the buffers that it fills, of one file or of several.

    Attributes:
        spare: buffers that nobody uses.
    """

    def __init__(self) -> None:
        self.spare: list[memoryview] = []
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, work: Callable[[memoryview, int], memoryview], *at: Any) -> Future[memoryview]:
        """Have some work done on the thread."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1)
        return self._pool.submit(work, *at)

    def buffers(self) -> deque[memoryview]:
        """Return `BUFFERS` buffers, which belong into `spare` again afterwards."""
        return deque(
            self.spare.pop() if self.spare else memoryview(bytearray(STEP)) for _ in range(BUFFERS)
        )

    def close(self) -> None:
        """End the thread; it begins anew when it is needed again."""
        if self._pool is not None:
            self._pool.shutdown()
        self._pool, self.spare = None, []


class FileBytes:
    """An open regular file of a known size; closed with `close`, or with the last reference.

    Attributes:
        size: bytes when it was opened.
        location: what errors name.
    """

    def __init__(
        self, fd: int, location: StrPath, *, mapped: bool = True, ahead: Ahead | None = None
    ) -> None:
        """Own a descriptor.

        Args:
            fd: an open file; closed by this value from now on.
            location: what errors name.
            mapped: whether `mapping` maps the file, or copies it.
            ahead: what reads ahead; of this file alone by default.

        Raises:
            TargetError: it is no regular file.
        """
        self._fd = fd
        self._close = weakref.finalize(self, os.close, fd)
        self.location = os.fspath(location)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise error(Code.SOURCE_READ, location, "not a regular file", "name a file")
        self.size = status.st_size
        self._mapped = mapped
        self._mapping: memoryview | None = None
        self._ahead = Ahead() if ahead is None else ahead

    @classmethod
    def open(cls, path: StrPath, *, mapped: bool = True, ahead: Ahead | None = None) -> FileBytes:
        """Return the bytes of the file at `path`.

        Raises:
            TargetError: it cannot be opened, or is no regular file.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as fault:
            raise read_fault(fault, path) from fault
        return cls(fd, path, mapped=mapped, ahead=ahead)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, span: slice) -> bytes:
        """Return a copy of some bytes; as with any sequence, fewer where the file ends.

        Raises:
            FormatError: the file shrank.
            TargetError: reading failed.
        """
        begin, end, _ = span.indices(self.size)
        parts: list[bytes] = []
        while begin < end:
            try:
                part = os.pread(self._fd, end - begin, begin)
            except OSError as fault:
                raise read_fault(fault, self.location) from fault
            if not part:
                raise self._shrunk()
            parts.append(part)
            begin += len(part)
        return b"".join(parts)

    def windows(
        self, begin: int, end: int, watch: Callable[[memoryview], None] | None = None
    ) -> Iterator[memoryview]:
        """Yield the bytes between two places, a buffer at a time.

        A window may change when the next one is asked for.

        Args:
            begin: the first byte.
            end: behind the last byte.
            watch: given every window before it is yielded, in order, perhaps on another thread; the
                last one has passed it when it is yielded.

        Raises:
            FormatError: the file shrank.
            TargetError: reading failed.
        """
        threaded = end - begin > min(_THREADED, STEP)

        def filled(buffer: memoryview, at: int) -> memoryview:
            window = buffer[: min(STEP, end - at)]
            self._fill(window, at)
            if watch is not None:
                watch(window)
            return window

        if not threaded:
            buffer = memoryview(bytearray(end - begin))
            if end > begin:
                yield filled(buffer, begin)
            return
        starts = deque(range(begin, end, STEP))
        buffers = self._ahead.buffers()
        ahead: deque[Future[memoryview]] = deque()
        try:
            while starts or ahead:
                while starts and len(ahead) < BUFFERS - 1:
                    ahead.append(self._ahead.submit(filled, buffers[0], starts.popleft()))
                    buffers.rotate(-1)
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                with suppress(PersistlibError):
                    future.result()
            self._ahead.spare += buffers

    def mapping(self) -> memoryview:
        """Return all of it as private memory, which stays valid after closing.

        Raises:
            FormatError: the file shrank.
            TargetError: reading failed.
        """
        if self._mapping is None:
            try:
                self._mapping = map_private(self._fd, self.size, mapped=self._mapped)
            except OSError as fault:
                raise read_fault(fault, self.location) from fault
            except EOFError as fault:
                raise self._shrunk() from fault
        return self._mapping

    def close(self) -> None:
        """Close the file; idempotent."""
        self._ahead.close()
        self._close()
        self._fd = -1

    def _fill(self, buffer: memoryview, begin: int) -> None:
        done = 0
        try:
            while done < len(buffer):
                count = os.preadv(self._fd, [buffer[done:]], begin + done)
                if count == 0:
                    raise self._shrunk()
                done += count
        except OSError as fault:
            raise read_fault(fault, self.location) from fault

    def _shrunk(self) -> PersistlibError:
        return error(
            Code.FORMAT_TRUNCATED,
            self.location,
            "the file shrank while it was read",
            "wait until nobody writes it, and read it again",
        )


class Stretch(FileBytes):
    """Part of an open file, read as if it were a file: who owns the file closes it.

    Law: `stretch[a:b] == file[begin + a : begin + b]` for what lies inside.
    """

    def __init__(self, whole: FileBytes, begin: int, size: int, location: str) -> None:
        """Begin at `begin`, for `size` bytes that the file has.

        Raises:
            FormatError: it has not.
        """
        self._whole, self._begin = whole, begin
        self.size, self.location = size, location
        if begin + size > whole.size:
            reason = f"{whole.size} bytes, where {begin + size} are needed"
            raise error(Code.FORMAT_TRUNCATED, location, reason, "fetch the file again")

    def __getitem__(self, span: slice) -> bytes:
        """Return a copy of some bytes, as the file does."""
        begin, end, _ = span.indices(self.size)
        return self._whole[self._begin + begin : self._begin + max(begin, end)]

    def windows(
        self, begin: int, end: int, watch: Callable[[memoryview], None] | None = None
    ) -> Iterator[memoryview]:
        """Yield the bytes between two places, as the file does."""
        return self._whole.windows(self._begin + begin, self._begin + end, watch)

    def mapping(self) -> memoryview:
        """Return all of it as private memory, as the file does."""
        return self._whole.mapping()[self._begin : self._begin + self.size]

    def close(self) -> None:
        """Leave the file open."""
