"""Running a model over labelled samples in every runtime at once, and comparing the answers."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from persistlib.errors import Code, error
from persistlib.evaluation import timing
from persistlib.evaluation.intervals import wilson
from persistlib.evaluation.metrics import Metrics, measure
from persistlib.evaluation.outcomes import Outcomes
from persistlib.training.tasks import CLASSIFICATION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from pydantic import JsonValue

    from persistlib.evaluation.comparing import Against
    from persistlib.evaluation.intervals import Interval
    from persistlib.evaluation.runners import Runner
    from persistlib.evaluation.samples import Samples
    from persistlib.evaluation.timing import Timing

# Called with what is being done ("judging" or "timing"), steps done, and all steps.
Progress: TypeAlias = "Callable[[str, int, int], None]"
_TOP = 5
_RANK = 2  # (samples, classes)


@dataclass(frozen=True, slots=True)
class HeadResult:
    """How one head of a model did.

    Attributes:
        outcomes: of each sample.
        metrics: what its answers are worth.
        top5: share of samples whose class is among the five best scores; None below six classes.
    """

    outcomes: Outcomes
    metrics: Metrics
    top5: float | None = None

    @property
    def top5_interval(self) -> Interval | None:
        """The interval of `top5`."""
        count = len(self.outcomes)
        return None if self.top5 is None else wilson(round(self.top5 * count), count)

    def record(self) -> dict[str, JsonValue]:
        """Return the figures as plain JSON, without the outcomes."""
        bounds: JsonValue = None if (pair := self.top5_interval) is None else [*pair]
        return {**self.metrics.to_dict(), "top5": self.top5, "top5_interval": bounds}


@dataclass(frozen=True, slots=True)
class RuntimeResult:
    """How a model did in one runtime.

    Attributes:
        runtime: its name.
        facts: its version, and what computed.
        heads: how each of its heads did; mostly there is one.
        timings: by batch size, ascending; empty where nothing was timed.
    """

    runtime: str
    facts: Mapping[str, JsonValue]
    heads: tuple[HeadResult, ...]
    timings: tuple[Timing, ...]

    @property
    def metrics(self) -> Metrics:
        """The first head's."""
        return self.heads[0].metrics

    @property
    def top5(self) -> float | None:
        """The first head's."""
        return self.heads[0].top5

    @property
    def outcomes(self) -> Outcomes:
        """The first head's."""
        return self.heads[0].outcomes

    @property
    def answers(self) -> NDArray[Any]:
        """The first head's, a row a sample."""
        return self.outcomes.answers

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the result as plain JSON, without the answers."""
        return {**self.record(), "timings": [_timing(timed) for timed in self.timings]}

    def record(self) -> dict[str, JsonValue]:
        """Return what does not differ from run to run."""
        return {"runtime": self.runtime, **self.facts, **self.heads[0].record()}


@dataclass(frozen=True, slots=True)
class Agreement:
    """How alike two runtimes answered.

    Attributes:
        runtimes: the two; the first is the measure.
        same: samples that both take for the same class.
        images: all samples.
        difference: the largest difference between two scores, relative to the spread of the first
            runtime's scores (largest less smallest).
    """

    runtimes: tuple[str, str]
    same: int
    images: int
    difference: float

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the agreement as plain JSON."""
        return {
            "runtimes": list(self.runtimes),
            "same": self.same,
            "images": self.images,
            "difference": self.difference if math.isfinite(self.difference) else None,
        }


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `persistlib.evaluate` found.

    Attributes:
        samples: what the model was judged on.
        labels: names of the classes, in the order of the scores.
        results: one a runtime.
        agreements: of every further runtime with the first.
        preparation: milliseconds that preparing one image took, outside all timings; None where
            inputs were given ready.
        threads: that each runtime might use.
        against: the first runtime's answers held against another model's, where that was asked for.
    """

    samples: Samples
    labels: tuple[str, ...]
    results: tuple[RuntimeResult, ...]
    agreements: tuple[Agreement, ...]
    preparation: float | None
    threads: int
    against: Against | None = None

    def __getitem__(self, runtime: str) -> RuntimeResult:
        return next(result for result in self.results if result.runtime == runtime)

    @property
    def metrics(self) -> Metrics:
        """The first runtime's."""
        return self.results[0].metrics

    @property
    def accuracy(self) -> float:
        """The first runtime's."""
        return self.metrics.accuracy

    def to_dict(self) -> dict[str, JsonValue]:
        """Return everything but the single answers as plain JSON."""
        return {
            "data": self._data(),
            "results": [result.to_dict() for result in self.results],
            "agreements": [agreement.to_dict() for agreement in self.agreements],
            "preparation": self.preparation,
            "threads": self.threads,
            "against": None if self.against is None else self.against.to_dict(),
        }

    def record(self) -> dict[str, JsonValue]:
        """Return what a manifest keeps: no duration, so that the same result is the same bytes."""
        kept: dict[str, JsonValue] = {
            "data": self._data(),
            "results": [result.record() for result in self.results],
            "agreements": [agreement.to_dict() for agreement in self.agreements],
        }
        return kept if self.against is None else {**kept, "against": self.against.record()}

    def _data(self) -> dict[str, JsonValue]:
        return {
            "name": self.samples.name,
            "digest": self.samples.digest,
            "images": len(self.samples),
            "held_out": self.samples.held_out,
            **({"part": self.samples.part} if self.samples.part else {}),
        }


