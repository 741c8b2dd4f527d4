"""Saving a module by several processes: each writes whole tensors, the first commits.

    model-00001-of-00002.safetensors    written by the first process
    model-00002-of-00002.safetensors    written by the second

Laws: the weights identity and every tensor's bytes are those of a save by one process; the manifest
is written once, by the first process, after every file of every process is durable; whichever
process dies, and whenever, what stood at the target stands whole, and nothing is in the way of
another save.

A divided tensor (`divided`) is made whole for the moment in which one process writes it, so that a
process holds a few whole tensors at a time. All take part in that, also one that can no longer
write: what went wrong is said when all have come to the end, and nobody waits for one that left.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
from typing import TYPE_CHECKING, Any, NamedTuple

from persistlib import processes
from persistlib.architecture.module_state import (
    TensorCheckpoint,
    capture,
    state_tensors,
    tensor_bytes,
)
from persistlib.bundle import WEIGHTS
from persistlib.checkpoint import CheckpointReader, Entry
from persistlib.digests import digest
from persistlib.divided import has_parts, hollow, is_divided, settle, whole
from persistlib.errors import Code, error, warn
from persistlib.formats import FORMATS
from persistlib.manifest import document
from persistlib.manifest.schema import FileEntry
from persistlib.place import FOLDER_FLAGS, close
from persistlib.publish import NewFolder
from persistlib.saving import save_module
from persistlib.writing import Written, write_file, write_shards

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import torch
    from torch import nn

    from persistlib.architecture.module_state import ModuleState
    from persistlib.files import StrPath
    from persistlib.graph_wishes import GraphWishes
    from persistlib.manifest.schema import Architecture, Manifest
    from persistlib.processes import Group
    from persistlib.saving import Plan

_HELD = "the folder"


def save_together(
    model: nn.Module,
    path: StrPath,
    plan: Plan,
    *,
    architecture: Architecture | Mapping[str, Any] | str | None,
    onnx: bool | GraphWishes,
    overwrite: bool,
) -> Manifest:
    """Save a module as a bundle, by all processes of the group; as `save_module`.

    Raises:
        PersistlibError: as `save_module`; or the processes were given different things, share no
            file system, or one of them failed or is gone. What stood at `path` stands whole.
    """
    if plan.parent is not None:
        remedy = "save it whole, and then in one process over its base"
        raise error(Code.USAGE, "base", "several processes save no delta", remedy)
    if onnx and has_parts(model):
        remedy = "save the bundle; persistlib convert BUNDLE MODEL.onnx makes the graph"
        raise error(Code.USAGE, "onnx", "the tensors are divided among processes", remedy)
    processes.meet(os.path.realpath(path))
    settle(model)
    with processes.joined() as group:
        seen = hollow(model)
        share = _Share(group, model, capture(seen), plan)
        share.require_same(path)
        text = None
        if group.is_first:
            made = save_module(
                seen,
                path,
                plan,
                architecture=architecture,
                onnx=onnx,
                overwrite=overwrite,
                write=share.lead,
                is_hollow=has_parts(model),
            )
            text = document.write(made).decode()
        else:
            share.follow()
        return document.read(group.from_first(text, "the manifest").encode())


class _Part(NamedTuple):
    """What one process writes: the tensors of each of its files, by the file's name."""

    rank: int
    files: dict[str, list[Entry]]

    def order(self) -> list[str]:
        """Return the names of its tensors in the order in which they are written."""
        return [e.name for some in self.files.values() for e in _safetensors().data_order(some)]


