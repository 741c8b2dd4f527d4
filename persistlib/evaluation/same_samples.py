"""The samples on which one model was judged, as another takes them.

Law: they are the same samples in the same order, with the same labels by name; only how a sample
becomes an input, and the place of a class among the scores, are the other model's own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from persistlib import preparing
from persistlib.errors import Code, Finding, error, error_of, finding, warn
from persistlib.evaluation.seen import tell_seen
from persistlib.table_rows import TablePreprocessing
from persistlib.training.tasks import IGNORED, MULTILABEL, REGRESSION, SEGMENTATION
from persistlib.wording import first_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from persistlib.evaluation.samples import Samples
    from persistlib.manifest.schema import Data, Interface
    from persistlib.preparing import Preparation

_SHOWN = 8
_WARNED = "give interface= with what both go by, if it is otherwise"


def require_same_classes(
    first: Sequence[str] | None, second: Sequence[str] | None, names: tuple[str, str]
) -> None:
    """Refuse to compare models of other classes.

    Args:
        first: the classes of one, in the order of its scores; None where it names none.
        second: those of the other.
        names: what the two are called.

    Raises:
        TrainingError: a class of one is none of the other's, or two classes have one name and the
            orders differ; every fault is reported.
    """
    if first is None or second is None or tuple(first) == tuple(second):
        return
    if faults := [*_class_faults(first, second, names)]:
        raise error_of(faults)


def _class_faults(
    first: Sequence[str], second: Sequence[str], names: tuple[str, str]
) -> Iterator[Finding]:
    sides = ((first, second, names), (second, first, names[::-1]))
    for mine, theirs, (my_name, their_name) in sides:
        if extra := [name for name in dict.fromkeys(mine) if name not in theirs]:
            shown = first_of(extra, _SHOWN)
            reason = f"{their_name} has no class {shown}"
            remedy = "compare models of the same classes, or give interface= with labels"
            yield finding(Code.DATA_CLASSES, my_name, reason, remedy)
        if len(set(mine)) < len(mine):
            reason = "two classes have one name, and the other's stand in another order"
            yield finding(Code.DATA_CLASSES, my_name, reason, "give interface= with labels")


def as_taken_by(
    samples: Samples, interface: Interface, trained: Data | None, *, name: str
) -> Samples:
    """Return the samples as another model takes them.

    Args:
        samples: as the first takes them.
        interface: the other's classes and preprocessing; what it does not say is the first's.
        trained: what the other was trained on.
        name: what the other is called.

    Raises:
        TrainingError: the classes of the two differ, or the kinds of samples, or a table's columns.
        SessionError: the other's preprocessing is of no kind that is known.
    """
    tell_seen(samples, trained, name=name)
    classes, targets = samples.classes, samples.targets
    if interface.labels is None and classes:
        reason = "names no classes; those of the first are taken, in their order"
        warn(Code.DATA_CLASSES, name, reason, _WARNED)
    elif interface.labels is not None:
        known = interface.labels
        require_same_classes(classes or None, known, ("the first model", name))
        if classes and tuple(known) != tuple(classes):
            targets = _moved(samples, [known.index(label) for label in classes])
        classes = tuple(known)
    samples = replace(samples, targets=targets, classes=classes)
    if samples.preprocessing is None:
        return samples
    if interface.preprocessing is None:
        reason = "does not say how samples are prepared; that of the first is taken"
        warn(Code.PREPROCESSING, name, reason, _WARNED)
        return samples
    return _prepared(samples, preparing.parse(interface.preprocessing), name)


def _prepared(samples: Samples, record: Preparation, name: str) -> Samples:
    """Return the samples with another preparation; of a table with the columns in its order.

    Raises:
        TrainingError: it is of another kind, or takes columns that the first does not.
    """
    known = samples.preprocessing
    if isinstance(known, TablePreprocessing) is not isinstance(record, TablePreprocessing):
        kinds = ("images", "rows of a table")
        reason = f"takes {kinds[isinstance(record, TablePreprocessing)]}, and the first does not"
        raise error(Code.DATA_INVALID, name, reason, "compare models of the same kind of samples")
    if not isinstance(known, TablePreprocessing) or not isinstance(record, TablePreprocessing):
        return replace(samples, preprocessing=record)
    if absent := [column for column in record.columns if column not in known.columns]:
        reason = f"takes columns that the first does not: {first_of(absent, _SHOWN)}"
        raise error(Code.DATA_INVALID, name, reason, "compare models of the same columns")
    places = [known.columns.index(column) for column in record.columns]
    rows = np.asarray(samples.items, np.float64)[:, places]
    return replace(samples, items=[*rows], preprocessing=record)


def _moved(samples: Samples, places: list[int]) -> dict[str, NDArray[Any]]:
    """Return the targets of the only head for a model whose classes stand in other places.

    Args:
        samples: as the first model takes them.
        places: of each of its classes, labels or outputs, that of the other model.
    """
    (head,), targets = samples.heads, samples.labels
    if head.task in {REGRESSION, MULTILABEL}:
        return {head.name: targets[:, np.argsort(places)] if targets.ndim > 1 else targets}
    table = np.array(places, np.int64)
    if head.task != SEGMENTATION:
        return {head.name: table[targets]}
    is_known = targets < len(table)
    return {head.name: np.where(is_known, table[np.where(is_known, targets, 0)], IGNORED)}
