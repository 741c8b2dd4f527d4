"""Numbers instead of classes: how far a disease goes on, from ten measurements of a patient.

scikit-learn's diabetes data set has 442 patients. Ridge regression on what a fresh network makes
of them is judged on each patient, left out once: what training is measured by. The network is then
trained on the squared error, and judged by MSE, MAE and R2 in torch and in ONNX Runtime.

    python docs/examples/regression.py [FOLDER]

FOLDER keeps the bundle; without it, it is thrown away.
"""
# ruff: noqa: T201 - a script that says what it does, and fails where that does not hold

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from torch import nn

import persistlib

LEAST = 0.3  # R2 on the held-out patients; 0 is what the mean alone would reach


def main(folder: Path) -> None:
    """Train, save, judge."""
    data: Any = load_diabetes()
    rows, targets = data.data, data.target
    inputs = ((rows - rows.mean(0)) / rows.std(0)).astype(np.float32)
    numbers = ((targets - targets.mean()) / targets.std()).astype(np.float32)[:, None]
    order = np.random.default_rng(0).permutation(len(inputs))
    train, valid = ((inputs[part], numbers[part]) for part in (order[:353], order[353:]))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
    begun = persistlib.cross_validate(model, (inputs, numbers), leave_one_out=True)
    for figure in begun.figures:
        low, high = figure.interval
        print(f"leave-one-out, nothing trained: {figure.name} {figure.mean:.3f}", end=" ")
        print(f"({low:.3f} to {high:.3f})")

    persistlib.finetune(
        model,
        train,
        valid,
        task="regression",
        epochs=60,
        lr=0.003,
        weight_decay=0.1,
        batch_size=64,
        out=folder / "diabetes",
        onnx=True,
    )
    judged = persistlib.evaluate(folder / "diabetes", valid, calls=0)
    for result in judged.results:
        mean = result.metrics.mean
        print(f"{result.runtime:12} MSE {mean.mse:.3f}, MAE {mean.mae:.3f}, R2 {mean.r2:.2f}")
        assert mean.r2 is not None
        assert mean.r2 >= LEAST


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else scratch))
