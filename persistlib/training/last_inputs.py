"""What goes into a model's last layer for each image, whatever follows that layer.

Law: the same model and images give the same rows; the model is left as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from persistlib.training.data import PreparedImages
from persistlib.training.features import features
from persistlib.training.fused_layers import rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from persistlib.files import StrPath
    from persistlib.preprocessing import ImagePreprocessing
    from persistlib.training.data import ImageData


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


def rows_before(
    model: torch.nn.Module,
    layer: str,
    data: ImageData,
    indices: Sequence[int],
    record: ImagePreprocessing,
    *,
    batch_size: int,
    cache: StrPath | None = None,
    between: Callable[[], None] | None = None,
) -> NDArray[np.float64]:
    """Return what goes into a layer, (images, numbers); of maps their means.

    Args:
        model: run in evaluation.
        layer: path of the layer.
        data: the images.
        indices: which of them.
        record: how images become inputs.
        batch_size: images a batch.
        cache: a folder to keep features in; None for memory.
        between: called after each batch.

    Raises:
        TrainingError: what goes in is no row of finite numbers.
        PersistlibError: as `features`.
    """
    cut = _Cut(model, layer)
    images = PreparedImages(data, indices, record)
    how: dict[str, Any] = {"batch_size": batch_size, "cache": cache, "between": between}
    found = features(cut, images, at=cut.end, **how)
    return rows_of(found.values, found.path)[0]
