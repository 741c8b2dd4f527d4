"""Measure our ONNX graphs beside those of torch's own exporter, and print a table of ratios.

    python benchmarks/export.py [--models resnet50 ...] [--rounds 7] [--out PAGE]
    python benchmarks/export.py --measure VERB MODEL FOLDER

Every measurement is a process of its own: imports, and one export of another module, are done
before its clock starts. The two sides of a round follow one another, and which comes first
alternates, so that a drift of the machine meets both. A ratio is the median of the rounds' own.

`torch` is `torch.onnx.export(dynamo=True)` with a dynamic batch, saved as it saves; `persistlib` is
the export without its proof, both files fsynced by neither. What is run are the saved files, with
ONNX Runtime's defaults but for threads that spin: those disturb whoever runs next.
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
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
import torchvision

MODELS = ("resnet50", "mobilenet_v3_small", "densenet121", "vit_b_16", "swin_t", "convnext_tiny")
SIDES = ("torch", "persistlib")
# What is measured, with the most that ours may take of theirs.
LIMITS = {"run": 1.05, "session": 2.0, "export": 1.1}
EDGE = 224
WARM, RUNS = 3, 15
FILE = "model.onnx"


def build(name: str) -> torch.nn.Module:
    """Return a model whose BatchNorm statistics are those of a batch: folding them is no trifle."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    if norms:
        with torch.no_grad():
            model.train()(torch.randn(4, 3, EDGE, EDGE))
    return model.eval()


def export(side: str, model: torch.nn.Module, inputs: torch.Tensor, folder: Path) -> None:
    if side == "torch":
        axes = ({0: torch.export.Dim("batch")},)
        program = torch.onnx.export(
            model, (inputs,), dynamo=True, verbose=False, dynamic_shapes=axes
        )
        program.save(folder / FILE)
        return
    from persistlib.export.onnx_export import export as ours

    for file in ours(model, (inputs,), input_names=("input",)).files:
        (folder / file.name).write_bytes(file.data)


def measure_export(side: str, name: str, folder: Path) -> dict[str, float]:
    model, inputs = build(name), torch.randn(2, 3, EDGE, EDGE)
    export(side, torch.nn.Linear(3, 2).eval(), torch.randn(2, 3), folder)
    begin = time.perf_counter()
    export(side, model, inputs, folder)
    return {"export": time.perf_counter() - begin}


def measure_run(name: str, folder: Path) -> dict[str, float]:
    """Return the seconds of a session's creation and the median of its runs, at batch 1."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    begin = time.perf_counter()
    session = onnxruntime.InferenceSession(
        str(folder / FILE), options, providers=["CPUExecutionProvider"]
    )
    created = time.perf_counter() - begin
    torch.manual_seed(0)
    feed = {session.get_inputs()[0].name: torch.randn(1, 3, EDGE, EDGE).numpy()}
    seconds: list[float] = []
    for _ in range(WARM + RUNS):
        begin = time.perf_counter()
        session.run(None, feed)
        seconds.append(time.perf_counter() - begin)
    return {"session": created, "run": statistics.median(seconds[WARM:])}


def child(verb: str, side: str, name: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, "--measure", verb, side, name, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def rounds(name: str, count: int, where: Path) -> dict[str, list[dict[str, float]]]:
    """Return what each side took in each round; the first round warms the caches."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for number in range(count + 1):
        for side in SIDES if number % 2 else SIDES[::-1]:
            folder = where / f"{name}-{side}"
            folder.mkdir(exist_ok=True)
            took = child("export", side, name, folder) | child("run", side, name, folder)
            if number:
                found[side].append(took)
        print(f"{name}: round {number} of {count}", file=sys.stderr)
    return found


def row(name: str, found: dict[str, list[dict[str, float]]]) -> str:
    cells: list[str] = []
    for what, limit in LIMITS.items():
        ours, theirs = ([took[what] for took in found[side]] for side in SIDES[::-1])
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        unit, scale = ("s", 1) if what == "export" else ("ms", 1000)
        mark = "" if ratio <= limit else " (over)"
        cells.append(f"{statistics.median(ours) * scale:.1f} {unit} | {ratio:.2f}{mark}")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs=4, metavar=("VERB", "SIDE", "MODEL", "FOLDER"))
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", help="where to write; 2 GB are enough")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.measure:
        warnings.simplefilter("ignore")
        verb, side, name, folder = options.measure
        took = (
            measure_export(side, name, Path(folder))
            if verb == "export"
            else measure_run(name, Path(folder))
        )
        print(json.dumps(took))
        return
    where = Path(tempfile.mkdtemp(prefix="persistlib-bench-", dir=options.folder))
    try:
        rows: list[str] = []
        for name in options.models:
            rows.append(row(name, rounds(name, options.rounds, where)))
            print(rows[-1], file=sys.stderr)
    finally:
        shutil.rmtree(where)
    packages = ", ".join(
        f"{p} {version(p)}" for p in ("torch", "onnx", "onnxscript", "onnxruntime")
    )
    limits = ", ".join(f"{what} {limit}" for what, limit in LIMITS.items())
    text = "\n".join(
        [
            f"Medians of {options.rounds} rounds, a process each, {os.cpu_count()} cores, Python",
            f"{platform.python_version()}, {packages}; inputs of {EDGE} by {EDGE}, run one by one.",
            "Beside each of our times stands its ratio to that of torch's default export with a",
            f"dynamic batch; at most: {limits}.",
            "",
            "| model | run | ratio | session | ratio | export | ratio |",
            "|---|---:|---:|---:|---:|---:|---:|",
            *rows,
            "",
        ]
    )
    print(text)
    if options.out is not None:
        title = "# Benchmarks of ONNX graphs\n\n`make bench` writes this page.\n\n"
        options.out.write_text(title + text)


if __name__ == "__main__":
    main()
