"""The process in which HDF5 and Keras files are parsed; its parent is `isolation`.

Law: whatever the file makes the C library do, this process opens nothing, writes no file, takes no
more memory and time than the file's own size allows, and says nothing that its parent believes
unchecked.

How a reader plugs in: a row of `WALKERS` names, for a kind of file, modules that are asked in
order. Each has

    def claims(source: Opened) -> bool
    def walk(source: Opened, options: Mapping[str, str]) -> Listing

The first that claims the file walks it. All modules are imported before anything of the file is
read, because afterwards no descriptor can be had: a walker that needs a module imports it at its
top, and opens nothing. Its errors (`listing.refusal`) name a place in the file, not the file. Any
other exception it raises is reported as a malformed file.

On the pipe a frame is a byte of kind, the payload's length (64 bits, little-endian) and the
payload. The child says READY, then ALIVE every few seconds of parsing, then LISTING or FAULT. Asked
for an entry by its index (64 bits), it says its bytes as DATA frames, at most `WINDOW` each, then
END, or FAULT in their place. A pipe is slow: what is not small is put in one of two slots of shared
memory, by turns, and a SLOT frame says its size alone. The parent copies it out before it judges
it, and says FREE.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import mmap
import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from persistlib.checkpoint import WINDOW
from persistlib.converters import limits
from persistlib.converters.listing import Listing, Source, check_declared, refusal, render
from persistlib.errors import Code, PersistlibError, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

    from persistlib.converters.hdf5_tree import Tree

WALKERS: dict[str, tuple[str, ...]] = {
    "hdf5": ("persistlib.converters.keras_walk", "persistlib.converters.hdf5_walk"),
    "keras": ("persistlib.converters.keras_walk",),
}
READY, ALIVE, LISTING, DATA, SLOT, END, FAULT = b"R", b"A", b"L", b"D", b"S", b"Z", b"E"
HEAD = 9  # a byte of kind, and the length
INDEX = 8
FREE = b"\xff" * INDEX
SLOTS = 2
SMALL = 1 << 16  # bytes that go through the pipe

_REQUESTS, _REPLIES = 0, 1


class Opened(Source):
    """The file being parsed: its descriptor, and the HDF5 library's view of it once asked for."""

    _hdf5: Any = None
    _tree: Tree | None = None

    @property
    def tree(self) -> Tree:
        """The objects of the HDF5 file, surveyed when first asked for.

        Raises:
            FormatError: a link is no hard link, or there are too many.
        """
        if self._tree is None:
            from persistlib.converters.hdf5_tree import survey

            self._tree = survey(self.hdf5, self.size)
        return self._tree

    @property
    def hdf5(self) -> Any:
        """The file as an `h5py.File`, opened when first asked for.

        Raises:
            FormatError: it is no HDF5 file.
        """
        if self._hdf5 is None:
            self._hdf5 = open_hdf5(self)
        return self._hdf5


def open_hdf5(source: Source) -> Any:
    """Return an `h5py.File` over a source, read-only; nothing is opened by name.

    Raises:
        FormatError: it is no HDF5 file.
    """
    import h5py

    try:
        return h5py.File(source, "r", driver="fileobj")
    except OSError as fault:
        is_short = "truncated file" in str(fault)
        code = Code.FORMAT_TRUNCATED if is_short else Code.FORMAT_HEADER
        raise refusal(code, "", f"no HDF5 file that can be opened: {fault}") from fault


class _Task(NamedTuple):
    """What the parent asks for on the command line."""

    fd: int
    shared: int
    size: int
    kind: str
    options: dict[str, str]


def main() -> None:
    """Serve one file until the parent closes the pipe."""
    task = _Task(*json.loads(sys.argv[1]))
    walkers = [importlib.import_module(name) for name in WALKERS[task.kind]]
    _warm_up()
    slots = _Slots(task.shared)
    limits.confine(task.size, lambda: _say(ALIVE))
    with contextlib.suppress(BrokenPipeError):
        _say(READY)
        source = Opened(task.fd, task.size)
        if (listing := _list(walkers, source, task)) is not None:
            _serve(listing, task, slots)
    # Closing what is half-parsed is the library's business no longer.
    os._exit(0)


