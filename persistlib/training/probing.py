"""What a model's features are worth for a task: a linear classifier on them, nothing trained.

Law: the same model, samples, split and seed give the same answers; the model is left as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from persistlib.training import classifiers
from persistlib.training.data import PreparedImages
from persistlib.training.features import features
from persistlib.training.fused_layers import rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from persistlib.files import StrPath
    from persistlib.preprocessing import ImagePreprocessing
    from persistlib.training.data import ImageData, Split


class Probe(NamedTuple):
    """How a linear classifier does on held-out samples.

    Attributes:
        right: whether it is right on each, bool.
        width: numbers that go into it.
    """

    right: NDArray[np.bool_]
    width: int


class _Cut(torch.nn.Module):
    """A model that answers with what goes into one of its layers.

    What follows the layer does not matter here: maps may be pooled and flattened after it.

    Attributes:
        end: path of the part that is given the features; it tells layers of one model apart.
    """

    def __init__(self, model: torch.nn.Module, layer: str) -> None:
        super().__init__()
        self.model = model
        self.end = f"before_{layer.replace('.', '_')}"
        self._layer = layer
        self.add_module(self.end, torch.nn.Identity())

    def forward(self, inputs: torch.Tensor) -> Any:
        """Return what the layer is given."""
        given: list[torch.Tensor] = []

        def watch(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            given.append(arguments[0].clone())  # a layer may work in place

        hook = self.model.get_submodule(self._layer).register_forward_pre_hook(watch)
        try:
            self.model(inputs)
        finally:
            hook.remove()
        return self.get_submodule(self.end)(given[-1])


def probe(
    model: torch.nn.Module,
    layer: str,
    data: ImageData,
    split: Split,
    *,
    record: ImagePreprocessing,
    classifier: Any,
    batch_size: int,
    cache: StrPath | None,
    between: Callable[[], None] | None,
) -> Probe:
    """Fit a classifier on what goes into a model's last layer, and judge it on the held-out part.

    Args:
        model: run in evaluation.
        layer: path of the last layer.
        data: the images.
        split: which are fitted on, and which are held out.
        record: how images become inputs.
        classifier: one of scikit-learn's, not fitted.
        batch_size: images a batch.
        cache: a folder to keep features in; None for memory.
        between: called after each batch.

    Raises:
        TrainingError: nothing ends the model, or the classifier refuses its features.
    """

    def taken(indices: Sequence[int]) -> NDArray[np.float64]:
        images = PreparedImages(data, indices, record)
        how: dict[str, Any] = {"batch_size": batch_size, "cache": cache, "between": between}
        found = features(cut, images, at=cut.end, **how)
        return rows_of(found.values, found.path)[0]

    cut = _Cut(model, layer)
    labels = np.array(data.labels)
    rows = taken(split.train)
    fitted = classifiers.fit(classifier, rows, labels[list(split.train)])
    answers = fitted.predict(taken(split.valid))
    return Probe(np.asarray(answers == labels[list(split.valid)], np.bool_), rows.shape[1])
