"""Nothing half-written: the target is the whole old or the whole new version after any crash.

`crash_shim` counts the write-side calls of a save; here each of them is the last one, or fails.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import crash_shim
from crash_shim import (
    Disk,
    Killed,
    Server,
    Tape,
    descriptors_closed,
    lost,
    power_loss,
    recorded,
    save,
    whole,
)
from persistlib import gap, publish
from persistlib.errors import DurabilityError, PersistlibError, TargetError

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterator

OLD, NEW, NEWER = 1, 2, 3
SHARED_MEMORY = "/dev/shm"
BEFORE = pytest.mark.parametrize("before", [None, OLD], ids=["nothing", "overwriting"])
EXCHANGE = pytest.mark.parametrize("can_exchange", [True, False], ids=["exchange", "renames"])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    process = Server()
    yield process
    process.close()


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """Return a folder in memory where there is one: syncing a disk thousands of times is slow."""
    if not os.access(SHARED_MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as folder:
        yield Path(folder)


def prepared(folder: Path, before: int | None) -> Path:
    """Return a target in a folder of its own, with an old version or without."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if before is not None:
        save(str(folder / "model"), before)
    return folder / "model"


def names(target: Path) -> list[str]:
    return sorted(os.listdir(target.parent))


# -- kill -9 -----------------------------------------------------------------------------------


@BEFORE
@EXCHANGE
def test_killed_at_any_call_the_target_is_whole_and_the_next_save_sweeps(
    server: Server, tmp_path: Path, before: int | None, can_exchange: bool
) -> None:
    seen: list[int | None] = []
    for at in itertools.count(1):
        target = prepared(tmp_path / "site", before)
        result = server.run(target, NEW, at=at, action="kill", can_exchange=can_exchange)
        if result["outcome"] == "saved":
            break
        assert result["outcome"] == "killed"
        seen.append(whole(str(target)))
        assert server.run(target, NEWER, can_exchange=can_exchange)["outcome"] == "saved"
        assert whole(str(target)) == NEWER
        assert names(target) == ["model"]
    assert len(seen) > 30 if before else len(seen) > 25
    assert set(seen) == {before, NEW}
    assert seen == sorted(seen, key=[before, NEW].index), "once new, always new"


@EXCHANGE
def test_killed_at_any_call_of_the_save_after_a_killed_save_the_target_is_whole(
    server: Server, memory: Path, can_exchange: bool
) -> None:
    calls = len(server.run(prepared(memory / "site", OLD), NEW, can_exchange=can_exchange)["calls"])
    chance = random.Random(7)
    for _ in range(40):
        target = prepared(memory / "site", OLD)
        first, second = chance.randint(1, calls), chance.randint(1, calls + 10)
        server.run(target, NEW, at=first, action="kill", can_exchange=can_exchange)
        server.run(target, NEWER, at=second, action="kill", can_exchange=can_exchange)
        assert whole(str(target)) in {OLD, NEW, NEWER}
        assert server.run(target, 4, can_exchange=can_exchange)["outcome"] == "saved"
        assert whole(str(target)) == 4
        assert names(target) == ["model"]


