"""How samples are divided into what trains, what is held out, and what is set apart.

Laws: the same samples and the same seed give the same drawn split, on every machine and with every
release of numpy: a sample's place is drawn from the digest of seed and sample, not from a
generator. Copies of one sample are neighbours in that order, so they seldom part. A split lists no
sample twice, and `again(data, split.how) == split`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

from persistlib.digests import PREFIX
from persistlib.errors import Code, Finding, Severity, error, finding
from persistlib.manifest import schema
from persistlib.wording import first_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import JsonValue

TRAIN, VALID, TEST = "train", "valid", "test"
# What folders, and split files, call the parts.
PARTS: Mapping[str, str] = {
    "train": TRAIN,
    "training": TRAIN,
    "valid": VALID,
    "val": VALID,
    "validation": VALID,
    "test": TEST,
}
FRACTION = 0.2
GIVEN, STRATIFIED, DRAWN = "given", "stratified", "drawn"
_SHOWN = 8


class Split(NamedTuple):
    """Indices of the samples of each part, in ascending order.

    Attributes:
        train: to train on.
        valid: held out: they say which epoch is the best.
        test: set apart: they have no part in the training.
        how: what the manifest says of the split.
    """

    train: tuple[int, ...]
    valid: tuple[int, ...]
    test: tuple[int, ...] = ()
    how: Mapping[str, JsonValue] = {}

    @property
    def sizes(self) -> dict[str, int]:
        """How many samples each part has; a part that is none is left out."""
        counts = {TRAIN: len(self.train), VALID: len(self.valid), TEST: len(self.test)}
        return {name: count for name, count in counts.items() if count or name != TEST}

    def __str__(self) -> str:
        apart = f", {len(self.test):,} set apart" if self.test else ""
        text = f"{len(self.train):,} to train on, {len(self.valid):,} held out{apart}"
        if self.how.get("method") == GIVEN:
            return f"{text}; as {self.how['by']}"
        return f"{text}; {self.how['method']}, seed {self.how['seed']}"


@dataclass(frozen=True, slots=True)
class Division:
    """The parts that data come divided into.

    Attributes:
        parts: the part of each sample: `train`, `valid`, `test`, or empty for none of them.
        by: who divided them, in words.
    """

    parts: tuple[str, ...]
    by: str

    def indices(self, part: str) -> tuple[int, ...]:
        """Return the samples of a part, in ascending order."""
        return tuple(index for index, own in enumerate(self.parts) if own == part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Divisible:
    """Samples that are divided by what they are: those of `labelled`, and of `tables`.

    Attributes:
        name: what the manifest calls the data.
        labels: the class of each sample, an index into `classes`; empty where there are none.
        classes: names of the classes; empty where targets are numbers.
        digests: BLAKE3 of each sample.
        division: the parts that they come divided into; None where they are not.
    """

    name: str
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    digests: tuple[bytes, ...]
    division: Division | None = None

    def __len__(self) -> int:
        return len(self.digests)

    @property
    def digest(self) -> str:
        """The identity of samples and targets in their order."""
        raise NotImplementedError

    def split(self, *, fraction: float | None = None, seed: int = 0) -> Split:
        """Return the data's own division, or a drawn split (`divide`).

        Raises:
            UsageError: `fraction` is not between 0 and 1.
        """
        return divide(self, fraction, seed)

    def record(self, split: Split) -> schema.Data:
        """Return what the manifest says of the data and its split."""
        return schema.Data(
            name=self.name,
            digest=self.digest,
            classes=len(self.classes) or None,
            sizes=split.sizes,
            split={**split.how},
        )


def divide(data: Divisible, fraction: float | None = None, seed: int = 0) -> Split:
    """Return the data's own division, or a drawn one where there is none or a fraction is given.

    Where there is a training part and a test part and nothing else, the test part is held out.
    About `fraction` is held out of each class, at least one of each, or of all samples where there
    are no classes.

    Raises:
        UsageError: `fraction` is not between 0 and 1.
    """
    if data.division is not None and fraction is None:
        return _given(data, data.division)
    fraction = FRACTION if fraction is None else fraction
    if not 0 < fraction < 1:
        raise error(Code.USAGE, "fraction", f"{fraction} is not between 0 and 1")
    groups: dict[int, list[int]] = {}
    for index in range(len(data.digests)):
        groups.setdefault(data.labels[index] if data.classes else 0, []).append(index)
    valid: set[int] = set()
    for members in groups.values():
        members.sort(key=lambda index: (draw(seed, data.digests[index]), index))
        valid.update(members[: min(max(round(fraction * len(members)), 1), len(members) - 1)])
    train = tuple(index for index in range(len(data.digests)) if index not in valid)
    method = STRATIFIED if data.classes else DRAWN
    how: dict[str, JsonValue] = {"method": method, "fraction": fraction, "seed": seed}
    return Split(train, tuple(sorted(valid)), (), how)


def again(data: Divisible, how: Mapping[str, JsonValue]) -> Split | None:
    """Return the split that a record tells of; None where it, or the data, does not say."""
    fraction, seed = how.get("fraction"), how.get("seed")
    if how.get("method") == GIVEN:
        own = _given(data, data.division) if data.division is not None else None
        return own if own is not None and own.how.get("digest") == how.get("digest") else None
    if how.get("method") not in {STRATIFIED, DRAWN}:
        return None
    if not isinstance(fraction, float) or not isinstance(seed, int) or not 0 < fraction < 1:
        return None
    return divide(data, fraction, seed)


def part_of(data: Divisible, part: str) -> tuple[int, ...]:
    """Return the samples of a part that the data come divided into.

    Raises:
        TrainingError: they have no such part.
    """
    chosen = data.division.indices(part) if data.division is not None else ()
    if not chosen:
        remedy = f"give data that is divided, with a part {part}"
        raise error(Code.DATA_INVALID, data.name, f"has no part {part}", remedy)
    return chosen


def division_findings(data: Divisible, path: str) -> Iterator[Finding]:
    """Yield what is wrong with the parts that data come divided into; warnings among them."""
    if data.division is None:
        return
    split = _given(data, data.division)
    for name, chosen in ((TRAIN, split.train), (VALID, split.valid)):
        if not chosen:
            remedy = "put samples into it, or let the split be drawn; what a split file with parts "
            remedy += "does not name is in no part"
            yield finding(Code.DATA_INVALID, path, f"its part {name} is empty", remedy)
    trained, held = ({data.labels[i] for i in side} for side in (split.train, split.valid))
    for label, name in enumerate(data.classes):
        if label not in trained:
            reason = "no sample of it is in the training part"
            remedy = "move some there, or leave the class out"
            yield finding(Code.DATA_CLASSES, os.path.join(path, name), reason, remedy)
    if unjudged := [name for label, name in enumerate(data.classes) if label not in held]:
        shown = first_of(unjudged, _SHOWN)
        reason = f"nothing is held out of {len(unjudged)} classes: {shown}"
        yield finding(Code.DATA_CLASSES, path, reason, severity=Severity.WARNING)
    yield from _leaks(data, split, path)


def _leaks(data: Divisible, split: Split, path: str) -> Iterator[Finding]:
    """Yield a warning of samples that are in the training part and in another one."""
    trained = {data.digests[index] for index in split.train}
    for name, side in ((VALID, split.valid), (TEST, split.test)):
        if twice := sum(data.digests[index] in trained for index in side):
            reason = f"{twice} of {len(side)} samples of the part {name} are in train too"
            remedy = "take them out of one of the two: figures on them are too good"
            yield finding(Code.DATA_SEEN, path, reason, remedy, Severity.WARNING)


def _given(data: Divisible, division: Division) -> Split:
    train, valid, test = (division.indices(part) for part in (TRAIN, VALID, TEST))
    if not valid:
        valid, test = test, ()
    hasher = blake3()
    for name, side in ((TRAIN, train), (VALID, valid), (TEST, test)):
        hasher.update(b"%s %d\n" % (name.encode(), len(side)))
        for index in side:
            hasher.update(data.digests[index])
    how: dict[str, JsonValue] = {"method": GIVEN, "by": division.by}
    return Split(train, valid, test, {**how, "digest": PREFIX + hasher.hexdigest()})


def draw(seed: int, digest: bytes) -> bytes:
    """Return what orders samples for a seed, whatever machine and release it is."""
    return blake3(b"%d:" % seed + digest).digest()


def too_few(count: int, noun: str = "sample") -> str:
    """Return why so few samples of a class do not do."""
    return f"{count} {noun}; one must train and one be held out" if count else f"no {noun}"
