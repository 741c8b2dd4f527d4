"""The random numbers of a run: seeded, kept in checkpoints, and none of the caller's.

Laws: the caller's states are untouched; after `restore(capture(device), device)` Python, numpy and
torch go on with the numbers that would have come.
"""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from blake3 import blake3

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

_BITS = 56  # of what `draw` gives
_NUMPY_BITS = 32  # numpy.random.seed takes no more
_numpy: Any = np.random  # the global generator, which transforms and metrics of others draw from


class RandomState(NamedTuple):
    """The states of all generators that a run draws from.

    Attributes:
        tensors: `python` and `numpy`, the words of their Mersenne twisters, int64; `torch` and, of
            an accelerator, `device`, uint8.
        numbers: what these twisters remember besides.
    """

    tensors: Mapping[str, torch.Tensor]
    numbers: Mapping[str, Any]


def draw(*parts: int) -> int:
    """Return a number below 2**56 that follows from the parts, on every machine alike."""
    text = ":".join(map(str, parts)).encode()
    return int.from_bytes(blake3(text).digest(length=_BITS // 8), "big")


def seed_all(number: int) -> None:
    """Begin anew on the host: Python, numpy and torch."""
    random.seed(number)
    _numpy.seed(number & ((1 << _NUMPY_BITS) - 1))
    torch.default_generator.manual_seed(number)


def capture(device: torch.device) -> RandomState:
    """Return the state of every generator that a run on a device draws from."""
    version, words, gauss = random.getstate()
    twister = _numpy.get_state(legacy=False)
    tensors = {
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(twister["state"]["key"].astype(np.int64)),
        "torch": torch.get_rng_state(),
    }
    if device.type != "cpu":
        tensors["device"] = torch.get_device_module(device).get_rng_state(device)
    numbers = {
        "python_version": version,
        "python_gauss": gauss,
        "numpy_position": int(twister["state"]["pos"]),
        "numpy_has_gauss": int(twister["has_gauss"]),
        "numpy_gauss": float(twister["gauss"]),
    }
    return RandomState(tensors, numbers)


def restore(state: RandomState, device: torch.device) -> None:
    """Put every generator into a state that `capture` gave.

    Raises:
        KeyError: the state is of another kind of device.
        RuntimeError: the state is none of this release of torch.
        TypeError: a number is none.
        ValueError: the state is none.
    """
    tensors, numbers = state
    words = tuple(tensors["python"].tolist())
    random.setstate((numbers["python_version"], words, numbers["python_gauss"]))
    key = tensors["numpy"].numpy().astype(np.uint32)
    twister = ("MT19937", key, numbers["numpy_position"])
    _numpy.set_state((*twister, numbers["numpy_has_gauss"], numbers["numpy_gauss"]))
    torch.set_rng_state(tensors["torch"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(tensors["device"], device)


@contextlib.contextmanager
def apart() -> Generator[None]:
    """Give the host's generators back as they were, whatever is drawn meanwhile."""
    python, numpy, torchs = random.getstate(), _numpy.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        _numpy.set_state(numpy)
        torch.set_rng_state(torchs)


@contextlib.contextmanager
def own(seed: int, device: torch.device) -> Generator[None]:
    """Seed every generator for a run, and give the caller's states back afterwards."""
    with apart():
        if device.type == "cpu":
            seed_all(seed)
            yield
            return
        devices = range(torch.get_device_module(device).device_count())
        with torch.random.fork_rng(devices=devices, device_type=device.type):
            seed_all(seed)
            torch.manual_seed(seed)
            yield
