"""Save, where torch is, what `tests/bare` opens where it is not.

`python tests/bare/prepare.py FOLDER` makes `bundle/`, `delta/`, which stands on it, `checkpoint.pt`
and `image.png` there.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import persistlib

EDGE = 64


def drawn(count: int) -> torch.Tensor:
    """Return images that differ in colour, contrast and grain."""
    colour, contrast = torch.randn(count, 3, 1, 1), torch.rand(count, 1, 1, 1)
    coarse = torch.nn.functional.interpolate(torch.randn(count, 3, 4, 4), EDGE)
    return colour + contrast * torch.randn(count, 3, EDGE, EDGE) + coarse


def main(folder: Path) -> None:
    """Make everything that the tests open."""
    torch.manual_seed(0)
    model = persistlib.build("torchvision.models:resnet18", num_classes=4)
    with torch.no_grad():  # statistics of real passes, and outputs that tell inputs apart
        torch.nn.init.normal_(model.get_parameter("fc.weight"))
        for _ in range(8):
            model.train()(drawn(16))
    model.eval()
    persistlib.save(
        model,
        folder / "bundle",
        example_inputs=drawn(2),
        interface={
            "preprocessing": {
                "kind": "image",
                "resize": EDGE,
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
            },
            "labels": ["ant", "bee", "cat", "dog"],
        },
        name="bare",
        onnx=True,
    )
    torch.save(model.state_dict(), folder / "checkpoint.pt")
    with torch.no_grad():
        model.get_parameter("fc.bias").add_(1)
    persistlib.save(
        model, folder / "delta", base=folder / "bundle", example_inputs=drawn(2), name="bare"
    )
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    main(Path(sys.argv[1]))
