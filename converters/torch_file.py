"""torch's `.pt` and `.pth` files, read without torch and without unpickling.

Law: `open_file(write(x)) == x` for names, order, dtypes, shapes, bytes and aliases.

Three containers are read: the zip archive that `torch.save` writes since 1.6, the stream it wrote
before, and the archive of TorchScript, whose tensors are taken and whose code is not. The zip keeps
a CRC-32 of every record and no byte is handed out that was not compared with it; the old stream
keeps no checksum at all, so there a changed byte shows only where it breaks the structure.

What is no tensor is left where it is and named in `others`. The metadata that `state_dict` hangs on
its dict (a version number of each module) is not kept.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from persistlib.checkpoint import WINDOW, CheckpointReader, check_booleans
from persistlib.converters.file_bytes import FileBytes
from persistlib.converters.torch_containers import Contents, contents
from persistlib.converters.torch_layout import View, entangled, views_of
from persistlib.converters.torch_state import State, find
from persistlib.converters.torch_write import write, write_to
from persistlib.converters.torch_zip import Record, check_crc, checked_windows
from persistlib.dtypes import DType
from persistlib.errors import Code, error
from persistlib.wording import with_rest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.files import StrPath

__all__ = ["TorchReader", "of_file", "open_file", "write", "write_to"]

# What the Hub's libraries want a safetensors file of torch's tensors to say.
METADATA = {"format": "pt"}
_SHOWN = 5


class TorchReader(CheckpointReader):
    """An open `.pt`: tensors are read by windows, or as views of a private mapping.

    Attributes:
        others: dotted names of what is no tensor, and of the parts of a checkpoint not taken.
        part: the dotted path of the part of a training checkpoint that is read; empty for all.
    """

    format = "torch"

    def __init__(self, data: FileBytes, held: Contents, state: State) -> None:
        views = views_of(state.tensors, held.storages, data.location)
        names: dict[View, str] = {}
        for name, view in views.items():
            names[view] = min(name, names.get(view, name))
        kept = {name: names[view] for name, view in views.items()}
        super().__init__(
            tuple(view.entry(name) for name, view in views.items() if kept[name] == name),
            {name: first for name, first in kept.items() if first != name},
            METADATA,
        )
        self.others, self.part = state.others, state.path
        self.container = held.container
        code = ("graph the network itself, as code of TorchScript",) if held.is_script else ()
        self.losses = (*code, *values_lost(state))
        self.notes = _notes(state, {names[view]: view for view in names})
        self._views = views
        self._held = held
        self._data: FileBytes | None = data
        self._checked: set[str] = set()

    def read_bytes(self, name: str) -> memoryview:
        """Return an entry's bytes, compared with their checksum where the file has one.

        Raises:
            KeyError: no entry has that name.
            IntegrityError: the bytes differ from their CRC-32.
            FormatError: a boolean that is neither 0 nor 1, or the file shrank.
            UsageError: the reader was closed.
        """
        entry, view = self.tensors[name], self._views[name]
        data, record, where = self._place(name)
        storage = data.mapping()[record.start : record.stop]
        if view.storage not in self._checked:
            check_crc(record, zlib.crc32(storage), view.storage, where, Code.TENSOR_DIGEST)
            self._checked.add(view.storage)
        values = view.rows(storage)
        if self._held.is_big_endian:
            values = view.swapped(values)
        return check_booleans(values, where) if entry.dtype is DType.BOOL else values

    def windows(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of an entry in order; nothing is mapped.

        A checksum is compared while the bytes pass, before the last window, or, where the tensor is
        only a part of its storage, before the first.

        Raises:
            KeyError: no entry has that name.
            PersistlibError: as `read_bytes`.
        """
        entry, view = self.tensors[name], self._views[name]
        data, record, where = self._place(name)
        for window in self._passing(data, record, view, where):
            values = view.swapped(window) if self._held.is_big_endian else window
            yield check_booleans(values, where) if entry.dtype is DType.BOOL else values

    def _passing(
        self, data: FileBytes, record: Record, view: View, where: str
    ) -> Iterator[memoryview]:
        """Yield the dense bytes of a view as they stand in the file."""
        if view.is_dense and view.nbytes == record.size:
            yield from checked_windows(data, record, view.storage, where)
            self._checked.add(view.storage)
            return
        if view.storage not in self._checked:
            for _ in checked_windows(data, record, view.storage, where):
                pass
            self._checked.add(view.storage)
        if view.is_dense:
            begin = record.start + view.begin
            yield from data.windows(begin, begin + view.nbytes)
            return
        for block in view.blocks(data, record.start):
            yield from (block[at : at + WINDOW] for at in range(0, block.nbytes, WINDOW))

    def _place(self, name: str) -> tuple[FileBytes, Record, str]:
        if self._data is None:
            raise error(Code.USAGE, name, "the reader is closed", "read before closing it")
        record = self._held.storages[self._views[name].storage]
        return self._data, record, f"{self._data.location}: {name}"

    def close(self) -> None:
        """Let go of the file; views handed out before stay valid."""
        if self._data is not None:
            self._data.close()
            self._data = None


def values_lost(state: State) -> tuple[str, ...]:
    """Return the losses of what stands beside a state_dict."""
    return tuple(f"value {name}, which is no tensor" for name in state.others)


def part_notes(state: State) -> tuple[str, ...]:
    """Return what whoever reads a state_dict should know of where it was found."""
    notes: list[str] = []
    if state.is_chosen:
        rest = with_rest(state.candidates, _SHOWN)
        more = f"; --key reads another: {rest}" if rest else ""
        notes.append(f"a training checkpoint; its part {state.path!r} is read{more}")
    if not state.tensors:
        notes.append("the state_dict is empty")
    return tuple(notes)


def _notes(state: State, views: dict[str, View]) -> tuple[str, ...]:
    """Return what whoever reads the file should know."""
    notes = [*part_notes(state)]
    if mixed := entangled(views):
        notes.append(
            f"views of one storage, each read as a tensor of its own: {with_rest(mixed, _SHOWN)}"
        )
    return tuple(notes)


def open_file(path: StrPath, *, key: str | None = None, mapped: bool = True) -> TorchReader:
    """Return a reader of the state_dict in the file at `path`; no tensor is read yet.

    Args:
        path: a file of `torch.save` or `torch.jit.save`.
        key: which part of a training checkpoint holds the state_dict, by its dotted path; empty
            for the whole, names as they stand; None to find it.
        mapped: whether `read_bytes` gives views of a private mapping, or of a private copy.

    Raises:
        FormatError: the file breaks a rule, names what is never read, or holds several candidates.
        IntegrityError: the pickle differs from its CRC-32.
        TargetError: the file cannot be read.
    """
    return of_file(FileBytes.open(path, mapped=mapped), key=key)


def of_file(data: FileBytes, *, key: str | None = None) -> TorchReader:
    """Return a reader of an open file, which it closes.

    Raises:
        FormatError: as `open_file`.
        IntegrityError: as `open_file`.
    """
    held = contents(data)
    return TorchReader(data, held, find(held.root, key, data.location))
