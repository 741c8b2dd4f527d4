"""Labelled images: where they come from, how they are told apart, and how they are divided.

Law: the same samples and the same seed give the same split, on every machine and with every
release of numpy: a sample's place is drawn from the digest of seed and sample, not from a
generator. Copies of one image are neighbours in that order, so they seldom part.
"""

from __future__ import annotations

import difflib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from blake3 import blake3

from persistlib.digests import PREFIX
from persistlib.errors import (
    Code,
    Finding,
    PersistlibError,
    error,
    error_of,
    finding,
    missing_extra,
)
from persistlib.images import read_image
from persistlib.manifest import schema
from persistlib.training.arrays import is_archive, read_samples

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

DIGITS = "sklearn:digits"
_DIGITS_WHITE = 16
# To train and to hold out.
_LEAST = 2
_SHOWN = 8  # names of classes in a message


class Split(NamedTuple):
    """Indices of the samples to train on, and of those held out, each in ascending order."""

    train: tuple[int, ...]
    valid: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ImageData:
    """Images with the index of their class.

    Attributes:
        name: what the manifest calls the data set.
        images: files, or arrays of 8-bit pixels.
        labels: the class of each image, an index into `classes`.
        classes: names of the classes.
        digests: BLAKE3 of each image's bytes.
    """

    name: str
    images: tuple[str | NDArray[np.uint8], ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    digests: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def digest(self) -> str:
        """The identity of samples and labels in their order.

        BLAKE3 over rows: the 32 bytes of the image's digest, its class's name in UTF-8, LF.
        """
        hasher = blake3()
        for image, label in zip(self.digests, self.labels, strict=True):
            hasher.update(image + self.classes[label].encode() + b"\n")
        return PREFIX + hasher.hexdigest()

    def split(self, *, fraction: float = 0.2, seed: int = 0) -> Split:
        """Return a stratified split: of each class about `fraction` is held out, at least one.

        Raises:
            UsageError: `fraction` is not between 0 and 1.
        """
        if not 0 < fraction < 1:
            raise error(Code.USAGE, "fraction", f"{fraction} is not between 0 and 1")
        valid: set[int] = set()
        for label in range(len(self.classes)):
            members = [index for index, own in enumerate(self.labels) if own == label]
            members.sort(key=lambda index: (_draw(seed, self.digests[index]), index))
            valid.update(members[: min(max(round(fraction * len(members)), 1), len(members) - 1)])
        train = tuple(index for index in range(len(self)) if index not in valid)
        return Split(train, tuple(sorted(valid)))

    def record(self, split: Split, *, fraction: float, seed: int) -> schema.Data:
        """Return what the manifest says of the data and its split."""
        return schema.Data(
            name=self.name,
            digest=self.digest,
            classes=len(self.classes),
            sizes={"train": len(split.train), "valid": len(split.valid)},
            split={"method": "stratified", "fraction": fraction, "seed": seed},
        )


def open_data(
    spec: str | os.PathLike[str], *, least: int = _LEAST, known: Sequence[str] | None = None
) -> ImageData:
    """Return labelled images.

    Args:
        spec: `sklearn:digits` (1,797 grey images of 8 x 8, brought to 0..255); a folder with one
            folder a class, whose names sort by code point, hidden files passed over; or an `.npz`
            file with `images` and `labels` (`training.arrays`).
        least: the fewest classes, and the fewest images of each.
        known: the classes that a model has, in order; any other class is a fault.

    Raises:
        TrainingError: there is no such data, or it cannot be used; every fault is reported.
        MissingExtra: scikit-learn is not installed.
    """
    spec = os.fspath(spec)
    if is_archive(spec):
        return _archive(spec, least, known)
    if not spec.startswith("sklearn:"):
        return _folder(spec, least, known)
    if spec != DIGITS:
        raise error(Code.DATA_MISSING, spec, "not known", f"use {DIGITS}, or a folder")
    data = _digits()
    if faults := [*unknown_classes(data.classes, known, spec)]:
        raise error_of(faults)
    return data


def unknown_classes(
    names: Iterable[str], known: Sequence[str] | None, path: str
) -> Iterator[Finding]:
    """Yield a finding for each class that a model does not have."""
    for name in names:
        if known is not None and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            shown = ", ".join(known[:_SHOWN]) + (", ..." if len(known) > _SHOWN else "")
            hint = f"did you mean {close[0]!r}?" if close else "rename it, or leave it out"
            reason = f"the model has no such class, but {len(known)}: {shown}"
            yield finding(Code.DATA_CLASSES, os.path.join(path, name), reason, hint)


def _digits() -> ImageData:
    try:
        from sklearn.datasets import load_digits
    except ImportError as fault:
        raise missing_extra("scikit-learn", "evaluate", "the digits data set") from fault
    digits: Any = load_digits()
    images = tuple(np.rint(digits.images * (255 / _DIGITS_WHITE)).astype(np.uint8))
    return ImageData(
        name=DIGITS,
        images=images,
        labels=tuple(map(int, digits.target)),
        classes=tuple(map(str, digits.target_names)),
        digests=tuple(blake3(image.tobytes()).digest() for image in images),
    )


def _archive(path: str, least: int, known: Sequence[str] | None) -> ImageData:
    """Return the images of an `.npz` file."""
    read = read_samples(path, known)
    if read.is_prepared:
        remedy = "give pixels, as `images`"
        raise error(Code.DATA_INVALID, path, "holds prepared `inputs`, no images", remedy)
    faults = [*unknown_classes(read.occurring(), known, path)]
    faults += [
        _fault(f"{path}: {name}", _too_few(count), "add images, or leave the class out")
        for name, count in read.counts()
        # A model that is judged may be shown some of its classes alone.
        if count < least and (count or known is None)
    ]
    if len(read.classes) < least:
        faults.append(_fault(path, f"{len(read.classes)} classes; at least {least} are needed"))
    if faults:
        raise error_of(faults)
    return ImageData(
        name=os.path.basename(path),
        images=tuple(read.samples),
        labels=tuple(map(int, read.labels)),
        classes=read.classes,
        digests=read.digests(),
    )


def _folder(path: str, least: int, known: Sequence[str] | None) -> ImageData:
    """Return the images of a folder with one folder a class."""
    classes = tuple(name for name in _names(path) if os.path.isdir(os.path.join(path, name)))
    faults = [*unknown_classes(classes, known, path)]
    if len(classes) < least:
        reason = f"{len(classes)} class folders; at least {least} are needed"
        faults.append(_fault(path, reason, "put each class's images into a folder of its own"))
    files: list[tuple[str, int]] = []
    for label, name in enumerate(classes):
        members = [os.path.join(path, name, member) for member in _names(os.path.join(path, name))]
        if not name.isprintable():
            faults.append(_fault(os.path.join(path, name), "no printable name", "rename it"))
        if len(members) < least:
            reason = _too_few(len(members))
            faults.append(_fault(os.path.join(path, name), reason, "add images, or remove it"))
        files.extend((member, label) for member in members)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = list(pool.map(partial(_examine, faults), [file for file, _ in files]))
    if faults:
        raise error_of(sorted(faults, key=lambda fault: fault.location))
    return ImageData(
        name=os.path.basename(os.path.abspath(path)),
        images=tuple(file for file, _ in files),
        labels=tuple(label for _, label in files),
        classes=classes,
        digests=tuple(digests),
    )


def _too_few(count: int) -> str:
    return f"{count} image; one must train and one be held out" if count else "no image"


def _examine(faults: list[Finding], path: str) -> bytes:
    """Return a file's digest; what is no readable image is added to the faults."""
    try:
        read_image(path)
        with open(path, "rb") as file:
            return blake3(file.read()).digest()
    except PersistlibError as fault:
        faults.append(_fault(path, fault.reason, "repair or remove it"))
    except OSError as fault:
        faults.append(_fault(path, str(fault.strerror), "repair or remove it"))
    return b""


def _names(path: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(path) if not name.startswith("."))
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or str(fault)
        remedy = f"give {DIGITS}, a folder with one folder a class, or an .npz file"
        raise error(Code.DATA_MISSING, path, reason, remedy) from fault


def _fault(location: str, reason: str, remedy: str = "") -> Finding:
    return finding(Code.DATA_INVALID, location, reason, remedy)


def _draw(seed: int, digest: bytes) -> bytes:
    return blake3(b"%d:" % seed + digest).digest()
