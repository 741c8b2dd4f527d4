"""One safetensors file, open: its tensors by windows, or as views.

Law: `b"".join(windows(name)) == read_bytes(name)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.checkpoint import CheckpointReader, check_booleans
from persistlib.converters.file_bytes import FileBytes
from persistlib.converters.safetensors_header import (
    PREFIX,
    Header,
    header_length,
    parse_header,
    refuse,
)
from persistlib.dtypes import DType
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.files import StrPath


class SafetensorsReader(CheckpointReader):
    """An open safetensors file, or the bytes of one in memory.

    Attributes:
        header: what the header says.
    """

    format = "safetensors"
    container = "safetensors"

    def __init__(self, header: Header, data: FileBytes | memoryview, location: StrPath) -> None:
        super().__init__(header.entries, header.aliases, header.metadata)
        self.header = header
        self._data: FileBytes | memoryview | None = data
        self._location = location

    def read_bytes(self, name: str) -> memoryview:
        """Return a view of an entry's bytes.

        Raises:
            KeyError: no entry has that name.
            FormatError: a boolean that is neither 0 nor 1, or the file shrank.
            UsageError: the reader was closed.
        """
        begin, end = self.header.spans[name]
        data = self._open(name)
        view = (data if isinstance(data, memoryview) else data.mapping())[begin:end]
        return self._checked(name, view)

    def windows(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of an entry in order; nothing is mapped.

        Raises:
            KeyError: no entry has that name.
            PersistlibError: as `read_bytes`.
        """
        begin, end = self.header.spans[name]
        data = self._open(name)
        if isinstance(data, memoryview):
            yield from super().windows(name)
            return
        for window in data.windows(begin, end):
            yield self._checked(name, window)

    def close(self) -> None:
        """Let go of the file; views handed out before stay valid."""
        if isinstance(self._data, FileBytes):
            self._data.close()
        self._data = None

    def _open(self, name: str) -> FileBytes | memoryview:
        if self._data is None:
            raise error(Code.USAGE, name, "the reader is closed", "read before closing it")
        return self._data

    def _checked(self, name: str, view: memoryview) -> memoryview:
        is_bool = self.tensors[name].dtype is DType.BOOL
        return check_booleans(view, f"{self._location}: {name}") if is_bool else view


def of_file(data: FileBytes) -> SafetensorsReader:
    """Return a reader of an open file, which it closes.

    Raises:
        FormatError: the file breaks a rule of the format.
        TargetError: the file cannot be read.
    """
    length = header_length(data[:PREFIX], data.size, data.location)
    header = parse_header(data[: PREFIX + length], data.size, data.location)
    return SafetensorsReader(header, data, data.location)


def read_memory(data: memoryview, location: StrPath) -> SafetensorsReader:
    """Return a reader of a whole file in memory.

    Raises:
        FormatError: the bytes break a rule of the format.
    """
    length = int.from_bytes(data[:PREFIX], "little")
    if len(data) < PREFIX or length > len(data) - PREFIX:
        refuse(Code.FORMAT_TRUNCATED, location, f"{len(data)} bytes are less than its header says")
    header = parse_header(bytes(data[: PREFIX + length]), len(data), location)
    return SafetensorsReader(header, data, location)
