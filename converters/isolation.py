"""Files whose parser is not trusted with this process: parsed in a child (`isolated`).

Law: whatever is in the file, opening and reading it ends, and ends in a value or in one of our
errors; no process and no descriptor is left.

The child gets the file as an open descriptor, a clean environment, two pipes and two windows of
shared memory. It lists the file (`listing`, judged again here) and sends bytes as they are asked
for; more, fewer or other bytes than the listing promised, a signal, and silence are faults of the
file.
"""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import subprocess
import sys
import tempfile
import time
import weakref
from typing import TYPE_CHECKING

from persistlib import errors
from persistlib.checkpoint import WINDOW, CheckpointReader, check_booleans
from persistlib.converters import listing
from persistlib.converters.isolated import (
    ALIVE,
    DATA,
    END,
    FAULT,
    FREE,
    HEAD,
    INDEX,
    LISTING,
    READY,
    SLOT,
    SLOTS,
    SMALL,
)
from persistlib.dtypes import DType
from persistlib.errors import Code, FormatError, IntegrityError, error
from persistlib.files import StrPath, read_fault

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from persistlib.errors import PersistlibError

_MAIN = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); "
    "from persistlib.converters.isolated import main; main()"
)
# Seconds without a sign of life. The child's own limit is processor time; this one is for what
# waits, such as a disk that does not answer, so it is long.
_SILENCE = 120
_BEATS = 1_000  # signs of life while a file is listed; 100,000 objects on a busy machine take 200
_BEGINNING = 120  # of which nothing is the file's: the interpreter and its libraries start
_FAULT_LIMIT = 1 << 16
_REMEDY = "fetch the file again from where it came"
# Limits of the child that the kernel enforces; any other signal is a crash.
_LIMITS = {signal.SIGPROF, signal.SIGXFSZ, signal.SIGKILL}
# What a child may say of a file, beside what belongs to the format family.
_CODES = {code.identifier: code for code in Code if code.family in (FormatError, IntegrityError)}
_CODES[Code.USAGE.identifier] = Code.USAGE


class IsolatedReader(CheckpointReader):
    """An open file whose bytes a child fetches; `close` ends the child."""

    def __init__(self, child: _Child, found: listing.Listing) -> None:
        super().__init__(found.entries, found.aliases, found.metadata)
        self.format, self.container = found.format, found.container
        self.losses, self.notes = found.losses, found.notes
        self._child = child
        self._spare: bytes | bytearray = b""
        self._places = {entry.name: place for place, entry in enumerate(found.entries)}

    def read_bytes(self, name: str) -> memoryview:
        """Return an entry's bytes in memory of their own.

        Raises:
            KeyError: no entry has that name.
            FormatError: the child, and so the file, does not give them.
            IntegrityError: they differ from their checksum in the file.
            UsageError: the reader was closed.
        """
        data = memoryview(bytearray(self.tensors[name].nbytes))
        at = 0
        for window in self._windows(name, data):
            at += window.nbytes
        return data.toreadonly()

    def windows(self, name: str) -> Iterator[memoryview]:
        """Yield an entry's bytes in order; see `CheckpointReader.windows`."""
        return self._windows(name, None)

    def close(self) -> None:
        """End the child; bytes handed out before stay valid."""
        self._child.close()

    def _windows(self, name: str, into: memoryview | None) -> Iterator[memoryview]:
        """Yield an entry's bytes, each window in its place in `into` where that is given."""
        entry = self.tensors[name]
        child, where = self._child, f"{self._child.location}: {name}"
        # Fresh memory costs as much as reading into it, so one window's is kept.
        spare, self._spare = (self._spare, b"") if into is None else (b"", self._spare)
        if into is None and len(spare) < min(entry.nbytes, WINDOW):
            spare = bytearray(min(entry.nbytes, WINDOW))
        turn, done = child.ask(self._places[name]), 0
        while (size := child.piece(where)) is not None:
            if size > entry.nbytes - done:
                raise child.nonsense("more bytes than its shape has")
            view = memoryview(spare)[:size] if into is None else into[done : done + size]
            child.take(view)
            done += size
            if entry.dtype is DType.BOOL:
                check_booleans(view, where)
            yield view
            if child.turn != turn:  # another tensor was read meanwhile
                turn = child.ask(self._places[name])
                child.skip(done, where)
        if into is None:
            self._spare = spare
        if done != entry.nbytes:
            raise child.nonsense("fewer bytes than its shape has")


