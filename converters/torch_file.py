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

import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from persistlib.checkpoint import CheckpointReader, check_booleans
from persistlib.converters.torch_layout import View, views_of
from persistlib.converters.torch_pickle import Walk
from persistlib.converters.torch_state import State, find
from persistlib.converters.torch_values import Instance, Mapping
from persistlib.converters.torch_write import write, write_to
from persistlib.converters.torch_zip import Record, audit, content
from persistlib.dtypes import DType
from persistlib.errors import Code, error
from persistlib.files import StrPath, map_private, read_fault

if TYPE_CHECKING:
    from persistlib.errors import PersistlibError

__all__ = ["TorchReader", "open_file", "write", "write_to"]

_PICKLE, _CONSTANTS, _ORDER, _VERSION = "data.pkl", "constants.pkl", "byteorder", "version"
_VERSIONS = {str(number).encode() for number in range(1, 11)}  # caffe2/serialize/versions.h
_ZIP, _PROTO = b"PK\3\4", 0x80
_TAR, _TAR_AT = b"ustar", 257
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# Of torch.export's archives, which hold code and pickles of their own.
_EXPORTED = ("archive_format", "archive_version", "serialized_exported_program.json")
# What the Hub's libraries want a safetensors file of torch's tensors to say.
_METADATA = {"format": "pt"}
_CONVERT = "save the state_dict with torch.save, where the file is trusted"


class _Source(NamedTuple):
    """An open file: its bytes, its storages, and what its pickle describes."""

    data: memoryview
    location: str
    root: object
    storages: dict[str, Record]
    is_big_endian: bool


class TorchReader(CheckpointReader):
    """An open `.pt`: tensors are views of the private mapping where they lie row by row.

    Attributes:
        others: dotted names of what is no tensor, and of the parts of a checkpoint not taken.
        part: the dotted path of the part of a training checkpoint that is read; empty for all.
    """

    format = "torch"

    def __init__(self, source: _Source, state: State) -> None:
        views = views_of(state.tensors, source.storages, source.location)
        names: dict[View, str] = {}
        for name, view in views.items():
            names[view] = min(name, names.get(view, name))
        kept = {name: names[view] for name, view in views.items()}
        super().__init__(
            tuple(view.entry(name) for name, view in views.items() if kept[name] == name),
            {name: first for name, first in kept.items() if first != name},
            _METADATA,
        )
        self.others = state.others
        self.losses = tuple(f"value {name}, which is no tensor" for name in state.others)
        self.part = state.path
        if state.path and state.others:
            self.notes = (f"a training checkpoint; its part {state.path!r} is read",)
        self._views = views
        self._source: _Source | None = source
        self._checked: set[str] = set()

    def read_bytes(self, name: str) -> memoryview:
        """Return an entry's bytes, compared with their checksum where the file has one.

        Raises:
            KeyError: no entry has that name.
            IntegrityError: the bytes differ from their CRC-32.
            FormatError: a boolean that is neither 0 nor 1.
            UsageError: the reader was closed.
        """
        entry, view = self.tensors[name], self._views[name]
        if (source := self._source) is None:
            raise error(Code.USAGE, name, "the reader is closed", "read before closing it")
        where = f"{source.location}: {name}"
        record = source.storages[view.storage]
        if view.storage not in self._checked:
            content(source.data, record, view.storage, Code.TENSOR_DIGEST, where)
            self._checked.add(view.storage)
        values = view.rows(source.data[record.start : record.start + record.size])
        if source.is_big_endian:
            values = view.swapped(values)
        return check_booleans(values, where) if entry.dtype is DType.BOOL else values

    def close(self) -> None:
        """Let go of the file; views handed out before stay valid."""
        self._source = None


