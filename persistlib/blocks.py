"""Windows of bytes, cut anew into blocks of whole elements.

Law: `b"".join(recut(windows, size, total)) == b"".join(windows)`, and every block but the last has
`size` bytes. A reader cuts its windows where it likes, in the middle of an element too; of elements
that are narrower than a byte a block holds a number that fills bytes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np

    from persistlib.checkpoint import Entry

# Elements that are worked on at a time; as doubles they fill 8 MB.
BLOCK = 1 << 20
_BYTE = 8


def recut(windows: Iterable[memoryview], size: int, total: int) -> Iterator[memoryview]:
    """Yield the same bytes in blocks, as views where a block lies within one window.

    A block may change when the next one is asked for.

    Args:
        windows: the bytes, in order.
        size: bytes of every block but the last.
        total: bytes of all windows together.
    """
    held = bytearray()
    rest = total
    for window in windows:
        start = 0
        if held:
            start = min(size - len(held), window.nbytes)
            held += window[:start]
            if len(held) < min(size, rest):
                continue
            yield memoryview(held)
            rest -= len(held)
            held = bytearray()
        while (step := min(size, rest)) and window.nbytes - start >= step:
            yield window[start : start + step]
            start, rest = start + step, rest - step
        held += window[start:]


def arrays(windows: Iterable[memoryview], entry: Entry, count: int = BLOCK) -> Iterator[np.ndarray]:
    """Yield the elements of an entry in flat arrays, the last one smaller.

    An array may change when the next one is asked for.

    Args:
        windows: the bytes, in order.
        entry: whose they are.
        count: elements of every array but the last; a multiple of 8.
    """
    left = math.prod(entry.shape)
    for block in recut(windows, count * entry.dtype.value.bits // _BYTE, entry.nbytes):
        yield entry.dtype.unpack(block, min(count, left))
        left -= count
