"""The loop beside a hand-written torch loop that does the same work, round by round.

    python benchmarks/training.py [--rounds N] [--out FILE]

Both train the same model from the same values on the same batches, with the same optimizer, and
judge the held-out samples after every epoch; both must end with the same bits, or the figures mean
nothing. Ours also looks at model, samples and targets once before it begins. The two take turns, so
that a machine that slows down slows both; the ratio is of medians. Checkpoints are a third column:
the same run with a run folder, whose writing is work that the others do not do.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torchvision import models

from persistlib.training import randomness
from persistlib.training.loop import Folder, finetune

EPOCHS, LR, SEED = 10, 0.01, 0
ALLOWED = 1.05  # of the hand-written loop's time


def resnet18():
    torch.manual_seed(SEED)
    return models.resnet18(num_classes=10), images(96, 64, 32)


def small():
    torch.manual_seed(SEED)
    layers = nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(4)),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )
    return layers, images(1024, 32, 32)


def images(count, edge, batch):
    generator = torch.Generator().manual_seed(SEED)
    inputs = torch.randn(count, 3, edge, edge, generator=generator)
    return (inputs, torch.arange(count) % 10), batch


def by_hand(model, pair, batch):
    """What one would write: no file, no event, no check."""
    inputs, labels = pair
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01)
    randomness.seed_all(SEED)
    count = -(-len(labels) // batch)
    for epoch in range(1, EPOCHS + 1):
        model.train()
        order = torch.Generator().manual_seed(randomness.draw(SEED, epoch))
        chunks = torch.tensor_split(torch.randperm(len(labels), generator=order), count)
        losses, right = 0.0, 0
        for chunk in chunks:
            outputs = model(inputs[chunk])
            loss = functional.cross_entropy(outputs, labels[chunk], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses += loss.item() * len(chunk)
            right += int((outputs.argmax(1) == labels[chunk]).sum())
        model.eval()
        with torch.no_grad():
            for chunk in torch.tensor_split(torch.arange(len(labels)), count):
                outputs = model(inputs[chunk])
                losses += functional.cross_entropy(outputs, labels[chunk]).item()
                right += int((outputs.argmax(1) == labels[chunk]).sum())


def ours(model, pair, batch, folder=None):
    how = {"schedule": "constant", "keep": "last", "seed": SEED, "batch_size": batch}
    finetune(model, pair, pair, epochs=EPOCHS, lr=LR, folder=folder, **how)


def timed(work, model, *arguments):
    fresh = copy.deepcopy(model)
    started = time.perf_counter()
    work(fresh, *arguments)
    return time.perf_counter() - started, fresh.state_dict()


def measure(make, rounds):
    model, (pair, batch) = make()
    seconds = {"by hand": [], "persistlib": [], "with a run folder": []}
    for number in range(rounds + 1):  # the first is not counted
        with tempfile.TemporaryDirectory() as scratch:
            folder = Folder(path=Path(scratch) / "run")
            turns = [
                ("by hand", (by_hand, model, pair, batch)),
                ("persistlib", (ours, model, pair, batch)),
                ("with a run folder", (ours, model, pair, batch, folder)),
            ]
            ends = []
            for name, job in turns[number % 3 :] + turns[: number % 3]:
                taken, state = timed(*job)
                ends.append(state)
                if number:
                    seconds[name].append(taken)
        for state in ends[1:]:
            assert all(value.equal(state[name]) for name, value in ends[0].items())
    return {name: statistics.median(some) for name, some in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    wishes = parser.parse_args()
    head = (
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {EPOCHS} epochs, medians "
        f"of {wishes.rounds} interleaved rounds; at most {ALLOWED:.2f} times the loop by hand is "
        "allowed."
    )
    lines = [
        head,
        "",
        "| model | by hand, s | persistlib, s | times | with a run folder, s |",
        "|---|---:|---:|---:|---:|",
    ]
    for make in (resnet18, small):
        hand, loop, folder = measure(make, wishes.rounds).values()
        lines.append(
            f"| {make.__name__} | {hand:.3f} | {loop:.3f} | {loop / hand:.3f} | {folder:.3f} |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    if wishes.out is not None:
        wishes.out.write_text(f"# The training loop's overhead\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
