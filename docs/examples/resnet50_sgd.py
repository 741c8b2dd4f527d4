"""A ResNet-50 fine-tuned with SGD: as a whole, and then its last blocks alone.

The network first learns to tell the digits 0 to 4 apart; every layer trains. What it learned is
then put to use on the digits 5 to 9: all but its last blocks stays as it is, BatchNorm statistics
included, bit for bit.

    python docs/examples/resnet50_sgd.py [FOLDER]

FOLDER keeps both bundles; without it, they are thrown away.
"""
# ruff: noqa: T201 - a script that says what it does, and fails where that does not hold

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import persistlib
from persistlib import preprocessing
from persistlib.training.data import open_data

if TYPE_CHECKING:
    import torch
    from pydantic import JsonValue

LEAST = 0.9  # of the held-out digits that must be told apart
LAST = 4  # blocks
PREPROCESSING: dict[str, JsonValue] = {
    "kind": "image",
    "channels": 3,
    "resize": 32,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}
IMAGES = preprocessing.parse(PREPROCESSING)


def main(folder: Path) -> None:
    """Train both, and say what each reached."""
    model = persistlib.build("torchvision.models:resnet50", num_classes=5)
    train(model, range(5), folder / "all", strategy="full", epochs=8, lr=0.02)

    model = persistlib.load(folder / "all")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, range(5, 10), folder / "last", strategy=f"last:{LAST}", epochs=8, lr=0.02)

    after = persistlib.load(folder / "last").state_dict()
    still = [name for name, value in before.items() if value.equal(after[name])]
    print(f"{len(still)} of {len(after)} tensors are as they were, bit for bit")
    assert {name for name in after if not name.startswith(("layer4.", "fc."))} <= {*still}


def train(
    model: torch.nn.Module, digits: range, out: Path, *, strategy: str, epochs: int, lr: float
) -> None:
    """Train on some of the digits, and save."""
    data = open_data("sklearn:digits")
    inputs, labels = preprocessing.apply(data.images, IMAGES), np.array(data.labels)
    split = data.split(fraction=0.2)
    parts = [[i for i in part if labels[i] in digits] for part in (split.train, split.valid)]
    result = persistlib.finetune(
        model,
        *((inputs[chosen], labels[chosen] - digits.start) for chosen in parts),
        strategy=strategy,
        epochs=epochs,
        lr=lr,
        out=out,
        interface={"preprocessing": IMAGES.to_dict(), "labels": [str(digit) for digit in digits]},
        optimizer="sgd",
        optimizer_options={"momentum": 0.9, "nesterov": True},
    )
    trained = result.training.strategy["trained_parameters"]
    print(f"{strategy:6}  {trained:,} parameters  {result.metrics['accuracy']:.1%} of held out")
    assert result.metrics["accuracy"] >= LEAST


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else scratch))
