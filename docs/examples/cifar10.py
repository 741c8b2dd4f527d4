"""CIFAR-10 at three times its size: a frozen MobileNetV2, its history, and what it is worth.

The data set is read as it is distributed, in binary or for Python; its own test images are held
out. Each 32 x 32 image is enlarged to 96 x 96, as a network made for photographs wants it. The
history of every epoch stands in the run's folder, with curves and TensorBoard events.

    python docs/examples/cifar10.py CIFAR [WEIGHTS] [FOLDER]

CIFAR is the folder that was downloaded and unpacked. WEIGHTS is a file, or DEFAULT for
torchvision's own. FOLDER keeps the bundle and the run.
"""
# ruff: noqa: T201 - a script that says what it does, and fails where that does not hold

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import persistlib
from persistlib.training.plan import plan
from persistlib.training.settings import Settings

EDGE, EPOCHS = 96, 8
LEAST = 0.6  # of the test images; one in ten would be chance


def main(cifar: Path, weights: str, folder: Path) -> None:
    """Train, show the history, and judge what was saved."""
    data = f"cifar10:{cifar}"
    job = plan(
        "mobilenet_v2",
        data=data,
        weights=weights,
        resize=EDGE,
        settings=Settings(epochs=EPOCHS, lr=0.01, batch_size=64),
    )
    for heading, said in job.rows():
        print(f"{heading:12} {said}")
    persistlib.finetune(
        job.model,
        job.train,
        job.valid,
        run=folder / "cifar10.run",
        out=folder / "cifar10",
        **job.arguments,
    )

    told = json.loads((folder / "cifar10.run" / "history.json").read_text())
    print("\nepoch   training          held out")
    for row in told["history"]:
        train, valid = row["train_accuracy"], row["valid_accuracy"]
        print(f"{row['epoch']:5}   {row['train_loss']:.3f} {train:6.1%}   ", end="")
        print(f"{row['valid_loss']:.3f} {valid:6.1%}")

    judged = persistlib.evaluate(folder / "cifar10", data, held_out=True, runtime="torch", calls=0)
    macro = judged.metrics.macro
    print(f"\naccuracy {judged.accuracy:.1%}, precision {macro.precision:.1%}", end=", ")
    print(f"recall {macro.recall:.1%}, F1 {macro.f1:.1%} (macro)")
    for score in judged.metrics.classes:
        print(f"  {score.name:12} F1 {score.f1:.1%} of {score.images}")
    assert judged.accuracy >= LEAST


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        _, data, *given = sys.argv
        main(
            Path(data),
            given[0] if given else "DEFAULT",
            Path(given[1] if len(given) > 1 else scratch),
        )
