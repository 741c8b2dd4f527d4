"""Features of a frozen network, and scikit-learn's logistic regression on them, as one model.

MobileNetV2 with its ImageNet weights is run once over the digits. A logistic regression behind a
scaler is fitted on what it gives, and becomes the network's last layer: numbers alone, nothing of
scikit-learn's. The saved model answers as the two did, in torch and in ONNX Runtime.

    python docs/examples/fused_classifier.py [WEIGHTS] [FOLDER]

WEIGHTS is a file, or DEFAULT for torchvision's own. FOLDER keeps the bundle.
"""
# ruff: noqa: T201 - a script that says what it does, and fails where that does not hold

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import persistlib
from persistlib import preprocessing
from persistlib.training.data import PreparedImages, open_data
from persistlib.training.features import features

if TYPE_CHECKING:
    from pydantic import JsonValue

LEAST = 0.92  # of the held-out digits that must be right
PREPROCESSING: dict[str, JsonValue] = {
    "kind": "image",
    "channels": 3,
    "resize": 96,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


def main(weights: str, folder: Path) -> None:
    """Fit, fuse, save, and hold the saved model against scikit-learn."""
    images = preprocessing.parse(PREPROCESSING)
    data = open_data("sklearn:digits")
    split = data.split(fraction=0.2)
    train, valid = (PreparedImages(data, indices, images) for indices in (split.train, split.valid))
    model = persistlib.build("torchvision.models:mobilenet_v2", weights=weights)

    given = features(model, train)
    held_out = features(model, valid)
    print(f"{given.values.shape[1]:,} features of each of {len(train):,} digits", end=", ")
    print(f"from what goes into {given.path!r}")
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    classifier.fit(given.values.numpy(), given.targets.numpy())
    theirs = classifier.predict(held_out.values.numpy())

    result = persistlib.fit_classifier(
        model,
        train,
        valid,
        classifier=classifier,
        interface={"preprocessing": PREPROCESSING, "labels": data.classes},
        data=data.record(split),
        out=folder / "digits",
        onnx=True,
    )
    print(f"{result.metrics['accuracy']:.1%} of the held-out digits are right")
    assert result.metrics["accuracy"] >= LEAST

    inputs = torch.stack([valid[index][0] for index in range(len(valid))])
    with torch.no_grad():
        ours = persistlib.load(folder / "digits")(inputs).argmax(1).numpy()
    session = persistlib.load(folder / "digits", runtime="onnxruntime")
    (scores,) = session.run({session.inputs[0].name: inputs.numpy()}).values()
    for runtime, answers in (("torch", ours), ("ONNX Runtime", scores.argmax(1))):
        same = int(np.sum(answers == theirs))
        print(f"{runtime}: {same} of {len(theirs)} answers are scikit-learn's")
        assert same == len(theirs)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        given = sys.argv[1:]
        main(given[0] if given else "DEFAULT", Path(given[1] if len(given) > 1 else scratch))
