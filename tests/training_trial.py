"""A process that trains and is killed, for the tests of resuming.

As a script it takes jobs as JSON lines and forks for each: a kill costs a fork and no import.
A job says where the run is, whether it goes on, and where the process dies: at a system call of a
checkpoint's writing, in the midst of an optimizer's step, or when a batch is done.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from blake3 import blake3
from torch import nn
from torch.utils.data import Dataset

import persistlib
from persistlib.training import checkpoints
from persistlib.training.events import BatchDone

if TYPE_CHECKING:
    from pathlib import Path

    from persistlib.training.events import Event

EPOCHS = 4
SETTINGS: dict[str, Any] = {"epochs": EPOCHS, "lr": 0.02, "batch_size": 6, "seed": 3}


class Augmented(Dataset[tuple[torch.Tensor, int]]):
    """Samples that draw from Python, numpy and torch whenever they are asked for."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = [number % 3 for number in range(count)]
        self.inputs = torch.randn(count, 1, 6, 6, generator=generator) * 0.3

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        legacy: Any = np.random
        image = self.inputs[index] + self.labels[index]
        if random.random() < 0.5:
            image = image.flip(-1)
        image = image * float(legacy.uniform(0.9, 1.1)) + torch.randn(1, 6, 6) * 0.1
        return image, self.labels[index]


class Noisy(nn.Module):
    """Draws from Python and numpy while it trains, as some models do."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return inputs
        legacy: Any = np.random
        return inputs * (0.9 + 0.1 * random.random()) + 0.01 * float(legacy.normal())


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            Noisy(),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(64, 8),
            nn.ReLU(),
            nn.Linear(8, 3),
        )


def finetune(run: str | Path | None, **how: Any) -> Any:
    """Train the net of every trial."""
    data = {"train": Augmented(40, 0), "valid": Augmented(15, 1)} | how.pop("data", {})
    model = how.pop("model", None) or net()
    return persistlib.finetune(model, **data, run=run, **(SETTINGS | how))


def digest(result: Any) -> str:
    """Return what tells two outcomes apart in any bit: weights, history and the kept epoch."""
    hasher = blake3()
    for name, value in result.model.state_dict().items():
        hasher.update(name.encode() + value.numpy().tobytes())
    hasher.update(json.dumps([result.history, result.training.model_dump_json()]).encode())
    return hasher.hexdigest()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_checkpoint(call: int) -> None:
    """Die at a write-side system call of checkpoints' writing, half of a write done."""
    from crash_shim import Tape, recorded

    tape, real = Tape(at=call, action="kill"), checkpoints.write

    def write(path: Any, snapshot: Any) -> None:
        with recorded(tape):
            real(path, snapshot)

    checkpoints.write = write


def die_in_step(step: int) -> None:
    """Die when some parameters have been stepped, and some have not."""
    steps = 0
    real = torch.optim.AdamW.step

    def count(optimizer: Any, closure: Any = None) -> Any:
        nonlocal steps
        steps += 1
        if steps != step:
            return real(optimizer, closure)
        some = [group["params"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["params"] = group["params"][: len(group["params"]) // 2]
        real(optimizer, closure)
        assert some
        die()
        return None

    torch.optim.AdamW.step = count  # type: ignore[assignment, method-assign]


class DieAtBatch:
    """Dies after so many batches."""

    def __init__(self, batches: int) -> None:
        self._left = batches

    def __call__(self, event: Event) -> None:
        self._left -= isinstance(event, BatchDone)
        if self._left == 0:
            die()


def work(job: dict[str, Any]) -> str:
    """Carry out a job; return the digest of what came out."""
    how = dict(job.get("how", {}))
    kind, number = job.get("die", ["", 0])
    if kind == "checkpoint":
        die_in_checkpoint(number)
    elif kind == "step":
        die_in_step(number)
    elif kind == "batch":
        how["progress"] = DieAtBatch(number)
    with warnings.catch_warnings():
        # A dead writer's lock was taken over; a fork beside the threads of a loader.
        warnings.simplefilter("ignore")
        return digest(finetune(job["run"], resume=True, **how))


class Server:
    """Forks a process a job."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, **job: Any) -> str:
        """Return the digest of a job's outcome; "killed" where it died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.communicate(timeout=60)


def serve() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            os.close(reading)
            outcome = ""
            try:
                outcome = work(job)
            except BaseException as fault:  # noqa: BLE001 - the test compares it
                outcome = repr(fault)
            os.write(writing, outcome.encode())
            os._exit(0)
        os.close(writing)
        if (seconds := job.get("kill_after")) is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        # Not to the pipe's end: the workers of a loader hold it a while longer.
        os.set_blocking(reading, False)
        try:
            outcome = os.read(reading, 1 << 16).decode()
        except BlockingIOError:
            outcome = ""
        os.close(reading)
        sys.stdout.write(("killed" if os.WIFSIGNALED(status) else outcome) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    # What every job would import.
    for name in (
        *("crash_shim", "matplotlib.figure", "torch.utils.tensorboard"),
        *("persistlib.api", "persistlib.training.loop"),
    ):
        importlib.import_module(name)
    torch.set_num_threads(1)
    serve()
