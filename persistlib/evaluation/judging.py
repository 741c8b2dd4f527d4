"""Running a model over labelled samples in every runtime at once, and comparing the answers."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from persistlib.evaluation import timing
from persistlib.evaluation.collecting import collector
from persistlib.evaluation.inputs import cut, filled
from persistlib.evaluation.intervals import wilson
from persistlib.runtime.predictions import of_heads
from persistlib.training.tasks import CLASSIFICATION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from pydantic import JsonValue

    from persistlib.evaluation.collecting import Collector
    from persistlib.evaluation.comparing import Against
    from persistlib.evaluation.intervals import Interval
    from persistlib.evaluation.outcomes import Outcomes
    from persistlib.evaluation.runners import Runner
    from persistlib.evaluation.samples import Samples
    from persistlib.evaluation.task_metrics import Measured
    from persistlib.evaluation.timing import Timing

# Called with what is being done ("judging" or "timing"), steps done, and all steps.
Progress: TypeAlias = "Callable[[str, int, int], None]"


@dataclass(frozen=True, slots=True)
class HeadResult:
    """How one head of a model did.

    Attributes:
        outcomes: of each sample.
        metrics: what its answers are worth: `metrics.Metrics` of a classification, else what
            `task_metrics` has for the task.
        top5: share of samples whose class is among the five best scores; None below six classes.
    """

    outcomes: Outcomes
    metrics: Measured
    top5: float | None = None

    def __repr__(self) -> str:
        head = f"{self.outcomes.head!r}, " if self.outcomes.head else ""
        return f"HeadResult({head}{_figures(self.metrics)})"

    @property
    def top5_interval(self) -> Interval | None:
        """The interval of `top5`."""
        count = len(self.outcomes)
        return None if self.top5 is None else wilson(round(self.top5 * count), count)

    def record(self) -> dict[str, JsonValue]:
        """Return the figures as plain JSON, without the outcomes."""
        if self.outcomes.task != CLASSIFICATION:
            return {"task": self.outcomes.task, **self.metrics.to_dict()}
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

    def __repr__(self) -> str:
        return f"RuntimeResult({self.runtime!r}, {', '.join(map(repr, self.heads))})"

    @property
    def metrics(self) -> Any:
        """The first head's, in the form of its task: see `HeadResult`."""
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
        return {**self.record(), "timings": [timed.to_dict() for timed in self.timings]}

    def record(self) -> dict[str, JsonValue]:
        """Return what does not differ from run to run; several heads by name."""
        start: dict[str, JsonValue] = {"runtime": self.runtime, **self.facts}
        if not self.outcomes.head:
            return {**start, **self.heads[0].record()}
        return {**start, "heads": {head.outcomes.head: head.record() for head in self.heads}}


@dataclass(frozen=True, slots=True)
class Agreement:
    """How alike two runtimes answered.

    Attributes:
        runtimes: the two; the first is the measure.
        same: samples that both answer alike; None where answers are numbers.
        images: all samples.
        difference: the largest difference between two scores, relative to the spread of the first
            runtime's scores (largest less smallest).
        head: which of several; empty for the only one.
    """

    runtimes: tuple[str, str]
    same: int | None
    images: int
    difference: float
    head: str = ""

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the agreement as plain JSON."""
        return {
            "runtimes": list(self.runtimes),
            **({"head": self.head} if self.head else {}),
            "same": self.same,
            "images": self.images,
            "difference": self.difference if math.isfinite(self.difference) else None,
        }


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `persistlib.evaluate` found.

    Attributes:
        samples: what the model was judged on.
        labels: names of the classes, in the order of the scores; of the first head.
        results: one a runtime.
        agreements: of every further runtime with the first, head by head.
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

    def __repr__(self) -> str:
        shown = [repr(self.samples), *map(repr, self.results)]
        shown += [] if self.against is None else [f"against={self.against.models[1]!r}"]
        return f"Evaluation({', '.join(shown)})"

    def __getitem__(self, runtime: str) -> RuntimeResult:
        return next(result for result in self.results if result.runtime == runtime)

    @property
    def metrics(self) -> Any:
        """The first runtime's, of its first head."""
        return self.results[0].metrics

    @property
    def accuracy(self) -> float:
        """The first runtime's, of its first head; a regression has none."""
        accuracy: float = self.metrics.accuracy
        return accuracy

    @property
    def is_classification(self) -> bool:
        """Whether one head was judged, a classifier."""
        only = self.results[0].outcomes
        return not only.head and only.task == CLASSIFICATION

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


def _figures(metrics: Measured) -> str:
    """Return the figures over all samples in a line."""
    found = {name: value for name, value in metrics.to_dict().items() if isinstance(value, float)}
    return ", ".join(f"{name}={value:.4g}" for name, value in found.items())


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
        TrainingError: the outputs are none of the task, or do not fit the targets.
        SessionError: a runtime fails, or an image cannot be read.
        MissingExtra: scikit-learn is not installed.
    """
    tell = progress or _silent
    seen = [_collectors(runner.name, samples) for runner in runners]
    seconds = 0.0
    for start in range(0, len(samples), batch_size):
        begin = time.perf_counter()
        inputs = samples.inputs(start, start + batch_size)
        seconds += time.perf_counter() - begin
        firsts: list[Any] = [None for _ in samples.heads]
        for runner, collectors in zip(runners, seen, strict=True):
            outputs = of_heads(runner.run(inputs), samples.heads, f"{runner.name}: outputs")
            for place, (scores, one) in enumerate(zip(outputs, collectors, strict=True)):
                truth = samples.targets[one.head.name][start : start + batch_size]
                wide = one.add(scores, truth, firsts[place])
                firsts[place] = wide if firsts[place] is None else firsts[place]
        tell("judging", min(start + batch_size, len(samples)), len(samples))
    timings = _timings(runners, samples, batch_size, calls, tell)
    results = tuple(
        RuntimeResult(
            runtime=runner.name,
            facts=runner.facts,
            heads=tuple(HeadResult(*one.result()) for one in collectors),
            timings=timed,
        )
        for runner, collectors, timed in zip(runners, seen, timings, strict=True)
    )
    return Evaluation(
        samples=samples,
        labels=seen[0][0].names,
        results=results,
        agreements=tuple(
            Agreement(
                runtimes=(runners[0].name, runner.name),
                same=one.same,
                images=len(samples),
                difference=one.difference,
                head=one.head.name,
            )
            for runner, collectors in zip(runners[1:], seen[1:], strict=True)
            for one in collectors
        ),
        preparation=1000 * seconds / len(samples) if samples.preprocessing is not None else None,
        threads=threads,
    )


def _collectors(runtime: str, samples: Samples) -> list[Collector]:
    """Return what collects the answers of a runtime, head by head."""
    return [collector(head, runtime, samples.name, samples.classes) for head in samples.heads]


def _silent(_: str, __: int, ___: int) -> None:
    """Tell nobody."""


def _timings(
    runners: Sequence[Runner], samples: Samples, batch_size: int, calls: int, tell: Progress
) -> list[tuple[Timing, ...]]:
    """Return each runtime's times for one sample and for a batch."""
    if not calls:
        return [() for _ in runners]
    whole = filled(samples.inputs(0, batch_size), batch_size)
    rows: list[tuple[Timing, ...]] = []
    for size in (sizes := sorted({1, batch_size})):
        tell("timing", len(rows), len(sizes))
        rows.append(timing.measure(runners, cut(whole, 0, size), calls))
    return list(zip(*rows, strict=True))
