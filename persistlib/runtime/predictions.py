"""What scores of classes say of images: the best classes, by name and probability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_SCORES_RANK = 2


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


def ranked(scores: NDArray[Any], labels: Sequence[str] | None, *, top: int = 5) -> list[Prediction]:
    """Return the best classes of each row of scores, by softmax.

    Raises:
        SessionError: these are no scores of classes, or not as many classes as labels, or one is
            not finite.
    """
    if scores.ndim != _SCORES_RANK or not scores.shape[1]:
        reason = f"the first output has shape {scores.shape}, not (images, classes)"
        raise error(Code.PREPROCESSING, "outputs", reason, "use run()")
    names = labels or tuple(str(index) for index in range(scores.shape[1]))
    if len(names) != scores.shape[1]:
        reason = f"{len(names)} labels for {scores.shape[1]} classes"
        raise error(Code.PREPROCESSING, "interface.labels", reason, "use run()")
    wide = scores.astype(np.float64)
    if not np.all(np.isfinite(wide)):
        raise error(Code.RUN_FAILED, "outputs", "a score is not finite", "look at the image")
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
