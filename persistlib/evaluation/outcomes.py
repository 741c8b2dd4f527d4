"""What was true and what was answered, sample by sample: figures and comparisons are made of it.

| task | `truth` and `answers` |
|---|---|
| classification | (samples,) int64: the class |
| regression | (samples, outputs) float64 |
| multilabel | (samples, labels) bool |
| segmentation | (samples, classes) int64: pixels of each class; `right`: those in both |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Outcomes:
    """The outcomes of one head of a model, in the order of the samples.

    Attributes:
        head: its name among several; empty for the only one.
        task: one of `training.tasks.TASKS`.
        names: of its classes, labels or outputs, in the model's order.
        truth: see above.
        answers: see above, of the same shape and dtype.
        right: of segmentation alone, of the same shape: pixels that are of a class and were
            answered so.
    """

    head: str
    task: str
    names: tuple[str, ...]
    truth: NDArray[Any]
    answers: NDArray[Any]
    right: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.truth)
