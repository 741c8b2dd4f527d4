"""What is fitted on a model's features: its last layer, in one step, once or in folds."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from persistlib.bundle import reading
from persistlib.calls import require_torch, save_trained, section
from persistlib.manifest.schema import Data, Interface
from persistlib.training.tasks import REGRESSION

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from torch import nn

    from persistlib.bundle import Bundle
    from persistlib.evaluation.cross_validation import CrossValidation
    from persistlib.files import StrPath
    from persistlib.graph_wishes import GraphOptions
    from persistlib.manifest.schema import Manifest
    from persistlib.training.loop import FinetuneResult

_PAIR = 2


def fit_classifier(
    model: nn.Module,
    train: Any,
    valid: Any = None,
    *,
    classifier: Any = "logistic",
    C: float = 1.0,  # noqa: N803 - scikit-learn's word
    interface: Interface | Mapping[str, Any] | None = None,
    data: Data | Mapping[str, Any] | None = None,
    out: StrPath | None = None,
    name: str | None = None,
    license: str | None = None,  # noqa: A002 - a promised name, and the field's word for it
    onnx: bool | GraphOptions = False,
    overwrite: bool = False,
    **how: Any,
) -> FinetuneResult:
    """Fit a scikit-learn classifier on what goes into a model's last layer, and make it that layer.

    The model then answers as the classifier does, is saved, exported and run like any other, and
    needs no scikit-learn. Each sample is run once.

    Args:
        model: changed in place; ends in evaluation mode.
        train: as `finetune`.
        valid: held-out samples in the same forms.
        classifier: "logistic", "svm" or "ridge"; or one of scikit-learn's linear estimators, alone
            or in a Pipeline after scalers, fitted already or not.
        C: of a name: the inverse of how strongly large weights are held back.
        interface: as `save`; its labels name the classes.
        data: what the manifest says of the data.
        out: the bundle to save.
        name: as `save`.
        license: as `save`.
        onnx: as `finetune`.
        overwrite: as `save`.
        **how: at, batch_size, device, cache, memory, workers, seed; see
            `persistlib.training.fusion.fit_classifier`.

    Returns:
        As `finetune`, without a history.

    Raises:
        TrainingError: no linear layer is exactly what the estimator computes, or rounding would
            make it answer otherwise; or the samples do not fit.
        MissingExtra: scikit-learn is not installed.
        PersistlibError: saving failed, as `save`.
    """
    require_torch("fitting a classifier on features")
    from persistlib import api, trained_bundles
    from persistlib.keras_models import as_module
    from persistlib.training import fusion, loop

    model = as_module(model)
    lineage = api.origin(model)
    if (done := api.adaptation_of(model)) is not None and interface is None:
        interface = done.interface
    if out is not None:
        nothing = loop.Folder()
        trained_bundles.require(model, out, nothing, epochs=0, overwrite=overwrite, alone=True)
    result = fusion.fit_classifier(
        model,
        train,
        valid,
        classifier=classifier,
        C=C,
        interface=section(Interface, interface),
        data=section(Data, data),
        **how,
    )
    if out is not None:
        saving = partial(api.save, lineage=lineage, name=name, license=license, overwrite=overwrite)
        save_trained(saving, result, out, onnx=onnx)
    return result


def cross_validate(
    model: nn.Module | StrPath,
    data: Any,
    *,
    folds: int = 5,
    leave_one_out: bool = False,
    classifier: Any = None,
    C: float = 1.0,  # noqa: N803 - scikit-learn's word
    seed: int = 0,
    interface: Interface | Mapping[str, Any] | None = None,
    task: str | None = None,
    save: bool = False,
    at: str | None = None,
    batch_size: int = 32,
    cache: StrPath | None = None,
    trust: Collection[str] = (),
    allow_withdrawn: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> CrossValidation:
    """Tell how good a last layer on a model's features is, fitted anew for each part of the data.

    What comes before the last layer is run once a sample. Each sample is then answered by a
    classifier that was fitted on other folds, scaling included; copies of a sample are in one fold.

    Args:
        model: a bundle, or a module, which is left as it is.
        data: as `evaluate`; or a pair (inputs, numbers), one number or several a sample.
        folds: how many.
        leave_one_out: whether each sample is a fold of its own.
        classifier: as `fit_classifier`; None is "logistic", and "ridge" for leave-one-out, which
            is fitted once, and for numbers.
        C: as `fit_classifier`.
        seed: of the folds.
        interface: classes and preprocessing where the model does not say them, or says others.
        task: classification or regression, where neither the data nor the model says it.
        save: whether the result joins the evaluations in the bundle's manifest.
        at: path of the layer; None for the one that ends the model.
        batch_size: samples a batch.
        cache: a folder to keep features in.
        trust: as `load`.
        allow_withdrawn: as `load`.
        progress: called with what is being done, steps done, and all steps.

    Returns:
        Figures of each fold, their means with intervals, and the answers to all samples.

    Raises:
        TrainingError: the data cannot be used or divided so, or no layer ends the model.
        MissingExtra: scikit-learn or torch is not installed.
        PersistlibError: the bundle cannot be loaded, or the manifest not be written.
    """
    require_torch("cross-validation")
    from persistlib import measurement
    from persistlib.evaluation import probing, recording

    measurement.require_keeper(model, save=save)
    asked = probing.Asked(
        classifier, C, None if leave_one_out else folds, seed, at, batch_size, cache, progress
    )
    given = section(Interface, interface)
    wishes = measurement.Wishes(task=_task(data) if task is None else task)
    samples = measurement.sampling(data, wishes)
    if not isinstance(model, (str, os.PathLike)):
        chosen = samples(given or Interface(), None, measurement.heads(wishes, None))
        return probing.probe(model, chosen, asked)

    def work(bundle: Bundle) -> tuple[CrossValidation, Manifest]:
        module = measurement.module_of(bundle, trust=trust, allow_withdrawn=allow_withdrawn)
        manifest = bundle.manifest
        heads = measurement.heads(wishes, manifest)
        # What its training saw is asked later: a head that saw the samples is fitted anew.
        chosen = samples(given or manifest.interface, None, heads)
        return probing.probe(module, chosen, asked, manifest.training), manifest

    result, manifest = reading(model, work)
    if save:
        recording.keep(model, manifest.bundle_id, {"cross_validation": result.to_dict()})
    return result


def _task(data: Any) -> str | None:
    """Return the task that data are of by themselves: a pair of inputs and numbers."""
    if not isinstance(data, (tuple, list)) or len(data) != _PAIR:
        return None
    import numpy as np  # a verb that reads no number does not wait for it

    return REGRESSION if np.asarray(data[1]).dtype.kind == "f" else None
