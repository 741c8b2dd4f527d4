"""Cross-validation of a last layer on a model's features, which are computed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.data import Dataset

from persistlib.canonical import encode
from persistlib.digests import digest
from persistlib.errors import Code, error, warn
from persistlib.evaluation import cross_validation
from persistlib.installed import package_version
from persistlib.training import affine, classifiers, fused_layers, fusion
from persistlib.training.features import features
from persistlib.training.sample_digests import digest_of
from persistlib.training.tasks import CLASSIFICATION, REGRESSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from persistlib.evaluation.cross_validation import CrossValidation
    from persistlib.evaluation.samples import Samples
    from persistlib.files import StrPath
    from persistlib.manifest.schema import Training
    from persistlib.training.features import Features


class Asked(NamedTuple):
    """How it is done.

    Attributes:
        classifier: as `persistlib.cross_validate`, as all that follow.
        C: the inverse of how strongly large weights are held back.
        folds: None for leave-one-out.
        seed: of the folds, and of what a classifier draws.
        at: path of the layer.
        batch_size: samples a batch.
        cache: a folder to keep features in.
        progress: called with what is being done, steps done, and all steps.
    """

    classifier: Any = None
    C: float = 1.0
    folds: int | None = 5
    seed: int = 0
    at: str | None = None
    batch_size: int = 32
    cache: StrPath | None = None
    progress: Callable[[str, int, int], None] | None = None


class _Inputs(Dataset[Any]):
    """Labelled samples as a model takes them, prepared one by one."""

    fixed = True
    of_arrays = True

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        record = samples.preprocessing
        prepared = "" if record is None else digest(encode(record.to_dict()))
        self.digest = f"{samples.digest} {prepared}"

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Any, torch.Tensor]:
        given = self._samples.inputs(index, index + 1)
        target = torch.as_tensor(self._samples.labels[index])
        if isinstance(given, Mapping):
            return {name: torch.from_numpy(rows[0]) for name, rows in given.items()}, target
        return torch.from_numpy(given[0]), target


def probe(
    model: torch.nn.Module, samples: Samples, asked: Asked, training: Training | None = None
) -> CrossValidation:
    """Return how a last layer does that is fitted anew for each part of the data.

    Args:
        model: left as it is.
        samples: with classes, or with numbers.
        asked: how it is done.
        training: how the weights of the model came about.

    Raises:
        PersistlibError: see `persistlib.cross_validate`.
    """
    numbers = _require_one(samples)
    estimator = _estimator(asked, numbers=numbers)
    digests = samples.digests or _digests(samples)
    found = features(
        model,
        _Inputs(samples),
        at=asked.at,
        batch_size=asked.batch_size,
        cache=asked.cache,
        between=_counting(asked, len(samples)),
    )
    _tell_seen(model, found, samples, training)
    rows, _ = fused_layers.rows_of(found.values, found.path)
    truth = fusion.truth_of(estimator, found.targets)
    problem = cross_validation.Problem(
        estimator=estimator,
        rows=rows,
        truth=truth,
        digests=digests,
        names=_names(samples, truth, numbers=numbers),
        fit=classifiers.fit,
        progress=asked.progress,
    )
    if asked.folds is None:
        result = cross_validation.leaving_one_out(problem)
    else:
        result = cross_validation.in_folds(problem, asked.folds, seed=asked.seed)
    return replace(result, about=_about(samples, estimator, found))


def _require_one(samples: Samples) -> bool:
    """Return whether numbers are predicted, not classes.

    Raises:
        TrainingError: there are several heads, or they are for something else.
    """
    tasks = [head.task for head in samples.heads]
    if tasks not in ([CLASSIFICATION], [REGRESSION]):
        reason = f"the model is for {', '.join(tasks)}"
        remedy = "cross-validate a model with one head, for classification or regression"
        raise error(Code.DATA_INVALID, samples.name, reason, remedy)
    return tasks == [REGRESSION]


def _estimator(asked: Asked, *, numbers: bool) -> Any:
    usual = classifiers.RIDGE if asked.folds is None or numbers else classifiers.LOGISTIC
    chosen = usual if asked.classifier is None else asked.classifier
    return classifiers.estimator_of(chosen, C=asked.C, seed=asked.seed, numbers=numbers)


def _digests(samples: Samples) -> tuple[bytes, ...]:
    """Return the identity of what goes into the model, a sample each."""
    every = range(len(samples))
    return tuple(digest_of(samples.inputs(index, index + 1)).encode() for index in every)


def _names(samples: Samples, truth: NDArray[Any], *, numbers: bool) -> tuple[str, ...]:
    count = truth.reshape(len(truth), -1).shape[1] if numbers else int(truth.max()) + 1
    known = samples.classes
    is_fit = len(known) == count if numbers else bool(known)
    return known if is_fit else tuple(map(str, range(count)))


def _counting(asked: Asked, count: int) -> Callable[[], None] | None:
    """Return what tells, after each batch, how many samples the model has run."""
    if asked.progress is None:
        return None
    tell, done = asked.progress, 0

    def count_batch() -> None:
        nonlocal done
        done = min(done + asked.batch_size, count)
        tell("running", done, count)

    return count_batch


def _tell_seen(
    model: torch.nn.Module, found: Features, samples: Samples, training: Training | None
) -> None:
    """Warn where what comes before the last layer was trained on these very samples."""
    if training is None or training.data is None or training.data.digest != samples.digest:
        return
    trained = training.strategy.get("trained_parameters")
    own = sum(item.numel() for item in model.get_submodule(found.path).parameters())
    if isinstance(trained, int) and trained <= own:
        return
    count = f"{trained - own:,} parameters" if isinstance(trained, int) else "what comes"
    reason = f"{count} before {found.path} were trained on these very samples: figures too good"
    warn(Code.DATA_SEEN, training.data.name or samples.name, reason, "take a model that was not")


def _about(samples: Samples, estimator: Any, found: Features) -> dict[str, Any]:
    return {
        "data": {"name": samples.name, "digest": samples.digest},
        "estimator": affine.named(estimator),
        "steps": [fusion.step_record(step) for step in affine.steps_of(estimator)],
        "scikit-learn": package_version("scikit-learn"),
        "layer": found.path,
        "features": int(found.values.shape[1]),
    }