class _Share:
    """This process' share of a save.

    Args:
        group: who saves.
        model: whose tensors are saved.
        state: of the module, with the names of its tensors.
        plan: as of a save by one process.
    """

    def __init__(self, group: Group, model: nn.Module, state: ModuleState, plan: Plan) -> None:
        self._group = group
        self._plan = plan
        self._aliases = state.aliases
        own = {item.name: item for item in state_tensors(model)}
        # A buffer may be moved by a trial of the module meanwhile.
        self._tensors = {
            name: item.tensor if item.is_parameter else item.tensor.detach().clone()
            for name, item in ((kept.name, own[kept.name]) for kept in state.tensors)
        }
        self._parameters = {item.name for item in state.tensors if item.is_parameter}
        self._parts: list[_Part] = []

    def require_same(self, path: StrPath) -> None:
        """Agree on what is saved, and who writes what.

        Raises:
            UsageError: the processes were given different models, or different targets.
        """
        entries = TensorCheckpoint(self._tensors, {}).entries
        forms = {entry.name: [entry.dtype.name, list(entry.shape)] for entry in entries}
        asked = {"path": os.path.realpath(path), "shard_bytes": self._plan.shard_bytes}
        remedy = "call save with the same model and arguments in every process"
        self._group.require_same({**asked, **forms}, remedy)
        firsts = self._require_same_values(remedy)
        self._parts = [*_parted(entries, self._group.world, firsts, self._plan.shard_bytes)]

    def _require_same_values(self, remedy: str) -> set[str]:
        """Return the buffers of which every process has another; the first one's are saved."""
        own = {n: digest(tensor_bytes(t)) for n, t in self._tensors.items() if not is_divided(t)}
        first, *others = self._group.told(own, "values")
        unlike = {n for other in others for n in own.keys() & first.keys() if other[n] != first[n]}
        if parameters := sorted(unlike & self._parameters):
            reason = "a parameter of which the processes hold different values"
            raise error(Code.PROCESSES_DIFFER, ", ".join(parameters[:5]), reason, remedy)
        if unlike and self._group.is_first:
            reason = "the processes hold other values; the first one's are saved"
            warn(Code.PROCESSES_DIFFER, ", ".join(sorted(unlike)[:5]), reason)
        return unlike

    def lead(self, folder: NewFolder, _: ModuleState, __: Plan) -> Written:
        """Write the first process' part, and the index of all parts' files."""
        name = f".shared-{secrets.token_hex(8)}"
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, dir_fd=folder.fd))
        self._group.from_first([folder.path, name], _HELD)
        self._require_shared(is_seen=True)
        os.unlink(name, dir_fd=folder.fd)
        told = self._write(folder)
        files = tuple(FileEntry.model_validate(item) for some, _ in told for item in some)
        digests = {name: found for _, some in told for name, found in some.items()}
        numbers = {entry.path: number for number, entry in enumerate(files)}
        placed = {
            entry.name: numbers[name]
            for part in self._parts
            for name, entries in part.files.items()
            for entry in entries
        }
        index = None
        if len(files) > 1:
            entries = TensorCheckpoint(self._tensors, {}).entries
            text: bytes = _safetensors().render_index(entries, [*numbers], placed)
            place = f"{WEIGHTS}.safetensors.index.json"
            index = write_file(folder, place, text, sha256=self._plan.sha256)
        return Written(files, index, digests, placed)

    def follow(self) -> None:
        """Write this process' part into the folder that the first one made."""
        path, name = self._group.from_first(None, _HELD)
        fd = -1
        try:
            with contextlib.suppress(OSError):
                fd = os.open(path, FOLDER_FLAGS | os.O_NOFOLLOW)
            self._require_shared(is_seen=fd >= 0 and name in os.listdir(fd))
            self._write(NewFolder(fd, path))
        finally:
            close(fd)

    def _require_shared(self, *, is_seen: bool) -> None:
        """Raise where a process does not see what the first one made.

        Raises:
            TargetError: the processes share no file system there.
        """
        blind = [rank for rank, seen in enumerate(self._group.told(is_seen, _HELD)) if not seen]
        if blind:
            where = f"process {', '.join(map(str, blind))}"
            reason = "does not see the folder that process 0 made"
            remedy = "save to a file system that all processes share"
            raise error(Code.TARGET_WRITE, where, reason, remedy)

    def _write(self, folder: NewFolder) -> list[Any]:
        """Write this process' files; return what every process says of its own."""
        orders = [part.order() for part in self._parts]
        turns = _Turns(self._group, self._tensors, self._aliases, orders)
        files = self._parts[self._group.rank].files
        fault: Exception | None = None
        written: list[FileEntry] = []
        found: dict[str, str] = {}
        try:
            written, found = write_shards(folder, turns, files, sha256=self._plan.sha256)
        except Exception as failed:  # noqa: BLE001 - said when nobody waits for this process
            fault = failed
        turns.finish()
        if self._group.is_any(fault is not None, "what was written") and fault is not None:
            raise fault
        said = [[entry.model_dump(mode="json") for entry in written], found]
        return self._group.told(said, "what was written")


class _Turns(CheckpointReader):
    """Tensors of which each is made whole when its turn comes, in every process at once.

    Args:
        group: the processes.
        tensors: by name.
        aliases: second names of tied tensors.
        orders: what each process writes, in its order; they take turns.
    """

    def __init__(
        self,
        group: Group,
        tensors: Mapping[str, torch.Tensor],
        aliases: Mapping[str, str],
        orders: Sequence[Sequence[str]],
    ) -> None:
        like = TensorCheckpoint(tensors, aliases)
        super().__init__(like.entries, aliases, like.metadata)
        self._group = group
        self._parts = tensors
        rounds = itertools.zip_longest(*orders)
        self._turns = (name for some in rounds for name in some if name is not None)

    def read_bytes(self, name: str) -> memoryview:
        """Return the bytes of a tensor of this process', when those before it had their turns."""
        for turn in self._turns:
            tensor = self._whole(turn)
            if turn == name:
                return TensorCheckpoint({name: tensor}, {}).read_bytes(name)
        raise AssertionError(name)

    def finish(self) -> None:
        """Take part in the turns that are left."""
        for turn in self._turns:
            self._whole(turn)

    def _whole(self, name: str) -> torch.Tensor:
        with self._group.naming_lost():
            return whole(self._parts[name])


def _parted(entries: Sequence[Entry], world: int, firsts: set[str], limit: int) -> Iterator[_Part]:
    """Yield what each process writes: as many bytes as the others, as far as tensors are whole.

    Args:
        entries: all tensors, in the order of the module.
        world: how many processes there are.
        firsts: tensors that only the first may write.
        limit: bytes of tensors in one file.
    """
    loads = [0] * world
    owners: dict[str, int] = {}
    for entry in sorted(entries, key=lambda e: (-e.nbytes, e.name)):
        owner = 0 if entry.name in firsts else loads.index(min(loads))
        owners[entry.name] = owner
        loads[owner] += entry.nbytes
    shards = [[*_split((e for e in entries if owners[e.name] == n), limit)] for n in range(world)]
    count = sum(map(len, shards))
    names = iter(_safetensors().shard_names(WEIGHTS, count))
    if count == 1:
        names = iter([f"{WEIGHTS}.safetensors"])
    for rank, some in enumerate(shards):
        yield _Part(rank, {next(names): entries for entries in some})


def _split(entries: Iterable[Entry], limit: int) -> list[list[Entry]]:
    parts: list[list[Entry]] = _safetensors().split(entries, limit)
    return [part for part in parts if part]


def _safetensors() -> Any:
    return FORMATS["safetensors"].module()
