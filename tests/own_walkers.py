"""A walker that does what a parser does when a file has taken it over; see test_isolation."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

from persistlib.checkpoint import Entry
from persistlib.converters import isolated, limits
from persistlib.converters.listing import Listing, refusal
from persistlib.dtypes import DType
from persistlib.errors import Code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from persistlib.converters.isolated import Opened

SIZE = 40 << 20


def claims(source: Opened) -> bool:
    return source.size > 0


def walk(_: Opened, options: Mapping[str, str]) -> Listing:
    _misbehave(options["do"], options.get("path", ""))
    entries = (Entry("a", DType.U8, (SIZE,)), Entry("b", DType.U8, (3,)), Entry("", DType.U8, (0,)))

    def windows(name: str) -> Iterator[memoryview]:
        if name == "a":
            _misbehave(options["do"].removeprefix("late "), options.get("path", ""))
        data = memoryview(bytes(range(256)) * (SIZE // 256) if name == "a" else b"abc" * bool(name))
        if options["do"] == "late more":
            data = memoryview(bytes(data) + b"x")
        yield data[1:] if options["do"] == "late fewer" else data

    return Listing("hdf5", "made up", entries, windows=windows)


def _misbehave(do: str, path: str) -> None:
    if do in DEEDS:
        DEEDS[do](path)


def _loop(_: str) -> None:
    while True:
        pass


def _hang_up(_: str) -> None:
    os.close(1)
    time.sleep(1000)


def _refuse(_: str) -> None:
    raise refusal(Code.FORMAT_UNSAFE, "layer", "\x1b[31mred\u202e")


def _forge(_: str) -> None:
    raise refusal(Code.DURABILITY, "layer", "a code of another family")


def _raise(_: str) -> None:
    raise ZeroDivisionError("a fault of the walker")


def _babble(_: str) -> None:
    os.write(1, b"?" * 1000)
    time.sleep(1000)


def _boast(_: str) -> None:
    os.write(1, isolated.LISTING + (1 << 62).to_bytes(8, "little"))
    time.sleep(1000)


def _dawdle(path: str) -> None:
    """Make steps for a while, or for ever, with a sign of life for each."""
    limits.BEAT = 0
    count = 20 if path.endswith("slow.h5") else 1 << 30
    for _ in range(count):
        time.sleep(0.2 if count == 20 else 0)
        limits.go_on()


DEEDS: dict[str, Callable[[str], object]] = {
    "crash": lambda _: os.kill(os.getpid(), signal.SIGSEGV),
    "loop": _loop,
    "sleep": lambda _: time.sleep(1000),
    "dawdle": _dawdle,
    "hang up": _hang_up,
    "exit": lambda _: os._exit(3),
    "swell": lambda _: bytearray(8 << 30),
    "open": lambda path: os.open(path, os.O_RDONLY),
    "refuse": _refuse,
    "forge": _forge,
    "raise": _raise,
    "babble": _babble,
    "boast": _boast,
}
