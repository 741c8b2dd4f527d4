"""Which of several models to fine-tune: what a linear probe of each is worth, and what each costs.

A candidate is tied with the best where the 95 % interval of the difference on the same held-out
samples (`Pairs`) does not leave zero out. The rule: those tied with the best come first, the
fastest of them at the top; the others follow by accuracy. Speed is the median time of one sample in
the first runtime; where nothing was timed, how few parameters a candidate has.

Laws: the order in which candidates were named decides nothing but between those that are alike in
all of this; the first is tied with the best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from persistlib.evaluation.intervals import wilson
from persistlib.evaluation.mcnemar import Pairs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from pydantic import JsonValue

    from persistlib.errors import Finding
    from persistlib.evaluation.intervals import Interval
    from persistlib.evaluation.timing import Timing

_SLOWER = 1.05  # a ratio that is worth a word


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model and what came of it.

    Attributes:
        name: as it was asked for.
        builder: `package.module:callable`.
        weights: where its weights are from; None for fresh values.
        right: whether the probe is right on each held-out sample, bool.
        features: numbers that go into the probe.
        parameters: of the model with a last layer for the classes.
        size: bytes of its tensors, as they take place on disk.
        timings: by runtime, one for each batch size; empty where nothing was timed.
        bundle_id: of a bundle.
    """

    name: str
    builder: str
    weights: str | None
    right: NDArray[np.bool_]
    features: int
    parameters: int
    size: int
    timings: Mapping[str, tuple[Timing, ...]]
    bundle_id: str | None = None

    @property
    def accuracy(self) -> float:
        """Share of right answers on the held-out samples."""
        return float(self.right.mean())

    @property
    def interval(self) -> Interval:
        """Of the accuracy, Wilson's."""
        return wilson(int(np.count_nonzero(self.right)), len(self.right))

    @property
    def latency(self) -> float | None:
        """Median milliseconds for one sample, in the first runtime."""
        first = next(iter(self.timings.values()), ())
        return first[0].median if first else None

    def record(self) -> dict[str, JsonValue]:
        """Return what does not differ from run to run, and holds no place on a machine."""
        return {
            "builder": self.builder,
            "accuracy": self.accuracy,
            "interval": [*self.interval],
            "features": self.features,
            "parameters": self.parameters,
            "size": self.size,
        }


@dataclass(frozen=True, slots=True)
class Absent:
    """A candidate that could not be had, and why."""

    name: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """A candidate's place.

    Attributes:
        candidate: the candidate.
        pairs: the candidate and the best, on the same samples.
        is_tied: whether it cannot be told from the best.
    """

    candidate: Candidate
    pairs: Pairs
    is_tied: bool


@dataclass(frozen=True, slots=True)
class Ranking:
    """Candidates in order.

    Attributes:
        data: `name`, `digest` and sizes of the data, and how it was divided.
        classifier: what was fitted on the features.
        places: the candidates, the recommended one first.
        absent: those that could not be had.
    """

    data: Mapping[str, JsonValue]
    classifier: Mapping[str, JsonValue]
    places: tuple[Place, ...]
    absent: tuple[Absent, ...]

    @property
    def best(self) -> Place | None:
        """The candidate with the highest accuracy, the fastest of several."""
        return max(self.places, key=lambda place: place.candidate.accuracy, default=None)

    @property
    def recommended(self) -> Candidate | None:
        """The fastest of those that cannot be told from the best."""
        return self.places[0].candidate if self.places else None

    @property
    def advice(self) -> str:
        """What to take, and why, in a sentence."""
        if (taken := self.recommended) is None or self.best is None:
            return "no candidate could be had"
        best = self.best.candidate
        tied = [place.candidate for place in self.places if place.is_tied]
        if len(self.places) == 1:
            return f"{taken.name} is the only candidate"
        if taken is not best:
            return f"{taken.name} cannot be told from the best, {best.name}, {_cost(taken, best)}"
        if len(tied) > 1:
            others = ", ".join(item.name for item in tied[1:])
            return (
                f"{taken.name} is the best, and costs no more than what it is tied with: {others}"
            )
        second = max((p.candidate.accuracy for p in self.places[1:]), default=0.0)
        ahead = 100 * (taken.accuracy - second)
        return f"{taken.name} is the best, {ahead:.1f} points ahead of the next: more than chance"

    def to_dict(self) -> dict[str, JsonValue]:
        """Return everything but the single answers as plain JSON."""
        taken = self.recommended
        absent: list[JsonValue] = [
            {"name": item.name, "findings": [{**found.to_dict()} for found in item.findings]}
            for item in self.absent
        ]
        return {
            "data": {**self.data},
            "classifier": {**self.classifier},
            "recommended": None if taken is None else taken.name,
            "advice": self.advice,
            "candidates": [_place(place, rank) for rank, place in enumerate(self.places, 1)],
            "absent": absent,
        }


def ranked(
    candidates: Sequence[Candidate],
    absent: Sequence[Absent],
    *,
    data: Mapping[str, JsonValue],
    classifier: Mapping[str, JsonValue],
) -> Ranking:
    """Return the candidates in order; see the rule above.

    Args:
        candidates: judged on the same samples in the same order.
        absent: those that could not be had.
        data: as `Ranking`.
        classifier: as `Ranking`.
    """
    best = max(candidates, key=lambda item: (item.accuracy, -_effort(item)), default=None)
    places = [_placed(item, best) for item in candidates if best is not None]
    places.sort(key=_order)
    return Ranking(data, classifier, tuple(places), tuple(absent))


def _placed(candidate: Candidate, best: Candidate) -> Place:
    pairs = Pairs.of(candidate.right, best.right)
    return Place(candidate, pairs, is_tied=pairs.interval[1] >= 0)


def _order(place: Place) -> tuple[bool, float, float]:
    candidate = place.candidate
    if place.is_tied:
        return False, _effort(candidate), -candidate.accuracy
    return True, -candidate.accuracy, _effort(candidate)


def _effort(candidate: Candidate) -> float:
    return candidate.parameters if candidate.latency is None else candidate.latency


def _cost(taken: Candidate, best: Candidate) -> str:
    """Return what is saved, in words."""
    if taken.latency is None or best.latency is None:
        return f"and has {best.parameters / taken.parameters:.2g} times fewer parameters"
    times = best.latency / taken.latency
    return f"and is {times:.1f} times as fast" if times > _SLOWER else "and is no slower"


def _place(place: Place, rank: int) -> dict[str, JsonValue]:
    candidate = place.candidate
    return {
        "rank": rank,
        "name": candidate.name,
        "weights": candidate.weights,
        "bundle_id": candidate.bundle_id,
        **candidate.record(),
        "tied": place.is_tied,
        "against_best": place.pairs.to_dict(),
        "timings": {
            runtime: [timed.to_dict() for timed in timings]
            for runtime, timings in candidate.timings.items()
        },
    }
