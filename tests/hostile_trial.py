"""A process that opens hostile files: watched by an audit hook, and measured file by file.

As a script it reads a job (`Job`) as JSON from standard input and says a line of JSON for each
file: how each way of opening it ended, what it cost, and what the process did that it may not.
"""

from __future__ import annotations

import codecs
import gc
import importlib
import json
import os
import pkgutil
import resource
import subprocess
import sys
import threading
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypedDict

import h5py

import persistlib
from persistlib import converters, formats
from persistlib.converters import isolated
from persistlib.converters.listing import check_declared
from persistlib.errors import Code, PersistlibError, error
from persistlib.runtime.structure import check_graph

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Row(TypedDict):
    """What the generator says of a file (`fixtures/hostile/attack.py`)."""

    threat: str
    path: str
    what: str
    codes: list[str]
    options: dict[str, str]
    whole: list[str]


class Job(TypedDict):
    """Files to open, and where.

    Attributes:
        top: the folder of all files.
        good: files that warm the process up: what it imports, it imports for them.
        out: an empty folder for what is written.
        target: the ending of what is written.
        rows: the files.
        ways: how each is opened, of `WAYS`.
    """

    top: str
    good: list[str]
    out: str
    target: str
    rows: list[Row]
    ways: list[str]


class Way(TypedDict):
    """How one way of opening a file ended; an empty code where it was read."""

    way: str
    code: str
    text: str
    remedy: str
    seconds: float


class Outcome(TypedDict):
    """What became of a file.

    Attributes:
        path: the file.
        ways: how each way ended, with the processor time of the process and its children.
        slowness: how many times a plain loop took what it takes on an idle core.
        memory: the most memory it or a child ever had until then, in bytes.
        faults: what was done that may not be done, or left behind.
    """

    path: str
    ways: list[Way]
    slowness: float
    memory: int
    faults: list[str]


# What Python itself does all the time, and what reads or writes by a descriptor or a folder's.
_QUIET = {
    *("object.__getattr__", "object.__setattr__", "sys._getframe", "sys._current_frames"),
    *("os.listdir", "os.scandir", "os.fwalk", "mmap.__new__", "fcntl.fcntl", "fcntl.flock"),
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.utime"),
    *("_thread.start_new_thread", "gc.get_objects", "resource.setrlimit", "tempfile.mkdtemp"),
    "socket.gethostname",  # a writer's lock says who holds it
    *("glob.glob", "array.__new__", "builtins.id", "code.__new__", "shutil.rmtree"),
    *("ctypes.call_function", "ctypes.get_errno", "ctypes.set_errno", "cpython.run_stdin"),
}
ESCAPED = "escaped"  # the code of an exception outside the family
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_SYSTEM = ("/proc/self/",)
SECRET = b"SECRETSECRET"
_LARGE = 1 << 28
_LONG, _LOOP = 1.0, 0.1  # seconds: from when the loop is run, and what it takes
_MAIN = "from persistlib.converters.isolated import main"


class Watch:
    """An audit hook: notes what a reader of strangers' files has no reason to do.

    Attributes:
        allowed: folders below which files may be read.
        out: the folder below which files may be written.
        faults: what was noted since it was last emptied.
    """

    def __init__(self, out: str) -> None:
        self.allowed: tuple[str, ...] = ()
        self.out = out
        self.faults: list[str] = []
        self.is_armed = self.has_child = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_armed or event in _QUIET:
            return
        if event == "open" and self._may_open(*arguments):
            return
        if event == "subprocess.Popen" and _is_own(arguments):
            self.has_child = True
            return
        if event == "os.kill" and self.has_child:  # how a child that parses is ended
            return
        self.faults.append(f"{event} {arguments!r}"[:300])

    def _may_open(self, path: Any, _: Any, flags: int) -> bool:
        name = os.fsdecode(path) if isinstance(path, (str, bytes)) else ""
        if not os.path.isabs(name):  # of a folder that is open; never one that leads out of it
            return isinstance(path, int) or not {"..", ""} & set(name.split("/"))
        name = os.path.abspath(name)
        if name == os.devnull:
            return True
        if flags & _WRITING:
            return name.startswith(self.out)
        return f"{name}/".startswith((*self.allowed, self.out, *_SYSTEM))


def _is_own(arguments: tuple[Any, ...]) -> bool:
    """Return whether a process is the one in which HDF5 is parsed."""
    program, words = arguments[:2]
    return bool(
        program == sys.executable and words[1:5] == ["-I", "-S", "-B", "-c"] and _MAIN in words[5]
    )


def _convert(path: str, job: Job, options: dict[str, str]) -> None:
    target = os.path.join(job["out"], f"x{job['target']}")
    given: dict[str, Any] = {**options}
    if weights := given.pop("weights", None):  # the file is the graph that they are written into
        target, given["template"] = os.path.join(job["out"], "x.onnx"), path
        path = os.path.join(os.path.dirname(path), weights)
    try:
        persistlib.convert(path, target, allow_loss=["all"], **given)
    except PersistlibError:
        assert not os.path.lexists(target), "a file was left"
        raise
    with open(target, "rb") as handle:
        assert SECRET not in handle.read(), "a secret came out"
    for name in os.listdir(job["out"]):
        os.unlink(os.path.join(job["out"], name))


