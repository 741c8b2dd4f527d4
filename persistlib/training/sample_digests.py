"""The identity of samples, so that other data are noticed when a run goes on.

Labelled samples are digested one by one, with the names of their classes; arrays whole. Of a data
set that has no digest of its own a spread of samples is taken: an epoch of loading is too much to
begin with. A change in none of them goes unnoticed, which a data set prevents by an attribute
`digest`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from blake3 import blake3

from persistlib.digests import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

# Samples that stand for a data set; all of a smaller one.
_SPREAD = 256


def digest_of(samples: Any, size: int | None = None) -> str:
    """Return `blake3:` and the digest of values, or of `size` samples as far as they are taken."""
    hasher = blake3()
    if size is None:
        _add(hasher, samples)
    else:
        count = min(size, _SPREAD)
        hasher.update(b"%d of %d" % (count, size))
        for number in range(count):
            _add(hasher, samples[number * size // count])
    return PREFIX + hasher.hexdigest()


def digest_of_labelled(
    samples: Iterable[bytes], labels: Iterable[int], classes: Sequence[str], before: bytes = b""
) -> str:
    """Return the identity of samples with their classes, in their order.

    `blake3:` and the digest of rows: a sample's own digest, the name of its class in UTF-8, LF.

    Args:
        samples: the digest of each, 32 bytes.
        labels: the class of each, an index into `classes`.
        classes: their names.
        before: what is digested before the rows.
    """
    hasher = blake3(before)
    for sample, label in zip(samples, labels, strict=True):
        hasher.update(sample + classes[label].encode() + b"\n")
    return PREFIX + hasher.hexdigest()


def _add(hasher: blake3, value: Any) -> None:
    """Add a value: its kind, its extent and its bytes."""
    if hasattr(value, "detach"):
        value = _on_host(value)
    if hasattr(value, "__array_interface__"):
        _add_array(hasher, np.asarray(value))
    elif isinstance(value, Mapping):
        hasher.update(b"mapping %d " % len(value))
        for name, item in value.items():
            _add(hasher, (name, item))
    elif isinstance(value, (list, tuple)):
        hasher.update(b"sequence %d " % len(value))
        for item in value:
            _add(hasher, item)
    elif isinstance(value, (bool, int, float, str, bytes, type(None))):
        hasher.update(f"{type(value).__name__} {value!r} ".encode())
    else:
        # Another kind of object says what it is, and nothing of its values.
        hasher.update(f"object {type(value).__qualname__} ".encode())


def _on_host(value: Any) -> Any:
    """Return a tensor as an array; bfloat16, which numpy lacks, by its bits."""
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    host = value.detach().cpu()
    return (host.view(torch.int16) if host.dtype is torch.bfloat16 else host).numpy()


def _add_array(hasher: blake3, array: NDArray[Any]) -> None:
    hasher.update(f"array {array.dtype.str} {array.shape} ".encode())
    if array.dtype.hasobject:
        _add(hasher, array.tolist())
    elif array.size:
        hasher.update(np.ascontiguousarray(array).data.cast("B"))
