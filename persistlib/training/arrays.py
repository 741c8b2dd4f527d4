"""Labelled samples in an `.npz` file, read within bounds; nothing in it is unpickled.

It holds `images` (pixels, to be prepared as the model's manifest says) or `inputs` (what the model
takes), with samples along the first axis; `labels`, one a sample: names of classes, or whole
numbers; and it may hold `classes`, the names that these numbers stand for.
"""

from __future__ import annotations

import math
import os
import stat
import zipfile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from blake3 import blake3

from persistlib.errors import Code, Finding, PersistlibError, error_of, finding
from persistlib.training.raw_files import invalid, unusable
from persistlib.training.sample_digests import digest_of_labelled

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import IO

    from numpy.typing import NDArray

_MAGIC = b"PK\x03\x04"
# Bytes of all arrays: they are held in memory.
_MOST = 8 << 30
# Beyond the floor, what unpacks to so many times its bytes was made to fill the memory: deflate
# gives a thousand times at most, and arrays that say something far less.
_FLOOR = 512 << 20
_RATIO = 500
_SAMPLES = ("images", "inputs")
_LONE = "inputs.npy"
# Each may stand before a dot and a name, where there are several.
_NAMES = (*_SAMPLES, "labels", "targets", "classes")
_SHOWN = 5
_WHITE = 255
_CHANNELS = {(), (1,), (3,), (4,)}  # extents after height and width


class ArrayData(NamedTuple):
    """Labelled samples.

    Attributes:
        samples: along the first axis.
        labels: the class of each, an index into `classes`, int64.
        classes: names of the classes that the file names, that a model has, or that occur.
        is_prepared: the model takes the samples as they are; otherwise they are pixels.
    """

    samples: NDArray[Any]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    is_prepared: bool

    def counts(self) -> list[tuple[str, int]]:
        """Return each class with the number of its samples."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return list(zip(self.classes, map(int, counts), strict=True))

    def occurring(self) -> tuple[str, ...]:
        """Return the classes that have samples."""
        return tuple(name for name, count in self.counts() if count)

    @property
    def digests(self) -> tuple[bytes, ...]:
        """BLAKE3 of each sample's bytes."""
        rows = np.ascontiguousarray(self.samples)
        return tuple(blake3(row.tobytes()).digest() for row in rows)

    @property
    def digest(self) -> str:
        """The identity of samples and labels in their order (`digest_of_labelled`)."""
        return digest_of_labelled(self.digests, self.labels.tolist(), self.classes)


def is_archive(path: str) -> bool:
    """Return whether a path leads to a regular file that begins as an `.npz` file does."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except (OSError, ValueError):
        return False


def read_samples(path: str, known: Sequence[str] | None = None) -> ArrayData:
    """Return the labelled samples of a file.

    Args:
        path: the file.
        known: the classes that a model has, in order: what numbers stand for where the file names
            no classes.

    Raises:
        TrainingError: the file is damaged, or holds no labelled samples; every fault is reported.
    """
    return samples_of(read_arrays(path), path, known)


def samples_of(
    arrays: Mapping[str, NDArray[Any]], path: str, known: Sequence[str] | None = None
) -> ArrayData:
    """Return the labelled samples among the arrays of a file; see `read_samples`.

    Raises:
        TrainingError: there are none; every fault is reported.
    """
    given = [name for name in _SAMPLES if name in arrays]
    if len(given) != 1 or "labels" not in arrays:
        missing = [] if "labels" in arrays else ["`labels`"]
        missing += [] if given else ["`images` or `inputs`"]
        lack = f"; {' and '.join(missing)} missing" if missing else ": both `images` and `inputs`"
        reason = f"holds {', '.join(arrays) or 'no array that is known'}{lack}"
        raise invalid(path, reason, "store `labels`, and either `images` or `inputs`")
    samples = arrays[given[0]]
    return label_samples(
        samples,
        arrays["labels"],
        arrays.get("classes"),
        known=known,
        is_prepared=given[0] == "inputs",
        location=path,
    )


def has_named_inputs(path: str) -> bool:
    """Return whether an `.npz` file has several inputs by name, such as `inputs.tokens`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.startswith("inputs.") for name in archive.namelist() if name != _LONE)
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def label_samples(
    samples: NDArray[Any],
    labels: NDArray[Any],
    classes: NDArray[Any] | None = None,
    *,
    known: Sequence[str] | None,
    is_prepared: bool,
    location: str,
) -> ArrayData:
    """Return samples with the index of their class.

    Args:
        samples: along the first axis.
        labels: names or whole numbers.
        classes: the names that the numbers stand for.
        known: as `read_samples`.
        is_prepared: as `ArrayData`.
        location: what to name in an error.

    Raises:
        TrainingError: they do not fit each other; every fault is reported.
    """
    faults = [*_sample_faults(samples, labels, location, is_prepared=is_prepared)]
    faults += _label_faults(labels, classes, known, location)
    if faults:
        raise error_of(faults)
    order = known if classes is None else [str(name) for name in classes]
    if labels.dtype.kind == "U":
        names, indices = np.unique(labels, return_inverse=True)
        order = [str(name) for name in names] if classes is None or order is None else order
        table = np.array([order.index(str(name)) for name in names], np.int64)
        return ArrayData(samples, table[indices], tuple(order), is_prepared)
    numbers = labels.astype(np.int64)
    if order is None:
        present, numbers = np.unique(numbers, return_inverse=True)
        order = [str(number) for number in present]
    return ArrayData(samples, numbers.astype(np.int64), tuple(order), is_prepared)