def test_a_gap_is_read_where_it_cannot_be_mended(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = prepared(tmp_path / "site", OLD)
    server.run(target, NEW, at=2, only=["rename"], action="kill", can_exchange=False)
    assert not target.exists()
    monkeypatch.setattr(gap, "locked", denied)
    assert whole(str(target)) == OLD
    assert not target.exists()
    monkeypatch.undo()
    assert whole(str(target)) == OLD
    assert target.exists(), "the reader put it back"


@contextlib.contextmanager
def denied(*_: object) -> Generator[None]:
    raise PermissionError
    yield


def test_the_version_that_stepped_aside_last_is_the_one_that_comes_back(tmp_path: Path) -> None:
    target = prepared(tmp_path / "site", OLD)
    for number, kept in ((3, "0"), (2, "f")):
        save(str(tmp_path / "site" / "other"), number)
        os.rename(tmp_path / "site" / "other", target.parent / f".model.old-{kept * 15}{number}")
    shutil.rmtree(target)
    assert whole(str(target)) == 2


# -- faults ------------------------------------------------------------------------------------


@BEFORE
@EXCHANGE
@pytest.mark.parametrize("fault", ["ENOSPC", "ENOSPC from then on", "EIO", "EIO from then on"])
def test_a_failing_call_leaves_the_old_version_and_says_so(
    server: Server, memory: Path, before: int | None, can_exchange: bool, fault: str
) -> None:
    fault, sticky = fault.split(maxsplit=1)[0], " " in fault
    refused = 0
    for at in itertools.count(1):
        target = prepared(memory / "site", before)
        result = server.run(
            target, NEW, at=at, action=fault, sticky=sticky, can_exchange=can_exchange
        )
        if len(result["calls"]) < at:
            break
        check_fault(result, target, before, fault=fault, sticky=sticky)
        refused += result["outcome"] != "saved"
        if sticky or result["outcome"] != "saved":
            assert server.run(target, NEWER)["outcome"] == "saved"
            assert whole(str(target)) == NEWER
            assert names(target) == ["model"]
    assert refused >= (20 if before else 15)


def check_fault(
    result: dict[str, Any], target: Path, before: int | None, *, fault: str, sticky: bool
) -> None:
    outcome = result["outcome"]
    failed = [o.get("id") for o in result["operations"] if o["op"] == "failed"]
    synced_again = [o for o in result["operations"] if o["op"] == "fsync" and o["id"] in failed]
    assert not synced_again or outcome == "saved", "a failed fsync is never retried"
    if outcome in {"saved", "PL410"}:
        assert whole(str(target)) == NEW
    else:
        assert outcome == {"ENOSPC": "PL406", "EIO": "PL404"}[fault]
        assert whole(str(target)) == before
    if not sticky and outcome not in {"saved", "PL410"}:
        empty_lock = [".model.lock"] if result["operations"][1].get("call") == "flock" else []
        assert names(target) == empty_lock + (["model"] if before else []), "nothing is left"


@EXCHANGE
@BEFORE
def test_a_failing_last_fsync_is_told_apart_and_the_new_version_is_in_place(
    tmp_path: Path, can_exchange: bool, before: int | None
) -> None:
    target = prepared(tmp_path / "site", before)
    with recorded(Tape(can_exchange=can_exchange)) as tape:
        save(str(target), NEW)
    syncs = tape.calls.count("fsync")
    target = prepared(tmp_path / "site", before)
    tape = Tape(at=syncs, action="EIO", only=("fsync",), can_exchange=can_exchange)
    with pytest.raises(DurabilityError) as caught, recorded(tape):
        save(str(target), NEW)
    assert caught.value.code == "PL410"
    assert whole(str(target)) == NEW
    assert tape.calls.count("fsync") == syncs, "a failed fsync is never retried"
    if before:
        assert len(names(target)) == 2, "the old one is kept until the new one is durable"


@pytest.mark.parametrize("sticky", [False, True])
def test_short_writes_are_continued(server: Server, memory: Path, sticky: bool) -> None:
    for at in itertools.count(1):
        target = prepared(memory / "site", OLD)
        result = server.run(target, NEW, at=at, action="short", sticky=sticky, only=["write"])
        assert result["outcome"] == "saved"
        assert whole(str(target)) == NEW
        if len(result["calls"]) < at:
            break


def test_a_disk_that_takes_no_bytes_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand = crash_shim.Stand(os, frozenset({"write"}), Tape())
    monkeypatch.setattr(stand.tape, "call", lambda *_: 0)
    monkeypatch.setattr(publish, "os", stand)
    with pytest.raises(TargetError) as caught:
        save(str(tmp_path / "model"), NEW)
    assert caught.value.code == "PL404"
    assert os.listdir(tmp_path) == []


def test_an_interrupt_at_any_call_and_a_power_cut_then_leave_one_whole_version(
    memory: Path,
) -> None:
    class Interrupting(Tape):
        def _act(self, name: str, real: Any, args: Any, kwargs: Any) -> Any:
            self._perform(name, real, *args, **kwargs)
            raise KeyboardInterrupt

    chance = random.Random(3)
    at = 0
    for at in itertools.count(1):
        target = prepared(memory / "site", OLD)
        tape = Interrupting(at=at)
        disk = Disk.of(str(target.parent), tape)
        with recorded(tape), contextlib.suppress(KeyboardInterrupt):
            save(str(target), NEW)
        if len(tape.calls) < at:
            break
        assert whole(str(target)) in {OLD, NEW}
        save(str(target), NEWER)
        assert names(target) == ["model"]
        for _ in range(3):
            left = lost(disk, tape, len(tape.operations), chance)
            check_disk(left, tape, memory / "left", {OLD, NEW})
    assert at > 30


# -- order -------------------------------------------------------------------------------------


@EXCHANGE
def test_files_then_folder_then_publication_then_parent_then_deletion(
    server: Server, tmp_path: Path, can_exchange: bool
) -> None:
    target = prepared(tmp_path / "site", OLD)
    done = server.run(target, NEW, can_exchange=can_exchange)["operations"]
    done = [o for o in done if ".lock" not in f"{o.get('path')}{o.get('name')}"]
    staged = next(o for o in done if o["op"] == "mkdir")
    made = {o["id"]: i for i, o in enumerate(done) if o["op"] == "open"}
    synced = {o["id"]: i for i, o in enumerate(done) if o["op"] == "fsync"}
    written = {o["id"]: i for i, o in enumerate(done) if o["op"] == "write"}
    gone = [i for i, o in enumerate(done) if o["op"] in {"unlink", "rmdir"}]
    parent = synced[staged["dir"]]
    assert len(made) == len(crash_shim.FILES)
    assert all(made[i] < written[i] < synced[i] < synced[staged["id"]] for i in made)
    moves = [i for i, o in enumerate(done) if o["op"] in {"exchange", "rename"}]
    publication = moves[0] if can_exchange else moves[1]
    assert synced[staged["id"]] < moves[0] <= publication < parent < min(gone)


# -- power loss --------------------------------------------------------------------------------


def run_until(target: Path, tape: Tape, version: int, at: int = 0) -> int:
    """Save; die at the call. Return how many calls were made."""
    tape.at, tape.action, tape.dead = at, "die", False
    before = len(tape.calls)
    tape.at += before if at else 0
    with recorded(tape), descriptors_closed(), contextlib.suppress(Killed):
        save(str(target), version)
    tape.at = 0
    return len(tape.calls) - before


def check_disk(disk: Disk, tape: Tape, where: Path, allowed: Collection[int | None]) -> None:
    shutil.rmtree(where, ignore_errors=True)
    disk.write(str(where), crash_shim.kinds(tape.operations))
    assert whole(str(where / "model")) in allowed
    save(str(where / "model"), 9)
    assert whole(str(where / "model")) == 9
    assert os.listdir(where) == ["model"]


def power_cuts(
    folder: Path, before: int | None, *, can_exchange: bool, first_dies_at: int = 0, tries: int
) -> int:
    """Cut the power at every operation of one save, or of two, the first killed at a call.

    Returns: how many different disks were left.
    """
    target = prepared(folder / "site", before)
    tape = Tape(can_exchange=can_exchange)
    disk = Disk.of(str(target.parent), tape)
    if first_dies_at:
        run_until(target, tape, NEW, first_dies_at)
    run_until(target, tape, NEWER)
    chance = random.Random(first_dies_at)
    seen: set[tuple[str, bool]] = set()
    for upto in range(len(tape.operations) + 1):
        finished = upto == len(tape.operations)
        allowed = [NEWER] if finished else [before, NEWER] + [NEW] * bool(first_dies_at)
        for _ in range(tries * (5 if finished else 1)):
            left = lost(disk, tape, upto, chance)
            if (state := (left.state(), finished)) not in seen:
                seen.add(state)
                check_disk(left, tape, folder / "left", allowed)
    return len(seen)


@BEFORE
@EXCHANGE
def test_after_a_power_cut_the_target_is_whole_and_what_was_saved_is_there(
    memory: Path, before: int | None, can_exchange: bool
) -> None:
    assert power_cuts(memory, before, can_exchange=can_exchange, tries=4) > 30


@EXCHANGE
def test_a_power_cut_after_a_killed_save_brings_back_a_whole_version(
    memory: Path, can_exchange: bool
) -> None:
    target = prepared(memory / "site", OLD)
    calls = run_until(target, Tape(can_exchange=can_exchange), NEW)
    for at in range(16, calls, 5):
        power_cuts(memory, OLD, can_exchange=can_exchange, first_dies_at=at, tries=1)


@pytest.mark.slow
@EXCHANGE
def test_a_power_cut_after_a_save_killed_anywhere_brings_back_a_whole_version(
    memory: Path, can_exchange: bool
) -> None:
    target = prepared(memory / "site", OLD)
    calls = run_until(target, Tape(can_exchange=can_exchange), NEW)
    for at in range(1, calls):
        power_cuts(memory, OLD, can_exchange=can_exchange, first_dies_at=at, tries=6)


def test_without_any_of_its_fsyncs_the_simulated_disk_would_lose(memory: Path) -> None:
    """The simulation bites: each fsync of a save is needed."""
    target = prepared(memory / "site", OLD)
    tape = Tape()
    disk = Disk.of(str(target.parent), tape)
    run_until(target, tape, NEW)
    syncs = [i for i, o in enumerate(tape.operations) if o["op"] == "fsync"]
    assert len(syncs) == len(crash_shim.FILES) + 2
    for index in syncs:
        without = Tape(operations=[o for i, o in enumerate(tape.operations) if i != index])
        left = power_loss(disk, without.operations, lambda _: False)
        with pytest.raises((AssertionError, PersistlibError, IndexError)):
            check_disk(left, tape, memory / "left", {NEW})


# -- races -------------------------------------------------------------------------------------


def loop(target: Path, seconds: float, first: int, *, can_exchange: bool) -> subprocess.Popen[str]:
    script = [sys.executable, crash_shim.__file__, "loop"]
    arguments = [str(target), str(seconds), str(first), str(int(can_exchange))]
    return subprocess.Popen([*script, *arguments], stdout=subprocess.PIPE, text=True)


def counts(process: subprocess.Popen[str]) -> dict[str, int]:
    output, _ = process.communicate(timeout=60)
    result: dict[str, int] = json.loads(output)
    return result


@EXCHANGE
def test_a_reader_sees_whole_versions_in_order_while_a_writer_overwrites(
    tmp_path: Path, can_exchange: bool
) -> None:
    target = prepared(tmp_path / "site", OLD)
    writer = loop(target, 1.5, 2, can_exchange=can_exchange)
    seen: list[int | None] = []
    while writer.poll() is None:
        seen.append(whole(str(target), pause=0.0003 if len(seen) % 2 else 0))
    done = counts(writer)
    assert done["mixed"] == done["locked"] == 0
    assert done["saved"] > 10
    assert None not in seen
    assert seen == sorted(seen, key=lambda version: version or 0)
    assert len(set(seen)) > 5
    save(str(target), 999_999)
    assert names(target) == ["model"]


def test_of_many_writers_one_is_at_work_at_a_time(tmp_path: Path) -> None:
    target = prepared(tmp_path / "site", None)
    writers = [loop(target, 1.5, 1000 * n + 1, can_exchange=n % 2 == 0) for n in range(8)]
    seen: set[int | None] = set()
    while any(writer.poll() is None for writer in writers):
        seen.add(whole(str(target)))
        time.sleep(0.001)
    done = [counts(writer) for writer in writers]
    assert sum(d["mixed"] for d in done) == 0
    assert sum(d["saved"] for d in done) > 8
    assert sum(d["locked"] for d in done) > 8
    assert whole(str(target)) is not None
    assert names(target) == ["model"]


# -- strace ------------------------------------------------------------------------------------

_OF_A_SAVE = 60
CALLS = {
    "renames": ["renameat", "renameat2", "mkdirat", "unlinkat"],
    "bytes": ["fsync", "fdatasync", "ftruncate", "pwrite64", "flock"],
}


def can_trace() -> str:
    """Return why strace cannot inject here, or nothing."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    probe = ["strace", "-qq", "-o", os.devnull, "-e", "inject=fsync:signal=KILL", "true"]
    done = subprocess.run(probe, capture_output=True, check=False)
    return "" if done.returncode == 0 else f"strace cannot trace here: {done.stderr!r}"


def traced(folder: Path, options: list[str], *, can_exchange: bool) -> tuple[int, Path]:
    """Save over an old version under strace; return its exit code and the target."""
    target = prepared(folder / "site", OLD)
    script = [sys.executable, "-B", crash_shim.__file__, "save", str(target), str(NEW)]
    command = ["strace", "-qq", "-f", *options, *script, str(int(can_exchange))]
    return subprocess.run(command, check=False, capture_output=True).returncode, target


def traced_kills(folder: Path, calls: list[str], *, can_exchange: bool, limit: int) -> int:
    """Kill a save at the k-th system call for k = 1, 2, ...; return how many were killed.

    Starting Python opens and closes hundreds of files: of many calls the last ones are the save's.
    """
    killed = 0
    for call in calls:
        log = folder / "log"
        traced(folder, ["-o", str(log), "-e", f"trace={call}"], can_exchange=can_exchange)
        count = log.read_text().count(f"{call}(")
        for at in range(max(1, count - _OF_A_SAVE), count + 2):
            inject = ["-o", os.devnull, "-e", f"trace={call}"]
            inject += ["-e", f"inject={call}:signal=KILL:when={at}"]
            code, target = traced(folder, inject, can_exchange=can_exchange)
            assert whole(str(target)) in ({NEW} if code == 0 else {OLD, NEW})
            killed += code != 0
            if killed >= limit:
                return killed
    return killed


@EXCHANGE
@pytest.mark.parametrize("group", ["renames", "bytes"])
def test_killed_by_strace_at_a_system_call_the_target_is_whole(
    tmp_path: Path, group: str, can_exchange: bool
) -> None:
    if reason := can_trace():
        pytest.skip(reason)
    killed = traced_kills(tmp_path, CALLS[group], can_exchange=can_exchange, limit=12)
    assert killed >= 8


@pytest.mark.slow
@EXCHANGE
def test_killed_by_strace_at_every_system_call_the_target_is_whole(
    tmp_path: Path, can_exchange: bool
) -> None:
    if reason := can_trace():
        pytest.skip(reason)
    killed = traced_kills(
        tmp_path,
        sum(CALLS.values(), ["openat", "write", "close"]),
        can_exchange=can_exchange,
        limit=10_000,
    )
    assert killed > 30
