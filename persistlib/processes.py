"""Several processes that work as one: who takes part, what they tell each other, who failed.

Laws: whatever is gathered, summed or said by the first is the same, bit for bit, in every process;
where one process fails or dies, each of the others raises an error that names it, within `NAMING`
seconds of the time when it next waits for it; nothing that comes from another process is unpickled.

A process on its own is a group of one, which waits for nobody. The processes find each other
through the variables that torchrun and `accelerate launch` set. Each piece of work has a group of
torch.distributed of its own, so that nothing is mixed with what the caller's code sends.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from zlib import crc32

import torch
from torch import distributed

from persistlib.architecture.module_state import dtype_of, tensor_bytes, tensor_of
from persistlib.dtypes import DType
from persistlib.errors import Code, PersistlibError, error
from persistlib.wording import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

# How long a process that is alive may keep the others waiting, in seconds: torch's own limit.
PATIENCE = 1800.0
# How long it takes at most to find out which process is gone, in seconds.
NAMING = 10.0
# How long the first that saves waits for the others to come, in seconds.
MEETING = 60.0
_LOOK = 1.0  # seconds between two looks at whether another process has failed
_PAUSE = 0.05
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_REASON = 2000  # characters of a fault that the others are told


class Group:
    """The processes of one piece of work.

    Attributes:
        rank: which of them this one is, from 0 on.
        world: how many they are.
    """

    def __init__(self, rank: int = 0, world: int = 1, torchs: Any = None, key: str = "") -> None:
        self.rank = rank
        self.world = world
        self._torchs = torchs
        self._key = key

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is no other."""
        return self.world == 1

    def gather(self, data: bytes, what: str) -> list[bytes]:
        """Return what each process gave, in their order; every process has to call it.

        Args:
            data: what this one gives.
            what: the place in the work, which has to be the same one in all.

        Raises:
            UsageError: another process is at another place.
        """
        if self.is_alone:
            return [data]
        heads = self.stacked(torch.tensor([len(data), crc32(what.encode())])).tolist()
        if any(place != heads[0][1] for _, place in heads):
            reason = "the processes are no longer at the same place of their work"
            remedy = "give all of them as many batches, and the same settings"
            raise error(Code.PROCESSES_DIFFER, what, reason, remedy)
        padded = torch.zeros(max(1, *(length for length, _ in heads)), dtype=torch.uint8)
        if data:
            padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        rows = self.stacked(padded)
        return [rows[rank, :length].numpy().tobytes() for rank, (length, _) in enumerate(heads)]

    def told(self, value: Any, what: str) -> list[Any]:
        """Return the plain values that the processes gave, in their order; as `gather`."""
        if self.is_alone:
            return [value]
        return [json.loads(data) for data in self.gather(json.dumps(value).encode(), what)]

    def from_first(self, value: Any, what: str) -> Any:
        """Return the plain value that the first process gave."""
        return self.told(value if self.is_first else None, what)[0]

    def is_any(self, claim: bool, what: str) -> bool:
        """Return whether a claim holds in some process."""
        return any(self.told(claim, what))

    def gather_tensors(
        self, tensors: Sequence[torch.Tensor], what: str
    ) -> list[list[torch.Tensor]]:
        """Return the tensors that the processes gave, in their order, on the host.

        Raises:
            ModelError: a dtype is one that no file keeps either.
        """
        heads = self.told([_outline(tensor) for tensor in tensors], what)
        bodies = self.gather(b"".join(tensor_bytes(tensor) for tensor in tensors), what)
        return [[*_parted(one, body)] for one, body in zip(heads, bodies, strict=True)]

    def tensors_from_first(
        self, tensors: Mapping[str, torch.Tensor], what: str
    ) -> dict[str, torch.Tensor]:
        """Return the tensors that the first process gave, by name, on the host, one by one."""
        outlines = {name: _outline(tensor) for name, tensor in tensors.items()}
        found: dict[str, torch.Tensor] = {}
        for name, outline in self.from_first(outlines, what).items():
            size = _size(outline)
            flat = torch.empty(size, dtype=torch.uint8)
            if self.is_first and size:
                flat = torch.frombuffer(tensor_bytes(tensors[name]), dtype=torch.uint8).clone()
            if size:
                self._wait(
                    distributed.broadcast(flat, group=self._torchs, group_src=0, async_op=True)
                )
            found[name] = tensor_of(flat.numpy().data, DType[outline[0]], tuple(outline[1]))
        return found

    def sum_(self, tensor: torch.Tensor) -> None:
        """Put the sum over all processes into a tensor; they have the same bits afterwards."""
        if not self.is_alone:
            self._wait(distributed.all_reduce(tensor, group=self._torchs, async_op=True))

    def stacked(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor of one shape of all processes, stacked in their order."""
        if self.is_alone:
            return tensor[None]
        rows = [torch.empty_like(tensor) for _ in range(self.world)]
        own = tensor.detach().contiguous()
        self._wait(distributed.all_gather(rows, own, group=self._torchs, async_op=True))
        return torch.stack(rows)

    def require_same(self, what: dict[str, Any], remedy: str) -> None:
        """Raise in every process where plain values are not alike in all of them.

        Raises:
            UsageError: the first names whose values differ are said.
        """
        if self.is_alone:
            return
        for rank, other in enumerate(given := self.told(what, "comparing")):
            names = [n for n in {**given[0], **other} if given[0].get(n) != other.get(n)]
            if names:
                reason = f"differs between process 0 and process {rank}"
                raise error(Code.PROCESSES_DIFFER, ", ".join(names[:5]), reason, remedy)

    def fail(self, fault: BaseException) -> None:
        """Tell the others that this process cannot go on, and why."""
        if self.is_alone:
            return
        reason = f"{type(fault).__name__}: {fault}"[:_REASON]
        with contextlib.suppress(RuntimeError):
            self._store().set(self._name("failed", self.rank), reason)
            self._store().set(self._name("trouble"), "1")

    @contextlib.contextmanager
    def naming_lost(self) -> Generator[None]:
        """Say who is gone where torch's own talk between the processes breaks in the block.

        Raises:
            PersistlibError: another process failed or is gone.
        """
        try:
            yield
        except RuntimeError as fault:
            raise self._lost(fault) from fault

    def _wait(self, work: Any) -> None:
        """Return when what was sent has arrived; look meanwhile whether the others live.

        Raises:
            PersistlibError: another process failed, died, or kept this one waiting.
        """
        deadline = time.monotonic() + PATIENCE
        while (fault := _fault(work)) is not None:
            if work.is_completed() or time.monotonic() > deadline or self._is_trouble():
                raise self._lost(fault) from fault

    def _is_trouble(self) -> bool:
        try:
            return bool(self._store().check([self._name("trouble")]))
        except RuntimeError:
            return True

    def _lost(self, fault: RuntimeError) -> PersistlibError:
        """Return an error that names the process that failed, or that gave no sign."""
        others = [rank for rank in range(self.world) if rank != self.rank]
        try:
            failed, silent = self._roll(others)
        except RuntimeError:
            where = "the process that launched this one"
            return error(Code.PROCESS_LOST, where, "cannot be reached", "start the run again")
        if failed:
            rank, reason = failed
            remedy = "see what that process says"
            return error(Code.PROCESS_LOST, f"process {rank}", f"failed: {reason}", remedy)
        named = ", ".join(map(str, silent or others))
        where = f"process {named}" if len(silent or others) == 1 else f"processes {named}"
        line = first_line(fault)
        remedy = "see whether it was killed, for want of memory perhaps; start the run again"
        return error(Code.PROCESS_LOST, where, f"gave no sign any more: {line}", remedy)

    def _roll(self, others: list[int]) -> tuple[tuple[int, str] | None, list[int]]:
        """Return who failed and why, and who does not answer in `NAMING` seconds."""
        store = self._store()
        store.set(self._name("alive", self.rank), "1")
        store.set(self._name("trouble"), "1")
        deadline = time.monotonic() + NAMING
        while True:
            for rank in others:
                if store.check([self._name("failed", rank)]):
                    return (rank, store.get(self._name("failed", rank)).decode()), []
            silent = [rank for rank in others if not store.check([self._name("alive", rank)])]
            # Of two processes only one can be gone; its last words are in the store before that.
            if not silent or len(others) == 1 or time.monotonic() > deadline:
                return None, silent
            time.sleep(_PAUSE)

    def _name(self, kind: str, rank: int | None = None) -> str:
        return f"persistlib/{self._key}/{kind}" + ("" if rank is None else f"/{rank}")

    @staticmethod
    def _store() -> Any:
        # Through it the processes found each other; it has no public name.
        return distributed.distributed_c10d._get_default_store()  # noqa: SLF001 - as said


ALONE = Group()
_rounds = 0  # of work together so far: alike in every process
_met: dict[str, int] = {}  # how often the processes met at a path


@contextlib.contextmanager
def joined() -> Generator[Group]:
    """Yield the group of the processes that were launched together, each of which calls this.

    Where none stands yet it is made from the environment, and stands until the process ends. A
    process that leaves the block by an exception takes the others with it.

    Raises:
        PersistlibError: the group cannot be made.
    """
    if not (stands() or _is_launched()):
        yield ALONE
        return
    group = _made()
    try:
        yield group
    except BaseException as fault:
        group.fail(fault)
        raise
    finally:
        with contextlib.suppress(RuntimeError, ValueError):
            distributed.destroy_process_group(group._torchs)  # noqa: SLF001 - made here


def meet(path: str) -> None:
    """Return when every process of the group has come to save at a path.

    The group's own communication is not touched before: one process that saves alone, as scripts
    for several processes often do, is told so and disturbs nothing.

    Raises:
        PersistlibError: another process does not come in `MEETING` seconds.
    """
    store, rank = Group._store(), distributed.get_rank()  # noqa: SLF001 - of this module
    _met[path] = number = _met.get(path, 0) + 1
    keys = [f"persistlib/meet/{path}/{number}/{n}" for n in range(distributed.get_world_size())]
    store.set(keys[rank], "1")
    deadline = time.monotonic() + MEETING
    while absent := [n for n, key in enumerate(keys) if not store.check([key])]:
        if time.monotonic() > deadline:
            store.delete_key(keys[rank])
            _met[path] = number - 1
            where = f"process {', '.join(map(str, absent))}"
            reason = f"did not come in {MEETING:g} s to save {path}"
            remedy = "call save in every process, or with together=False in one"
            raise error(Code.PROCESS_LOST, where, reason, remedy)
        time.sleep(_PAUSE)


def stands() -> bool:
    """Return whether this process is one of several that have found each other."""
    there = distributed.is_available() and distributed.is_initialized()
    return there and distributed.get_world_size() > 1


def is_first() -> bool:
    """Return whether this process is the first of those that were launched, or the only one."""
    return not _is_launched() or os.environ["RANK"] == "0"


def _is_launched() -> bool:
    """Return whether a launcher says that this process is one of several."""
    given = os.environ
    return (
        distributed.is_available()
        and not distributed.is_initialized()
        and all(name in given for name in _LAUNCHED)
        and given["WORLD_SIZE"].isdecimal()
        and int(given["WORLD_SIZE"]) > 1
    )


def _made() -> Group:
    global _rounds  # noqa: PLW0603 - a process has one place among its like
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    limit = timedelta(seconds=PATIENCE)
    try:
        if not distributed.is_initialized():
            distributed.init_process_group(backend, timeout=limit)
            atexit.register(_left)
        torchs = distributed.new_group(backend=backend, timeout=limit)
    except (RuntimeError, ValueError) as fault:
        line = first_line(fault)
        names = ", ".join(_LAUNCHED)
        remedy = f"start it with torchrun or accelerate launch, which set {names}"
        raise error(Code.PROCESS_LOST, "process group", line, remedy) from fault
    _rounds += 1
    return Group(distributed.get_rank(), distributed.get_world_size(), torchs, f"{_rounds}")


def _left() -> None:
    with contextlib.suppress(RuntimeError, ValueError, AssertionError):
        distributed.destroy_process_group()


def own_device(device: torch.device, group: Group) -> torch.device:
    """Return where a process computes: of accelerators of a kind its own, by `LOCAL_RANK`."""
    if group.is_alone or device.type in {"cpu", "meta"}:
        return device
    place = int(os.environ.get("LOCAL_RANK", group.rank))
    own = torch.device(device.type, place)
    torch.get_device_module(own).set_device(own)
    return own


def by_first(work: Callable[[], object], *, alone: bool = False) -> None:
    """Let the first process do a piece of work that is its alone; the others wait for its end.

    Args:
        work: what is done.
        alone: whether each process does it for itself instead.
    """
    with contextlib.nullcontext(ALONE) if alone else joined() as group:
        if group.is_first:
            work()
        group.from_first(None, "the end of the first process's work")


def _fault(work: Any) -> RuntimeError | None:
    """Wait a moment; return None when the work is done, or why it is not."""
    try:
        work.wait(timedelta(seconds=_LOOK))
    except RuntimeError as fault:
        return fault
    return None


def _outline(tensor: torch.Tensor) -> list[Any]:
    return [dtype_of(tensor).name, list(tensor.shape)]


def _size(outline: list[Any]) -> int:
    name, shape = outline
    return torch.Size(shape).numel() * DType[name].torch.itemsize


def _parted(outlines: list[list[Any]], body: bytes) -> Iterator[torch.Tensor]:
    view, done = memoryview(bytearray(body)), 0
    for outline in outlines:
        end = done + _size(outline)
        yield tensor_of(view[done:end], DType[outline[0]], tuple(outline[1]))
        done = end