def open_file(path: StrPath, kind: str, options: Mapping[str, str]) -> IsolatedReader:
    """Return a reader of the file at `path`, parsed in a child; no tensor is read yet.

    Args:
        path: the file.
        kind: a key of `isolated.WALKERS`.
        options: what the walker is told.

    Raises:
        FormatError: the file breaks a rule, a limit or its parser.
        TargetError: the file cannot be read.
    """
    location = os.fspath(path)
    fd = shared = -1
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise error(Code.SOURCE_READ, location, "not a regular file", "name a file")
        shared = _shared_memory()
        task = json.dumps([fd, shared, status.st_size, kind, dict(options)])
        child = _Child(fd, shared, task, location)
    except OSError as fault:
        if shared >= 0:
            os.close(shared)
        raise read_fault(fault, path) from fault
    finally:
        if fd >= 0:
            os.close(fd)
    try:
        return IsolatedReader(child, child.listing(status.st_size))
    except BaseException:
        child.close()
        raise


class _Child:
    """The process that parses one file.

    Attributes:
        location: the file's path, for messages.
        turn: how many tensors were asked for.
    """

    def __init__(self, fd: int, shared: int, task: str, location: str) -> None:
        self.location, self.turn = location, 0
        root = os.path.dirname(os.path.dirname(os.path.abspath(errors.__file__)))
        path = [root, *(folder for folder in sys.path if os.path.isabs(folder))]
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, with our own program
            [sys.executable, "-I", "-S", "-B", "-c", _MAIN, task, json.dumps(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=_environment(),
            cwd="/",
            pass_fds=(fd, shared),
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests = self._process.stdin.fileno()
        self._replies = self._process.stdout.fileno()
        self._shared, self._slot, self._in_slot = shared, 0, False
        self._patience = _BEGINNING
        self._end = weakref.finalize(self, _end, self._process, shared)
        self._busy = False

    def close(self) -> None:
        """Kill the process, if it lives, and reap it."""
        self._end()

    def listing(self, size: int) -> listing.Listing:
        """Return what the file of `size` bytes holds."""
        kind, length = self._frame()
        if (kind, length) != (READY, 0):
            raise self.nonsense("it does not begin")
        self._patience = _SILENCE
        kind, length = self._frame()
        beats = 0
        while (kind, length) == (ALIVE, 0) and (beats := beats + 1) < _BEATS:
            kind, length = self._frame()
        if kind == FAULT:
            raise self._fault(length, self.location)
        if kind != LISTING or length > listing.LISTING_LIMIT:
            raise self.nonsense("no listing")
        return listing.parse(self._bytes(length), size, self.location)

    def ask(self, place: int) -> int:
        """Ask for the bytes of an entry and return the turn; what is on its way is thrown away."""
        if not self._end.alive:
            raise error(Code.USAGE, self.location, "the reader is closed", "read before closing it")
        while self._busy:
            self._throw_away()
        self._tell(place.to_bytes(INDEX, "little"))
        self._busy = True
        self.turn += 1
        return self.turn

    def piece(self, where: str) -> int | None:
        """Return the size of the next bytes, which `take` is to take, None where they end."""
        kind, length = self._frame()
        if (kind == DATA and 0 < length <= SMALL) or (kind == SLOT and 0 < length <= WINDOW):
            self._in_slot = kind == SLOT
            return length
        self._busy = False
        if kind == FAULT:
            raise self._fault(length, where)
        if (kind, length) != (END, 0):
            raise self.nonsense("no bytes")
        return None

    def take(self, view: memoryview) -> None:
        """Fill a view with the bytes that `piece` told the size of."""
        if not self._in_slot:
            self.fill(view)
            return
        # Read and not mapped: what the child does to the memory can neither change nor fault here.
        if os.preadv(self._shared, [view], self._slot * WINDOW) != len(view):
            raise self.nonsense("a slot without bytes")
        self._release()

    def skip(self, size: int, where: str) -> None:
        """Throw away the first bytes of an entry, which were had before."""
        while size > 0:
            length = self.piece(where) or size
            self.take(memoryview(bytearray(length)))
            size -= length

    def _release(self) -> None:
        self._slot = (self._slot + 1) % SLOTS
        self._tell(FREE)

    def _tell(self, what: bytes) -> None:
        try:
            os.write(self._requests, what)
        except BrokenPipeError as fault:
            raise self._ended() from fault

    def _throw_away(self) -> None:
        kind, length = self._frame()
        if kind not in {DATA, SLOT, END, FAULT} or length > WINDOW:
            raise self.nonsense("no bytes")
        if kind == SLOT:
            self._release()
        else:
            self._bytes(length)
        self._busy = kind in {DATA, SLOT}

    def fill(self, view: memoryview) -> None:
        """Read exactly as many bytes as the view has.

        Raises:
            FormatError: the child died, or says nothing for long.
        """
        waiting = select.poll()
        waiting.register(self._replies, select.POLLIN)
        done, deadline = 0, time.monotonic() + self._patience
        while done < len(view):
            if not self._end.alive:
                reason = "the reader is closed"
                raise error(Code.USAGE, self.location, reason, "read before closing it")
            if not waiting.poll(max(0.0, deadline - time.monotonic()) * 1000):
                self.close()
                reason = f"its parser said nothing for {self._patience} s"
                raise error(Code.FORMAT_LIMIT, self.location, reason, _REMEDY)
            count = os.readv(self._replies, [view[done:]])
            if count == 0:
                raise self._ended()
            done, deadline = done + count, time.monotonic() + self._patience

    def nonsense(self, what: str) -> PersistlibError:
        """End the child and return the error for what it said."""
        self.close()
        return error(
            Code.FORMAT_HEADER, self.location, f"its parser talks nonsense: {what}", _REMEDY
        )

    def _frame(self) -> tuple[bytes, int]:
        head = self._bytes(HEAD)
        return head[:1], int.from_bytes(head[1:], "little")

    def _bytes(self, size: int) -> bytes:
        data = bytearray(size)
        self.fill(memoryview(data))
        return bytes(data)

    def _fault(self, length: int, where: str) -> PersistlibError:
        """Return the error that the child reports, in our words where it may not use its own."""
        if length > _FAULT_LIMIT:
            return self.nonsense("a fault without end")
        said = _texts(self._bytes(length))
        if said is None or said[0] not in _CODES:
            return self.nonsense("no fault")
        place = said[1] and not where.endswith(f": {said[1]}")
        return error(_CODES[said[0]], f"{where}: {said[1]}" if place else where, *said[2:])

    def _ended(self) -> PersistlibError:
        """Return the error for a child that is no more."""
        try:
            status = self._process.wait(_SILENCE)
        except subprocess.TimeoutExpired:
            return self.nonsense("it hung up")
        self.close()
        if status >= 0:
            reason = f"the process that parses it ended with status {status}"
            return error(Code.INTERNAL, self.location, reason, "python -c 'import h5py' tells why")
        name = signal.Signals(-status).name
        if -status in _LIMITS:
            reason = f"parsing it takes more time than a well-meant file would ({name})"
            return error(Code.FORMAT_LIMIT, self.location, reason, _REMEDY)
        return error(Code.FORMAT_HEADER, self.location, f"it crashes its parser ({name})", _REMEDY)


def _end(process: subprocess.Popen[bytes], shared: int) -> None:
    process.kill()
    os.close(shared)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.wait()


def _texts(data: bytes) -> list[str] | None:
    """Return the four texts of a fault, None where they are none."""
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if isinstance(said, list) and len(said) == 4 and all(type(text) is str for text in said):
        return said
    return None


def _environment() -> dict[str, str]:
    """Return what the child's libraries may know of the outside."""
    kept = {key: os.environ[key] for key in ("LD_LIBRARY_PATH",) if key in os.environ}
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return (
        kept
        | dict.fromkeys(threads, "1")
        | {
            "LC_ALL": "C.UTF-8",
            "HDF5_PLUGIN_PRELOAD": "::",  # no filter plugin is ever loaded (H5PLpublic.h)
            "HDF5_USE_FILE_LOCKING": "FALSE",
        }
    )


def _shared_memory() -> int:
    """Return a descriptor of memory that the child puts windows in; it has no name."""
    if sys.platform == "linux":
        fd = os.memfd_create("windows", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, SLOTS * WINDOW)
    return fd