def _warm_up() -> None:
    """Load what Python would load at first use: a codec, and h5py's lazy parts."""
    import h5py

    printable("\n")
    while h5py.h5pl.size():
        h5py.h5pl.remove(0)


def _list(walkers: list[Any], source: Opened, task: _Task) -> Listing | None:
    """Say what the file holds and return it, or say why not."""
    try:
        walker = next((w for w in walkers if w.claims(source)), None)
        if walker is None:
            raise refusal(Code.FORMAT_UNKNOWN, "", "no known layout of its format")  # noqa: TRY301
        listing: Listing = walker.walk(source, task.options)
        check_declared(listing.entries, source.size)
        _say(LISTING, render(listing))
    except BrokenPipeError:
        raise
    except Exception as fault:  # noqa: BLE001 - a hostile file may make the library raise anything
        _say(FAULT, _fault(fault))
        return None
    return listing


class _Slots:
    """The shared memory, of which the parent says what is free."""

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, SLOTS * WINDOW)
        self._free, self._turn = SLOTS, 0

    def say(self, piece: memoryview) -> None:
        """Say a piece of a tensor."""
        if piece.nbytes <= SMALL:
            _say(DATA, piece)
            return
        while not self._free:
            if self.request() is not None:
                raise BrokenPipeError
        at = self._turn * WINDOW
        self._memory[at : at + piece.nbytes] = piece
        self._turn, self._free = (self._turn + 1) % SLOTS, self._free - 1
        _write(memoryview(SLOT + piece.nbytes.to_bytes(HEAD - 1, "little")))

    def request(self) -> int | None:
        """Return the index that the parent says next, None where it says that a slot is free.

        Raises:
            BrokenPipeError: it has gone.
        """
        said = os.read(_REQUESTS, INDEX)
        if not said:
            raise BrokenPipeError
        self._free += said == FREE
        return None if said == FREE else int.from_bytes(said, "little")


def _serve(listing: Listing, task: _Task, slots: _Slots) -> None:
    """Answer requests until the parent has gone."""
    assert listing.windows is not None
    while True:
        if (index := slots.request()) is None:
            continue
        entry = listing.entries[index]
        limits.allow_reading(task.size + entry.nbytes)
        try:
            for piece in _pieces(listing.windows(entry.name)):
                slots.say(piece)
            _say(END)
        except BrokenPipeError:
            raise
        except Exception as fault:  # noqa: BLE001 - as above
            _say(FAULT, _fault(fault, entry.name))


def _pieces(windows: Iterator[memoryview]) -> Iterator[memoryview]:
    for window in windows:
        for start in range(0, window.nbytes, WINDOW):
            yield window[start : start + WINDOW]


def _fault(fault: Exception, name: str = "") -> bytes:
    """Return an exception as the parent reads it."""
    if isinstance(fault, PersistlibError):
        said = [fault.code, fault.location, fault.reason, fault.remedy]
    else:
        code = Code.FORMAT_LIMIT if isinstance(fault, MemoryError) else Code.FORMAT_HEADER
        reason = f"{type(fault).__name__}: {fault}"
        if isinstance(fault, MemoryError):
            reason = "parsing it needs more memory than a well-meant file would"
        said = [code.identifier, name, reason, "fetch the file again from where it came"]
    # Python may hold what UTF-8 cannot; the longest texts come from hostile files.
    return json.dumps([printable(text)[:2000] for text in said]).encode()


def _say(kind: bytes, payload: Buffer = b"") -> None:
    view = memoryview(payload).cast("B") if memoryview(payload).nbytes else memoryview(b"")
    _write(memoryview(kind + len(view).to_bytes(HEAD - 1, "little")))
    _write(view)


def _write(view: memoryview) -> None:
    done = 0
    while done < len(view):
        done += os.write(_REPLIES, view[done:])