def open_file(path: StrPath, *, key: str | None = None, mapped: bool = True) -> TorchReader:
    """Return a reader of the state_dict in the file at `path`; no tensor is read yet.

    Args:
        path: a file of `torch.save` or `torch.jit.save`.
        key: which part of a training checkpoint holds the state_dict, by its dotted path; empty
            for the whole, names as they stand; None to find it.
        mapped: whether tensors are views of a private mapping, or of a private copy.

    Raises:
        FormatError: the file breaks a rule, names what is never read, or holds several candidates.
        IntegrityError: the pickle differs from its CRC-32.
        TargetError: the file cannot be read.
    """
    location = os.fspath(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise error(Code.SOURCE_READ, location, "not a regular file", "name a file")
            data = map_private(fd, status.st_size, mapped=mapped)
        finally:
            os.close(fd)
    except OSError as fault:
        raise read_fault(fault, path) from fault
    except EOFError as fault:
        raise error(Code.FORMAT_TRUNCATED, path, "the file shrank while it was read") from fault
    source = _source(data, location)
    return TorchReader(source, find(source.root, key, location))


def _source(data: memoryview, location: str) -> _Source:
    if bytes(data[:4]) == _ZIP:
        return _archive(data, location)
    if bytes(data[_TAR_AT : _TAR_AT + len(_TAR)]) == _TAR:
        raise _unknown(location, "a tar archive, which torch wrote before 0.1.10")
    if len(data) and data[0] == _PROTO:
        return _stream(data, location)
    raise _unknown(location, "neither a zip archive nor a stream of torch.save")


def _unknown(location: str, reason: str) -> PersistlibError:
    return error(Code.FORMAT_UNKNOWN, location, reason, _CONVERT)


def _archive(data: memoryview, location: str) -> _Source:
    """Return what a zip archive holds."""
    records = audit(data, location)
    if exported := next((name for name in _EXPORTED if name in records), None):
        reason = f"an archive of torch.export ({exported}), which holds code"
        raise error(Code.FORMAT_UNSAFE, location, reason, _CONVERT)
    if _PICKLE not in records:
        raise _unknown(location, f"a zip archive without {_PICKLE}")

    def read(name: str) -> memoryview:
        return content(data, records[name], name, Code.FILE_DIGEST, f"{location}: {name}")

    if _VERSION in records and bytes(read(_VERSION)).rstrip(b"\n") not in _VERSIONS:
        raise _unknown(location, "an archive of a version that is not 1 to 10")
    order = bytes(read(_ORDER)) if _ORDER in records else b"little"
    if order not in (b"little", b"big"):
        raise error(Code.FORMAT_HEADER, location, f"the byte order {order[:16]!r}")
    root = _pickled(read(_PICKLE), location, "data")
    if isinstance(root, Instance) and _CONSTANTS in records:
        constants = _pickled(read(_CONSTANTS), location, "constants")
        if isinstance(constants, tuple) and constants:
            named = Mapping([(f"c{index}", value) for index, value in enumerate(constants)])
            root.state = Mapping([*root.state.items, ("CONSTANTS", named)])
    return _Source(data, location, root, records, is_big_endian=order == b"big")


def _pickled(data: memoryview, location: str, folder: str) -> object:
    walk = Walk(data, location, folder=folder)
    root = walk.run()
    if walk.position != len(data):
        raise error(Code.FORMAT_HEADER, location, "bytes after the end of the pickle")
    return root


def _stream(data: memoryview, location: str) -> _Source:
    """Return what a file of torch before 1.6 holds: five pickles, then the storages.

    The storages are little-endian whatever machine wrote them (torch/csrc/serialization.cpp).
    """
    walk = Walk(data, location)
    if walk.run() != _MAGIC:
        raise _unknown(location, "a bare pickle, which is never read")
    walk = Walk(data, location, position=walk.position)
    if walk.run() != _PROTOCOL:
        raise _unknown(location, "a stream of an unknown protocol")
    walk = Walk(data, location, position=walk.position)
    walk.run()  # sizes of C types on the writing machine, which nothing depends on
    pickled = Walk(data, location, position=walk.position)
    root = pickled.run()
    walk = Walk(data, location, position=pickled.position)
    keys = walk.run()
    if not isinstance(keys, list) or any(type(key) is not str for key in keys):
        raise error(Code.FORMAT_HEADER, location, "a malformed list of storages")
    if len(keys) != len(pickled.storages) or set(keys) != set(pickled.storages):
        raise error(Code.FORMAT_HEADER, location, "the list of storages is not that of the pickle")
    storages: dict[str, Record] = {}
    at = walk.position
    for name in keys:
        storage = pickled.storages[name]
        count = int.from_bytes(data[at : at + 8], "little")
        size = count * storage.itemsize
        if count != storage.numel or at + 8 + size > len(data):
            raise error(Code.FORMAT_TRUNCATED, location, f"the storage {name} is cut off")
        storages[name] = Record(at + 8, size, None)
        at += 8 + size
    if at != len(data):
        raise error(Code.FORMAT_TRUNCATED, location, "bytes after the last storage")
    return _Source(data, location, root, storages, is_big_endian=False)
