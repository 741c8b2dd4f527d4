"""Labelled images: where they come from, how they are told apart, and how they are divided.

Law: the same samples and the same seed give the same split, on every machine and with every
release of numpy: a sample's place is drawn from the digest of seed and sample, not from a
generator. Copies of one image are neighbours in that order, so they seldom part.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from blake3 import blake3
from torch.utils.data import Dataset

from persistlib import preprocessing
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

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from persistlib.preprocessing import ImagePreprocessing

DIGITS = "sklearn:digits"
# Prepared images are kept in memory up to this; beyond, each is prepared whenever it is asked for.
_MEMORY = 1 << 30
_DIGITS_WHITE = 16
_MIN_CLASS = 2


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


class PreparedImages(Dataset[tuple[torch.Tensor, int]]):
    """Some of the images, prepared as the model takes them, each with the index of its class.

    Attributes:
        fixed: each is the same every time; nothing is augmented.
    """

    fixed = True

    def __init__(self, data: ImageData, indices: Sequence[int], record: ImagePreprocessing) -> None:
        self._images = [data.images[index] for index in indices]
        self._labels = [data.labels[index] for index in indices]
        self._record = record
        self._prepared: torch.Tensor | None = None
        size = record.size
        if size and 4 * record.channels * size.height * size.width * len(indices) <= _MEMORY:
            self._prepared = torch.from_numpy(preprocessing.apply(self._images, record))

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self._prepared is not None:
            return self._prepared[index], self._labels[index]
        image = preprocessing.apply([self._images[index]], self._record)[0]
        return torch.from_numpy(image), self._labels[index]


def open_data(spec: str | os.PathLike[str]) -> ImageData:
    """Return labelled images.

    Args:
        spec: `sklearn:digits` (1,797 grey images of 8 x 8, brought to 0..255), or a folder with
            one folder a class; names sort by code point, hidden files are passed over.

    Raises:
        TrainingError: there is no such data, or it cannot be trained on; every fault is reported.
        MissingExtra: scikit-learn is not installed.
    """
    spec = os.fspath(spec)
    if spec.startswith("sklearn:"):
        if spec != DIGITS:
            raise error(Code.DATA_MISSING, spec, "not known", f"use {DIGITS}, or a folder")
        return _digits()
    return _folder(spec)


def _digits() -> ImageData:
    try:
        from sklearn.datasets import load_digits
    except ImportError as fault:
        raise missing_extra("scikit-learn", "finetune", "the digits data set") from fault
    digits: Any = load_digits()
    images = tuple(np.rint(digits.images * (255 / _DIGITS_WHITE)).astype(np.uint8))
    return ImageData(
        name=DIGITS,
        images=images,
        labels=tuple(map(int, digits.target)),
        classes=tuple(map(str, digits.target_names)),
        digests=tuple(blake3(image.tobytes()).digest() for image in images),
    )


def _folder(path: str) -> ImageData:
    """Return the images of a folder with one folder a class."""
    faults: list[Finding] = []
    classes = tuple(name for name in _names(path) if os.path.isdir(os.path.join(path, name)))
    if len(classes) < _MIN_CLASS:
        reason = f"{len(classes)} class folders; at least {_MIN_CLASS} are needed"
        faults.append(_fault(path, reason, "put each class's images into a folder of its own"))
    files: list[tuple[str, int]] = []
    for label, name in enumerate(classes):
        members = [os.path.join(path, name, member) for member in _names(os.path.join(path, name))]
        if not name.isprintable():
            faults.append(_fault(os.path.join(path, name), "no printable name", "rename it"))
        if len(members) < _MIN_CLASS:
            reason = f"{len(members) or 'no'} image; one must train and one be held out"
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
        remedy = f"give {DIGITS}, or a folder with one folder a class"
        raise error(Code.DATA_MISSING, path, reason, remedy) from fault


def _fault(location: str, reason: str, remedy: str) -> Finding:
    return finding(Code.DATA_INVALID, location, reason, remedy)


def _draw(seed: int, digest: bytes) -> bytes:
    return blake3(b"%d:" % seed + digest).digest()
