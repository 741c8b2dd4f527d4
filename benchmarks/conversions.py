"""Measure conversions beside copying the same file, and print a table of medians and ratios.

    python benchmarks/conversions.py [--model vit_l_16] [--rounds 7] [--sparse 6] [--out PAGE]
    python benchmarks/conversions.py --measure VERB FOLDER

Every measurement is a process of its own; imports are done before its clock starts. The rows of a
round follow one another, so that a drift of the machine meets them all. The first round warms the
page cache and is not counted. `peak` is all memory of the process, mapped pages and interpreter
included, or of the child that parses HDF5 where that is more. A process inherits the peak of the
one that started it, so this one stays small: the files are made in a process of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from persistlib import api
from persistlib.checkpoint import CheckpointReader, Entry
from persistlib.converters import torch_file
from persistlib.dtypes import DType
from persistlib.formats import FORMATS

if TYPE_CHECKING:
    from collections.abc import Iterator

MB = 1_000_000
TENSOR = 64 << 20  # bytes of each tensor of the sparse model
OURS = {
    ".pt -> safetensors": ("model.pt", "new.safetensors"),
    "safetensors -> .pt": ("model.safetensors", "new.pt"),
    "safetensors -> HDF5": ("model.safetensors", "new.h5"),
    "HDF5 -> safetensors": ("model.h5", "new.safetensors"),
}
SPARSE = "sparse .pt -> safetensors"
PREPARE, COPY, TORCH = "prepare", "cp + fsync", "torch.load mmap + save_file"
DURABLE = f"{TORCH} + fsync"
VERBS = (COPY, TORCH, DURABLE, *OURS)


def copy(folder: Path) -> None:
    subprocess.run(["cp", folder / "model.pt", folder / "new.pt"], check=True)
    fsync(folder / "new.pt")


def fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def with_torch(folder: Path) -> None:
    import safetensors.torch
    import torch

    state = torch.load(folder / "model.pt", weights_only=True, mmap=True)
    safetensors.torch.save_file(state, folder / "new.safetensors")


def measure(verb: str, folder: Path) -> dict:
    """Run one verb and return its seconds, and the peak of memory in bytes."""
    if verb in {TORCH, DURABLE}:
        import safetensors.torch  # noqa: F401 - imports are not what is measured
    else:
        for name in ("safetensors", "torch", "hdf5"):
            FORMATS[name].module()
    begin = time.perf_counter()
    if verb == COPY:
        copy(folder)
    elif verb in {TORCH, DURABLE}:
        with_torch(folder)
        if verb == DURABLE:
            fsync(folder / "new.safetensors")
    else:
        source, target = OURS.get(verb, ("sparse.pt", "new.safetensors"))
        api.convert(folder / source, folder / target)
    seconds = time.perf_counter() - begin
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return {
        "seconds": seconds,
        "peak": max(resource.getrusage(kind).ru_maxrss for kind in kinds) * 1024,
    }


def prepare(name: str, folder: Path) -> None:
    """Write the files that are converted, of random values."""
    import torch
    import torchvision

    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    random = torch.Generator().manual_seed(0)
    state = {key: torch.rand(v.shape, generator=random) for key, v in model.state_dict().items()}
    torch.save(state, folder / "model.pt")
    for target in ("model.safetensors", "model.h5"):
        api.convert(folder / "model.pt", folder / target)


class Zeros(CheckpointReader):
    """A checkpoint larger than memory, of nothing."""

    def __init__(self, size: int) -> None:
        entry = [Entry(f"w{i}", DType.F32, (TENSOR // 4,)) for i in range(size // TENSOR)]
        super().__init__(tuple(entry))

    def read_bytes(self, name: str) -> memoryview:
        return memoryview(bytes(self.tensors[name].nbytes))

    def windows(self, name: str) -> Iterator[memoryview]:
        window = memoryview(bytes(1 << 20))
        yield from (window for _ in range(self.tensors[name].nbytes >> 20))


class SparseFile:
    """What a writer writes to, with holes for long zeros."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        self.size = 0

    def write(self, data: bytes) -> int:
        size = memoryview(data).nbytes
        if size < 1 << 20:
            os.pwrite(self.fd, data, self.size)
        self.size += size
        os.truncate(self.fd, self.size)
        return size

    def patch(self, offset: int, data: bytes) -> None:
        os.pwrite(self.fd, data, offset)


