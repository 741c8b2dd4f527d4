"""Cross-validation of a last layer on a model's features, which are computed once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from blake3 import blake3
from torch.utils.data import Dataset

from persistlib.canonical import encode
from persistlib.digests import PREFIX, digest
from persistlib.errors import Code, error, warn
from persistlib.evaluation import cross_validation
from persistlib.evaluation.samples import open_samples
from persistlib.installed import package_version
from persistlib.training import affine, classifiers, fused_layers, fusion
from persistlib.training.features import features

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from persistlib.evaluation.cross_validation import CrossValidation
    from persistlib.evaluation.samples import Samples
    from persistlib.files import StrPath
    from persistlib.manifest.schema import Interface, Training
    from persistlib.training.features import Features

_PAIR = 2


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


class _Data(NamedTuple):
    """What is told of the data, and what the model takes.

    Attributes:
        name: of the data.
        digest: of samples and targets in their order.
        digests: of each sample.
        names: of the classes, or of the numbers.
        source: what `features` takes.
    """

    name: str
    digest: str
    digests: tuple[bytes, ...]
    names: tuple[str, ...]
    source: Any


class _Inputs(Dataset[Any]):
    """Labelled samples as a model takes them, prepared one by one."""

    fixed = True

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        record = samples.preprocessing
        prepared = "" if record is None else digest(encode(record.to_dict()))
        self.digest = f"{samples.digest} {prepared}"

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        (item,) = self._samples.inputs(index, index + 1)
        return torch.from_numpy(item), int(self._samples.labels[index])


def probe(
    model: torch.nn.Module,
    data: Any,
    interface: Interface,
    asked: Asked,
    training: Training | None = None,
) -> CrossValidation:
    """Return how a last layer does that is fitted anew for each part of the data.

    Args:
        model: left as it is.
        data: as `open_samples`, or a pair (inputs, numbers).
        interface: the model's classes, and how images are prepared.
        asked: how it is done.
        training: how the weights of the model came about.

    Raises:
        PersistlibError: see `persistlib.cross_validate`.
    """
    is_numbers = _has_numbers(data)
    estimator = _estimator(asked, is_numbers=is_numbers)
    given = _numbers(data) if is_numbers else _classes(data, interface)
    found = features(
        model,
        given.source,
        at=asked.at,
        batch_size=asked.batch_size,
        cache=asked.cache,
        between=_counting(asked, len(given.digests)),
    )
    _tell_seen(model, found, given, training)
    rows, _ = fused_layers.rows_of(found.values, found.path)
    truth = fusion.truth_of(estimator, found.targets)
    problem = cross_validation.Problem(
        estimator=estimator,
        rows=rows,
        truth=truth,
        digests=given.digests,
        names=given.names or _numbered(truth),
        fit=classifiers.fit,
        progress=asked.progress,
    )
    if asked.folds is None:
        result = cross_validation.leaving_one_out(problem)
    else:
        result = cross_validation.in_folds(problem, asked.folds, seed=asked.seed)
    return replace(result, about=_about(given, estimator, found))


def _estimator(asked: Asked, *, is_numbers: bool) -> Any:
    usual = classifiers.RIDGE if asked.folds is None or is_numbers else classifiers.LOGISTIC
    chosen = usual if asked.classifier is None else asked.classifier
    return classifiers.estimator_of(chosen, C=asked.C, seed=asked.seed, numbers=is_numbers)


def _has_numbers(data: Any) -> bool:
    """Return whether data are a pair of inputs and numbers to predict."""
    if not isinstance(data, (tuple, list)) or len(data) != _PAIR:
        return False
    return np.asarray(data[1]).dtype.kind == "f"


def _numbers(data: Any) -> _Data:
    """Return a pair of inputs and numbers.

    Raises:
        TrainingError: they do not fit each other.
    """
    inputs, targets = (np.ascontiguousarray(part) for part in data)
    is_fit = inputs.ndim > 1 and targets.ndim in {1, 2} and len(inputs) == len(targets) > 1
    if not is_fit or not np.isfinite(targets).all():
        shapes = f"inputs of shape {inputs.shape} and numbers of shape {targets.shape}"
        remedy = "give one number or several, finite, for each sample"
        raise error(Code.DATA_INVALID, "data", shapes, remedy)
    digests = tuple(blake3(row.tobytes()).digest() for row in inputs)
    hasher = blake3()
    for own, row in zip(digests, targets.astype(np.float64), strict=True):
        hasher.update(own + row.tobytes())
    names = tuple(str(number) for number in range(targets.reshape(len(targets), -1).shape[1]))
    return _Data("data", PREFIX + hasher.hexdigest(), digests, names, (inputs, targets))


def _classes(data: Any, interface: Interface) -> _Data:
    samples = open_samples(data, interface)
    source = _Inputs(samples)
    return _Data(samples.name, samples.digest, samples.digests, samples.classes, source)


def _numbered(truth: NDArray[Any]) -> tuple[str, ...]:
    return tuple(str(number) for number in range(int(truth.max()) + 1))


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
    model: torch.nn.Module, found: Features, given: _Data, training: Training | None
) -> None:
    """Warn where what comes before the last layer was trained on these very samples."""
    if training is None or training.data is None or training.data.digest != given.digest:
        return
    trained = training.strategy.get("trained_parameters")
    own = sum(item.numel() for item in model.get_submodule(found.path).parameters())
    if isinstance(trained, int) and trained <= own:
        return
    count = f"{trained - own:,} parameters" if isinstance(trained, int) else "what comes"
    reason = f"{count} before {found.path} were trained on these very samples: figures too good"
    warn(Code.DATA_SEEN, training.data.name or given.name, reason, "take a model that was not")


def _about(given: _Data, estimator: Any, found: Features) -> dict[str, Any]:
    return {
        "data": {"name": given.name, "digest": given.digest},
        "estimator": affine.named(estimator),
        "steps": [fusion.step_record(step) for step in affine.steps_of(estimator)],
        "scikit-learn": package_version("scikit-learn"),
        "layer": found.path,
        "features": int(found.values.shape[1]),
    }
