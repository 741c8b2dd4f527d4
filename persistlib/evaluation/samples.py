"""Labelled samples of a model's own classes, whatever they come from.

Law: every label is an index into the classes of the model. What does not fit is reported before
anything runs, all of it together.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from persistlib import preparing, preprocessing
from persistlib.errors import Code, Finding, PersistlibError, error, error_of, finding, warn
from persistlib.evaluation.inputs import cut
from persistlib.evaluation.seen import tell_seen
from persistlib.training.arrays import ArrayData, is_archive, label_samples, read_samples
from persistlib.training.data_sources import open_data
from persistlib.training.labelled import ImageData, unknown_classes
from persistlib.training.splits import again, part_of
from persistlib.training.tasks import CLASSIFIER
from persistlib.wording import first_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from persistlib.evaluation.inputs import Inputs
    from persistlib.manifest.schema import Data, Interface
    from persistlib.preparing import Preparation
    from persistlib.training.splits import Divisible
    from persistlib.training.tasks import Head

_SHOWN = 8
_GIVEN = "data"
_PAIR = 2
_NO_NAMES = "give interface= with labels, or an .npz file whose labels are numbers"


@dataclass(frozen=True, slots=True)
class Samples:
    """Labelled samples.

    Attributes:
        name: what they are called.
        digest: of samples and labels in their order.
        items: image files, arrays of pixels, or what the model takes, one a sample; of several
            inputs by name, samples along the first axis.
        targets: by head, a row a sample; the class of each, int64, of a classifier.
        classes: the model's, in the order of its scores; empty where it names none.
        preprocessing: how an item becomes an input; None where it is one already.
        held_out: whether these are what a training run held out, and no others.
        part: the only part that these are, of data that come divided.
        heads: what the model's outputs are for.
        digests: of each sample, by which copies are known.
        source: the data that they are of, which a manifest may say the division of; None for
            arrays, which nobody divides.
        places: their places in the source; None for all of it.
    """

    name: str
    digest: str
    items: Sequence[Any] | Mapping[str, NDArray[Any]]
    targets: Mapping[str, NDArray[Any]]
    classes: tuple[str, ...]
    preprocessing: Preparation | None
    held_out: bool = False
    part: str | None = None
    heads: tuple[Head, ...] = CLASSIFIER
    digests: tuple[bytes, ...] = ()
    source: Divisible | None = None
    places: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        which = ", held out" if self.held_out else f", part {self.part}" if self.part else ""
        return f"Samples({self.name!r}, {len(self):,} samples{which})"

    @property
    def labels(self) -> NDArray[Any]:
        """The targets of the first head."""
        return self.targets[self.heads[0].name]

    def inputs(self, start: int, stop: int) -> Inputs:
        """Return what the model takes of some samples.

        Raises:
            SessionError: an image cannot be read, or images end with different shapes.
        """
        if isinstance(self.items, Mapping):
            return cut(self.items, start, stop)
        items = self.items[start:stop]
        if self.preprocessing is None:
            return np.stack(items)
        return preparing.apply(items, self.preprocessing)


def open_samples(
    data: Any,
    interface: Interface,
    trained: Data | None = None,
    *,
    held_out: bool = False,
    part: str | None = None,
    split: str | os.PathLike[str] | None = None,
) -> Samples:
    """Return labelled samples of a model's classes.

    Args:
        data: as `open_data`; an `.npz` file with `inputs`; `ImageData`; or a pair of inputs and
            labels.
        interface: the model's classes, and how an image becomes its input.
        trained: what the model was trained on.
        held_out: whether to take only what the training held out, which `trained` says.
        part: take only this part of data that come divided: train, valid or test.
        split: a file that divides them (`split_files`).

    Raises:
        TrainingError: there is no such data, or it does not fit the model; every fault is reported.
        SessionError: images are given and nothing says how they are prepared.
        MissingExtra: a package that the data needs is not installed.
    """
    known = interface.labels
    read = _read(data, known, split)
    chosen = None if part is None else _part(read, part)
    is_prepared = isinstance(read, ArrayData) and read.is_prepared
    if not is_prepared and interface.preprocessing is None:
        raise unprepared()
    name = read.name if isinstance(read, ImageData) else named(data)
    samples = Samples(
        name=name,
        digest=read.digest,
        items=read.images if isinstance(read, ImageData) else list(read.samples),
        targets={"": _indices(read, known, name)},
        classes=tuple(known or ()),
        preprocessing=None if is_prepared else preprocessing.parse(interface.preprocessing or {}),
        digests=read.digests,
        source=read if isinstance(read, ImageData) else None,
    )
    if held_out:
        return _held_out(samples, read, trained)
    if chosen is not None:
        samples = replace(_chosen(samples, chosen), part=part)
    tell_seen(samples, trained)
    tell_absent(samples)
    return samples


def unprepared() -> PersistlibError:
    """Return the error of images that nobody says how to prepare."""
    remedy = "give prepared arrays: an .npz file with `inputs` and `labels`"
    return error(Code.PREPROCESSING, "interface.preprocessing", "not recorded", remedy)


def named(data: Any) -> str:
    """Return what data are called: a file's name, without a place on somebody's machine."""
    return os.path.basename(os.fspath(data)) if isinstance(data, (str, os.PathLike)) else _GIVEN


def _read(
    data: Any, known: Sequence[str] | None, split: str | os.PathLike[str] | None
) -> ImageData | ArrayData:
    if isinstance(data, ImageData):
        if faults := [*unknown_classes(data.classes, known, data.name)]:
            raise error_of(faults)
        return data
    if isinstance(data, (str, os.PathLike)):
        path = os.fspath(data)
        if not is_archive(path):
            return open_data(path, least=1, known=known, split=split)
        read = read_samples(path, known)
        if not read.is_prepared:
            return open_data(path, least=1, known=known, split=split)
    else:
        path = _GIVEN
        read = _pair(data, known)
    if faults := [*unknown_classes(read.occurring(), known, path)]:
        raise error_of(faults)
    return read


def _pair(data: Any, known: Sequence[str] | None) -> ArrayData:
    if not isinstance(data, (tuple, list)) or len(data) != _PAIR:
        reason = f"a {type(data).__name__} is no data"
        remedy = "give a folder, an .npz file, sklearn:digits, or a pair (inputs, labels)"
        raise error(Code.DATA_INVALID, _GIVEN, reason, remedy)
    samples, labels = (np.asarray(part) for part in data)
    return label_samples(samples, labels, known=known, is_prepared=True, location=_GIVEN)


def _indices(
    read: ImageData | ArrayData, known: Sequence[str] | None, name: str
) -> NDArray[np.int64]:
    """Return the labels as indices into the model's classes.

    Raises:
        TrainingError: a name stands for no class, or for several.
    """
    if known is not None and tuple(read.classes) == tuple(known):
        table = list(range(len(known)))
    elif known is not None:
        if faults := [*_ambiguous(read.classes, known, name)]:
            raise error_of(faults)
        places = {label: index for index, label in enumerate(known)}
        table = [places.get(label, -1) for label in read.classes]
    elif isinstance(read, ArrayData) and all(c.isascii() and c.isdecimal() for c in read.classes):
        table = [int(label) for label in read.classes]
    else:
        raise error(Code.DATA_CLASSES, name, "the model does not name its classes", _NO_NAMES)
    return np.array(table, np.int64)[np.asarray(read.labels, np.int64)]


def _ambiguous(names: Sequence[str], known: Sequence[str], path: str) -> Iterator[Finding]:
    counts = Counter(known)
    for name in names:
        if counts[name] > 1:
            reason = f"the model has {counts[name]} classes of this name"
            remedy = "give labels as numbers, in an .npz file without `classes`"
            yield finding(Code.DATA_CLASSES, os.path.join(path, name), reason, remedy)


def tell_absent(samples: Samples) -> None:
    """Warn of the model's classes that the data has no sample of."""
    present = set(map(int, samples.labels))
    absent = [name for index, name in enumerate(samples.classes) if index not in present]
    if absent:
        count = f"{len(absent)} of the model's {len(samples.classes)} classes"
        remedy = "averages are over the classes that occur"
        warn(
            Code.DATA_CLASSES,
            samples.name,
            f"no sample of {count}: {first_of(absent, _SHOWN)}",
            remedy,
        )


