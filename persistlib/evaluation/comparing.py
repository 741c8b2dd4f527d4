"""Two models on the same samples: what differs between them, and whether chance alone could do it.

| task | overall | parts |
|---|---|---|
| classification | McNemar's test of who is right; macro and weighted F1 | classes: the same test |
| multilabel | the same of samples with every label right; F1 | labels: the same test |
| regression | Wilcoxon's test of the absolute errors; MSE, MAE, R2 | outputs: the same test |
| segmentation | pixel accuracy and mean IoU, by the bootstrap over images | classes: IoU |

p-values of parts allow for how many parts there are (Holm). Differences are the first's less the
second's, each with its 95 % interval.

Law: what is compared are the same samples in the same order; nothing depends on that order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from persistlib.errors import Code, PersistlibError, error
from persistlib.evaluation import figures
from persistlib.evaluation.mcnemar import Pairs, holm
from persistlib.training.tasks import CLASSIFICATION, MULTILABEL, REGRESSION, SEGMENTATION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray
    from pydantic import JsonValue

    from persistlib.evaluation.figures import Bounded
    from persistlib.evaluation.intervals import Interval
    from persistlib.evaluation.judging import Evaluation
    from persistlib.evaluation.outcomes import Outcomes

    # By class or output, empty for all samples, and name.
    _Figures: TypeAlias = Mapping[tuple[str, str], Bounded]
    # The test's name, figures of all samples that it is about, and of parts.
    _Tested: TypeAlias = "tuple[str, list[Difference], list[Difference]]"

MCNEMAR, WILCOXON = "McNemar, exact", "Wilcoxon signed rank"


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure of two models.

    Attributes:
        name: of the figure, or of the class, label or output that it is about.
        samples: how many it is about.
        first: the first model's; None where it is not defined.
        second: the second model's.
        interval: of the first less the second; None where it has none.
        p_value: of the test; None where nothing is tested, or nothing differs.
        adjusted: the same, with regard to how many parts there are.
        better: samples on which the first alone is right, or nearer, and the second.
        pairs: the counts behind it, of what is right or wrong.
    """

    name: str
    samples: int
    first: float | None
    second: float | None
    interval: Interval | None
    p_value: float | None = None
    adjusted: float | None = None
    better: tuple[int, int] | None = None
    pairs: Pairs | None = None

    @property
    def difference(self) -> float | None:
        """The first less the second."""
        return None if self.first is None or self.second is None else self.first - self.second

    def to_dict(self) -> dict[str, JsonValue]:
        """Return everything as plain JSON."""
        return {
            "name": self.name,
            "samples": self.samples,
            "first": self.first,
            "second": self.second,
            "difference": self.difference,
            "interval": None if self.interval is None else [*self.interval],
            "p_value": self.p_value,
            "adjusted": self.adjusted,
            "better": None if self.better is None else [*self.better],
            "pairs": None if self.pairs is None else self.pairs.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """One head of two models on the same samples.

    Attributes:
        head: its name among several; empty for the only one.
        task: one of `training.tasks.TASKS`.
        test: the name of the test; empty for a task that has none.
        overall: figures of all samples, the tested one first.
        parts: of each class, label or output.
    """

    head: str
    task: str
    test: str
    overall: tuple[Difference, ...]
    parts: tuple[Difference, ...]

    @property
    def p_value(self) -> float | None:
        """Of the test of all samples."""
        return self.overall[0].p_value

    def to_dict(self) -> dict[str, JsonValue]:
        """Return everything as plain JSON."""
        return {
            "head": self.head,
            "task": self.task,
            "test": self.test,
            "overall": [found.to_dict() for found in self.overall],
            "parts": [found.to_dict() for found in self.parts],
        }


@dataclass(frozen=True, slots=True)
class Against:
    """A model held against another one on the same samples.

    Attributes:
        models: what the two are called.
        other: how the other is known again: its `bundle_id`, or its file's `digest`.
        evaluation: how the other did; its first result is the one that is compared.
        heads: what differs, of each head.
    """

    models: tuple[str, str]
    other: Mapping[str, JsonValue]
    evaluation: Evaluation
    heads: tuple[Comparison, ...]

    def to_dict(self) -> dict[str, JsonValue]:
        """Return everything but the single answers as plain JSON."""
        result = self.evaluation.results[0].to_dict()
        return {"models": [*self.models], **self._facts(), "result": result}

    def record(self) -> dict[str, JsonValue]:
        """Return what a manifest keeps: no duration, and no place on somebody's machine."""
        return {**self._facts(), "result": self.evaluation.results[0].record()}

    def _facts(self) -> dict[str, JsonValue]:
        return {"other": {**self.other}, "heads": [head.to_dict() for head in self.heads]}


def compared(first: Outcomes, second: Outcomes) -> Comparison:
    """Return what differs between the outcomes of two models.

    Args:
        first: of one model.
        second: of the other on the same samples; its classes may stand in another order.

    Raises:
        TrainingError: the two are not about the same samples, classes or task.
    """
    other = _reordered(second, first)
    found = {(item.part, item.name): item for item in figures.bounded(first, other)}
    test, tested, parts = _TESTS[first.task](first, other, found)
    adjusted = holm([part.p_value for part in parts])
    names = {item.name for item in tested}
    rest = (
        _figure(item, name, len(first))
        for (part, name), item in found.items()
        if not part and name not in names
    )
    return Comparison(
        head=first.head,
        task=first.task,
        test=test,
        overall=(*tested, *rest),
        parts=tuple(replace(part, adjusted=p) for part, p in zip(parts, adjusted, strict=True)),
    )


def _reordered(second: Outcomes, first: Outcomes) -> Outcomes:
    """Return the second's outcomes with its names in the first's order.

    Raises:
        TrainingError: they are not about the same.
    """
    if second.task != first.task or sorted(second.names) != sorted(first.names):
        raise _other(first, f"{second.task} of {len(second.names)}, {first.task} of the first")
    if second.names != first.names:
        order = [second.names.index(name) for name in first.names]
        if first.task == CLASSIFICATION:
            back = np.argsort(order)
            sides: dict[str, Any] = {"truth": back[second.truth], "answers": back[second.answers]}
        else:
            sides = {"truth": second.truth[:, order], "answers": second.answers[:, order]}
        if second.right is not None:
            sides["right"] = second.right[:, order]
        second = replace(second, names=first.names, **sides)
    if not np.array_equal(first.truth, second.truth):
        raise _other(first, "what is true of the samples is not the same for both")
    return second


def _other(first: Outcomes, reason: str) -> PersistlibError:
    where = first.head or "against"
    return error(Code.DATA_CHANGED, where, reason, "judge both on the same data")


def _classes(first: Outcomes, second: Outcomes, _: _Figures) -> _Tested:
    rights = first.answers == first.truth, second.answers == second.truth
    parts = [
        _shares(name, *(right[first.truth == index] for right in rights))
        for index, name in enumerate(first.names)
        if np.any(first.truth == index)  # a class without samples has nothing to tell
    ]
    return MCNEMAR, [_shares("accuracy", *rights)], parts


def _labels(first: Outcomes, second: Outcomes, _: _Figures) -> _Tested:
    rights = first.answers == first.truth, second.answers == second.truth
    parts = [
        _shares(name, *(right[:, index] for right in rights))
        for index, name in enumerate(first.names)
    ]
    return MCNEMAR, [_shares(figures.SUBSET, *(right.all(axis=1) for right in rights))], parts


def _shares(name: str, first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Difference:
    """Return how two models' shares of right answers differ."""
    pairs = Pairs.of(first, second)
    return Difference(
        name=name,
        samples=pairs.count,
        first=float(first.mean()),
        second=float(second.mean()),
        interval=pairs.interval,
        p_value=pairs.p_value,
        better=(pairs.first, pairs.second),
        pairs=pairs,
    )


def _outputs(first: Outcomes, second: Outcomes, found: _Figures) -> _Tested:
    mine, theirs = (
        np.abs(side.answers - side.truth).reshape(len(side), -1) for side in (first, second)
    )
    whole = _errors(figures.MAE, mine.mean(axis=1), theirs.mean(axis=1), found["", figures.MAE])
    columns = zip(first.names, mine.T, theirs.T, strict=True) if len(first.names) > 1 else ()
    parts = [_errors(name, a, b, found[name, figures.MAE]) for name, a, b in columns]
    return WILCOXON, [whole], parts


def _errors(
    name: str, first: NDArray[np.float64], second: NDArray[np.float64], found: Bounded
) -> Difference:
    """Return how two models' mean absolute errors differ."""
    better = int(np.count_nonzero(first < second)), int(np.count_nonzero(second < first))
    p_value = _wilcoxon(first - second) if any(better) else None
    return replace(_figure(found, name, len(first)), p_value=p_value, better=better)


def _wilcoxon(differences: NDArray[np.float64]) -> float:
    """Return the two-sided p-value of Wilcoxon's test (Biometrics Bulletin 1, 1945, p. 80)."""
    from scipy.stats import wilcoxon

    # What does not differ is left out; ties and large numbers take the normal approximation.
    found: Any = wilcoxon(differences[differences != 0])
    return float(found.pvalue)


def _regions(first: Outcomes, _: Outcomes, found: _Figures) -> _Tested:
    parts = (_figure(found[name, figures.IOU], name, len(first)) for name in first.names)
    return "", [], [part for part in parts if part.difference is not None]


def _figure(found: Bounded, name: str, samples: int) -> Difference:
    first, second = (None if math.isnan(value) else value for value in found.values)
    return Difference(name, samples, first, second, found.interval)


_TESTS: dict[str, Callable[[Outcomes, Outcomes, _Figures], _Tested]] = {
    CLASSIFICATION: _classes,
    MULTILABEL: _labels,
    REGRESSION: _outputs,
    SEGMENTATION: _regions,
}
