"""A layer over the system calls that write, which stops, fails or records them; and toy versions.

It stands in for `os` (and `fcntl.flock`, and `publish.exchange`) in the modules that write, so that
every write-side call is counted. At the chosen one it kills the process, raises an errno, or moves
half of the bytes. What was done is kept as a list of operations, from which `power_loss` makes the
disks that a power cut may leave.

As a script it is a process that saves: `serve` takes jobs as JSON lines and forks for each, so that
a kill costs a fork; `save` and `loop` are for strace and for races.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from persistlib import amendment, lock, place, publish
from persistlib.errors import PersistlibError

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Generator

    from persistlib.files import Folder

REAL_EXCHANGE = publish.exchange
WRITE_SIDE = {
    *("open", "write", "pwrite", "ftruncate", "fsync", "fchmod", "close"),
    *("rename", "mkdir", "unlink", "rmdir"),
}
FILES = ("weights", "examples", "graph", "manifest")
ROW = 64  # copies of the version number in each file

Operation = dict[str, Any]


# -- toy versions ------------------------------------------------------------------------------


def nothing_foreign(_: Folder) -> list[str]:
    return []


def save(path: str, version: int, *, overwrite: bool = True) -> None:
    """Publish a folder of which every file holds the version's number many times."""
    with quiet(), publish.folder(path, overwrite=overwrite, foreign=nothing_foreign) as new:
        for name in FILES:
            with new.create(name) as out:
                out.write(content(version, name))


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Let pass the warning that a dead writer's lock was taken over."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def content(version: int, name: str) -> bytes:
    return f"{version} {name}\n".encode() * ROW


def whole(path: str, *, pause: float = 0) -> int | None:
    """Return the number of the one whole version at `path`, None where nothing stands.

    Raises:
        AssertionError: what stands there is no whole version.
    """
    with quiet():
        try:
            folder = publish.open_folder(path)
        except PersistlibError as fault:
            if fault.code == "PL412":
                return None
            raise
    with folder:
        assert set(folder.names()) == set(FILES), folder.names()
        version = int(folder.read(FILES[0], limit=1 << 20).split()[0])
        for name in FILES:
            if pause:
                time.sleep(pause)
            assert folder.read(name, limit=1 << 20) == content(version, name), (name, version)
    return version


# -- the shim ----------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is as good as dead: nothing it does from now on reaches the disk."""


