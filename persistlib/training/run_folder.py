"""The folder of a run: its last checkpoints, its best weights, and what it was started with.

    RUN/run.json                      what the run was started with
    RUN/checkpoints/000003-000000000  after 3 epochs and 0 batches of the next; the last two stay
    RUN/best/000002                   the best weights so far, of epoch 2
    RUN/versions/000002               a bundle of epoch 2, where all epochs are kept
    RUN/features/features-KEY         of the frozen front, where memory is too small, until the end

Laws: after a kill at any moment there is a checkpoint that is whole, or none was ever finished; one
process trains in a folder at a time; nothing but what runs wrote is ever deleted.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import time
from typing import TYPE_CHECKING, Any

from persistlib import publish
from persistlib.errors import Code, LockedError, PersistlibError, Severity, error, finding
from persistlib.files import StrPath, read_fault
from persistlib.lock import locked
from persistlib.place import FOLDER_FLAGS, make_parents
from persistlib.publish import write_fault
from persistlib.training import checkpoints, feature_files, plain
from persistlib.training.watching import CONFUSION, CURVES, EVENTS, HISTORY
from persistlib.versions import FOLDER, RUN, RUN_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from persistlib.errors import Finding
    from persistlib.training.checkpoints import Snapshot

_CHECKPOINTS, _BEST, _VERSIONS = "checkpoints", "best", FOLDER
_NAMES = {
    _CHECKPOINTS: re.compile(r"\d{6}-\d{9}"),
    _BEST: re.compile(r"\d{6}"),
    _VERSIONS: re.compile(r"\d{6}"),
}
# Left by a writer that was killed, or by a deletion that was (`place`).
_LEFT = re.compile(r"\.\d{6}(-\d{9})?\.(lock|(new|old|gone)-[0-9a-f]{16})|\.gone-[\d-]+")
_LEFT_FEATURES = re.compile(r"\.features-[0-9a-f]{32}\.(lock|(new|old|gone)-[0-9a-f]{16})")
_WATCHED = (HISTORY, CURVES, CONFUSION, EVENTS)
_KEPT = 2  # checkpoints: one may turn out damaged
_LIMIT = 1 << 20
_LOCK = ".lock"
# Torch's workers look for their parent every 5 s.
_PATIENCE = 15.0
_PAUSE = 0.05


def features(path: StrPath) -> str:
    """Return where the features of a run's frozen front may lie."""
    return os.path.join(os.fspath(path), "features")


