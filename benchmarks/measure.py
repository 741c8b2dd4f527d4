"""One measurement in one process: print a JSON line of seconds and bytes.

    python benchmarks/measure.py VERB MODEL FOLDER

Imports are done before the clock starts. `construct` is the part spent on building the module;
`peak` is how far the resident set grew beyond the interpreter with everything imported.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import sys
import time
from pathlib import Path

import blake3
import safetensors.torch
import torch
import torchvision

import persistlib
import persistlib.api
import persistlib.architecture.skeleton as skeletons
import persistlib.loading
import persistlib.saving

THREADS = 2


class Clock:
    """Seconds spent on construction, among all."""

    def __init__(self) -> None:
        self.construct = 0.0

    def timed(self, work):
        def run(*arguments, **named):
            begin = time.perf_counter()
            try:
                return work(*arguments, **named)
            finally:
                self.construct += time.perf_counter() - begin

        return run


def plain(name: str):
    return torchvision.models.get_model(name)


def empty(name: str):
    with torch.device("meta"):
        return torchvision.models.get_model(name)


def load_torch(name: str, folder: Path, clock: Clock, **options):
    model = clock.timed(plain)(name)
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True, **options))
    return model


def load_torch_mmap(name: str, folder: Path, clock: Clock):
    return load_torch(name, folder, clock, mmap=True)


def load_safetensors(name: str, folder: Path, clock: Clock):
    model = clock.timed(plain)(name)
    safetensors.torch.load_model(model, folder / "bundle" / "model.safetensors")
    return model


def load_bare(name: str, folder: Path, clock: Clock):
    model = clock.timed(empty)(name)
    state = safetensors.torch.load_file(folder / "bundle" / "model.safetensors")
    model.load_state_dict(state, assign=True)
    return model


def load_ours(name: str, folder: Path, clock: Clock):
    skeletons.skeleton = clock.timed(skeletons.skeleton)
    return persistlib.load(folder / "bundle")


def hash_pass(name: str, folder: Path, clock: Clock):
    with open(folder / "bundle" / "model.safetensors", "rb") as handle:
        view = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    blake3.blake3(view, max_threads=THREADS).digest()


def save_ours(model, payload, folder: Path):
    persistlib.save(model, folder / "new")


def save_ours_sha256(model, payload, folder: Path):
    persistlib.save(model, folder / "new", sha256=True)


def save_torch(model, payload, folder: Path):
    torch.save(model.state_dict(), folder / "new.pt")


def save_safetensors(model, payload, folder: Path):
    safetensors.torch.save_file(model.state_dict(), folder / "new.safetensors")


def save_raw(model, payload, folder: Path):
    fd = os.open(folder / "new.raw", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    view = memoryview(payload)
    while view:
        view = view[os.write(fd, view) :]
    os.fsync(fd)
    os.close(fd)


LOADS = {
    "torch.load": load_torch,
    "torch.load mmap": load_torch_mmap,
    "safetensors load_model": load_safetensors,
    "bare zero-copy": load_bare,
    "persistlib.load": load_ours,
    "blake3 pass": hash_pass,
}
SAVES = {
    "raw write+fsync": save_raw,
    "torch.save": save_torch,
    "safetensors save_file": save_safetensors,
    "persistlib.save": save_ours,
    "persistlib.save sha256": save_ours_sha256,
}


def resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def prepare(name: str, folder: Path) -> dict:
    """Make the files that the loads read; BatchNorm and all are as freshly built."""
    model = persistlib.build(f"torchvision.models:{name}")
    persistlib.save(model, folder / "bundle")
    torch.save(model.state_dict(), folder / "model.pt")
    return {"bytes": os.path.getsize(folder / "bundle" / "model.safetensors")}


def main(verb: str, name: str, where: str) -> dict:
    folder = Path(where)
    if verb == "prepare":
        return prepare(name, folder)
    clock = Clock()
    if verb in LOADS:
        before = resident()
        begin = time.perf_counter()
        LOADS[verb](name, folder, clock)
        seconds = time.perf_counter() - begin
    else:
        model = persistlib.load(folder / "bundle")
        payload = (folder / "bundle" / "model.safetensors").read_bytes()
        before = resident()
        begin = time.perf_counter()
        SAVES[verb](model, payload, folder)
        seconds = time.perf_counter() - begin
    return {"seconds": seconds, "construct": clock.construct, "peak": resident() - before}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
