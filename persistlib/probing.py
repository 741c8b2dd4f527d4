"""What is fitted on a model's features: its last layer, in one step."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from persistlib.calls import require_torch, save_trained, section
from persistlib.manifest.schema import Data, Interface

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from persistlib.files import StrPath
    from persistlib.graph_wishes import GraphOptions
    from persistlib.training.loop import FinetuneResult


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
    from persistlib import api
    from persistlib.keras_models import as_module
    from persistlib.training import fusion

    model = as_module(model)
    lineage = api.origin(model)
    if (done := api.adaptation_of(model)) is not None and interface is None:
        interface = done.interface
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
