"""Several models held against each other as a beginning for fine-tuning, one open at a time.

Each gives features once; a linear classifier on them is judged on the same held-out images; its
size is counted and its speed measured with a last layer for the classes at hand. What cannot be had
(weights out of reach, a model that refuses the images) is a row with its reason, and no end.
"""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from persistlib import preprocessing
from persistlib.bundle import reading
from persistlib.calls import require_torch
from persistlib.errors import Code, PersistlibError, error, error_of, finding
from persistlib.evaluation import recording, timing
from persistlib.evaluation.metrics import require_metrics
from persistlib.evaluation.ranking import Absent, Candidate, Ranking, ranked
from persistlib.evaluation.runners import session_runner, torch_runner
from persistlib.loading import Reading, load_module, require_compatible
from persistlib.measurement import own_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    import torch
    from numpy.typing import NDArray
    from pydantic import JsonValue

    from persistlib.bundle import Bundle
    from persistlib.evaluation.timing import Timing
    from persistlib.files import StrPath
    from persistlib.preprocessing import ImagePreprocessing
    from persistlib.training.beginnings import Beginning, Saved
    from persistlib.training.data import ImageData
    from persistlib.training.splits import Split

FRESH = "fresh"
_LEAST = {"batch_size": 1, "calls": 0, "threads": 1, "seed": 0, "folds": 2}
_READING = Reading(mapped=True, verify=True)


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """How candidates are compared.

    Attributes:
        weights: of builders that name none: as `persistlib.build`, or "fresh".
        classifier: logistic, svm or ridge, or an estimator of scikit-learn's.
        C: of a name: the inverse of how strongly large weights are held back.
        resize: edge of the square images; None takes what each model was made for.
        fraction: of each class that is held out; None takes the data's own division, if any.
        folds: parts of which each is judged by a fit on the others; None judges what is held out.
        seed: of the split, of fresh values and of what the classifier draws.
        batch_size: images a batch, and the larger of the batches that are timed.
        calls: calls to time for each batch size, at most; 0 times none.
        threads: of each runtime while it is timed; None: as many as there are cores.
        onnx: whether each is exported and timed in ONNX Runtime too.
        cache: a folder to keep features in.
        trust: packages that may be imported beyond torch and torchvision.
        allow_withdrawn: whether bundles that were withdrawn take part.
        progress: called with what is being done, steps done, and all steps.
    """

    weights: str | os.PathLike[str] | None = "DEFAULT"
    classifier: Any = "logistic"
    C: float = 1.0
    resize: int | None = None
    fraction: float | None = None
    folds: int | None = None
    seed: int = 0
    batch_size: int = 32
    calls: int = 30
    threads: int | None = None
    onnx: bool = False
    cache: StrPath | None = None
    trust: Collection[str] = ()
    allow_withdrawn: bool = False
    progress: Callable[[str, int, int], None] | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("batch_size", 1),
            ("calls", 0),
            ("threads", 1),
            ("seed", 0),
            ("folds", 2),
        ):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                reason = f"{value!r} is no whole number from {least} on"
                raise error(Code.USAGE, name, reason, f"give {least} or more")


class _Task(NamedTuple):
    """What every candidate is asked."""

    data: ImageData
    split: Split
    estimator: Any
    wishes: Wishes


def compare(
    candidates: Sequence[str | os.PathLike[str]],
    data: str | os.PathLike[str],
    *,
    save: bool = False,
    **how: Any,
) -> Ranking:
    """Rank models as beginnings for fine-tuning on labelled images.

    Nothing is trained but a linear classifier on what goes into each model's last layer.

    Args:
        candidates: `BUILDER` or `BUILDER=WEIGHTS`, a builder as `build` takes it, and weights as it
            takes them, or "fresh"; or bundles.
        data: as `finetune` takes it on the command line: a folder with one folder of images a
            class, an `.npz` file, or "sklearn:digits".
        save: whether each bundle keeps its result among its evaluations.
        **how: weights, classifier, C, resize, fraction, folds, seed, batch_size, calls, threads,
            onnx, cache, trust, allow_withdrawn, progress; see `contenders.Wishes`.

    Returns:
        The candidates in order, the recommended one first, and those that could not be had.

    Raises:
        UsageError: an argument means nothing, or a candidate is named twice.
        TrainingError: the data cannot be used; every fault is reported.
        MissingExtra: torch or scikit-learn is not installed.
    """
    require_torch("comparing models")
    require_metrics()
    wishes = Wishes(**how)
    names = _names(candidates)
    task = _task(data, wishes)
    found: list[Candidate] = []
    absent: list[Absent] = []
    for place, name in enumerate(names):
        _tell(wishes, name, place, len(names))
        try:
            found.append(_tried(name, task))
        except PersistlibError as fault:
            absent.append(Absent(name, tuple(fault.findings)))
        except MemoryError:
            reason = "it takes more memory than there is"
            absent.append(Absent(name, (finding(Code.NO_MEMORY, name, reason),)))
        gc.collect()
    _tell(wishes, "done", len(names), len(names))
    ranking = ranked(found, absent, data=_data(task), classifier=_classifier(task))
    if save:
        _keep(ranking)
    return ranking


