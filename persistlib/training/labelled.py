"""Labelled images, and what is found when data are looked through."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from persistlib.errors import Code, Finding, error_of, finding, tell
from persistlib.training import splits
from persistlib.training.sample_digests import digest_of_labelled
from persistlib.wording import first_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from persistlib.training.tables import TableData

# To train and to hold out.
LEAST = 2
_NUMBERED = re.compile(r"([^0-9]*)([0-9]*)")
_SHOWN = 8  # names of classes in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageData(splits.Divisible):
    """Images with the index of their class.

    Attributes:
        images: files, or arrays of 8-bit pixels.
        sizes: height and width of each image; empty where all are of one size.
    """

    images: tuple[str | NDArray[np.uint8], ...]
    sizes: tuple[tuple[int, int], ...] = ()

    @property
    def digest(self) -> str:
        """The identity of images and labels in their order (`digest_of_labelled`)."""
        return digest_of_labelled(self.digests, self.labels, self.classes)


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
            shown = first_of(known, _SHOWN)
            hint = f"did you mean {close[0]!r}?" if close else "rename it, or leave it out"
            reason = f"the model has no such class, but {len(known)}: {shown}"
            yield finding(Code.DATA_CLASSES, os.path.join(path, name), reason, hint)
