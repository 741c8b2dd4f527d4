"""Which learning rate, and which layers: tried before a long run is begun.

A small network has learned the digits 0 to 4 and shall learn 5 to 9 from few samples. A trial on a
copy suggests a learning rate for each strategy; short runs then show which layers are worth
training. Nothing is chosen by itself.

    python docs/examples/rates_and_layers.py [FOLDER]

FOLDER keeps a picture a trial, and the bundle of the best; without it, they are thrown away.
"""
# ruff: noqa: T201 - a script that says what it does, and fails where that does not hold

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import persistlib
from persistlib.training import plots
from persistlib.training.rates import find_rate

STRATEGIES = ("head", "last:2", "full", "gradual:4")
FEW, EPOCHS, BATCH = 20, 12, 16  # samples of each digit
LEAST = 0.9  # of the held-out digits that the best must get right


def main(folder: Path) -> None:
    """Try each strategy, show a table, and save the best."""
    first, later = digits(range(5)), digits(range(5, 10))
    model = network()
    persistlib.finetune(model, first, epochs=10, lr=0.003)
    few, rest = divided(later)

    reached: dict[str, float] = {}
    results = {}
    print(f"{'strategy':10} {'lr':>8} {'trained':>8} {'held out':>9}")
    for strategy in STRATEGIES:
        model_of_its_own = copy.deepcopy(model)
        rates = find_rate(model_of_its_own, few, strategy=strategy, batch_size=BATCH)
        picture = folder / f"{strategy.replace(':', '-')}.png"
        plots.rates(rates.lrs, rates.losses, rates.suggestion, picture)
        result = persistlib.finetune(
            model_of_its_own,
            few,
            rest,
            strategy=strategy,
            batch_size=BATCH,
            epochs=EPOCHS,
            lr=rates.suggestion,
        )
        results[strategy], reached[strategy] = result, result.metrics["accuracy"]
        trained = result.training.strategy["trained_parameters"]
        print(f"{strategy:10} {rates.suggestion:8.1e} {trained:8,} {reached[strategy]:9.1%}")

    best = max(reached, key=reached.__getitem__)
    print(f"best: {best}")
    result = results[best]
    persistlib.save(
        result.model,
        folder / "best",
        training=result.training,
        example_inputs=result.example_inputs,
    )
    assert reached[best] >= LEAST


def network() -> nn.Module:
    """Return a small convolutional network, with fresh values that are always the same."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 5)),
    )


def digits(chosen: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images of some digits, and each one's place among them."""
    pixels, targets = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 16
    labels = torch.from_numpy(targets).long() - chosen.start
    mine = (labels >= 0) & (labels < len(chosen))
    return images[mine], labels[mine]


Pair = tuple[torch.Tensor, torch.Tensor]


def divided(pair: Pair) -> tuple[Pair, Pair]:
    """Return a few samples of each class, and all others."""
    images, labels = pair
    few = torch.cat([torch.nonzero(labels == label).flatten()[:FEW] for label in range(5)])
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[few] = False
    return (images[few], labels[few]), (images[rest], labels[rest])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else scratch))