def _walk(path: str, _: Job, __: dict[str, str]) -> None:
    """Read a file in this process as the child would, without what confines the child."""
    if not os.path.isfile(path):
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        if formats.by_content(path).name in isolated.WALKERS:
            _walked(isolated.Opened(fd, os.fstat(fd).st_size))
    except PersistlibError:
        raise
    except Exception as fault:  # the child reports it as a malformed file
        raise error(Code.FORMAT_HEADER, path, type(fault).__name__, "as the child says") from fault
    finally:
        os.close(fd)


def _walked(source: isolated.Opened) -> None:
    walkers = [importlib.import_module(name) for name in isolated.WALKERS["hdf5"]]
    walker = next((walker for walker in walkers if walker.claims(source)), None)
    if walker is not None:
        listing = walker.walk(source, {})
        check_declared(listing.entries, source.size)
        for entry in listing.entries:
            for window in listing.windows(entry.name):
                assert SECRET not in bytes(window), "a secret came out"


def _graph(path: str, _: Job, __: dict[str, str]) -> None:
    if os.path.isfile(path) and os.path.getsize(path) < _LARGE:
        with open(path, "rb") as handle:
            check_graph(handle.read())


# Each returns where the file was read, and raises where it was refused.
WAYS: dict[str, Callable[[str, Job, dict[str, str]], object]] = {
    "convert": _convert,
    "key": lambda path, job, _: _convert(path, job, {"key": ""}),
    "identify": lambda path, *_: persistlib.identify(path),
    "walk": _walk,
    "graph": _graph,
}


def tried(path: str, way: str, job: Job, options: dict[str, str]) -> Way:
    """Return how one way of opening a file ended."""
    started = spent()
    code = text = remedy = ""
    try:
        WAYS[way](path, job, options)
    except PersistlibError as fault:
        code, text, remedy = fault.code, str(fault), fault.remedy
    except BaseException as fault:  # noqa: BLE001 - what must never happen
        code, text = ESCAPED, f"{type(fault).__name__}: {fault}"[:500]
    return Way(way=way, code=code, text=text, remedy=remedy, seconds=spent() - started)


def spent() -> float:
    """Return the processor time of this process and of the children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def slowness() -> float:
    """Return how many times slower than on an idle core a loop runs; other work slows it down."""
    started, total = spent(), 0
    for number in range(2_000_000):
        total += number & 3
    return max((spent() - started) / _LOOP, 1.0)


def memory() -> int:
    """Return the most memory that this process or one of its children ever had.

    The process' own `ru_maxrss` begins with that of the one that started it (getrusage(2)).
    """
    with open("/proc/self/status", encoding="ascii") as lines:
        own = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024


def left(before: tuple[int, int], job: Job) -> Iterator[str]:
    """Yield what a file left behind: descriptors, threads, children, files."""
    gc.collect()
    now = len(os.listdir("/proc/self/fd")), threading.active_count()
    if now != before:
        yield f"descriptors and threads were {before}, are {now}"
    with suppress(ChildProcessError):
        pid, status = os.waitpid(-1, os.WNOHANG)
        yield f"a child was left: {pid} {status}"
    for folder in (".", job["out"], os.environ["TMPDIR"]):
        if names := os.listdir(folder):
            yield f"files were left in {folder}: {names}"


def outcome(row: Row, job: Job, watch: Watch) -> Outcome:
    """Return what becomes of a file."""
    path = os.path.join(job["top"], row["path"])
    watch.allowed = (f"{os.path.dirname(path)}/",)
    before = (len(os.listdir("/proc/self/fd")), threading.active_count())
    watch.is_armed = True
    ways = [tried(path, way, job, row["options"]) for way in job["ways"]]
    watch.is_armed = False
    faults = [*watch.faults, *left(before, job)]
    watch.faults.clear()
    slow = slowness() if any(way["seconds"] > _LONG for way in ways) else 1.0
    return Outcome(path=row["path"], ways=ways, slowness=slow, memory=memory(), faults=faults)


def warm_up(job: Job) -> None:
    """Load what is loaded at first use: readers, writers, error texts, codecs."""
    for path in job["good"]:
        for way in job["ways"]:
            ended = tried(path, way, job, {})
            assert not ended["code"], ended
    for module in pkgutil.iter_modules(converters.__path__):
        importlib.import_module(f"persistlib.converters.{module.name}")
    while h5py.h5pl.size():  # as the child does; libraries are sought for files of any kind
        h5py.h5pl.remove(0)
    tried(os.path.join(job["top"], "gone"), "convert", job, {})
    for name in ("ascii", "utf-16", "utf-32", "latin-1", "unicode_escape"):
        codecs.lookup(name)
    subprocess.run([sys.executable, "-c", ""], check=True)


def main() -> None:
    """Open every file of the job."""
    warnings.simplefilter("error")
    job: Job = json.load(sys.stdin)
    watch = Watch(job["out"])
    warm_up(job)
    gc.collect()
    gc.freeze()
    for row in job["rows"]:
        sys.stdout.write(json.dumps(outcome(row, job, watch)) + "\n")
        sys.stdout.flush()
    os._exit(0)  # as the child does: HDF5 may crash when it lets go of what it half parsed


if __name__ == "__main__":
    main()
