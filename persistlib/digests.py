"""Digests of buffers, tensors and files, and the identity of a set of weights.

Law: the weights identity depends on names, dtypes, shapes and bytes alone, never on order, on the
container or on ties: `weights_identity(rows) == weights_identity(shuffled(rows))`.

BLAKE3 (https://github.com/BLAKE3-team/BLAKE3-specs) is the digest of everything; SHA-256 is added
where hubs and supply-chain tools ask for it. Digests are lower-case hexadecimal; identities carry
the prefix `blake3:`.
"""

from __future__ import annotations

import operator
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from typing_extensions import Buffer

    from persistlib.dtypes import DType
    from persistlib.errors import PersistlibError

PREFIX = "blake3:"
# Below this a thread pool costs more than it saves (measured: 128 kB hash in about 30 us).
_WIDE = 1 << 20


class _Threads:
    """How many threads hashing may use: one in a forked child, where the pool is gone."""

    count: int = blake3.AUTO

    @classmethod
    def after_fork(cls) -> None:
        cls.count = 1


os.register_at_fork(after_in_child=_Threads.after_fork)


def digest(data: Buffer) -> str:
    """Return the BLAKE3 of `data` in hexadecimal, on all cores when it is large."""
    view = memoryview(data).cast("B") if memoryview(data).nbytes else b""
    threads = _Threads.count if len(view) >= _WIDE else 1
    return blake3(view, max_threads=threads).hexdigest()


class RunningDigest:
    """The BLAKE3 of bytes that come in parts; on all cores where a part is large.

    Args:
        alone: whether other cores have work of their own meanwhile and are left to it.
    """

    def __init__(self, *, alone: bool = False) -> None:
        self._hasher = blake3(max_threads=1 if alone else _Threads.count)

    def update(self, data: Buffer) -> None:
        """Add a part."""
        view = memoryview(data).cast("B") if memoryview(data).nbytes else b""
        self._hasher.update(view)

    def hexdigest(self) -> str:
        """Return the digest of all parts so far."""
        return self._hasher.hexdigest()


def digest_all(buffers: Sequence[Buffer]) -> list[str]:
    """Return the digest of each buffer, in order, using every core.

    Large buffers are hashed by all cores one after the other; the small ones are shared out.
    """
    digests = [""] * len(buffers)
    small: list[int] = []
    total = 0
    for index, buffer in enumerate(buffers):
        size = memoryview(buffer).nbytes
        if size >= _WIDE:
            digests[index] = digest(buffer)
        else:
            small.append(index)
            total += size
    workers = 1 if _Threads.count == 1 else min(os.cpu_count() or 1, 1 + total // _WIDE)

    def hash_some(indices: Sequence[int]) -> None:
        for index in indices:
            digests[index] = digest(buffers[index])

    if workers == 1:
        hash_some(small)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(hash_some, [small[start::workers] for start in range(workers)]))
    return digests


class TensorRow(NamedTuple):
    """What the weights identity knows of one tensor: its name, dtype, shape and bytes' digest."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    blake3: str


def weights_identity(rows: Iterable[TensorRow]) -> str:
    """Return the identity of a set of weights: `blake3:` and 64 hexadecimal digits.

    BLAKE3 over rows sorted by the name's UTF-8 bytes; a row is name, NUL, dtype (as safetensors
    spells it), NUL, shape in decimals joined by `x` (empty for a scalar), NUL, the 32 raw digest
    bytes, LF. Aliases are rows of their own, so tied and untied copies share one identity. Test
    vectors stand in `fixtures/vectors/`.

    Raises:
        FormatError: a name holds NUL or an unpaired surrogate, or stands twice.
    """
    hasher = blake3()
    seen: bytes | None = None
    named = ((encode_name(row.name), row) for row in rows)
    for name, row in sorted(named, key=operator.itemgetter(0)):
        if name == seen:
            raise _bad_name(row.name, "", "the name stands twice")
        seen = name
        shape = "x".join(str(extent) for extent in row.shape).encode()
        hasher.update(b"\0".join((name, row.dtype.name.encode(), shape, b"")))
        hasher.update(bytes.fromhex(row.blake3) + b"\n")
    return PREFIX + hasher.hexdigest()


def encode_name(name: str, location: object = "") -> bytes:
    """Return a tensor name's UTF-8 bytes.

    Args:
        name: of the tensor.
        location: of what holds it, for the error.

    Raises:
        FormatError: the name holds NUL, or cannot be encoded.
    """
    try:
        encoded = name.encode()
    except UnicodeEncodeError as fault:
        raise _bad_name(ascii(name), location, "the name is not valid Unicode") from fault
    if b"\0" in encoded:
        raise _bad_name(name, location, "the name holds a NUL character")
    return encoded


def _bad_name(name: str, location: object, reason: str) -> PersistlibError:
    where = f"{location}: {name}" if location else name
    return error(Code.FORMAT_NAME, where, reason, "rename the tensor where it was saved")
