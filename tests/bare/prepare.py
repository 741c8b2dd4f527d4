"""Save, where torch is, what `tests/bare` opens where it is not.

`python tests/bare/prepare.py FOLDER` makes `bundle/`, `checkpoint.pt` and `image.png` there.
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


def main(folder: Path) -> None:
    """Make everything that the tests open."""
    torch.manual_seed(0)
    model = persistlib.build("torchvision.models:resnet18", num_classes=4).eval()
    noise = np.random.default_rng(0)
    with torch.no_grad():  # statistics that are no identity, so that folding them would show
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                values = torch.from_numpy(noise.uniform(0.5, 1.5, buffer.shape))
                buffer.copy_(values)
    persistlib.save(
        model,
        folder / "bundle",
        example_inputs=torch.randn(2, 3, EDGE, EDGE),
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
    pixels = noise.integers(0, 256, (90, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    main(Path(sys.argv[1]))