def _names(candidates: Sequence[str | os.PathLike[str]]) -> list[str]:
    given = [candidates] if isinstance(candidates, (str, os.PathLike)) else candidates
    names = [os.fspath(item) for item in given]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice or not names:
        reason = f"{twice[0]} is named twice" if twice else "nothing is to be compared"
        raise error(Code.USAGE, "candidates", reason, "name each model once")
    if bare := next((name for name in names if name.endswith("=")), None):
        reason = f"{bare} names no weights"
        raise error(Code.USAGE, "candidates", reason, f"{bare}DEFAULT, {bare}{FRESH} or {bare}FILE")
    return names


def _task(data: str | os.PathLike[str], wishes: Wishes) -> _Task:
    from persistlib.training import classifiers
    from persistlib.training.data import open_data

    estimator = classifiers.estimator_of(wishes.classifier, C=wishes.C, seed=wishes.seed)
    images = open_data(data)
    if not images.classes:
        remedy = "give images with the classes that they are of"
        raise error(Code.DATA_INVALID, images.name, "names no classes", remedy)
    split = images.split(fraction=wishes.fraction, seed=wishes.seed)
    return _Task(images, split, estimator, wishes)


def _tell(wishes: Wishes, what: str, done: int, total: int) -> None:
    if wishes.progress is not None:
        wishes.progress(what, done, total)


def _tried(name: str, task: _Task) -> Candidate:
    """Return what came of a candidate.

    Raises:
        PersistlibError: it cannot be had, or refuses the images.
    """
    from persistlib.training import beginnings

    wishes = task.wishes
    builder, is_named, weights = name.partition("=")
    # A path of weights is no path of a bundle, unless a folder is really called so.
    if os.path.isdir(name) if is_named else beginnings.is_bundle(name):

        def work(bundle: Bundle) -> Candidate:
            begun = beginnings.of_bundle(_saved(bundle, wishes), resize=wishes.resize)
            return _judged(name, begun, task, bundle.manifest.bundle_id)

        return reading(name, work)
    wanted = weights if is_named else wishes.weights
    begun = beginnings.of_builder(
        builder,
        None if wanted == FRESH else wanted,
        resize=wishes.resize,
        seed=wishes.seed,
        trust=wishes.trust,
        arguments={},
    )
    return _judged(name, begun, task, None)


def _saved(bundle: Bundle, wishes: Wishes) -> Saved:
    from persistlib.training.beginnings import Saved

    require_compatible(bundle, "torch", allow_withdrawn=wishes.allow_withdrawn)
    return Saved(load_module(bundle, _READING, strict=True, trust=wishes.trust), bundle.manifest)


def _judged(name: str, begun: Beginning, task: _Task, bundle_id: str | None) -> Candidate:
    from persistlib.architecture import recipe
    from persistlib.training.beginnings import example
    from persistlib.training.head import replace_head

    wishes, model, head, record = task.wishes, begun.model, begun.head, begun.preprocessing
    right, width = _probed(name, model, head.path, record, task)
    origin = recipe.origin(model)
    classes = len(task.data.classes)
    if head.width != classes:
        replace_head(model, head, classes, example=example(record), seed=wishes.seed)
    tensors = {id(item): item for item in (*model.parameters(), *model.buffers())}
    return Candidate(
        name=name,
        builder=begun.builder,
        weights=origin.source if origin is not None else None,
        right=right,
        features=width,
        parameters=sum(item.numel() for item in model.parameters()),
        size=sum(item.nbytes for item in tensors.values()),
        timings=_timings(model, record, task),
        bundle_id=bundle_id,
    )


