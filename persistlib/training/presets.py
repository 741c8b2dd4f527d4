"""How images become inputs of a known model, when nobody says otherwise."""

from __future__ import annotations

from typing import Any

from torch import nn

from persistlib.preprocessing import ImagePreprocessing, Size

ZOO = "torchvision.models"
EDGE = 224
# Of ImageNet, as nearly all of torchvision's classification weights.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def preprocessing_for(
    builder: str, model: nn.Module, weights: object, resize: int | None
) -> ImagePreprocessing:
    """Return how images become inputs: as torchvision's weights of the builder want them.

    Args:
        builder: `package.module:callable`.
        model: what it built; its first convolution says whether images are grey.
        weights: which of torchvision's weights are meant; any other value means the newest.
        resize: edge of the square images, instead of what the weights were made for.
    """
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    first = next(convolutions, None)
    known = _transforms(builder, weights)
    shorter, crop = (resize, resize) if resize else (known.resize_size[0], known.crop_size[0])
    size = Size(crop, crop)
    if first is not None and first.in_channels == 1:
        return ImagePreprocessing(1, 255.0, shorter, size, mean=(0.5,), std=(0.5,))
    mean, std = tuple(known.mean), tuple(known.std)
    return ImagePreprocessing(3, 255.0, shorter, size, known.interpolation.value, mean, std)


def _transforms(builder: str, weights: object) -> Any:
    """Return the transforms of torchvision's weights for a builder, or those of most others."""
    from torchvision.models import get_model_weights
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    module, _, name = builder.partition(":")
    if module.startswith(ZOO):
        try:
            members: Any = get_model_weights(name)
        except ValueError:
            pass  # a builder without weights
        else:
            wanted = str(getattr(weights, "name", weights))
            made = members.__members__.get(wanted, members.DEFAULT).transforms()
            if isinstance(made, ImageClassification):
                return made
    return ImageClassification(
        crop_size=EDGE,
        resize_size=EDGE,
        mean=_MEAN,
        std=_STD,
        interpolation=InterpolationMode.BILINEAR,
    )