class RunFolder:
    """An open run folder; nobody else trains in it meanwhile.

    Attributes:
        path: where it is.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def place(self, kind: str, name: str) -> str:
        """Return the path of a checkpoint, or of best weights."""
        return os.path.join(self.path, kind, name)

    def write(self, epoch: int, batch: int, snapshot: Snapshot) -> str:
        """Write a checkpoint, let go of those that are no longer needed; return its path.

        Raises:
            TargetError: writing failed; the checkpoints before stand unchanged.
        """
        path = self.place(_CHECKPOINTS, f"{epoch:06}-{batch:09}")
        checkpoints.write(path, snapshot)
        for name in self._names(_CHECKPOINTS)[:-_KEPT]:
            self._remove(_CHECKPOINTS, name)
        return path

    def write_best(self, epoch: int, snapshot: Snapshot) -> None:
        """Write the best weights so far.

        Those before stay until the checkpoints that refer to them are gone.

        Raises:
            TargetError: writing failed.
        """
        checkpoints.write(self.place(_BEST, f"{epoch:06}"), snapshot)
        for name in self._names(_BEST)[: -_KEPT - 1]:
            self._remove(_BEST, name)

    def version(self, epoch: int) -> str:
        """Return where the version of an epoch stands."""
        return self.place(_VERSIONS, f"{epoch:06}")

    def best(self, epoch: int) -> Snapshot:
        """Return the best weights, of an epoch.

        Raises:
            PersistlibError: as `checkpoints.read`.
        """
        return checkpoints.read(self.place(_BEST, f"{epoch:06}"))

    def newest(self) -> str | None:
        """Return the path of the newest checkpoint; None where there is none."""
        names = self._names(_CHECKPOINTS)
        return self.place(_CHECKPOINTS, names[-1]) if names else None

    def snapshots(self) -> Iterator[tuple[str, Snapshot | Finding]]:
        """Yield each checkpoint and its path, the newest first; of a damaged one, what is wrong."""
        for name in reversed(self._names(_CHECKPOINTS)):
            path = self.place(_CHECKPOINTS, name)
            try:
                yield path, checkpoints.read(path)
            except PersistlibError as fault:
                reason = f"{fault.reason}; the one before is taken"
                yield (
                    path,
                    finding(Code.CHECKPOINT_DAMAGED, path, reason, severity=Severity.WARNING),
                )

    def drop_after(self, path: str, best: int) -> None:
        """Remove what came after the checkpoint that is gone on from, whose best epoch is given."""
        newest_of = os.path.basename(path)
        last = {_CHECKPOINTS: newest_of, _BEST: f"{best:06}", _VERSIONS: newest_of[:6]}
        for kind, newest in last.items():
            for name in reversed(self._names(kind)):
                if name > newest:
                    self._remove(kind, name)

    def clear(self) -> None:
        """Remove what an earlier run left."""
        for kind in _NAMES:
            for name in reversed(self._names(kind)):  # versions stand on the first
                self._remove(kind, name)
            self.sweep(kind)
            with contextlib.suppress(OSError):
                os.rmdir(os.path.join(self.path, kind))
        self.drop_features()
        for name in (RUN, *_WATCHED):
            self._delete(os.path.join(self.path, name))

    def drop_features(self) -> None:
        """Remove the features of the frozen front: the run is done, or begins anew."""
        place = features(self.path)
        for name in _listed(place):
            if feature_files.is_place(name) or _LEFT_FEATURES.fullmatch(name):
                self._delete(os.path.join(place, name))
        with contextlib.suppress(OSError):
            os.rmdir(place)

    def sweep(self, kind: str) -> None:
        """Remove what killed writers left among the checkpoints or the best weights."""
        for name in _listed(os.path.join(self.path, kind)):
            if _LEFT.fullmatch(name):
                self._delete(self.place(kind, name))

    @property
    def is_noted(self) -> bool:
        """Whether what a run was started with stands here."""
        return os.path.exists(os.path.join(self.path, RUN))

    def note(self, command: Mapping[str, Any]) -> None:
        """Write what the run is started with."""
        data = checkpoints.seal({"schema": RUN_SCHEMA, "command": plain.encode(dict(command))})
        with publish.file(os.path.join(self.path, RUN)) as out:
            out.write(data)

    def _names(self, kind: str) -> list[str]:
        return [n for n in _listed(os.path.join(self.path, kind)) if _NAMES[kind].fullmatch(n)]

    def _remove(self, kind: str, name: str) -> None:
        """Remove a checkpoint, which first loses its name: a half deleted one is none."""
        gone = self.place(kind, f".gone-{name}")
        self._delete(gone)
        with contextlib.suppress(OSError):
            os.rename(self.place(kind, name), gone)
        self._delete(gone)

    @staticmethod
    def _delete(path: str) -> None:
        """Delete a file, or a folder that is no link; what cannot be deleted is left."""
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(path)


@contextlib.contextmanager
def opened(path: StrPath, *, resume: bool, overwrite: bool) -> Generator[RunFolder]:
    """Yield the folder of a run, made where it is missing.

    Args:
        path: where.
        resume: whether a run that stands there is gone on with.
        overwrite: whether it is removed otherwise.

    Raises:
        TargetError: a run stands there and is neither to be resumed nor removed, or the folder
            cannot be used.
        LockedError: another process trains there.
    """
    place = os.path.abspath(os.fspath(path))
    try:
        make_parents(place)
        fd = os.open(place, FOLDER_FLAGS)
    except OSError as fault:
        raise write_fault(fault, path) from fault
    try:
        with contextlib.ExitStack() as held:
            _lock(held, fd, os.fspath(path))
            folder = RunFolder(os.fspath(path))
            for kind in _NAMES:
                folder.sweep(kind)
            if not resume:
                _make_room(folder, overwrite=overwrite)
            yield folder
    finally:
        os.close(fd)


def _lock(held: contextlib.ExitStack, fd: int, path: str) -> None:
    """Take the folder's lock; where its holder was killed, its loader's workers are waited for.

    They have the lock with all else that a fork inherits, and end within seconds.

    Raises:
        LockedError: another process trains there.
    """
    deadline = time.monotonic() + _PATIENCE
    while (fault := _refusal(held, fd, path)) is not None:
        is_held = fault.code == Code.LOCK_HELD.identifier
        if not is_held or time.monotonic() > deadline or not _is_left(path):
            raise fault
        time.sleep(_PAUSE)


def _refusal(held: contextlib.ExitStack, fd: int, path: str) -> LockedError | None:
    """Take the lock; return why it cannot be."""
    try:
        held.enter_context(locked(fd, _LOCK, path))
    except LockedError as fault:
        return fault
    return None


def _is_left(path: str) -> bool:
    """Return whether the process that a folder's lock names is no more."""
    try:
        with open(os.path.join(path, _LOCK), encoding="utf-8") as file:
            owner = json.loads(file.read(_LIMIT))
        if owner["host"] != socket.gethostname():
            return False
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, LookupError, TypeError, ValueError):
        return False
    return False


