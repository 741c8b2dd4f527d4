"""A frozen base with a new head: global pooling, a dense layer of 1,024 with ReLU, one of 10.

The base is torchvision's MobileNetV2 with its ImageNet weights. It is run once for each image, and
the head trains on what it gave: the same result as running it in every epoch, many times faster.

    python docs/examples/dense_head.py [WEIGHTS] [FOLDER]

WEIGHTS is a file, or DEFAULT for torchvision's own (downloaded once). FOLDER keeps the bundle.
"""
# ruff: noqa: T201 - a script that says what it does, and fails where that does not hold

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

import persistlib
from persistlib import preprocessing
from persistlib.training.data import PreparedImages, open_data

if TYPE_CHECKING:
    from pydantic import JsonValue

LEAST = 0.95  # of the held-out digits that must be right
DENSE = 1024
PREPROCESSING: dict[str, JsonValue] = {
    "kind": "image",
    "channels": 3,
    "resize": 96,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
IMAGES = preprocessing.parse(PREPROCESSING)


def main(weights: str, folder: Path) -> None:
    """Train the head, save, and open it in ONNX Runtime."""
    data = open_data("sklearn:digits")
    split = data.split(fraction=0.2)
    train, valid = (PreparedImages(data, indices, IMAGES) for indices in (split.train, split.valid))

    # MobileNetV2 pools its 1,280 channels over the whole image before the classifier.
    model = persistlib.build("torchvision.models:mobilenet_v2", weights=weights)
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(1280, DENSE), nn.ReLU(), nn.Linear(DENSE, len(data.classes)))
    model.set_submodule("classifier", head)

    result = persistlib.finetune(
        model,
        train,
        valid,
        freeze=["*", "!classifier.*"],
        epochs=15,
        lr=0.001,
        out=folder / "digits",
        onnx=True,
        interface={"preprocessing": IMAGES.to_dict(), "labels": data.classes},
        data=data.record(split),
    )
    strategy = result.training.strategy
    print(f"{strategy['trained_parameters']:,} parameters train on the inputs of", end=" ")
    print(f"{strategy['cached_before']!r}, computed once")
    print(f"{result.metrics['accuracy']:.1%} of {len(valid)} held-out digits are right")
    assert strategy["cached_before"] == "classifier"
    assert result.metrics["accuracy"] >= LEAST

    session = persistlib.load(folder / "digits", runtime="onnxruntime")
    answers = session.predict([data.images[index] for index in split.valid])
    right = sum(
        answer.label == data.classes[data.labels[index]]
        for answer, index in zip(answers, split.valid, strict=True)
    )
    print(f"ONNX Runtime: {right} right")
    assert right == round(result.metrics["accuracy"] * len(valid))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        given = sys.argv[1:]
        main(given[0] if given else "DEFAULT", Path(given[1] if len(given) > 1 else scratch))
