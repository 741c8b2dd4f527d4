"""MNIST, and what comes in the same files: Fashion-MNIST, KMNIST, EMNIST; plain or packed by gzip.

An idx file is two zero bytes, the kind of number (8: uint8), the number of axes, the extent of
each as a big-endian uint32, and the numbers (http://yann.lecun.com/exdb/mnist). Images and labels
are files of their own, `...-images-idx3-ubyte` and `...-labels-idx1-ubyte`, for training and for
test.

Law: the extents that a header claims are held against the bytes that follow before they are used.
"""

from __future__ import annotations

import math
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from persistlib.errors import Code, Finding, PersistlibError, Severity, error, finding
from persistlib.training import splits
from persistlib.training.array_images import image_data
from persistlib.training.cifar import BY
from persistlib.training.labelled import Survey, class_findings
from persistlib.training.raw_files import MOST, invalid, read_bytes, unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from persistlib.training.labelled import Asked

_UINT8 = 8
_MAGIC = 4
_EDGE = 8192
# What torchvision puts below a root, and what archives unpack to.
_BELOW = ("", "raw", "MNIST/raw", "FashionMNIST/raw", "KMNIST/raw", "EMNIST/raw", "gzip")
_NAME = re.compile(
    r"(?P<stem>.*?)(?P<part>train|t10k|test)-(?P<kind>images|labels)[-.]idx[13]-ubyte(?:\.gz)?",
    re.IGNORECASE,
)
_CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


class _Pair(NamedTuple):
    """Files of images and of labels."""

    part: str
    images: str
    labels: str


def mnist(path: str, asked: Asked) -> Survey:
    """Return MNIST, or another data set in its files, whose classes are called by their numbers.

    Raises:
        TrainingError: the files are not there, or cannot be used; every fault is reported.
    """
    return _survey(path, asked)


def fashion(path: str, asked: Asked) -> Survey:
    """Return Fashion-MNIST, whose classes are called by their names.

    Raises:
        TrainingError: as `mnist`.
    """
    return _survey(path, asked, names=_CLOTHES)


def emnist(path: str, asked: Asked) -> Survey:
    """Return EMNIST, whose files hold images with rows and columns exchanged.

    Raises:
        TrainingError: as `mnist`.
    """
    return _survey(path, asked, is_turned=True)


def _survey(
    path: str, asked: Asked, *, names: Sequence[str] | None = None, is_turned: bool = False
) -> Survey:
    folder, pairs, findings = _pairs(path)
    images: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.uint8]] = []
    for pair in pairs:
        try:
            pixels, answers = _read(pair)
        except PersistlibError as fault:
            findings += fault.findings
            continue
        images.append(pixels.transpose(0, 2, 1) if is_turned else pixels)
        labels.append(answers)
    if len({item.shape[1:] for item in images}) > 1:
        shapes = " and ".join(f"{item.shape[1]} x {item.shape[2]}" for item in images)
        findings.append(finding(Code.DATA_INVALID, folder, f"images of {shapes} pixels"))
        del images[1:], labels[1:]
    parts = [pair.part for pair, own in zip(pairs, labels, strict=False) for _ in own]
    data = _joined(folder, images, labels, names, parts)
    if all(item.severity != "error" for item in findings):
        findings += class_findings(data, asked, path)
    return Survey(data, tuple(findings))


def _joined(
    folder: str,
    images: Sequence[NDArray[np.uint8]],
    labels: Sequence[NDArray[np.uint8]],
    names: Sequence[str] | None,
    parts: Sequence[str],
) -> Any:
    """Return all images as one data set; classes without a name are called by their numbers."""
    answers = np.concatenate([np.empty(0, np.uint8), *labels]).astype(np.int64)
    if names is None or answers.max(initial=0) >= len(names):
        # EMNIST's letters count from 1: only numbers that occur are classes.
        present, answers = np.unique(answers, return_inverse=True)
        names = [*map(str, present)]
    pixels = np.concatenate(images) if images else np.empty((0, 1, 1), np.uint8)
    division = splits.Division(tuple(parts), BY) if len(set(parts)) > 1 else None
    return image_data(os.path.basename(os.path.abspath(folder)), pixels, answers, names, division)