def left(path: StrPath) -> tuple[str, ...]:
    """Return what a run has left in its folder to look at: "history", "curves", ..."""
    names = (*_WATCHED, _CHECKPOINTS, _VERSIONS)
    there = (name for name in names if os.path.exists(os.path.join(path, name)))
    return tuple(os.path.splitext(name)[0] for name in there)


def command(path: StrPath) -> dict[str, Any]:
    """Return what the run in a folder was started with.

    Raises:
        TargetError: no run stands there.
        TrainingError: the note of it is damaged.
    """
    location = os.path.join(path, RUN)
    try:
        with open(location, "rb") as file:
            data = file.read(_LIMIT)
    except OSError as fault:
        if os.path.isdir(path) and not os.path.exists(location):
            reason = f"no run: it has no {RUN}"
            raise error(Code.SOURCE_MISSING, path, reason, "name the folder of a run") from fault
        raise read_fault(fault, location) from fault
    found = checkpoints.unseal(data, location, RUN_SCHEMA)["command"]
    try:
        return dict(plain.decode(found))
    except (TypeError, ValueError) as fault:
        raise error(Code.CHECKPOINT_DAMAGED, location, "no command") from fault


def epochs_done(path: StrPath) -> int:
    """Return after how many epochs the newest checkpoint in a folder was written; 0 without one."""
    newest = RunFolder(os.fspath(path)).newest()
    return int(os.path.basename(newest).partition("-")[0]) if newest else 0


def _make_room(folder: RunFolder, *, overwrite: bool) -> None:
    """See that a new run begins in a folder without an old one."""
    there = [name for name in (RUN, *_NAMES, *_WATCHED) if name in _listed(folder.path)]
    if not there:
        return
    if RUN not in there:
        reason = f"holds {', '.join(there)}, which no run wrote"
        raise error(Code.TARGET_FOREIGN, folder.path, reason, "name another folder")
    if not overwrite:
        remedy = f"persistlib finetune --resume {folder.path} (resume=True) goes on with it;"
        remedy += " --overwrite (overwrite=True) removes it"
        raise error(Code.TARGET_EXISTS, folder.path, "a run stands there", remedy)
    folder.clear()


def _listed(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []
