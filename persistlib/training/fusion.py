"""A scikit-learn classifier fitted on a model's features, and made its last layer.

Laws: the model with its new layer answers as the classifier does on the features of every sample
it was given (`fused_layers`); all that lies before that layer is untouched, bit for bit; after an
error the model has the layer that it had. Nothing of scikit-learn's is kept but numbers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from persistlib.adaptation.classes import class_counts
from persistlib.adaptation.trial import put
from persistlib.architecture.freezing import Frozen
from persistlib.errors import Code, error
from persistlib.installed import package_version
from persistlib.manifest import schema
from persistlib.training import affine, classifiers, fused_layers
from persistlib.training.answers import primary
from persistlib.training.batches import Batches, call, first_samples
from persistlib.training.features import MEMORY, Features, features
from persistlib.training.loop import EXAMPLES, FinetuneResult, require_model
from persistlib.training.own_dtypes import own_dtype
from persistlib.training.tasks import CLASSIFICATION, REGRESSION

if TYPE_CHECKING:
    from pydantic import JsonValue

    from persistlib.files import StrPath
    from persistlib.training.affine import Affine
    from persistlib.training.batches import Samples
    from persistlib.training.fused_layers import Fused

KIND = "classifier"


class _Fitted(NamedTuple):
    """An estimator, what it was fitted on, and its layer.

    Attributes:
        estimator: fitted.
        form: what it computes.
        train: features that it was fitted on.
        valid: of held-out samples.
        fused: its layer.
    """

    estimator: Any
    form: Affine
    train: Features
    valid: Features | None
    fused: Fused


def fit_classifier(
    model: torch.nn.Module,
    train: Samples,
    valid: Samples | None = None,
    *,
    classifier: Any = classifiers.LOGISTIC,
    C: float = 1.0,  # noqa: N803 - scikit-learn's word
    at: str | None = None,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    cache: StrPath | None = None,
    memory: int = MEMORY,
    workers: int = 0,
    seed: int = 0,
    interface: schema.Interface | None = None,
    data: schema.Data | None = None,
) -> FinetuneResult:
    """Fit a classifier on what goes into a model's last layer, and put it in that layer's place.

    Args:
        model: changed in place; ends in evaluation mode.
        train: as `finetune`; of an estimator that was fitted already, samples to prove it on.
        valid: held-out samples in the same forms.
        classifier: logistic, svm or ridge (`classifiers`); or one of scikit-learn's linear
            estimators or a Pipeline of scalers and one, fitted or not. A regressor's targets are
            numbers, one or several a sample.
        C: of a name: the inverse of how strongly large weights are held back.
        at: path of the layer that is replaced; None for the one that ends the model. Where maps go
            into it, the mean over height and width is taken first.
        batch_size: as `features`, as are the next four.
        device: where to compute.
        cache: a folder to keep features in.
        memory: the most bytes of features in memory.
        workers: processes that load samples.
        seed: of what the estimator, or a data set, draws.
        interface: handed on to the result; its labels name the classes that targets are numbers of.
        data: what the manifest says of the data.

    Raises:
        UsageError: an argument means nothing.
        TrainingError: the estimator has no exact layer, or its layer would answer otherwise; the
            samples do not fit; or no layer ends the model.
        MissingExtra: scikit-learn is not installed.
    """
    asked = classifiers.estimator_of(classifier, C=C, seed=seed)
    require_model(model)
    how: dict[str, Any] = {"batch_size": batch_size, "device": device, "cache": cache}
    how |= {"memory": memory, "workers": workers, "seed": seed}
    with torch.inference_mode(mode=False):
        found = features(model, train, at=at, **how)
        if isinstance(classifier, str):
            numbers = has_numbers(found.targets)
            asked = classifiers.estimator_of(classifier, C=C, seed=seed, numbers=numbers)
        held_out = None if valid is None else features(model, valid, at=found.path, **how)
        fitted = _fitted(asked, found, held_out)
        given = interface or schema.Interface()
        labels = _labels(fitted.form.classes, given.labels)
        place = torch.device(device) if device is not None else next(model.parameters()).device
        some = train if valid is None else valid
        shown = Batches(some, "samples", batch_size, place, seed=seed, dtype=own_dtype(model))
        first = next(shown.in_order()).inputs
        _put(model, found.path, fitted.fused.layer.to(place), first)
    metrics = _metrics(fitted, given.labels, labels)
    told = data or _data(found, train, held_out, shown)
    record = _record(model, fitted, seed, told)
    return FinetuneResult(
        model=model.eval(),
        history=(),
        metrics=metrics,
        training=record.model_copy(update={"metrics": metrics}),
        interface=given.model_copy(update={"labels": labels}),
        example_inputs=first_samples(first, EXAMPLES),
        frozen=Frozen((), (), ()),
    )


def _fitted(asked: Any, train: Features, valid: Features | None) -> _Fitted:
    """Fit an estimator, unless it was, and return it with its layer."""
    rows, is_pooled = fused_layers.rows_of(train.values, train.path)
    truth = truth_of(asked, train.targets)
    done = asked if classifiers.is_fitted(asked) else classifiers.fit(asked, rows, truth)
    form = affine.affine_of(done, rows.shape[1])
    every = train.values if valid is None else torch.cat([train.values, valid.values])
    fused = fused_layers.fuse(done, form, every, pooled=is_pooled)
    return _Fitted(done, form, train, valid, fused)


def has_numbers(targets: Any) -> bool:
    """Return whether targets are numbers to predict, not those of classes."""
    return isinstance(targets, torch.Tensor) and targets.is_floating_point()


def truth_of(estimator: Any, targets: Any) -> Any:
    """Return targets as an estimator is given them.

    Raises:
        TrainingError: they are of the wrong kind.
    """
    if not isinstance(targets, torch.Tensor):
        remedy = "give the targets of one head"
        raise error(Code.DATA_INVALID, "targets", "are several tensors a sample", remedy)
    if classifiers.is_regressor(estimator):
        numbers = targets.cpu().double().numpy()
        is_fit, wanted = numbers.ndim in {1, 2}, "one or several numbers a sample"
    else:
        numbers = targets.cpu().numpy()
        is_fit = numbers.ndim == 1 and not targets.is_floating_point()
        wanted = "the number of a class for each sample"
    if not is_fit:
        reason = f"{targets.dtype} of shape {tuple(targets.shape)}, not {wanted}"
        remedy = "take an estimator that is for these targets, or other targets"
        raise error(Code.DATA_INVALID, f"targets of {affine.named(estimator)}", reason, remedy)
    return numbers


@torch.no_grad()
def _put(model: torch.nn.Module, path: str, layer: torch.nn.Module, inputs: Any) -> None:
    """Put a layer in the place of another, and see that the model's outputs are what it gives.

    Raises:
        TrainingError: they are not; the model is as it was.
    """
    model.eval()
    old = model.get_submodule(path)
    size = primary(call(model, inputs)).shape[1:]
    counted = class_counts(model, path, size[0]) if size else []
    given: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda *passed: given.append(passed[2]))
    put(model, path, layer.eval())
    try:
        outputs = primary(call(model, inputs))
        holds = len(given) == 1 and outputs.equal(given[0])
        reason = "the model's outputs are not those of its new last layer"
    except Exception as fault:  # noqa: BLE001 - a model is anybody's code
        holds, reason = False, f"with its new last layer the model fails: {fault}"
    finally:
        hook.remove()
    if not holds:
        put(model, path, old)
        raise error(Code.HEAD_UNKNOWN, path, reason, "name another layer with at=")
    for module, name in counted:
        vars(module)[name] = int(given[0].shape[1])


def _labels(
    classes: tuple[Any, ...] | None, given: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    """Return the names of an estimator's classes.

    Raises:
        TrainingError: it has classes that the interface does not name.
    """
    if classes is None:
        return None
    if all(isinstance(item, int) and not isinstance(item, bool) for item in classes):
        if given is not None and min(classes) >= 0 and max(classes) < len(given):
            return tuple(given[item] for item in classes)
        if given is None and classes == tuple(range(len(classes))):
            return None
    names = tuple(map(str, classes))
    if given is not None and (unknown := sorted({*names} - {*given})):
        reason = f"the classifier's class {unknown[0]!r} is none of the {len(given)} labels"
        raise error(Code.DATA_CLASSES, "interface.labels", reason, "name all of its classes")
    return names


def _metrics(
    fitted: _Fitted, given: tuple[str, ...] | None, labels: tuple[str, ...] | None
) -> dict[str, float]:
    """Return how the estimator does on the held-out samples; empty without."""
    if fitted.valid is None:
        return {}
    rows, _ = fused_layers.rows_of(fitted.valid.values, fitted.valid.path)
    truth = truth_of(fitted.estimator, fitted.valid.targets)
    if fitted.form.classes is None:
        off = np.reshape(fitted.estimator.predict(rows), truth.shape) - truth
        return {"mse": float(np.mean(off**2)), "mae": float(np.mean(np.abs(off)))}
    names = labels or tuple(map(str, fitted.form.classes))
    places = {name: number for number, name in enumerate(names)}
    right = [str(item) if given is None else given[item] for item in truth.tolist()]
    wanted = np.array([places.get(name, -1) for name in right])
    answers = fitted.estimator.predict(rows)
    known = {item: number for number, item in enumerate(fitted.form.classes)}
    same = np.array([known[item] for item in answers.tolist()]) == wanted
    found = {"accuracy": float(np.mean(same))}
    if fitted.form.link is not None and (wanted >= 0).all():
        shares = fitted.estimator.predict_proba(rows)[np.arange(len(wanted)), wanted]
        found["loss"] = -float(np.mean(np.log(np.maximum(shares, np.finfo(np.float64).tiny))))
    return found


def _record(
    model: torch.nn.Module, fitted: _Fitted, seed: int, data: schema.Data
) -> schema.Training:
    """Return what the manifest says of how the weights came about."""
    count = sum(item.numel() for item in model.parameters())
    fresh = sum(item.numel() for item in fitted.fused.layer.parameters())
    return schema.Training(
        strategy={
            "kind": KIND,
            "task": REGRESSION if fitted.form.classes is None else CLASSIFICATION,
            "estimator": affine.named(fitted.estimator),
            "steps": [step_record(step) for step in affine.steps_of(fitted.estimator)],
            "scikit-learn": package_version("scikit-learn"),
            "layer": fitted.train.path,
            "dtype": fitted.fused.dtype,
            "proved_on": fitted.fused.rows,
            "difference": fitted.fused.difference,
            "probabilities": fitted.form.link is not None,
            "trained_parameters": fresh,
            "frozen_parameters": count - fresh,
        },
        seed=seed,
        data=data,
    )


def step_record(step: Any) -> JsonValue:
    """Return the class of an estimator and its parameters, as far as they are plain."""
    plain: dict[str, JsonValue] = {}
    for name, value in step.get_params(deep=True).items():
        item = value.item() if isinstance(value, np.generic) else value
        if isinstance(item, float) and not math.isfinite(item):
            item = repr(item)
        if item is None or isinstance(item, (bool, int, float, str)):
            plain[name] = item
        elif hasattr(item, "get_params"):
            plain[name] = type(item).__name__
    kind = type(step)
    package = ".".join(part for part in kind.__module__.split(".") if not part.startswith("_"))
    return {"class": f"{package}:{kind.__name__}", "parameters": plain}


def _data(train: Features, samples: Any, valid: Features | None, shown: Batches) -> schema.Data:
    """Return what is known of data that nobody described."""
    own = Batches(samples, "train", shown.batch_size, torch.device("cpu"), seed=shown.seed)
    sizes = {"train": len(train.values)} | ({} if valid is None else {"valid": len(valid.values)})
    return schema.Data(digest=own.digest(), sizes=sizes)
