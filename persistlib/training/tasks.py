"""What a model is for: the task of each of its heads, in the words that a manifest keeps; no torch.

Law: `heads_of(record(heads)) == heads`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from persistlib.errors import Code, Finding, error_of, finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import JsonValue

CLASSIFICATION, REGRESSION = "classification", "regression"
MULTILABEL, SEGMENTATION = "multilabel", "segmentation"
TASKS = (CLASSIFICATION, REGRESSION, MULTILABEL, SEGMENTATION)
# What only a loss of the caller's own understands: nothing is asked of outputs and targets.
CUSTOM = "custom"
# Pixels of a mask that count for nothing, as in torchvision's own training of segmentation.
IGNORED = 255
# Of several outputs, those that answer; otherwise the first.
ANSWERS = ("logits", "out")

# A word; or a word, or a mapping with `task`, `weight` and `loss`, for each of several heads.
TaskLike: TypeAlias = "str | Mapping[str, str | Mapping[str, Any]] | None"


class Head(NamedTuple):
    """What one output of a model is for.

    Attributes:
        name: among several; empty for the only one.
        task: one of `TASKS`, or `CUSTOM`.
        weight: of its loss in the sum.
        loss: the name of its loss; None is the task's own.
    """

    name: str
    task: str
    weight: float = 1.0
    loss: str | None = None


# What is meant where nothing is said.
CLASSIFIER = (Head("", CLASSIFICATION),)


def heads_of(task: TaskLike, location: str = "task") -> tuple[Head, ...]:
    """Return the heads that a task says: one without a name, or several in order.

    Args:
        task: a word or a mapping; None is classification.
        location: what to name in an error.

    Raises:
        UsageError: it is none; every fault is reported.
    """
    heads: tuple[Head, ...]
    if not isinstance(task, Mapping):
        heads = CLASSIFIER if task is None else (Head("", task),)
        faults = [*_faults(heads[0], location)]
    else:
        heads = tuple(_head(name, given) for name, given in task.items())
        faults = [*_name_faults(heads, location)]
        faults += [fault for head in heads for fault in _faults(head, f"{location}.{head.name}")]
    if faults:
        raise error_of(faults)
    return heads


def said_by(strategy: Mapping[str, Any]) -> tuple[Head, ...] | None:
    """Return the heads that a manifest's `training.strategy` says; None where it says nothing.

    A loss of the caller's own says nothing.

    Raises:
        UsageError: what it says is no task.
    """
    said = strategy.get("task")
    return None if said is None or said == CUSTOM else heads_of(said, "training.strategy.task")


def record(heads: Sequence[Head]) -> JsonValue:
    """Return the heads as plain JSON, as `heads_of` takes them."""
    if not heads[0].name:
        return heads[0].task
    return {head.name: _record(head) for head in heads}


def _record(head: Head) -> JsonValue:
    if head == Head(head.name, head.task):
        return head.task
    given: dict[str, JsonValue] = {"task": head.task, "weight": head.weight}
    return given if head.loss is None else {**given, "loss": head.loss}


def _head(name: Any, given: Any) -> Head:
    if not isinstance(given, Mapping):
        return Head(name, given)
    known = {key: given[key] for key in ("weight", "loss") if key in given}
    strange = [key for key in given if key not in {"task", "weight", "loss"}]
    # What is not known is no task either, and told so.
    return Head(name, f"{given.get('task')}{''.join(f', {key}' for key in strange)}", **known)


def _name_faults(heads: Sequence[Head], location: str) -> Iterator[Finding]:
    names: list[Any] = [head.name for head in heads]
    bad = [name for name in names if not isinstance(name, str) or not name]
    if bad or not heads:
        reason = f"{bad[0]!r} is no name of a head" if bad else "names no head"
        yield finding(Code.USAGE, location, reason, "give a text for each head")


def _faults(head: Head, location: str) -> Iterator[Finding]:
    if head.task not in TASKS:
        reason = f"{head.task!r} is not one of {', '.join(TASKS)}"
        yield finding(Code.USAGE, location, reason, "give one of them, or one for each head")
    weight: Any = head.weight
    loss: Any = head.loss
    if loss is not None and not isinstance(loss, str):
        yield finding(Code.USAGE, f"{location}.loss", f"{loss!r} is no name of a loss")
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not _is_weight(weight):
        yield finding(Code.USAGE, f"{location}.weight", f"{weight!r} is no number above 0")


def _is_weight(value: float) -> bool:
    return 0 < value < math.inf