class _Answers:
    """What one runtime answered, batch by batch."""

    def __init__(self) -> None:
        self.best: list[NDArray[np.int64]] = []
        self.among_top = 0
        self.off = 0.0
        self.low = math.inf
        self.high = -math.inf

    def add(self, scores: NDArray[Any], truth: NDArray[np.int64], first: NDArray[Any]) -> None:
        """Take in the scores of a batch, and how far they are from the first runtime's."""
        order = np.argsort(-scores, axis=1, kind="stable")[:, :_TOP]
        self.best.append(order[:, 0].astype(np.int64))
        self.among_top += int(np.sum(order == truth[:, None]))
        self.off = max(self.off, float(np.abs(scores - first).max()))
        self.low = min(self.low, float(first.min()))
        self.high = max(self.high, float(first.max()))

    @property
    def difference(self) -> float:
        spread = self.high - self.low
        return self.off / spread if spread else (math.inf if self.off else 0.0)


def judge(
    runners: Sequence[Runner],
    samples: Samples,
    *,
    batch_size: int,
    calls: int,
    threads: int,
    progress: Progress | None = None,
) -> Evaluation:
    """Return how a model does in every runtime.

    Args:
        runners: the runtimes, the one that others are compared with first.
        samples: what it is judged on.
        batch_size: images a batch.
        calls: calls to time for each batch size; none for 0.
        threads: that each runtime may use, to be told.
        progress: told how far it is.

    Raises:
        TrainingError: the outputs are no scores of the classes.
        SessionError: a runtime fails, or an image cannot be read.
        MissingExtra: scikit-learn is not installed.
    """
    tell = progress or _silent
    seen = [_Answers() for _ in runners]
    seconds, classes = 0.0, 0
    for start in range(0, len(samples), batch_size):
        begin = time.perf_counter()
        inputs = samples.inputs(start, start + batch_size)
        seconds += time.perf_counter() - begin
        truth = samples.labels[start : start + batch_size]
        scores = [_scores(runner, inputs, samples) for runner in runners]
        classes = _require_same(scores, runners)
        for answers, given in zip(seen, scores, strict=True):
            answers.add(given, truth, scores[0])
        tell("judging", min(start + batch_size, len(samples)), len(samples))
    names = samples.classes or tuple(str(index) for index in range(classes))
    timings = _timings(runners, samples, batch_size, calls, tell)
    results = tuple(
        _result(runner, answers, samples, names, timed)
        for runner, answers, timed in zip(runners, seen, timings, strict=True)
    )
    first = results[0]
    return Evaluation(
        samples=samples,
        labels=names,
        results=results,
        agreements=tuple(
            Agreement(
                runtimes=(first.runtime, other.runtime),
                same=int(np.sum(first.answers == other.answers)),
                images=len(samples),
                difference=answers.difference,
            )
            for other, answers in zip(results[1:], seen[1:], strict=True)
        ),
        preparation=1000 * seconds / len(samples) if samples.preprocessing is not None else None,
        threads=threads,
    )


