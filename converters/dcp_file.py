"""Folders of torch.distributed.checkpoint, read without torch and without unpickling.

Law: `open_file(dcp.save(x))` has the names, dtypes, shapes and bytes of `open_file(torch.save(x))`,
however many processes saved and however the tensors were divided among them.

A folder is `.metadata` and files of pieces, each a whole archive of `torch.save`, which is read as
any other: no byte is handed out that was not compared with its CRC-32. The metadata has no
checksum; what it says of a piece is held against the piece itself. Each byte belongs to one piece,
and the pieces of a tensor tile it, so a folder never asks for more memory than its size.

A tensor that is divided along its first dimension streams, piece by piece; one that is divided
along others is put together in memory, as many rows at a time as such pieces share.
"""

from __future__ import annotations

import math
import os
from itertools import pairwise
from typing import TYPE_CHECKING

from persistlib.checkpoint import WINDOW, CheckpointReader, Entry, joined
from persistlib.converters import torch_file
from persistlib.converters.dcp_metadata import AGAIN, LIMIT, Held, Piece, Place, Stored, parse
from persistlib.converters.dcp_tiling import bands, tiling_fault
from persistlib.converters.file_bytes import Ahead, FileBytes, Stretch
from persistlib.converters.torch_state import LONE, VISITS, State, find
from persistlib.converters.torch_values import Inert, Mapping, Storage, Tensor
from persistlib.dtypes import by_name
from persistlib.errors import Code, PersistlibError, error, error_of, finding
from persistlib.files import Folder, name_fault, read_fault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.converters.torch_file import TorchReader
    from persistlib.errors import Finding
    from persistlib.files import StrPath

METADATA = ".metadata"
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


