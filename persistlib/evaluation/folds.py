"""Dividing samples into folds by what they are, not by where they stand.

Laws: the same samples and seed give the same folds on every machine, in whatever order the samples
come; copies of a sample, by its digest, are in one fold; of each class, folds have as many distinct
samples as each other, give or take one.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from persistlib.errors import Code, error, warn
from persistlib.training.splits import draw
from persistlib.wording import first_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

_SHOWN = 5


def copies(digests: Sequence[bytes]) -> NDArray[np.int64]:
    """Return a number for each sample, the same for copies, from 0 on as they first occur."""
    known: dict[bytes, int] = {}
    return np.array([known.setdefault(digest, len(known)) for digest in digests], np.int64)


def divide(
    digests: Sequence[bytes], labels: Sequence[int] | None, count: int, seed: int
) -> NDArray[np.int64]:
    """Return the fold of each sample.

    Args:
        digests: of the samples; a sample's place is drawn from its own and the seed
            (`training.splits`).
        labels: the class of each, of which every fold gets its share; None where there are none.
        count: of folds.
        seed: of the draw.

    Raises:
        UsageError: `count` is below 2.
        TrainingError: there are fewer distinct samples than folds.
    """
    if type(count) is not int or count < 2:
        raise error(Code.USAGE, "folds", f"{count!r} is no whole number from 2 on")
    classes = dict.fromkeys(digests, 0)
    if labels is not None:
        # Copies of two classes are of the lesser one: the order of samples decides nothing.
        for digest, label in sorted(zip(digests, map(int, labels), strict=True), reverse=True):
            classes[digest] = label
    if len(classes) < count:
        reason = f"{len(classes)} distinct samples for {count} folds"
        raise error(Code.FOLDS, "folds", reason, "take fewer folds, or leave_one_out")
    order = sorted(classes, key=lambda digest: (classes[digest], draw(seed, digest)))
    # Dealt like cards: a class begins where the one before it ended.
    place = {digest: number % count for number, digest in enumerate(order)}
    return np.array([place[digest] for digest in digests], np.int64)


def tell_rare(labels: Sequence[int], groups: NDArray[np.int64], names: Sequence[str]) -> None:
    """Warn of classes with one distinct sample, which is never told by what it was fitted on."""
    _tell_rare(_members(labels, groups), names)


def require_members(
    labels: Sequence[int], groups: NDArray[np.int64], names: Sequence[str], count: int
) -> None:
    """Refuse more folds than any class has distinct samples; warn where a class has fewer.

    `StratifiedKFold` refuses and warns in these cases too.

    Args:
        labels: the class of each sample.
        groups: as `copies`.
        names: of the classes.
        count: of folds.

    Raises:
        TrainingError: no class has a sample for every fold.
    """
    members = _members(labels, groups)
    if (most := max(members.values())) < count:
        reason = f"{count} folds, where no class has more than {most} distinct samples"
        remedy = f"take at most {most} folds, or leave_one_out" if most > 1 else "add samples"
        raise error(Code.FOLDS, "folds", reason, remedy)
    _tell_rare(members, names)
    few = [f"{names[label]} ({own})" for label, own in members.items() if 1 < own < count]
    if few:
        reason = f"some of the {count} folds have no sample of {first_of(few, _SHOWN)}"
        warn(
            Code.FOLDS,
            "data",
            reason,
            f"take at most {min(own for own in members.values() if own > 1)} folds",
        )


def _members(labels: Sequence[int], groups: NDArray[np.int64]) -> dict[int, int]:
    """Return how many distinct samples each class has."""
    pairs = {(int(label), int(group)) for label, group in zip(labels, groups, strict=True)}
    return dict(sorted(Counter(label for label, _ in pairs).items()))


def _tell_rare(members: Mapping[int, int], names: Sequence[str]) -> None:
    if rare := [names[label] for label, own in members.items() if own == 1]:
        reason = f"one distinct sample of {first_of(rare, _SHOWN)}: it is always answered wrong"
        warn(Code.FOLDS, "data", reason, "add samples, or leave the class out")
