"""What outputs say of images or rows, by the task of each head: classes, labels or numbers by name.

Laws: what is answered for a sample does not depend on the others; a label's probability is its own,
whatever the other labels are; a number is the model's output as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from persistlib.errors import Code, error
from persistlib.training.tasks import (
    ANSWERS,
    CLASSIFIER,
    MULTILABEL,
    REGRESSION,
    SEGMENTATION,
    heads_of,
    said_by,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from persistlib.training.tasks import Head

_SCORES_RANK = 2
_HALF = 0.5


@dataclass(frozen=True, slots=True)
class Prediction:
    """What an image was taken for.

    Attributes:
        index: position of the best class.
        label: its name; its position in decimals where the bundle names no classes.
        probability: its share of the softmax.
        top: the best classes with their probabilities, the best first.
    """

    index: int
    label: str
    probability: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Labels:
    """Which of several labels a sample has, each told by itself.

    Attributes:
        labels: those whose probability is above one half, the most probable first.
        top: the most probable labels with their probabilities (the sigmoid of each score).
    """

    labels: tuple[str, ...]
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers that a regression tells of a sample.

    Attributes:
        values: by name; by their position in decimals where nothing names them.
    """

    values: dict[str, float]


Single: TypeAlias = Prediction | Labels | Numbers
# Of a model with several named heads, each head's.
Told: TypeAlias = Single | dict[str, Single]


def heads_for(task: Any, shape: Sequence[int]) -> tuple[Head, ...]:
    """Return what outputs are for, as a manifest's `training.strategy.task` says.

    Args:
        task: what it says; None, or a loss of one's own, tells nothing: then outputs are scores of
            classes, or a number where there is one alone, whose softmax would always be 1.
        shape: of the first output, samples along the first axis.

    Raises:
        UsageError: it is no task.
    """
    heads = said_by({"task": task})
    if heads is None:
        return heads_of(REGRESSION) if math.prod(shape[1:]) == 1 else CLASSIFIER
    return heads


def of_heads(
    outputs: Mapping[str, NDArray[Any]], heads: Sequence[Head], where: str
) -> list[NDArray[Any]]:
    """Return what each head gave: by name, or by place where no output has a head's name.

    Raises:
        TrainingError: a head has no output.
    """
    if not heads[0].name:
        known = [name for name in ANSWERS if name in outputs]
        chosen = [*known, *outputs][:1]
        if not chosen:
            raise error(Code.NO_SCORES, where, "no tensor comes out", "run it yourself")
        return [outputs[chosen[0]]]
    names = [head.name for head in heads]
    if not any(name in outputs for name in names) and len(outputs) >= len(names):
        return [*outputs.values()][: len(names)]
    if absent := [name for name in names if name not in outputs]:
        reason = f"no output {absent[0]!r}, but {', '.join(outputs) or 'none'}"
        raise error(Code.NO_SCORES, where, reason, "name the heads in --task as the outputs are")
    return [outputs[name] for name in names]


def told(
    parts: Sequence[NDArray[Any]],
    heads: Sequence[Head],
    labels: Sequence[str] | None,
    *,
    top: int = 5,
) -> Sequence[Told]:
    """Return what is said of each sample.

    Args:
        parts: what each head gave, samples along the first axis.
        heads: what they are for.
        labels: names of the classes, labels or numbers of the only head.
        top: how many classes or labels to name for each.

    Raises:
        SessionError: an output is not what its task needs, or one is not finite.
    """
    if not heads[0].name:
        return _single(parts[0], heads[0], labels, top)
    found = [_single(part, head, None, top) for part, head in zip(parts, heads, strict=True)]
    names = [head.name for head in heads]
    return [dict(zip(names, row, strict=True)) for row in zip(*found, strict=True)]


def _single(
    scores: NDArray[Any], head: Head, labels: Sequence[str] | None, top: int
) -> Sequence[Single]:
    match head.task:
        case task if task == SEGMENTATION:
            reason = "the model tells a class of each pixel, not of an image"
            raise error(Code.PREPROCESSING, _where(head), reason, "use run() (--input, with --out)")
        case task if task == REGRESSION:
            return _numbers(scores, head, labels)
        case task if task == MULTILABEL:
            return _labels(scores, head, labels, top)
        case _:
            return ranked(scores, labels, top=top)


def _numbers(scores: NDArray[Any], head: Head, labels: Sequence[str] | None) -> list[Numbers]:
    """Return numbers by name; a lone number a sample is one output."""
    rows = scores.reshape(len(scores), -1) if scores.ndim == 1 else scores
    alone = (head.name,) if head.name and rows.shape[1:] == (1,) else None
    names = _names(rows, labels or alone, _where(head), "numbers")
    wide = _finite(rows)
    return [Numbers(dict(zip(names, map(float, row), strict=True))) for row in wide]


def _labels(
    scores: NDArray[Any], head: Head, labels: Sequence[str] | None, top: int
) -> list[Labels]:
    names = _names(scores, labels, _where(head), "labels")
    wide = _finite(scores)
    shares = (1 + np.tanh(wide / 2)) / 2  # the sigmoid, without overflow
    order = np.argsort(-wide, axis=1, kind="stable")
    pairs = [
        tuple((names[int(i)], float(row[i])) for i in best)
        for row, best in zip(shares, order, strict=True)
    ]
    return [
        Labels(tuple(name for name, share in row if share > _HALF), row[: max(top, 1)])
        for row in pairs
    ]


def ranked(scores: NDArray[Any], labels: Sequence[str] | None, *, top: int = 5) -> list[Prediction]:
    """Return the best classes of each row of scores, by softmax.

    Raises:
        SessionError: these are no scores of classes, or not as many classes as labels, or one is
            not finite.
    """
    names = _names(scores, labels, "outputs", "classes")
    wide = _finite(scores)
    shares = np.exp(wide - wide.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    order = np.argsort(-wide, axis=1, kind="stable")[:, : max(top, 1)]
    return [
        Prediction(
            index=int(best[0]),
            label=names[int(best[0])],
            probability=float(row[best[0]]),
            top=tuple((names[int(i)], float(row[i])) for i in best),
        )
        for row, best in zip(shares, order, strict=True)
    ]


def _names(
    scores: NDArray[Any], labels: Sequence[str] | None, where: str, what: str
) -> Sequence[str]:
    """Return the names of the columns of scores.

    Raises:
        SessionError: there are no columns, or not as many as names.
    """
    if scores.ndim != _SCORES_RANK or not scores.shape[1]:
        reason = f"the first output has shape {scores.shape}, not (samples, {what})"
        raise error(Code.PREPROCESSING, where, reason, "use run()")
    names = labels or tuple(str(index) for index in range(scores.shape[1]))
    if len(names) != scores.shape[1]:
        reason = f"{len(names)} labels for {scores.shape[1]} {what}"
        raise error(Code.PREPROCESSING, "interface.labels", reason, "use run()")
    return names


def _finite(scores: NDArray[Any]) -> NDArray[np.float64]:
    wide = scores.astype(np.float64)
    if not np.all(np.isfinite(wide)):
        raise error(Code.RUN_FAILED, "outputs", "a score is not finite", "look at the input")
    return wide


def _where(head: Head) -> str:
    return f"output {head.name}" if head.name else "outputs"
