"""Measure loading and saving side by side, and print a table of medians and ratios.

    python benchmarks/run.py [--models vit_l_16,resnet50] [--rounds 7] [--out docs/benchmarks.md]

Every measurement is a process of its own; the rows of a round follow one another, so that a drift
of the machine meets them all. The first round warms the page cache and is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import measure

HERE = Path(__file__).parent


def run(verb: str, model: str, folder: Path) -> dict:
    command = [sys.executable, "-W", "ignore", str(HERE / "measure.py"), verb, model, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def clean(folder: Path) -> None:
    """Remove what a save left, so that every save makes a new file."""
    for left in folder.glob("new*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def rounds(model: str, folder: Path, count: int) -> dict[str, list[dict]]:
    rows: dict[str, list[dict]] = {verb: [] for verb in (*measure.LOADS, *measure.SAVES)}
    for number in range(count + 1):
        for verb, found in rows.items():
            result = run(verb, model, folder)
            clean(folder)
            os.sync()
            if number:
                found.append(result)
        print(f"{model}: round {number} of {count}", file=sys.stderr)
    return rows


def median(results: list[dict], key: str) -> float:
    return statistics.median(result[key] for result in results)


def load_table(rows: dict[str, list[dict]], size: int) -> list[str]:
    ours = median(rows["persistlib.load"], "seconds")
    lines = [
        "| load | seconds | of it construction | times ours | peak memory / weights |",
        "|---|---:|---:|---:|---:|",
    ]
    for verb in measure.LOADS:
        found = rows[verb]
        seconds = median(found, "seconds")
        lines.append(
            f"| {verb} | {seconds:.2f} | {median(found, 'construct'):.2f} "
            f"| {seconds / ours:.2f} | {median(found, 'peak') / size:.2f} |"
        )
    bound = median(rows["bare zero-copy"], "seconds") + 1.5 * median(rows["blake3 pass"], "seconds")
    note = f"the verified load takes {ours / bound:.2f} of that."
    return [*lines, "", f"Bare zero-copy load + 1.5 hash passes: {bound:.2f} s; {note}"]


def save_table(rows: dict[str, list[dict]]) -> list[str]:
    raw = median(rows["raw write+fsync"], "seconds")
    lines = ["| save | seconds | times raw write+fsync | durable |", "|---|---:|---:|---|"]
    for verb in measure.SAVES:
        seconds = median(rows[verb], "seconds")
        durable = "no" if verb in {"torch.save", "safetensors save_file"} else "yes"
        lines.append(f"| {verb} | {seconds:.2f} | {seconds / raw:.2f} | {durable} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="vit_l_16,resnet50")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "torchvision", "safetensors"))
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {packages}"
    lines = [
        f"Medians of {options.rounds} interleaved rounds, a process each, page cache warm;",
        f"{machine}.",
    ]
    for model in options.models.split(","):
        with tempfile.TemporaryDirectory(prefix="persistlib-bench-") as where:
            folder = Path(where)
            size = run("prepare", model, folder)["bytes"]
            rows = rounds(model, folder, options.rounds)
        lines += ["", f"### {model}, {size / 1e9:.2f} GB", ""]
        lines += [*load_table(rows, size), "", *save_table(rows)]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out is not None:
        options.out.write_text(f"# Benchmarks\n\n`make bench` writes this page.\n\n{text}")


if __name__ == "__main__":
    main()