@dataclass
class Tape:
    """Counts write-side calls, makes one of them fail, and keeps what was done.

    Attributes:
        at: the call to act on, counted from 1; 0 for none.
        action: "kill" (the process), "die" (a `Killed`), "short" or the name of an errno.
        sticky: whether later calls fail as well.
        only: the calls that count; all when empty.
        can_exchange: whether the file system has RENAME_EXCHANGE.
        calls: the names of the counted calls.
        operations: what was done.
    """

    at: int = 0
    action: str = ""
    sticky: bool = False
    only: tuple[str, ...] = ()
    can_exchange: bool = True
    report: Callable[[], None] = lambda: None
    calls: list[str] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    dead: bool = False
    _ids: dict[tuple[int, int], int] = field(default_factory=dict)
    _next: int = 0

    def call(self, name: str, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if name == "open" and not args[1] & os.O_CREAT:
            return real(*args, **kwargs)
        if self.dead:
            if name == "close":
                real(*args)
            raise Killed
        if self.only and name not in self.only:
            return self._perform(name, real, *args, **kwargs)
        self.calls.append(name)
        count = len(self.calls)
        if self.at and (count == self.at or (self.sticky and count > self.at)):
            args = self._act(name, real, args, kwargs)
        return self._perform(name, real, *args, **kwargs)

    def _act(
        self, name: str, real: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, ...]:
        """Do the harm; return the arguments of the call that is made after all."""
        half = (args[0], bytes(args[1])[: len(args[1]) // 2 or 1]) if name == "write" else args
        if self.action == "short":
            return half
        if name == "write" and self.action in {"kill", "die"}:
            self._perform(name, real, *half, **kwargs)
        if self.action == "kill":
            self.report()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.action == "die":
            self.dead = True
            if name == "close":
                real(*args)
            raise Killed
        if name == "close":
            real(*args)
        code = getattr(errno, self.action)
        self.operations.append({"op": "failed", "call": name, **self._of(name, args)})
        raise OSError(code, os.strerror(code))

    def _of(self, name: str, args: tuple[Any, ...]) -> Operation:
        return {"id": self.identify(args[0])} if name == "fsync" else {}

    def _perform(self, name: str, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        folder: Any = kwargs.get("dir_fd", kwargs.get("src_dir_fd"))
        operation: Operation = {"op": name}
        if name in {"write", "pwrite", "ftruncate", "fsync", "fchmod"}:
            operation["id"] = self.identify(args[0])
            operation["path"] = os.readlink(f"/proc/self/fd/{args[0]}")
        if name == "write":
            operation["at"] = os.lseek(args[0], 0, os.SEEK_CUR)
        result = real(*args, **kwargs)
        if name == "write":
            operation["data"] = bytes(args[1])[:result].decode("latin-1")
        elif name == "pwrite":
            operation |= {"op": "write", "at": args[2], "data": args[1].decode("latin-1")}
        elif name == "ftruncate":
            operation["size"] = args[1]
        elif name == "rename":
            operation |= {"dir": self.identify(folder), "from": args[0], "to": args[1]}
            operation |= self._move(folder, kwargs.get("dst_dir_fd", folder), args[1])
        elif name == "exchange":
            operation |= {"dir": self.identify(args[0]), "from": args[1], "to": args[2]}
        elif name in {"open", "mkdir", "unlink", "rmdir"}:
            operation |= self._entry(args[0], folder)
            if name in {"open", "mkdir"}:
                operation["id"] = self.identify(args[0], folder, new=True)
        self.operations.append(operation)
        return result

    def _move(self, folder: int, other: int, name: str) -> Operation:
        """Return what makes a renaming one into another folder."""
        if folder == other:
            return {}
        away, number = self.identify(folder), self.identify(name, other)
        return {"op": "move", "away": away, "dir": self.identify(other), "id": number}

    def _entry(self, path: str, folder: int | None) -> Operation:
        parent, name = os.path.split(path)
        return {"dir": self.identify(parent if folder is None else folder), "name": name}

    def identify(self, thing: int | str, folder: int | None = None, *, new: bool = False) -> int:
        """Return a number for an inode; inode numbers themselves are used again by the system."""
        if isinstance(thing, str):
            there = os.stat(thing, dir_fd=folder, follow_symlinks=False)
        else:
            there = os.fstat(thing)
        key = there.st_dev, there.st_ino
        if new or key not in self._ids:
            self._next += 1
            self._ids[key] = self._next
        return self._ids[key]

    def exchange(self, folder_fd: int, one: str, other: str) -> None:
        self.call("exchange", self._exchange, folder_fd, one, other)

    def _exchange(self, folder_fd: int, one: str, other: str) -> None:
        if not self.can_exchange:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        REAL_EXCHANGE(folder_fd, one, other)


@dataclass(frozen=True)
class Stand:
    """Stands in for a module: the calls in `names` go over the tape."""

    module: Any
    names: frozenset[str]
    tape: Tape

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.module, name)
        if name not in self.names:
            return real
        return lambda *args, **kwargs: self.tape.call(name, real, *args, **kwargs)


@contextlib.contextmanager
def recorded(tape: Tape) -> Generator[Tape]:
    """Let the modules that write do so over the tape."""
    stand = Stand(os, frozenset(WRITE_SIDE), tape)
    stands = [
        (publish, "os", stand),
        (place, "os", stand),
        (amendment, "os", stand),
        (lock, "os", stand),
        (lock, "fcntl", Stand(fcntl, frozenset({"flock"}), tape)),
        (publish, "exchange", tape.exchange),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in stands]
    for module, name, value in stands:
        setattr(module, name, value)
    try:
        yield tape
    finally:
        for module, name, value in before:
            setattr(module, name, value)


@contextlib.contextmanager
def descriptors_closed() -> Generator[None]:
    """Close what a process that died would have had closed for it."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    for fd in set(os.listdir("/proc/self/fd")) - before:
        with contextlib.suppress(OSError):
            os.close(int(fd))


# -- power loss --------------------------------------------------------------------------------


@dataclass
class Disk:
    """What the medium holds: folders as name -> id, files as bytes."""

    root: int
    folders: dict[int, dict[str, int]]
    files: dict[int, bytes]

    @classmethod
    def of(cls, path: str, tape: Tape) -> Disk:
        """Return the durable state that a run over `tape` begins with."""
        disk = cls(tape.identify(path), {}, {})
        for folder, _, files in os.walk(path):
            names = os.listdir(folder)
            ids = {name: tape.identify(os.path.join(folder, name)) for name in names}
            disk.folders[tape.identify(folder)] = ids
            for name in files:
                with open(os.path.join(folder, name), "rb") as file:
                    disk.files[ids[name]] = file.read()
        return disk

    def copy(self) -> Disk:
        folders = {number: dict(names) for number, names in self.folders.items()}
        return Disk(self.root, folders, dict(self.files))

    def apply(self, operation: Operation) -> None:
        """Let an operation reach the medium; one whose ground never got there has no effect."""
        name = operation["op"]
        if name in {"write", "ftruncate"}:
            before = self.files.get(operation["id"], b"")
            if name == "ftruncate":
                self.files[operation["id"]] = before[: operation["size"]]
                return
            data, at = operation["data"].encode("latin-1"), operation["at"]
            before = before.ljust(at, b"\0")
            self.files[operation["id"]] = before[:at] + data + before[at + len(data) :]
        elif name in {"open", "mkdir"}:
            self.folders.setdefault(operation["dir"], {})[operation["name"]] = operation["id"]
        elif name in {"unlink", "rmdir"}:
            self.folders.get(operation["dir"], {}).pop(operation["name"], None)
        elif name == "move":  # the new folder's entry leads to the file, whatever its old name was
            self.folders.get(operation["away"], {}).pop(operation["from"], None)
            self.folders.setdefault(operation["dir"], {})[operation["to"]] = operation["id"]
        elif name in {"rename", "exchange"}:
            names = self.folders.get(operation["dir"], {})
            one, other = operation["from"], operation["to"]
            if name == "rename" and one in names:
                names[other] = names.pop(one)
            elif name == "exchange" and one in names and other in names:
                names[one], names[other] = names[other], names[one]

    def write(self, path: str, kinds: dict[int, bool]) -> None:
        """Make the state at `path`; `kinds` says which numbers are folders."""
        self._write(self.root, path, kinds)

    def _write(self, number: int, path: str, kinds: dict[int, bool]) -> None:
        os.mkdir(path)
        for name, inner in self.folders.get(number, {}).items():
            below = os.path.join(path, name)
            if kinds.get(inner, inner in self.folders):
                self._write(inner, below, kinds)
            else:
                with open(below, "wb") as file:
                    file.write(self.files.get(inner, b""))

    def state(self) -> str:
        """Return the same text for the same tree."""
        return json.dumps(self._state(self.root), sort_keys=True)

    def _state(self, number: int) -> Any:
        if number not in self.folders and number in self.files:
            return self.files[number].decode("latin-1")
        names = self.folders.get(number, {})
        return {name: self._state(inner) for name, inner in names.items()}


def power_loss(
    disk: Disk, operations: list[Operation], keep: Callable[[Operation], bool | float]
) -> Disk:
    """Return what a power cut after the operations leaves.

    What was fsynced since is there. Of all else `keep` decides: true, false, or for a write the
    part of it that reached the medium. An operation that was kept counts in its order.
    """
    after = disk.copy()
    for index, operation in enumerate(operations):
        subject = operation.get("dir", operation.get("id"))
        durable = any(
            later["op"] == "fsync" and later["id"] == subject for later in operations[index:]
        )
        kept = True if durable else keep(operation)
        if kept is True:
            after.apply(operation)
        elif kept and operation["op"] == "write":
            part = operation["data"][: int(len(operation["data"]) * kept)]
            after.apply(operation | {"data": part})
    return after


def lost(disk: Disk, tape: Tape, upto: int, chance: random.Random) -> Disk:
    """Return a disk after a power cut: each unsynced operation kept or dropped by chance."""
    bias = chance.choice([0.0, 0.2, 0.5, 0.8, 1.0])

    def keep(operation: Operation) -> bool | float:
        if operation["op"] == "write" and chance.random() < 0.3:
            return chance.random()
        return chance.random() < bias

    return power_loss(disk, tape.operations[:upto], keep)


def kinds(operations: list[Operation]) -> dict[int, bool]:
    """Return for each thing that was made whether it is a folder."""
    return {o["id"]: o["op"] == "mkdir" for o in operations if o["op"] in {"open", "mkdir"}}


# -- processes ---------------------------------------------------------------------------------


class Server:
    """A process that saves on request and survives being killed: each job runs in a fork."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, path: object, version: int, **tape: Any) -> dict[str, Any]:
        """Return {"outcome": "saved" | "killed" | code, "calls": [...], "operations": [...]}."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {"path": str(path), "version": version, "tape": tape}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        result: dict[str, Any] = json.loads(self._process.stdout.readline())
        return result

    def close(self) -> None:
        self._process.communicate(timeout=60)


def _serve() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            os.close(reading)
            _job(job, writing)
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:
            result = json.loads(pipe.read())
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            result["outcome"] = "killed"
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


def _job(job: dict[str, Any], writing: int) -> None:
    tape = Tape(**job["tape"])
    outcome = ""

    def report() -> None:
        result = {"outcome": outcome, "calls": tape.calls, "operations": tape.operations}
        with open(writing, "wb") as pipe:
            pipe.write(json.dumps(result).encode())

    tape.report = report
    try:
        with recorded(tape):
            save(job["path"], job["version"])
        outcome = "saved"
    except PersistlibError as fault:
        outcome = fault.code
    except Exception as fault:  # noqa: BLE001 - the test compares it
        outcome = repr(fault)
    report()


def _loop(path: str, seconds: str, first: str, can_exchange: str) -> None:
    """Save versions `first`, `first + 1`, ... and print how many were saved and refused."""
    counts = {"saved": 0, "locked": 0, "mixed": 0}
    deadline = time.monotonic() + float(seconds)
    version = int(first)
    with recorded(Tape(can_exchange=can_exchange == "1")):
        while time.monotonic() < deadline:
            outcome = _save_alone(path, version)
            counts[outcome] += 1
            version += outcome == "saved"
    sys.stdout.write(json.dumps(counts) + "\n")


def _save_alone(path: str, version: int) -> str:
    """Save, and make sure that nobody else does meanwhile."""
    sentinel = f"{path}.sentinel"
    try:
        with publish.folder(path, overwrite=True, foreign=nothing_foreign) as new:
            os.close(os.open(sentinel, os.O_CREAT | os.O_EXCL))
            for name in FILES:
                with new.create(name) as out:
                    out.write(content(version, name))
            os.unlink(sentinel)
    except PersistlibError as fault:
        if fault.code == "PL407":
            return "locked"
        sys.stderr.write(f"{fault}\n")
        return "mixed"
    return "saved"


def _save(path: str, version: str, can_exchange: str) -> None:
    os.umask(stat.S_IWGRP | stat.S_IWOTH)
    if can_exchange == "1":
        save(path, int(version))
    else:
        with recorded(Tape(can_exchange=False)):
            save(path, int(version))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    roles: dict[str, Callable[..., None]] = {"serve": _serve, "loop": _loop, "save": _save}
    roles[sys.argv[1]](*sys.argv[2:])