def _sample_faults(
    samples: NDArray[Any], labels: NDArray[Any], location: str, *, is_prepared: bool
) -> Iterator[Finding]:
    what = "inputs" if is_prepared else "images"
    if labels.ndim != 1 or len(labels) != (len(samples) if samples.ndim else 0) or not len(labels):
        reason = f"labels of shape {labels.shape} for {what} of shape {samples.shape}"
        yield unusable(location, reason, "give one label for each, at least one")
    if is_prepared and (samples.dtype.kind not in "uif" or not np.isfinite(samples).all()):
        reason = f"{what} of {samples.dtype} that are no finite numbers"
        yield unusable(location, reason, "look at how they were made")
    if is_prepared:
        return
    yield from pixel_findings(samples, location)
    if samples.ndim not in {3, 4} or samples.shape[3:] not in _CHANNELS:
        reason = f"images of shape {samples.shape}"
        yield unusable(location, reason, "give (images, height, width[, 1, 3 or 4])")


def pixel_findings(images: NDArray[Any], location: str) -> Iterator[Finding]:
    """Yield why an array holds no 8-bit pixels: whatever its dtype, whole numbers from 0 to 255.

    What was scaled already would be scaled again.
    """
    if images.dtype.kind in "ui" and (not images.size or _within_bytes(images)):
        return
    reason = f"images of {images.dtype}"
    if images.size and images.dtype.kind in "uif" and np.isfinite(images).all():
        reason += f", from {images.min():g} to {images.max():g}"
    remedy = "give whole numbers from 0 to 255; or, ready for the model, as `inputs`"
    yield unusable(location, reason, remedy)


def _within_bytes(images: NDArray[Any]) -> bool:
    return bool(images.min() >= 0 and images.max() <= _WHITE)


def _label_faults(
    labels: NDArray[Any],
    classes: NDArray[Any] | None,
    known: Sequence[str] | None,
    location: str,
) -> Iterator[Finding]:
    """Yield what is wrong with the labels, each value once."""
    if classes is not None and (classes.dtype.kind != "U" or classes.ndim != 1):
        yield unusable(location, f"classes of {classes.dtype}", "give names, in one row")
        return
    names = None if classes is None else [str(name) for name in classes]
    if names is not None and len(set(names)) != len(names):
        yield unusable(location, "a name stands twice among the classes", "name each class once")
    if labels.dtype.kind not in "uiU":
        reason = f"labels of {labels.dtype}"
        yield unusable(location, reason, "give whole numbers, or names of classes")
        return
    values, counts = np.unique(labels, return_counts=True)
    bad = [(v, n) for v, n in zip(values, counts, strict=True) if not _fits(v, names, known)]
    limit = len(names if names is not None else known or ())
    for value, count in bad[:_SHOWN]:
        reason = f"label {value} of {count} samples; there are {limit} classes, from 0 on"
        yield finding(Code.DATA_CLASSES, location, reason, "correct the labels")
    if more := bad[_SHOWN:]:
        reason = f"{len(more)} more labels beyond the classes"
        yield finding(Code.DATA_CLASSES, location, reason, "correct the labels")


def _fits(value: Any, names: Sequence[str] | None, known: Sequence[str] | None) -> bool:
    """Return whether a label stands for a class; whether the model has it is asked later."""
    if isinstance(value, str):
        return names is None or value in names
    numbered = names if names is not None else known
    return int(value) >= 0 and (numbered is None or int(value) < len(numbered))


def read_arrays(path: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file that have a meaning here, such as `inputs` or `targets.size`.

    Raises:
        TrainingError: the file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _members(archive, path)
    except PersistlibError:
        raise
    except Exception as fault:
        # Decoders raise what their bytes lead them to: BadZipFile, zlib.error, TokenError.
        reason = getattr(fault, "strerror", None) or str(fault) or type(fault).__name__
        raise invalid(path, reason, "write it with numpy.savez") from fault


def _members(archive: zipfile.ZipFile, path: str) -> dict[str, NDArray[Any]]:
    members = {info.filename: info for info in archive.infolist()}
    if len(members) != len(archive.infolist()):
        raise invalid(path, "a name stands in it twice", "write the file again")
    arrays: dict[str, NDArray[Any]] = {}
    room = _MOST
    for file, info in members.items():
        name = file.removesuffix(".npy")
        if name != file and name.partition(".")[0] in _NAMES:
            if info.file_size > max(_FLOOR, _RATIO * info.compress_size):
                reason = f"{info.compress_size:,} bytes unpack to {info.file_size:,}"
                raise invalid(f"{path}: {name}", reason, "write it without compression")
            with archive.open(info) as member:
                arrays[name] = _array(member, info.file_size, room, f"{path}: {name}")
            room -= arrays[name].nbytes
    return arrays


def _array(member: IO[bytes], size: int, room: int, location: str) -> NDArray[Any]:
    """Return one array, its header held against the bytes that follow before they are read."""
    version = np.lib.format.read_magic(member)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise invalid(location, f"version {version} of the format", "write it with numpy.savez")
    shape, is_fortran, dtype = readers[version](member)
    count = math.prod(shape)
    if dtype.hasobject or dtype.kind not in "uifUb":
        raise invalid(location, f"elements of {dtype}", "give numbers, or texts as labels")
    if count * dtype.itemsize != size - member.tell():
        raise invalid(location, "its header and its size disagree", "write the file again")
    if count * dtype.itemsize > room:
        reason = f"{count * dtype.itemsize:,} bytes; all arrays may have {_MOST:,}"
        raise invalid(location, reason, "evaluate it in parts, or as a folder of images")
    data = bytearray(member.read())
    flat = np.frombuffer(data, dtype, count)
    return flat.reshape(shape, order="F" if is_fortran else "C")
