"""Whatever the parser of a file does, opening the file ends in one of our errors, and soon."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from own_walkers import SIZE
from persistlib.checkpoint import WINDOW, Entry
from persistlib.converters import isolation, listing
from persistlib.converters.listing import Listing
from persistlib.dtypes import DType
from persistlib.errors import FormatError, PersistlibError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from persistlib.converters.isolation import IsolatedReader

_FAKE = "from persistlib.converters import isolated; isolated.WALKERS['hdf5'] = ('own_walkers',); "


@pytest.fixture(name="file")
def _file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(isolation, "_MAIN", isolation._MAIN.replace("main()", f"{_FAKE}main()"))
    path = tmp_path / "file.h5"
    path.write_bytes(bytes(2 << 20))
    return path


def opened(path: Path, do: str) -> IsolatedReader:
    return isolation.open_file(path, "hdf5", {"do": do, "path": str(path)})


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def children() -> list[str]:
    """The processes begun here that are still there, dead ones that nobody reaped among them."""
    with open(f"/proc/self/task/{os.getpid()}/children") as handle:
        return handle.read().split()


FAULTS = {
    "crash": ("PL502", "crashes its parser (SIGSEGV)"),
    "loop": ("PL507", "more time"),
    "sleep": ("PL507", "said nothing"),
    "hang up": ("PL502", "nonsense"),
    "dawdle": ("PL502", "nonsense"),
    "exit": ("PL905", "status 3"),
    "swell": ("PL507", "memory"),
    "open": ("PL502", "Too many open files"),
    "refuse": ("PL508", "\\x1b[31mred\\u202e"),
    "forge": ("PL502", "nonsense"),
    "raise": ("PL502", "a fault of the walker"),
    "babble": ("PL502", "nonsense"),
    "boast": ("PL502", "nonsense"),
    "late more": ("PL502", "more bytes"),
    "late fewer": ("PL502", "fewer bytes"),
}


LATE = [f"late {do}" for do in ("crash", "loop", "sleep", "exit", "raise", "boast")]


@pytest.mark.parametrize("do", [*FAULTS, *LATE])
def test_whatever_a_parser_does_is_one_of_our_errors_and_nothing_is_left(
    file: Path, do: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "_SILENCE", 3 if do.endswith(("sleep", "hang up")) else 60)
    before, running = descriptors(), children()
    code, reason = FAULTS.get(do) or FAULTS[do.removeprefix("late ")]
    with pytest.raises(PersistlibError) as caught, opened(file, do) as reader:
        reader.read_bytes("a")
    assert caught.value.code == code
    assert reason in caught.value.reason
    assert caught.value.location.startswith(str(file))
    assert descriptors() == before
    assert children() == running


def test_a_parser_that_makes_steps_is_waited_for(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "_SILENCE", 2)
    slow = file.with_name("slow.h5")
    file.rename(slow)
    with opened(slow, "dawdle") as reader:
        assert [entry.name for entry in reader] == ["a", "b", ""]


def test_bytes_come_in_windows_and_whole(file: Path) -> None:
    whole = bytes(range(256)) * (SIZE // 256)
    with opened(file, "") as reader:
        assert [entry.name for entry in reader] == ["a", "b", ""]
        sizes, parts = [], []
        for window in reader.windows("a"):
            sizes.append(window.nbytes)
            parts.append(bytes(window))
        assert max(sizes) <= WINDOW
        assert b"".join(parts) == whole == bytes(reader.read_bytes("a"))
        assert bytes(reader.read_bytes("b")) == b"abc"
        assert bytes(reader.read_bytes("")) == b""
        with pytest.raises(KeyError):
            reader.read_bytes("c")


def test_two_tensors_may_be_read_by_turns(file: Path) -> None:
    whole = bytes(range(256)) * (SIZE // 256)
    with opened(file, "") as reader:
        parts = []
        for window in reader.windows("a"):
            parts.append(bytes(window))
            assert bytes(reader.read_bytes("b")) == b"abc"
        assert b"".join(parts) == whole


def test_what_was_begun_and_not_finished_does_not_disturb_what_comes_next(file: Path) -> None:
    with opened(file, "") as reader:
        begun = reader.windows("a")
        next(begun)
        assert bytes(reader.read_bytes("b")) == b"abc"


def test_a_fault_of_one_tensor_leaves_the_others_readable(file: Path) -> None:
    with opened(file, "late raise") as reader:
        with pytest.raises(FormatError, match="a fault of the walker"):
            reader.read_bytes("a")
        assert bytes(reader.read_bytes("b")) == b"abc"


def test_a_closed_reader_says_that_it_is_closed_and_closes_twice(file: Path) -> None:
    reader = opened(file, "")
    begun = reader.windows("a")
    next(begun)
    reader.close()
    reader.close()
    with pytest.raises(UsageError, match="closed"):
        reader.read_bytes("b")
    with pytest.raises(UsageError, match="closed"):
        list(begun)


def test_a_reader_that_is_forgotten_leaves_no_process(file: Path) -> None:
    gc.collect()  # what others forgot is not ours
    running, before = children(), descriptors()
    reader = opened(file, "")
    assert len(children()) == len(running) + 1
    del reader
    gc.collect()
    assert children() == running
    assert descriptors() == before


def test_the_child_knows_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HDF5_PLUGIN_PATH", "/somewhere")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    known = isolation._environment()
    assert not {"HDF5_PLUGIN_PATH", "PYTHONPATH", "HOME"} & set(known)
    assert known["HDF5_PLUGIN_PRELOAD"] == "::"


def test_a_confined_process_opens_nothing_writes_nothing_and_stays_small(tmp_path: Path) -> None:
    program = """