class DcpReader(CheckpointReader):
    """An open folder of torch.distributed.checkpoint: tensors are read piece by piece."""

    format = "dcp"

    def __init__(
        self, files: dict[str, FileBytes], stored: dict[str, Stored], state: State
    ) -> None:
        super().__init__(
            tuple(_entry(name, one) for name, one in stored.items()), {}, torch_file.METADATA
        )
        self._files, self._stored = files, stored
        self.container = f"torch.distributed.checkpoint, {len(files)} files"
        self.losses = torch_file.values_lost(state)
        self.notes = torch_file.part_notes(state)

    def read_bytes(self, name: str) -> memoryview:
        """Return an entry's bytes, compared with their checksums.

        Raises:
            KeyError: no entry has that name.
            IntegrityError: the bytes differ from their CRC-32.
            FormatError: the folder changed since it was opened.
        """
        return joined(self.windows(name))

    def windows(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of an entry in order.

        Raises:
            KeyError: no entry has that name.
            PersistlibError: as `read_bytes`.
        """
        pieces = self._stored[name].pieces
        for band in bands([piece.box for piece in pieces]):
            if len(band) == 1:
                yield from self._piece(name, pieces[band[0]]).windows(LONE)
            else:
                rows = self._rows(name, [pieces[index] for index in band])
                yield from (rows[at : at + WINDOW] for at in range(0, rows.nbytes, WINDOW))

    def _rows(self, name: str, pieces: list[Piece]) -> memoryview:
        """Return the rows that pieces share, put together."""
        import numpy as np

        entry = self.tensors[name]
        first = min(piece.box.offsets[0] for piece in pieces)
        last = max(piece.box.offsets[0] + piece.box.sizes[0] for piece in pieces)
        element = np.dtype(f"V{entry.dtype.itemsize}")
        whole = np.empty((last - first, *entry.shape[1:]), element)
        for piece in pieces:
            offsets = (piece.box.offsets[0] - first, *piece.box.offsets[1:])
            ends = (begin + size for begin, size in zip(offsets, piece.box.sizes, strict=True))
            values = np.frombuffer(self._piece(name, piece).read_bytes(LONE), element)
            whole[tuple(map(slice, offsets, ends))] = values.reshape(piece.box.sizes)
        return whole.reshape(-1).view(np.uint8).data

    def _piece(self, name: str, piece: Piece) -> TorchReader:
        return _opened(self._files, name, self._stored[name], piece)

    def close(self) -> None:
        """Close every file; views handed out before stay valid."""
        for file in self._files.values():
            file.close()


def open_file(path: StrPath, *, key: str | None = None) -> DcpReader:
    """Return a reader of the state_dict in a folder; of tensors only the headers are read yet.

    Args:
        path: the folder.
        key: which part of a training checkpoint holds the state_dict, as of a file of torch.

    Raises:
        FormatError: something breaks a rule, is missing, contradicts the rest, or names what is
            never read; all faults that can be told together are.
        IntegrityError: the description of a piece differs from its CRC-32.
        TargetError: the folder cannot be read.
    """
    location = os.fspath(path)
    try:
        folder = Folder(path, os.open(path, _FLAGS | os.O_DIRECTORY))
        with folder:
            where = os.path.join(location, METADATA)
            data = FileBytes(os.open(METADATA, _FLAGS, dir_fd=folder.fd), where)
            held = parse(data[: LIMIT + 1], where)
            data.close()
            return _reader(folder, held, find(_tree(held, location), key, location))
    except OSError as fault:
        raise read_fault(fault, path) from fault


def _reader(folder: Folder, held: Held, state: State) -> DcpReader:
    """Return a reader of the tensors that were found."""
    files, faults = _files(folder, held.places)
    chosen: dict[str, Stored] = {}
    for name, tensor in state.tensors.items():
        stored = held.values[tensor.storage.key]
        if stored is not None:
            chosen[name] = stored
            faults += _faults(files, f"{folder.path}: {name}", stored)
    if faults:
        for file in files.values():
            file.close()
        raise error_of(faults)
    return DcpReader(files, chosen, state)


def _files(folder: Folder, places: tuple[Place, ...]) -> tuple[dict[str, FileBytes], list[Finding]]:
    """Return the open files of some places, and what is wrong with files and places."""
    ahead = Ahead()
    files: dict[str, FileBytes] = {}
    faults: list[Finding] = []
    ends = {place.file: place.begin + place.size for place in sorted(places)}
    for name in sorted(ends):
        where = os.path.join(folder.path, name)
        if flaw := name_fault(name):
            faults.append(finding(Code.FORMAT_UNSAFE, where, f"the name {flaw}", AGAIN))
            continue
        try:
            files[name] = FileBytes(folder.open(name), where, ahead=ahead)
        except PersistlibError as fault:
            faults += fault.findings
            continue
        if (end := ends[name]) > (size := files[name].size):
            reason = f"{size} bytes, where {end} are needed"
            faults.append(finding(Code.FORMAT_TRUNCATED, where, reason, AGAIN))
    for one, other in pairwise(sorted(places)):
        if one.file == other.file and one.begin + one.size > other.begin:
            where = os.path.join(folder.path, one.file)
            reason = f"two pieces stand at byte {other.begin}"
            faults.append(finding(Code.FORMAT_HEADER, where, reason, AGAIN))
    return files, faults


def _faults(files: dict[str, FileBytes], where: str, stored: Stored) -> list[Finding]:
    """Return what is wrong with a tensor: with its pieces, or with what they are together."""
    dtype = by_name("torch", stored.dtype)
    if dtype is None:
        reason = f"the dtype {stored.dtype}, which is not read in pieces"
        return [finding(Code.FORMAT_DTYPE, where, reason, "cast it and save again")]
    places = [piece.place for piece in stored.pieces]
    if any(place.file not in files for place in places):
        return []  # which was told of the file
    # Before they are compared: numbers beyond what files have can be made to collide.
    if math.prod(stored.shape) > sum(min(one.size, files[one.file].size) for one in places):
        return [
            finding(Code.FORMAT_SHAPE, where, "more elements than its pieces have bytes", AGAIN)
        ]
    if flaw := tiling_fault(stored.shape, [piece.box for piece in stored.pieces]):
        return [finding(Code.FORMAT_SHAPE, where, flaw, AGAIN)]
    return [one for piece in stored.pieces for one in _piece_faults(files, where, stored, piece)]


def _piece_faults(
    files: dict[str, FileBytes], where: str, stored: Stored, piece: Piece
) -> tuple[Finding, ...]:
    """Return why a piece is not what the metadata says."""
    try:
        _opened(files, where, stored, piece)
    except PersistlibError as fault:
        return fault.findings
    return ()


def _opened(files: dict[str, FileBytes], name: str, stored: Stored, piece: Piece) -> TorchReader:
    """Return a reader of a piece, which is what the metadata says.

    Raises:
        FormatError: it is something else.
    """
    place = piece.place
    where = f"{name} ({place.file} at byte {place.begin})"
    reader = torch_file.of_file(Stretch(files[place.file], place.begin, place.size, where), key="")
    expected = Entry(LONE, _entry(name, stored).dtype, piece.box.sizes)
    if reader.entries != (expected,) or reader.losses:
        found = ", ".join(f"{one.dtype.name} {list(one.shape)}" for one in reader.entries[:2])
        said = f"{expected.dtype.name} {list(expected.shape)}"
        raise error(Code.FORMAT_SHAPE, where, f"holds {found or 'no tensor'}, not {said}", AGAIN)
    return reader


def _entry(name: str, stored: Stored) -> Entry:
    dtype = by_name("torch", stored.dtype)
    assert dtype is not None  # _faults has seen to it
    return Entry(name, dtype, stored.shape)


def _tree(held: Held, location: str) -> Mapping:
    """Return the state that was saved, as a file of torch would describe it.

    Raises:
        FormatError: its paths are those of more parts than are ever looked at.
    """
    root = Mapping()
    inner: dict[tuple[int, str], Mapping] = {}
    for name, stored in held.values.items():
        *path, last = held.paths[name]
        part = root
        for key in path:
            place = (id(part), str(key))
            if place not in inner:
                inner[place] = made = Mapping()
                part.items.append((key, made))
            part = inner[place]
        if len(inner) > VISITS:
            reason = f"values in more than {VISITS} parts"
            raise error(Code.FORMAT_LIMIT, location, reason, "save the state_dict alone")
        leaf: object = Inert()
        if stored is not None:
            size = math.prod(stored.shape)
            storage = Storage(name, stored.dtype, size, 0, size)
            leaf = Tensor(storage, stored.dtype, 0, stored.shape, (), is_lazy=False)
        part.items.append((last, leaf))
    return root
