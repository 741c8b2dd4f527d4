"""What fifty versions of a trained head cost on disk, and what opening one of them takes.

    python benchmarks/versions.py [--rounds N] [--out FILE]

A resnet50's last layer is trained for fifty epochs, each kept. Version 37 and a whole bundle are
loaded in turns, every byte compared; the ratio is of medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

import persistlib

VERSIONS, SHOWN = 50, 37
SIZE, LOAD = 1.15, 1.3  # allowed, relative to one whole bundle


def trained(run):
    torch.manual_seed(0)
    model = persistlib.build("torchvision.models:resnet50", num_classes=10)
    data = torch.randn(20, 3, 64, 64), torch.arange(20) % 10
    how = {"freeze": ["*", "!fc.*"], "keep": "all", "run": run, "out": run / "whole"}
    persistlib.finetune(model, data, data, epochs=VERSIONS, lr=0.01, **how)
    return persistlib.log(run).versions


def seconds(path):
    started = time.perf_counter()
    persistlib.load(path)
    return time.perf_counter() - started


def bytes_in(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(rounds):
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        versions = trained(run)
        whole, delta = versions[0].path, versions[SHOWN - 1].path
        taken = {whole: [], delta: []}
        for number in range(rounds + 1):  # the first is not counted
            for path in (whole, delta) if number % 2 else (delta, whole):
                found = seconds(path)
                if number:
                    taken[path].append(found)
        size = bytes_in(run / "versions"), bytes_in(Path(whole))
        return size, [statistics.median(taken[path]) for path in (whole, delta)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    wishes = parser.parse_args()
    (total, one), (whole, delta) = measure(wishes.rounds)
    head = (
        f"resnet50, 10 classes, {VERSIONS} epochs of its last layer; torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, medians of {wishes.rounds} interleaved rounds."
    )
    rows = {
        "size of all, MB": (one / 1e6, total / 1e6, SIZE),
        f"loading version {SHOWN}, s": (whole, delta, LOAD),
    }
    lines = [head, "", "| | whole | versions | times | allowed |", "|---|---:|---:|---:|---:|"]
    for name, (before, after, allowed) in rows.items():
        lines.append(f"| {name} | {before:.3f} | {after:.3f} | {after / before:.3f} | {allowed} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if wishes.out is not None:
        wishes.out.write_text(f"# Versions that cost what changed\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
