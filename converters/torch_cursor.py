"""A position in bytes, and the numbers and texts that stand there."""

from __future__ import annotations

import struct

U8, U16, I32 = struct.Struct("<B"), struct.Struct("<H"), struct.Struct("<i")
U32, U64 = struct.Struct("<I"), struct.Struct("<Q")
_F64 = struct.Struct(">d")
_LINE = 512


class Cursor:
    """A place in a buffer; what lies behind the end is never read.

    Attributes:
        data: the buffer.
        position: where the next byte stands.
    """

    def __init__(self, data: memoryview, position: int) -> None:
        self.data = data
        self.position = position

    def take(self, size: int) -> memoryview:
        """Return the next `size` bytes.

        Raises:
            IndexError: there are fewer.
        """
        begin = self.position
        self.position += size
        if self.position > len(self.data):
            raise IndexError(size)
        return self.data[begin : self.position]

    def number(self, shape: struct.Struct) -> int:
        """Return the integer spelt as `shape`.

        Raises:
            struct.error: the buffer ends before.
        """
        found: int = shape.unpack_from(self.data, self.position)[0]
        self.position += shape.size
        return found

    def real(self) -> float:
        """Return the double, big-endian as pickles spell it.

        Raises:
            IndexError: the buffer ends before.
        """
        found: float = _F64.unpack(self.take(_F64.size))[0]
        return found

    def text(self, size: int) -> str:
        """Return the string in the next `size` bytes; unpaired surrogates are kept, as pickle does.

        Raises:
            IndexError: the buffer ends before.
            UnicodeDecodeError: the bytes are no UTF-8.
        """
        return str(self.take(size), "utf-8", "surrogatepass")

    def line(self) -> str:
        """Return the text up to the next line end, which must be near.

        Raises:
            ValueError: there is no line end, or the bytes are no UTF-8.
        """
        head = bytes(self.data[self.position : self.position + _LINE])
        line = head[: head.index(b"\n")]
        self.position += len(line) + 1
        return line.decode()