def _silent(_: str, __: int, ___: int) -> None:
    """Tell nobody."""


def _scores(runner: Runner, inputs: NDArray[Any], samples: Samples) -> NDArray[np.float64]:
    """Return a batch's scores, once they are known to be some."""
    scores = runner.run(inputs)
    where, remedy = f"{runner.name}: outputs", "evaluate a classifier, or run it yourself"
    if scores.ndim != _RANK or len(scores) != len(inputs) or scores.shape[1] < _RANK:
        reason = f"shape {scores.shape} for {len(inputs)} inputs, not (inputs, classes)"
        raise error(Code.NO_SCORES, where, reason, remedy)
    classes = scores.shape[1]
    if samples.classes and len(samples.classes) != classes:
        reason = f"{classes} scores for {len(samples.classes)} labels"
        raise error(Code.NO_SCORES, where, reason, "correct the labels of the interface")
    if (beyond := int(samples.labels.max())) >= classes:
        reason = f"label {beyond}; the model has {classes} classes, from 0 on"
        raise error(Code.DATA_CLASSES, samples.name, reason, "correct the labels")
    wide = scores.astype(np.float64)
    if not np.isfinite(wide).all():
        raise error(Code.RUN_FAILED, where, "a score is not finite", "look at the weights")
    return wide


def _require_same(scores: Sequence[NDArray[Any]], runners: Sequence[Runner]) -> int:
    """Return how many classes all runtimes give.

    Raises:
        TrainingError: they differ.
    """
    counts = {int(given.shape[1]) for given in scores}
    if len(counts) != 1:
        shown = ", ".join(f"{r.name} {s.shape[1]}" for r, s in zip(runners, scores, strict=True))
        raise error(Code.NO_SCORES, "outputs", f"classes by runtime: {shown}", "export it again")
    return counts.pop()


def _timings(
    runners: Sequence[Runner], samples: Samples, batch_size: int, calls: int, tell: Progress
) -> list[tuple[Timing, ...]]:
    """Return each runtime's times for one sample and for a batch."""
    if not calls:
        return [() for _ in runners]
    batch = samples.inputs(0, batch_size)
    whole = np.resize(batch, (batch_size, *batch.shape[1:]))
    rows: list[tuple[Timing, ...]] = []
    for size in (sizes := sorted({1, batch_size})):
        tell("timing", len(rows), len(sizes))
        rows.append(timing.measure(runners, whole[:size], calls))
    return list(zip(*rows, strict=True))


def _result(
    runner: Runner,
    answers: _Answers,
    samples: Samples,
    names: Sequence[str],
    timings: tuple[Timing, ...],
) -> RuntimeResult:
    best = np.concatenate(answers.best)
    return RuntimeResult(
        runtime=runner.name,
        facts=runner.facts,
        heads=(
            HeadResult(
                outcomes=Outcomes("", CLASSIFICATION, tuple(names), samples.labels, best),
                metrics=measure(samples.labels, best, names),
                top5=answers.among_top / len(samples) if len(names) > _TOP else None,
            ),
        ),
        timings=timings,
    )


def _timing(timed: Timing) -> JsonValue:
    return {
        "batch": timed.batch,
        "calls": timed.calls,
        "median_ms": timed.median,
        "p95_ms": timed.p95,
        "images_per_second": timed.throughput,
    }
