"""How images become inputs of a known model, when nobody says otherwise."""

from __future__ import annotations

import contextlib
from typing import Any

from torch import nn

from persistlib.architecture.trusted import ZOO
from persistlib.preprocessing import ImagePreprocessing, Size

EDGE = 224
# Of ImageNet, as nearly all of torchvision's classification weights.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def preprocessings(
    builder: str, model: nn.Module, weights: object, resize: int | None
) -> tuple[ImagePreprocessing, ...]:
    """Return how images may become inputs, the likeliest first.

    As torchvision's weights of the builder want them: of those that `weights` names, else of all,
    the default first, since a model is made for the image size of one of them.

    Args:
        builder: `package.module:callable`.
        model: what it built; its first convolution says whether images are grey.
        weights: which of torchvision's weights are meant; any other value names none.
        resize: edge of the square images, instead of what the weights were made for.
    """
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    grey = first is not None and first.in_channels == 1
    made: dict[ImagePreprocessing, None] = {}
    for known in _transforms(builder, weights):
        shorter, crop = (resize, resize) if resize else (known.resize_size[0], known.crop_size[0])
        size = Size(crop, crop)
        if grey:
            record = ImagePreprocessing(1, 255.0, shorter, size, mean=(0.5,), std=(0.5,))
        else:
            mean, std = tuple(known.mean), tuple(known.std)
            how = known.interpolation.value
            record = ImagePreprocessing(3, 255.0, shorter, size, how, mean, std)
        made[record] = None
    return tuple(made)[: 1 if resize else None]


def _transforms(builder: str, weights: object) -> tuple[Any, ...]:
    """Return the transforms of torchvision's weights for a builder, or those of most others."""
    from torchvision.models import get_model_weights
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    module, _, name = builder.partition(":")
    found: list[Any] = []
    if module.startswith(ZOO):
        with contextlib.suppress(ValueError):  # a builder without weights
            members: Any = get_model_weights(name)
            wanted = members.__members__.get(str(getattr(weights, "name", weights)))
            kinds = (wanted,) if wanted else (members.DEFAULT, *members)
            found = [kind.transforms() for kind in kinds]
    usual = ImageClassification(
        crop_size=EDGE,
        resize_size=EDGE,
        mean=_MEAN,
        std=_STD,
        interpolation=InterpolationMode.BILINEAR,
    )
    return tuple(item for item in found if isinstance(item, ImageClassification)) or (usual,)
