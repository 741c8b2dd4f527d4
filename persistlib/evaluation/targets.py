"""Samples of a model that is no classifier: inputs and targets as arrays, one or several by name.

An `.npz` file has `inputs`, or several as `inputs.NAME`; or `images`, which are prepared as the
model's manifest says; and `targets` (or `labels`), of several heads as `targets.HEAD`.

Law: what does not fit the tasks is reported before anything runs, all of it together.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from persistlib.errors import Code, Finding, error, error_of, finding
from persistlib.evaluation.inputs import count
from persistlib.training.arrays import has_named_inputs, is_archive, pixel_findings, read_arrays
from persistlib.training.raw_files import unusable
from persistlib.training.tasks import CLASSIFICATION, IGNORED, MULTILABEL, REGRESSION, SEGMENTATION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from persistlib.evaluation.inputs import Inputs
    from persistlib.training.tasks import Head

_PAIR = 2
_TARGETS = ("targets", "labels")
_FORMS = "give an .npz file with `inputs` and `targets`, or a pair (inputs, targets) of arrays"


class Given(NamedTuple):
    """Inputs, or images, with the targets of each head.

    Attributes:
        inputs: as the model takes them, or images.
        targets: by head.
        is_prepared: whether the model takes the inputs as they are.
    """

    inputs: Inputs
    targets: dict[str, NDArray[Any]]
    is_prepared: bool = True


def is_named(data: Any) -> bool:
    """Return whether data have several inputs by name, which are no images."""
    if isinstance(data, (str, os.PathLike)):
        return is_archive(os.fspath(data)) and has_named_inputs(os.fspath(data))
    return isinstance(data, (tuple, list)) and bool(data) and isinstance(data[0], Mapping)


def read_targets(data: Any, heads: Sequence[Head], location: str) -> Given:
    """Return inputs and the targets of each head.

    Args:
        data: an `.npz` file, or a pair (inputs, targets) of arrays, or of mappings of them by name.
        heads: what the model's outputs are for.
        location: what to name in an error.

    Raises:
        TrainingError: there is no such data, or it does not fit; every fault is reported.
    """
    if isinstance(data, (str, os.PathLike)):
        given = _from_file(os.fspath(data), heads)
    elif isinstance(data, (tuple, list)) and len(data) == _PAIR:
        given = Given(_arrays(data[0]), _by_head(_arrays(data[1]), heads, location))
    else:
        reason = f"a {type(data).__name__} is no data of {', '.join(h.task for h in heads)}"
        raise error(Code.DATA_INVALID, location, reason, _FORMS)
    if faults := [*_faults(given, heads, location)]:
        raise error_of(faults)
    return given


def _from_file(path: str, heads: Sequence[Head]) -> Given:
    if not is_archive(path):
        is_there = os.path.exists(path)
        code = Code.DATA_INVALID if is_there else Code.DATA_MISSING
        reason = "no .npz file" if is_there else "nothing stands there"
        raise error(code, path, reason, _FORMS)
    arrays = read_arrays(path)
    sources = [*_found(arrays, "inputs"), *(arrays[name] for name in ("images",) if name in arrays)]
    wanted = [part for name in _TARGETS for part in _found(arrays, name)]
    if len(sources) != 1 or len(wanted) != 1:
        reason = f"holds {', '.join(arrays) or 'no array that is known'}"
        raise error(Code.DATA_INVALID, path, reason, _FORMS)
    if (images := arrays.get("images")) is None:
        return Given(sources[0], _by_head(wanted[0], heads, path))
    if faults := [*pixel_findings(images, f"{path}: images")]:
        raise error_of(faults)
    return Given(images.astype(np.uint8, copy=False), _by_head(wanted[0], heads, path), False)


def _found(arrays: Mapping[str, NDArray[Any]], kind: str) -> Iterator[Inputs]:
    """Yield what a file holds under a name: one array, or several with a dot and a name behind."""
    start = f"{kind}."
    below = {n.removeprefix(start): array for n, array in arrays.items() if n.startswith(start)}
    if kind in arrays:
        yield arrays[kind]
    if below:
        yield below


def _arrays(part: Any) -> Any:
    """Return arrays, one or several by name; a tuple of arrays by their places."""
    if isinstance(part, Mapping):
        return {str(name): np.asarray(item) for name, item in part.items()}
    if isinstance(part, tuple) and part and all(getattr(item, "ndim", 0) for item in part):
        return {str(place): np.asarray(item) for place, item in enumerate(part)}
    return np.asarray(part)


def _by_head(targets: Any, heads: Sequence[Head], location: str) -> dict[str, NDArray[Any]]:
    """Return targets by head: by name, or by place where they have none."""
    names = [head.name for head in heads]
    if not isinstance(targets, Mapping):
        targets = {"": targets}
    elif len(targets) == len(names) and [*targets] == [str(n) for n in range(len(names))]:
        targets = dict(zip(names, targets.values(), strict=True))
    if absent := [name for name in names if name not in targets]:
        shown = ", ".join(name or "one array" for name in targets)
        wanted = absent[0] or "one head"
        raise error(Code.DATA_INVALID, location, f"targets are {shown}: none of {wanted}", _FORMS)
    return {name: targets[name] for name in names}


def _faults(given: Given, heads: Sequence[Head], location: str) -> Iterator[Finding]:
    inputs = given.inputs if isinstance(given.inputs, Mapping) else {"": given.inputs}
    total = count(given.inputs) if all(array.ndim for array in inputs.values()) else 0
    for name, array in inputs.items():
        where = f"{location}: inputs.{name}" if name else f"{location}: inputs"
        if array.dtype.kind not in "uifb" or (
            array.dtype.kind == "f" and not np.isfinite(array).all()
        ):
            reason = f"inputs of {array.dtype} that are no finite numbers"
            yield unusable(where, reason, "look at how they were made")
        if not array.ndim or not len(array) or len(array) != total:
            reason = f"shape {array.shape} for {total} samples"
            yield unusable(where, reason, "give a row for each sample, at least one")
    for head in heads:
        where = f"{location}: targets.{head.name}" if head.name else f"{location}: targets"
        targets = given.targets[head.name]
        if not targets.ndim or len(targets) != total:
            reason = f"shape {targets.shape} for {total} samples"
            yield unusable(where, reason, "give a row for each sample")
        elif targets.dtype.kind not in "uifb":
            yield unusable(where, f"targets of {targets.dtype}", "give numbers")
        else:
            for code, reason, remedy in _RULES[head.task](targets):
                yield finding(code, where, reason, remedy)


def _classes(targets: NDArray[Any]) -> Iterator[tuple[Code, str, str]]:
    if targets.ndim != 1 or targets.dtype.kind not in "ui":
        reason = f"targets of {targets.dtype} and shape {targets.shape}"
        yield Code.DATA_INVALID, reason, "give the class of each sample, a whole number"
    elif targets.min() < 0:
        yield Code.DATA_CLASSES, f"label {targets.min()}", "give numbers from 0 on"


def _numbers(targets: NDArray[Any]) -> Iterator[tuple[Code, str, str]]:
    if targets.dtype.kind == "f" and not np.isfinite(targets).all():
        yield Code.DATA_INVALID, "targets that are not finite", "leave these samples out"


def _labels(targets: NDArray[Any]) -> Iterator[tuple[Code, str, str]]:
    if not np.isin(targets, (0, 1)).all():
        reason = f"labels from {targets.min()} to {targets.max()} that are not 0 or 1"
        yield Code.DATA_CLASSES, reason, "give 1 for each label that a sample has"


def _masks(targets: NDArray[Any]) -> Iterator[tuple[Code, str, str]]:
    if targets.ndim != 3 or targets.dtype.kind not in "ui":
        reason = f"masks of {targets.dtype} and shape {targets.shape}"
        yield Code.DATA_INVALID, reason, "give (samples, height, width), whole numbers"
    elif targets.min() < 0:
        reason = f"class {targets.min()}"
        yield Code.DATA_CLASSES, reason, f"give numbers from 0 on, {IGNORED} for what is ignored"


_RULES: dict[str, Callable[[NDArray[Any]], Iterator[tuple[Code, str, str]]]] = {
    CLASSIFICATION: _classes,
    REGRESSION: _numbers,
    MULTILABEL: _labels,
    SEGMENTATION: _masks,
}