def _held_out(samples: Samples, read: ImageData | ArrayData, trained: Data | None) -> Samples:
    """Return what the training run held out.

    Raises:
        TrainingError: this is not the data it was trained on, or how it was split is not recorded.
    """
    if not isinstance(read, ImageData) or trained is None or "method" not in trained.split:
        reason = "the manifest does not say what the training held out"
        raise error(Code.DATA_INVALID, samples.name, reason, "judge it on other data")
    if trained.digest != samples.digest:
        reason = f"these are not the samples it was trained on, {trained.name} {trained.digest}"
        remedy = "give the data of the training, or leave out --held-out"
        raise error(Code.DATA_INVALID, samples.name, reason, remedy)
    if (split := again(read, trained.split)) is None:
        reason = f"not divided as for the training, {trained.split}"
        remedy = "give the split file of the training (--split)"
        raise error(Code.DATA_INVALID, samples.name, reason, remedy)
    return replace(_chosen(samples, split.valid), held_out=True)


def _part(read: ImageData | ArrayData, part: str) -> tuple[int, ...]:
    """Return the samples of a part that the data come divided into.

    Raises:
        TrainingError: they have no such part.
    """
    if isinstance(read, ImageData):
        return part_of(read, part)
    raise error(Code.DATA_INVALID, _GIVEN, "arrays come undivided", "leave the part out")


def _chosen(samples: Samples, chosen: Sequence[int]) -> Samples:
    """Return some of the samples of a classifier."""
    assert not isinstance(samples.items, Mapping)
    items = [samples.items[index] for index in chosen]
    digests = tuple(samples.digests[index] for index in chosen)
    targets = {"": samples.labels[[*chosen]]}
    places = tuple(chosen)
    return replace(samples, items=items, targets=targets, digests=digests, places=places)
