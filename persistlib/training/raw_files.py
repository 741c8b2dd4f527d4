"""Files of a data set, read whole within bounds, and unpacked no further than they should be.

Law: memory is bounded by the size of the file and what its header may claim, whichever is less:
nothing is allocated because a header says so.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import zlib

from persistlib.errors import Code, Finding, PersistlibError, error, finding

# Bytes of a file, and of what is unpacked from it.
MOST = 2 << 30
# Pictures pack to a fifth, seldom to a twentieth; a bomb to a thousandth.
_RATIO = 200
_FLOOR = 64 << 20
_PIECE = 1 << 20
_GZIP = b"\x1f\x8b"


def read_bytes(path: str, limit: int = MOST) -> bytes:
    """Return all bytes of a regular file.

    Raises:
        TrainingError: it cannot be read, is no regular file, or is larger than the limit.
    """
    try:
        # O_NONBLOCK: a named pipe must not hang the reader.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
                reason = f"no regular file of at most {limit >> 20:,} MiB"
                raise invalid(path, reason, "give such a file")
            return file.read(status.st_size)
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or str(fault)
        raise error(Code.DATA_MISSING, path, reason, "give a file that can be read") from fault


def unpacked(data: bytes, path: str, most: int) -> bytes:
    """Return up to `most` bytes of what a gzip file holds; other data is returned as it is.

    Raises:
        TrainingError: it is damaged, or so much is more than such a file can hold.
    """
    if not data.startswith(_GZIP):
        return data
    if most > min(MOST, max(_FLOOR, _RATIO * len(data))):
        reason = f"claims {most:,} bytes, far more than pictures unpack to"
        raise invalid(path, reason, "look at where it is from")
    pieces: list[bytes] = []
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            while most and (piece := file.read(min(_PIECE, most))):
                pieces.append(piece)
                most -= len(piece)
    except (OSError, EOFError, zlib.error) as fault:
        raise invalid(path, f"damaged: {fault}", "fetch it again") from fault
    return b"".join(pieces)


def text_of(path: str, limit: int) -> str:
    """Return a text in UTF-8, with or without a byte order mark.

    Raises:
        TrainingError: it cannot be read, is larger than the limit, or is no such text.
    """
    try:
        text = read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise invalid(path, f"no UTF-8: {fault}", "write it as UTF-8") from fault
    if "\0" in text:
        raise invalid(path, "holds a NUL character", "write it as plain text")
    return text


def unusable(location: str, reason: str, remedy: str) -> Finding:
    """Return the finding of data that cannot be used."""
    return finding(Code.DATA_INVALID, location, reason, remedy)


def invalid(location: str, reason: str, remedy: str) -> PersistlibError:
    """Return the error of data that cannot be used."""
    return error(Code.DATA_INVALID, location, reason, remedy)
