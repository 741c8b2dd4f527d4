"""What a torch module tells of images or rows, prepared and told as a session does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from persistlib import preparing
from persistlib.errors import Code, error
from persistlib.runtime import predictions
from persistlib.runtime.batching import BATCH
from persistlib.training.answers import of_heads, primary
from persistlib.wording import first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydantic import JsonValue

    from persistlib.manifest.schema import Interface
    from persistlib.training.tasks import Head


def predict(
    model: torch.nn.Module,
    images: Any,
    interface: Interface,
    *,
    task: JsonValue = None,
    top: int = 5,
) -> list[Any]:
    """Return what each image is taken for, or what is told of it: as `Session.predict`.

    Args:
        model: in evaluation, on the CPU.
        images: as `Session.predict`.
        interface: how images are prepared, and the names of classes.
        task: what the outputs are for, as a manifest's `training.strategy.task` says it.
        top: how many classes or labels to name for each.

    Raises:
        SessionError: the interface does not say how inputs are prepared, an image cannot be read,
            the module fails, or what it gives is not what its task needs.
    """
    if interface.preprocessing is None:
        remedy = "prepare tensors yourself and call the module, or --input on the command line"
        raise error(Code.PREPROCESSING, "interface.preprocessing", "not recorded", remedy)
    found: list[Any] = []
    items = preparing.items_of(images)
    for start in range(0, len(items), BATCH):
        batch = preparing.apply(items[start : start + BATCH], interface.preprocessing)
        heads, parts = _answered(model, torch.from_numpy(batch), task)
        found.extend(predictions.told(parts, heads, interface.labels, top=top))
    return found


def _answered(
    model: torch.nn.Module, batch: torch.Tensor, task: JsonValue
) -> tuple[tuple[Head, ...], list[NDArray[Any]]]:
    """Return the module's heads, and what each gave in a dtype that numpy has."""
    try:
        with torch.inference_mode():
            outputs = model(batch.to(next(model.parameters()).dtype))
    except Exception as fault:
        # A module is anybody's code and raises what it likes.
        remedy = "see whether the recorded preprocessing fits the model"
        raise error(Code.RUN_FAILED, "forward", first_line(fault)[:300], remedy) from fault
    try:
        heads = predictions.heads_for(task, primary(outputs).shape)
        parts = of_heads(outputs, heads)
    except TypeError as fault:
        remedy = "call the module yourself"
        raise error(Code.PREPROCESSING, "outputs", str(fault), remedy) from fault
    return heads, [part.double().numpy() for part in parts]