import os, signal, socket, sys
from persistlib.converters import limits
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
out = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
limits.confine(0, lambda: None)
for attempt in (
    lambda: os.open("/dev/null", os.O_RDONLY),
    lambda: os.pipe(),
    lambda: socket.socket(),
    lambda: os.write(out, b"x"),
    lambda: bytearray(1 << 30),
):
    try:
        attempt()
    except (OSError, MemoryError):
        continue
    os._exit(1)
os._exit(0)
"""
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            program.replace("import os", "import signal, os", 1),
            tmp_path / "x",
        ],
        check=False,
        preexec_fn=None,
    )
    assert run.returncode == 0
    assert (tmp_path / "x").stat().st_size == 0


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path):
        with pytest.raises(PersistlibError, match="not a regular file"):
            isolation.open_file(path, "hdf5", {})
    with pytest.raises(PersistlibError, match="PL412"):
        isolation.open_file(tmp_path / "absent", "hdf5", {})


ENTRY = Entry("a.b\n\u202e\U0001d54f", DType.F4, (3, 0, 1 << 40))
LISTED = Listing("hdf5", "x", (ENTRY,), {"t": ENTRY.name}, {"k\0": ""}, ("value v",), ("n",))


def test_a_listing_crosses_as_it_was() -> None:
    assert listing.parse(listing.render(LISTED), 0, "file") == LISTED


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"F4"', '"F44"'),
        ('"F4"', "4"),
        ("[3,0,", "[-3,0,"),
        ("[3,0,", "[true,0,"),
        ("[3,0,", "[3.0,0,"),
        ("[3,0,", f"[{1 << 62},0,"),
        ("[3,0,", "[" + "1," * 70),
        ("[3,0,", f"[{1 << 20},1,"),
        ('"losses":["value v"]', '"losses":[1]'),
        ('"notes":["n"]', '"notes":"n"'),
        ('"format":"hdf5"', '"format":null'),
        ('"container":"x"', '"container":"x","more":1'),
        ('"metadata":{', '"metadata":{"a":1,'),
        ('"aliases":{', '"aliases":{"a\\u0000":"b",'),
        ('"entries":[', '"entries":[1,'),
        ("}", ""),
    ],
)
def test_a_listing_that_breaks_a_rule_is_refused(old: str, new: str) -> None:
    said = listing.render(LISTED).decode()
    assert old in said
    with pytest.raises(FormatError):
        listing.parse(said.replace(old, new).encode(), 0, "file")


def test_text_that_is_no_unicode_is_no_listing() -> None:
    with pytest.raises(FormatError, match="Unicode"):
        listing.render(Listing("hdf5", "\ud800", ()))
