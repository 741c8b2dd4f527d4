"""What images are taken for by a torch module, prepared and ranked as a session does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from persistlib import preparing
from persistlib.errors import Code, error
from persistlib.runtime.session import Prediction, ranked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from persistlib.manifest.schema import Interface

_BATCH = 32  # images at once: more only costs memory


def predict(
    model: torch.nn.Module, images: Sequence[Any], interface: Interface, *, top: int = 5
) -> list[Prediction]:
    """Return what each image is taken for.

    Args:
        model: in evaluation, on the CPU.
        images: paths, Pillow images or arrays, or rows of a table.
        interface: how images are prepared, and the names of classes.
        top: how many classes to name for each.

    Raises:
        SessionError: the interface does not say how inputs are prepared, an image cannot be read,
            the module fails, or what it gives are no scores of classes.
    """
    if interface.preprocessing is None:
        remedy = "prepare tensors yourself and call the module"
        raise error(Code.PREPROCESSING, "interface.preprocessing", "not recorded", remedy)
    predictions: list[Prediction] = []
    for start in range(0, len(images), _BATCH):
        batch = preparing.apply(images[start : start + _BATCH], interface.preprocessing)
        scores = _scores(model, torch.from_numpy(batch))
        predictions.extend(ranked(scores.numpy(), interface.labels, top=top))
    return predictions


def _scores(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Return the module's first output in a dtype that numpy has."""
    try:
        with torch.inference_mode():
            outputs = model(batch.to(next(model.parameters()).dtype))
    except Exception as fault:
        # A module is anybody's code and raises what it likes.
        lines = str(fault).splitlines() or [type(fault).__name__]
        remedy = "see whether the recorded preprocessing fits the model"
        raise error(Code.RUN_FAILED, "forward", lines[0][:300], remedy) from fault
    while isinstance(outputs, (tuple, list)) and outputs:
        outputs = outputs[0]
    if isinstance(outputs, dict) and outputs:
        outputs = next(iter(outputs.values()))
    if not isinstance(outputs, torch.Tensor):
        reason = f"the first output is a {type(outputs).__name__}"
        raise error(Code.PREPROCESSING, "outputs", reason, "call the module yourself")
    return outputs.double()