def run(verb: str, folder: Path, model: str = "") -> dict:
    command = [sys.executable, "-W", "ignore", __file__, "--measure", verb, str(folder)]
    command += ["--model", model] if model else []
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    for left in folder.glob("new*"):
        left.unlink()
    os.sync()
    return json.loads(done.stdout)


def rounds(folder: Path, count: int) -> dict[str, list[dict]]:
    rows: dict[str, list[dict]] = {verb: [] for verb in VERBS}
    for number in range(count + 1):
        for verb, found in rows.items():
            result = run(verb, folder)
            if number:
                found.append(result)
        print(f"round {number} of {count}", file=sys.stderr)
    return rows


def table(rows: dict[str, list[dict]]) -> list[str]:
    medians = {verb: statistics.median(r["seconds"] for r in rows[verb]) for verb in rows}
    lines = [
        f"| conversion | seconds | times {COPY} | times {DURABLE} | peak MB |",
        "|---|---:|---:|---:|---:|",
    ]
    for verb, seconds in medians.items():
        peak = max(result["peak"] for result in rows[verb])
        ratios = f"{seconds / medians[COPY]:.2f} | {seconds / medians[DURABLE]:.2f}"
        lines.append(f"| {verb} | {seconds:.2f} | {ratios} | {peak / MB:.0f} |")
    return lines


def sparse(folder: Path, gigabytes: int) -> list[str]:
    """Convert a model of which the disk holds only the names, once; what matters is the memory."""
    path = folder / "sparse.pt"
    torch_file.write_to(Zeros(gigabytes * 1000 * MB), SparseFile(path))
    size, result = path.stat().st_size, run(SPARSE, folder)
    seconds, peak = result["seconds"], result["peak"] / MB
    name = f"{size / 1e9:.1f} GB of zeros in a sparse .pt"
    return ["", f"{name} become safetensors in {seconds:.1f} s, with a peak of {peak:.0f} MB."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs=2, metavar=("VERB", "FOLDER"))
    parser.add_argument("--model", default="vit_l_16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sparse", type=int, default=6, help="gigabytes of the sparse model")
    parser.add_argument("--folder", help="where to write; a disk with 12 GB free")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.measure:
        verb, folder = options.measure[0], Path(options.measure[1])
        if verb == PREPARE:
            prepare(options.model, folder)
        print(json.dumps({} if verb == PREPARE else measure(verb, folder)))
        return
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "safetensors", "h5py"))
    where = Path(tempfile.mkdtemp(prefix="persistlib-bench-", dir=options.folder))
    try:
        run(PREPARE, where, options.model)
        size = (where / "model.pt").stat().st_size
        lines = [*table(rounds(where, options.rounds)), *sparse(where, options.sparse)]
    finally:
        shutil.rmtree(where)
    head = [
        f"{options.model}, {size / 1e9:.2f} GB of random values, a process each, page cache warm,",
        f"medians of {options.rounds} interleaved rounds, the largest peak of all;",
        f"{os.cpu_count()} cores, Python {platform.python_version()}, {packages}. Conversions are",
        f"read back, compared and fsynced; {TORCH} is not read back.",
        "",
    ]
    text = "\n".join([*head, *lines]) + "\n"
    print(text)
    if options.out is not None:
        title = "# Benchmarks of conversions\n\n`make bench` writes this page.\n\n"
        options.out.write_text(title + text)


if __name__ == "__main__":
    main()
