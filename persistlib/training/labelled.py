"""Labelled images, and what is found when data are looked through."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

from persistlib.digests import PREFIX
from persistlib.errors import Code, Finding, error_of, finding, tell
from persistlib.manifest import schema
from persistlib.training import splits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from persistlib.training.splits import Division, Split
    from persistlib.training.tables import TableData

# To train and to hold out.
LEAST = 2
_NUMBERED = re.compile(r"([^0-9]*)([0-9]*)")
_SHOWN = 8  # names of classes in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageData:
    """Images with the index of their class.

    Attributes:
        name: what the manifest calls the data set.
        images: files, or arrays of 8-bit pixels.
        labels: the class of each image, an index into `classes`.
        classes: names of the classes.
        digests: BLAKE3 of each image's bytes.
        division: the parts that they come divided into; None where they are not.
        sizes: height and width of each image; empty where all are of one size.
    """

    name: str
    images: tuple[str | NDArray[np.uint8], ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    digests: tuple[bytes, ...]
    division: Division | None = None
    sizes: tuple[tuple[int, int], ...] = ()

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

    def split(self, *, fraction: float | None = None, seed: int = 0) -> Split:
        """Return the data's own division, or a stratified split (`splits.divide`).

        Raises:
            UsageError: `fraction` is not between 0 and 1.
        """
        return splits.divide(self, fraction, seed)

    def record(self, split: Split) -> schema.Data:
        """Return what the manifest says of the data and its split."""
        return schema.Data(
            name=self.name,
            digest=self.digest,
            classes=len(self.classes),
            sizes=split.sizes,
            split={**split.how},
        )


class Asked(NamedTuple):
    """How data are to be read.

    Attributes:
        least: the fewest classes, and the fewest samples of each; 1 where a model is judged.
        known: the classes that a model has, in order; any other class is a fault.
        listing: a file that says which images of a folder belong to which part.
        target: columns of a table that are to be answered; None for the last.
        task: what they are, `classification`, `regression` or `multilabel`; None for what they
            look like.
        columns: of a table that a model takes; the others are to be answered.
    """

    least: int = LEAST
    known: Sequence[str] | None = None
    listing: str | None = None
    target: Sequence[str] | None = None
    task: str | None = None
    columns: Sequence[str] | None = None

    @property
    def is_to_train(self) -> bool:
        """Whether a model is trained on the data, not only judged."""
        return self.least > 1


def place_of(found: Finding) -> list[tuple[str, int]]:
    """Return what findings are sorted by: their location, numbers in it by their size."""
    return [(text, int(digits or -1)) for text, digits in _NUMBERED.findall(found.location)]


class Survey(NamedTuple):
    """Data as far as they can be read, and all that is wrong with them."""

    data: ImageData | TableData
    findings: tuple[Finding, ...]

    @property
    def faults(self) -> tuple[Finding, ...]:
        """What stops the work, by location."""
        faults = (item for item in self.findings if item.severity == "error")
        return tuple(sorted(faults, key=place_of))

    def require(self) -> ImageData | TableData:
        """Return the data; warnings are told.

        Raises:
            TrainingError: there are faults, all of which it has.
        """
        if self.faults:
            raise error_of(self.faults)
        tell(self.findings)
        return self.data


def class_findings(data: ImageData | TableData, asked: Asked, path: str) -> Iterator[Finding]:
    """Yield what is wrong with the classes of data, and with the parts that they come in."""
    counts = [0] * len(data.classes)
    for label in data.labels:
        counts[label] += 1
    named = list(zip(data.classes, counts, strict=True))
    yield from unknown_classes((name for name, count in named if count), asked.known, path)
    if len(data.classes) < asked.least:
        reason = f"{len(data.classes)} classes; at least {asked.least} are needed"
        yield finding(Code.DATA_INVALID, path, reason)
    if data.division is not None and asked.is_to_train:
        yield from splits.division_findings(data, path)
        return
    for name, count in named:
        # A model that is judged may be shown some of its classes alone.
        if count < asked.least and (count or asked.known is None):
            where, remedy = f"{path}: {name}", "add samples, or leave the class out"
            yield finding(Code.DATA_INVALID, where, splits.too_few(count), remedy)


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