def _pairs(path: str) -> tuple[str, list[_Pair], list[Finding]]:
    """Return the folder with the files, the pairs that are in it, and what is missing.

    Raises:
        TrainingError: there are no such files, or those of several data sets.
    """
    for below in _BELOW:
        folder = os.path.join(path, below) if below else path
        if found := [*_files(folder)]:
            break
    else:
        remedy = "name the folder that holds train-images-idx3-ubyte and its companions"
        raise error(Code.DATA_MISSING, path, "holds no idx files of images", remedy)
    stems = sorted({stem for stem, *_ in found})
    if len(stems) > 1:
        remedy = "put each data set into a folder of its own"
        raise error(Code.DATA_INVALID, folder, f"several data sets: {', '.join(stems)}", remedy)
    # A plain file goes before its packed copy: files come in the order of their names.
    files: dict[tuple[str, str], str] = {}
    for _, part, kind, name in found:
        files.setdefault((part, kind), os.path.join(folder, name))
    pairs: list[_Pair] = []
    findings: list[Finding] = []
    for part in (splits.TRAIN, splits.TEST):
        own = [files.get((part, kind)) for kind in ("images", "labels")]
        if all(own):
            pairs.append(_Pair(part, str(own[0]), str(own[1])))
        elif any(own):
            reason = f"of the part {part} images or labels are missing"
            findings.append(finding(Code.DATA_INVALID, folder, reason, "add that file"))
        else:
            reason = f"the part {part} is missing: the data set is not whole"
            findings.append(finding(Code.DATA_INVALID, folder, reason, severity=Severity.WARNING))
    return folder, pairs, findings


def _files(folder: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield what stands before it in a name, the part, the kind, and the name of each idx file."""
    try:
        names = sorted(os.listdir(folder))
    except (OSError, ValueError):
        return
    for name in names:
        if (match := _NAME.fullmatch(name)) and os.path.isfile(os.path.join(folder, name)):
            part = splits.TRAIN if match["part"].lower() == "train" else splits.TEST
            yield match["stem"], part, match["kind"].lower(), name


def _read(pair: _Pair) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the images and labels of a part.

    Raises:
        TrainingError: one of them is damaged, or they do not fit each other.
    """
    images, labels = read_idx(pair.images, 3), read_idx(pair.labels, 1)
    if len(images) != len(labels) or not len(labels):
        reason = f"{len(labels):,} labels for {len(images):,} images"
        raise invalid(pair.labels, reason, "fetch both again")
    return images, labels


def read_idx(path: str, axes: int) -> NDArray[np.uint8]:
    """Return the uint8 numbers of an idx file with so many axes.

    Raises:
        TrainingError: it is damaged, or holds something else.
    """
    packed = read_bytes(path)
    begin = _MAGIC * (axes + 1)
    head = unpacked(packed, path, begin)
    if len(head) < begin or head[:_MAGIC] != bytes((0, 0, _UINT8, axes)):
        raise invalid(path, f"no idx file of uint8 numbers with {axes} axes", "fetch it again")
    shape = tuple(int(extent) for extent in np.frombuffer(head, ">u4", axes, _MAGIC))
    size = math.prod(shape)
    if size > MOST or any(not 1 <= extent <= _EDGE for extent in shape[1:]):
        raise invalid(path, f"claims {' x '.join(map(str, shape))} numbers", "fetch it again")
    data = unpacked(packed, path, begin + size + 1)
    if len(data) != begin + size:
        more = "more than " if len(data) > begin + size else f"{len(data) - begin:,} of "
        raise invalid(path, f"holds {more}the {size:,} bytes that it claims", "fetch it again")
    return np.frombuffer(data, np.uint8, size, begin).reshape(shape)
