"""Inputs that a derived graph is measured with, and that its ranges are taken from; no torch.

Law: the same bundle, folder and seed give the same inputs.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from persistlib import preprocessing
from persistlib.digests import PREFIX, digest
from persistlib.dtypes import DType
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from persistlib.files import StrPath
    from persistlib.manifest.schema import Interface, TensorSpec

    Arrays = Mapping[str, NDArray[Any]]

_BATCH, _EXTENT = 2, 8  # of free axes, where no example tells
_IMAGES = 16  # at once
_MOST = 512  # images of a folder; more move no range
_SEED = 0


class Labelled(NamedTuple):
    """Inputs of one run, and the class of each row where that is known."""

    arrays: Arrays
    labels: tuple[int, ...] = ()


def drawn(specs: Sequence[TensorSpec], shown: Arrays, sizes: Sequence[int]) -> list[Arrays]:
    """Return a run of inputs for each size of the free first axes, drawn by a seed.

    Args:
        specs: what the graph takes.
        shown: example inputs by name, as far as there are; floats have their mean and deviation,
            and rows of other numbers are taken from them.
        sizes: of the free first axes.
    """
    runs: list[Arrays] = []
    for index, size in enumerate(sizes):
        generator = np.random.default_rng([_SEED, index])
        runs.append({s.name: _one(s, shown.get(s.name), size, generator) for s in specs})
    return runs


def _one(
    spec: TensorSpec, shown: NDArray[Any] | None, size: int, generator: np.random.Generator
) -> NDArray[Any]:
    dtype = DType[spec.dtype].numpy
    extents = (
        shown.shape
        if shown is not None
        else tuple(
            extent if isinstance(extent, int) else (_EXTENT if axis else _BATCH)
            for axis, extent in enumerate(spec.shape)
        )
    )
    is_free = bool(spec.shape) and isinstance(spec.shape[0], str)
    shape = (size, *extents[1:]) if is_free else extents
    if DType[spec.dtype].is_float:
        mean, deviation = (0.0, 1.0) if shown is None else _moments(shown)
        return np.asarray(mean + deviation * generator.standard_normal(shape)).astype(dtype)
    if shown is None or not shown.size:
        return generator.integers(0, 2, shape).astype(dtype)
    if not is_free:
        return shown
    return shown[generator.integers(0, len(shown), size)]


def _moments(shown: NDArray[Any]) -> tuple[float, float]:
    values = shown.astype(np.float64)
    return float(values.mean()), float(values.std()) or 1.0


def images(folder: StrPath, interface: Interface, name: str) -> list[Labelled]:
    """Return the images of a folder, prepared as the model takes them.

    Images in folders that are called as the model's classes are labelled.

    Args:
        folder: of images, or of folders of images.
        interface: how images are prepared, and the names of classes.
        name: of the input that takes them.

    Raises:
        UsageError: the folder is none or holds no image.
        SessionError: the bundle does not say how images are prepared, or one cannot be read.
    """
    if interface.preprocessing is None:
        remedy = "save the bundle with interface={'preprocessing': ...}"
        raise error(Code.PREPROCESSING, "interface.preprocessing", "not recorded", remedy)
    classes = {label: index for index, label in enumerate(interface.labels or ())}
    found = sorted(_found(os.fspath(folder), classes))
    if not found:
        raise error(Code.USAGE, folder, "holds no image", "name a folder of images")
    step = max(len(found) // _MOST, 1)  # evenly, so that every class is among them
    chosen = found[::step][:_MOST]
    runs: list[Labelled] = []
    for start in range(0, len(chosen), _IMAGES):
        part = chosen[start : start + _IMAGES]
        array = preprocessing.apply([path for path, _ in part], interface.preprocessing)
        labels = tuple(label for _, label in part if label is not None)
        runs.append(Labelled({name: array}, labels if len(labels) == len(part) else ()))
    return runs


def _found(folder: str, classes: Mapping[str, int]) -> Iterator[tuple[str, int | None]]:
    try:
        entries = list(os.scandir(folder))
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or str(fault)
        raise error(Code.USAGE, folder, reason, "name a folder of images") from fault
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            for inner in os.scandir(entry.path):
                if inner.is_file() and not inner.name.startswith("."):
                    yield inner.path, classes.get(entry.name)
        elif entry.is_file():
            yield entry.path, None


def require_telling(runs: Sequence[Arrays], location: object) -> None:
    """Refuse inputs from which no range can be taken.

    Raises:
        ExportError: there are none, one is not finite, every row is the same, or an input of
            floating-point numbers has one value alone.
    """
    remedy = "give --calibration a folder of real images, or save the bundle with more examples"
    if not runs:
        raise error(Code.CALIBRATION, location, "nothing to take ranges from", remedy)
    rows: set[str] = set()
    for name in runs[0]:
        values = [run[name] for run in runs]
        if values[0].dtype.kind in "iub":
            continue
        wide = [array.astype(np.float64) for array in values]
        if not all(np.isfinite(array).all() for array in wide):
            raise error(Code.CALIBRATION, f"{location}: {name}", "NaN or infinity", remedy)
        low = min(float(array.min(initial=np.inf)) for array in wide)
        high = max(float(array.max(initial=-np.inf)) for array in wide)
        if not low < high:
            raise error(Code.CALIBRATION, f"{location}: {name}", "one value alone", remedy)
    for run in runs:
        parts = [np.atleast_1d(array) for array in run.values()]
        for row in range(min(len(part) for part in parts)):
            rows.add(digest(b"".join(part[row].tobytes() for part in parts)))
    if len(rows) < 2:
        raise error(Code.CALIBRATION, location, "one sample, or the same one again", remedy)


def digest_of(runs: Sequence[Arrays]) -> str:
    """Return the digest of all inputs in order."""
    hashes = "".join(digest(run[name].tobytes()) for run in runs for name in sorted(run))
    return PREFIX + digest(hashes.encode())
