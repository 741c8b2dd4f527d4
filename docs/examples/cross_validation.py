"""How good a last layer on frozen features is, before anything is trained for long.

MobileNetV2 with its ImageNet weights is run once over the digits. A logistic regression is then
fitted for each of five folds, and a ridge classifier with each digit left out once; every digit is
answered by a fit that had not seen it, so all of them tell.

    python docs/examples/cross_validation.py [WEIGHTS]

WEIGHTS is a file, or DEFAULT for torchvision's own.
"""
# ruff: noqa: T201 - a script that says what it does, and fails where that does not hold

from __future__ import annotations

import sys
import tempfile
from functools import partial
from typing import TYPE_CHECKING

import persistlib

if TYPE_CHECKING:
    from pydantic import JsonValue

LEAST = 0.9  # of the digits
PREPROCESSING: dict[str, JsonValue] = {
    "kind": "image",
    "channels": 3,
    "resize": 96,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
DIGITS: dict[str, JsonValue] = {
    "preprocessing": PREPROCESSING,
    "labels": [str(digit) for digit in range(10)],
}


def main(weights: str, cache: str) -> None:
    """Judge both, on the same features."""
    model = persistlib.build("torchvision.models:mobilenet_v2", weights=weights)
    judged = partial(
        persistlib.cross_validate, model, "sklearn:digits", interface=DIGITS, cache=cache
    )
    folds = judged(folds=5)
    for number, fold in enumerate(folds.folds, 1):
        accuracy = fold.figures["accuracy"]
        print(f"fold {number}: {fold.fitted:,} fitted, {fold.tested} tested, {accuracy:.1%}")
    each = judged(leave_one_out=True)
    for name, found in (("logistic, five folds", folds), ("ridge, leave-one-out", each)):
        figure = found["accuracy"]
        low, high = figure.interval
        print(f"{name}: {figure.mean:.1%} ({100 * low:.1f} to {high:.1%}, {figure.method})")
        assert figure.mean >= LEAST


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1] if len(sys.argv) > 1 else "DEFAULT", scratch)