def _probed(
    name: str, model: torch.nn.Module, layer: str, record: ImagePreprocessing, task: _Task
) -> tuple[NDArray[np.bool_], int]:
    """Return whether the classifier is right on each judged image, and how many numbers it takes.

    Raises:
        TrainingError: nothing can be fitted on what goes into the layer.
    """
    from persistlib.evaluation import cross_validation
    from persistlib.training import classifiers
    from persistlib.training.last_inputs import rows_before

    steps, size = _steps(name, task), task.wishes.batch_size
    how: dict[str, Any] = {"batch_size": size, "cache": task.wishes.cache}
    how["between"] = lambda: next(steps, None)
    chosen = task.split.train + task.split.valid
    rows = rows_before(model, layer, task.data, chosen, record, **how)
    truth = np.array([task.data.labels[index] for index in chosen])
    if task.wishes.folds is not None:
        digests = [task.data.digests[index] for index in chosen]
        names, fit = task.data.classes, classifiers.fit
        problem = cross_validation.Problem(task.estimator, rows, truth, digests, names, fit)
        found = cross_validation.in_folds(problem, task.wishes.folds, seed=task.wishes.seed)
        return found.outcomes.answers == truth, rows.shape[1]
    fitted = len(task.split.train)
    estimator = classifiers.fit(task.estimator, rows[:fitted], truth[:fitted])
    return np.asarray(estimator.predict(rows[fitted:]) == truth[fitted:], np.bool_), rows.shape[1]


def _steps(name: str, task: _Task) -> Iterator[None]:
    """Tell how far a candidate's features are, batch by batch."""
    total = -(-(len(task.split.train) + len(task.split.valid)) // task.wishes.batch_size)
    for done in range(1, total + 1):
        _tell(task.wishes, f"{name}: features", done, total)
        yield


def _timings(
    model: torch.nn.Module, record: ImagePreprocessing, task: _Task
) -> Mapping[str, tuple[Timing, ...]]:
    """Return the times of a model that is ready for the classes, by runtime."""
    wishes = task.wishes
    if not wishes.calls:
        return {}
    images = [task.data.images[index] for index in task.split.valid[: wishes.batch_size]]
    batch = preprocessing.apply(images, record)
    whole = np.resize(batch, (wishes.batch_size, *batch.shape[1:]))
    threads = wishes.threads or own_cores()
    with torch_runner(model, threads) as runner:
        runners = [runner]
        if wishes.onnx:
            runners.append(session_runner(_session(model, whole[:2], threads)))
        sizes = sorted({1, wishes.batch_size})
        rows = [timing.measure(runners, whole[:size], wishes.calls) for size in sizes]
    return {item.name: times for item, times in zip(runners, zip(*rows, strict=True), strict=True)}


def _session(model: torch.nn.Module, inputs: Any, threads: int) -> Any:
    """Return a runtime session over a model's graph, which is timed and not proved."""
    import torch

    from persistlib.export.onnx_export import export
    from persistlib.runtime.session import open_session

    made = export(model, (torch.from_numpy(inputs),), input_names=("inputs",))
    return open_session(memoryview(made.files[0].data), external=made.external, threads=threads)


def _data(task: _Task) -> dict[str, JsonValue]:
    train, valid, folds = len(task.split.train), len(task.split.valid), task.wishes.folds
    how: dict[str, JsonValue] = {**task.split.how}
    if folds is not None:
        how = {"method": "folds", "folds": folds, "seed": task.wishes.seed}
    return {
        "name": task.data.name,
        "digest": task.data.digest,
        "classes": len(task.data.classes),
        "judged": valid if folds is None else train + valid,
        "fitted": train if folds is None else train + valid - (train + valid) // folds,
        "split": how,
    }


def _classifier(task: _Task) -> dict[str, JsonValue]:
    given = task.wishes.classifier
    name = given if isinstance(given, str) else type(given).__name__
    return {"name": name, "C": task.wishes.C} if isinstance(given, str) else {"name": name}


def _keep(ranking: Ranking) -> None:
    """Let each bundle keep its own result.

    Raises:
        PersistlibError: a manifest cannot be written; every fault is reported.
    """
    faults: list[Any] = []
    for place in ranking.places:
        candidate = place.candidate
        if candidate.bundle_id is None:
            continue
        record: dict[str, JsonValue] = {
            "data": {**ranking.data},
            "probe": {**ranking.classifier, **candidate.record(), "tied": place.is_tied},
        }
        try:
            recording.keep(candidate.name, candidate.bundle_id, record)
        except PersistlibError as fault:
            faults += fault.findings
    if faults:
        raise error_of(faults)
