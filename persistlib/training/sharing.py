"""One batch in several processes: shares of it, the outputs of the whole, one gradient.

Laws: the loss is computed once on the outputs of the whole batch, in every process alike, so that
any loss is what one process would have computed, weights of classes and uneven shares included;
the gradient that reaches the optimizer is that loss's, and the same bits in every process.

A process whose share is empty runs the model on a sample that stands for none: layers that talk to
the other processes do so in it too, and nothing of it is counted.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils import _pytree as trees

from persistlib.errors import Code, error
from persistlib.training import nests, randomness
from persistlib.training.batch import Batch
from persistlib.training.synchronized import Synchronized

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from persistlib.processes import Group
    from persistlib.training.batches import Batches

_PIECE = 1 << 24  # elements of gradients that are summed at once
_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def share(batch: Any, group: Group, count: int) -> tuple[Any, bool]:
    """Return this process' part of a nest of tensors, and whether it stands for no sample.

    Args:
        batch: tensors whose first dimension is samples, and what is not cut.
        group: among whom.
        count: of samples.
    """
    begin, end = bounds(count, group)
    spare = begin == end
    span = slice(0, 1) if spare else slice(begin, end)

    def cut(item: Any) -> Any:
        is_cut = isinstance(item, torch.Tensor) and item.ndim and len(item) == count
        return item[span] if is_cut else item

    return trees.tree_map(cut, batch), spare


def bounds(count: int, group: Group) -> tuple[int, int]:
    """Return where this process' part of so many things begins and ends; as torch.tensor_split."""
    even, more = divmod(count, group.world)
    begin = group.rank * even + min(group.rank, more)
    return begin, begin + even + (group.rank < more)


@contextlib.contextmanager
def together(group: Group, batch: Batch, seed: int, place: tuple[int, int]) -> Generator[None]:
    """Run a model's own part of a batch: statistics of the whole, random numbers of its own.

    What it draws (dropout) follows from seed, process, epoch and batch; the state that all share
    is given back.

    Args:
        group: the processes.
        batch: this one's share.
        seed: of the run.
        place: epoch and batch.
    """
    if group.is_alone:
        yield
        return
    device = nests.tensors(batch.targets)[0].device
    state = randomness.capture(device)
    randomness.seed_all(number := randomness.draw(seed, group.rank, *place))
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(number)
    try:
        with Synchronized(group, is_spare=batch.is_spare):
            yield
    finally:
        randomness.restore(state, device)


class _Leaf(NamedTuple):
    """One tensor of the outputs.

    Attributes:
        own: of this process' samples.
        whole: of the whole batch; a leaf of autograd's, where its gradient is wanted.
        axis: of the samples, None where it is none of theirs and the mean was taken.
        begin: of this process' part along the axis.
    """

    own: torch.Tensor
    whole: torch.Tensor
    axis: int | None
    begin: int


class Whole:
    """The outputs of a whole batch, put together from all processes'.

    Attributes:
        outputs: as the model returned them, of the whole batch.
        batch: all of it; of the inputs only where they were asked for.
    """

    def __init__(
        self, group: Group, batch: Batch, outputs: Any, what: str, *, with_inputs: bool
    ) -> None:
        self._group = group
        self._parts: list[_Leaf] = []
        self.outputs, self.batch = outputs, batch
        if group.is_alone:
            return
        inputs = batch.inputs if with_inputs else None
        items, form = trees.tree_flatten((outputs, inputs, batch.targets))
        places = [n for n, item in enumerate(items) if isinstance(item, torch.Tensor)]
        own = [items[number] for number in places]
        sizes = group.told([nests.count(batch.targets), batch.is_spare], what)
        rows = group.gather_tensors(own, what)
        if len({len(row) for row in rows}) > 1:
            raise _unlike(what, "another number of outputs")
        self._counts = [0 if spare else count for count, spare in sizes]
        for number, tensor, *others in zip(places, own, *rows, strict=True):
            leaf = self._joined(tensor, others, [count for count, _ in sizes], what)
            items[number] = leaf.whole
            self._parts.append(leaf)
        self.outputs, *parts = trees.tree_unflatten(items, form)
        self.batch = Batch(*parts)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss of the whole to the parameters, this process' part of them.

        What a loss takes from the parameters themselves, past the outputs, is the first process'.
        """
        if self._group.is_alone:
            torch.autograd.backward(loss)
            return
        leaves = [part for part in self._parts if part.whole.requires_grad]
        wholes = [part.whole for part in leaves]
        if self._group.is_first:
            torch.autograd.backward(loss)
            found: Sequence[torch.Tensor | None] = [whole.grad for whole in wholes]
        else:
            found = torch.autograd.grad(loss, wholes, allow_unused=True)
        pairs = [(p, g) for p, g in zip(leaves, found, strict=True) if g is not None]
        torch.autograd.backward(
            [part.own for part, _ in pairs], [self._own(part, g) for part, g in pairs]
        )

    def _joined(
        self, own: torch.Tensor, others: list[torch.Tensor], counts: list[int], what: str
    ) -> _Leaf:
        """Return a tensor of the whole batch: its parts in a row, or the mean of what is no row."""
        if len({(item.ndim, item.dtype) for item in others}) > 1:
            raise _unlike(what, "outputs of another form")
        rank, moved = self._group.rank, [item.to(own.device) for item in others]
        moved[rank] = own.detach()
        axis = next((dim for dim in range(own.ndim) if _is_axis(others, counts, dim)), None)
        if axis is not None:
            parts = [p.narrow(axis, 0, n) for p, n in zip(moved, self._counts, strict=True)]
            whole = torch.cat(parts, axis)
        elif len({item.shape for item in others}) == 1 and own.is_floating_point():
            shares = [count / sum(self._counts) for count in self._counts]
            whole = torch.stack([p * s for p, s in zip(moved, shares, strict=True)]).sum(0)
        elif all(item.equal(others[0]) for item in others):
            whole = own.detach()
        else:
            raise _unlike(what, f"outputs of shape {tuple(own.shape)}, which no sample's are")
        whole = whole.detach().requires_grad_(own.requires_grad)
        return _Leaf(own, whole, axis, sum(self._counts[:rank]))

    def _own(self, part: _Leaf, gradient: torch.Tensor) -> torch.Tensor:
        """Return the gradient of this process' part of a tensor."""
        count = self._counts[self._group.rank]
        if part.axis is None:
            return gradient * (count / sum(self._counts))
        if not count:
            return torch.zeros_like(part.own)
        return gradient.narrow(part.axis, part.begin, count)


def sum_gradients(group: Group, parameters: Iterable[torch.nn.Parameter]) -> None:
    """Give every process the sum of all processes' gradients.

    A parameter that has none in any process keeps none: optimizers pass it over.

    Raises:
        UsageError: a gradient is sparse.
    """
    if group.is_alone:
        return
    training = [item for item in parameters if item.requires_grad]
    if any(item.grad is not None and item.grad.layout != torch.strided for item in training):
        remedy = "make the embedding with sparse=False, or train in one process"
        raise error(Code.USAGE, "parameters", "sparse gradients in several processes", remedy)
    has = torch.tensor([float(item.grad is not None) for item in training])
    group.sum_(has)
    waiting: list[torch.Tensor] = []
    for item, some in zip(training, has.tolist(), strict=True):
        if not some:
            continue
        if item.grad is None:
            item.grad = torch.zeros_like(item)
        grad = torch.view_as_real(item.grad) if item.grad.is_complex() else item.grad
        if waiting and (waiting[0].dtype != grad.dtype or sum(map(torch.numel, waiting)) > _PIECE):
            _sum_flat(group, waiting)
            waiting = []
        waiting.append(grad)
    if waiting:
        _sum_flat(group, waiting)


def _sum_flat(group: Group, grads: list[torch.Tensor]) -> None:
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    flat = flat.to(_WIDE.get(flat.dtype, flat.dtype))
    group.sum_(flat)
    parts = torch.split_with_sizes(flat, [grad.numel() for grad in grads])
    for grad, part in zip(grads, parts, strict=True):
        grad.copy_(part.view_as(grad))


def go_on() -> None:
    """Let nothing come between two batches."""


def in_turn(
    samples: Batches,
    compute: Callable[[int, Batch], Any],
    then: Callable[[], None] = go_on,
    *,
    with_inputs: bool = False,
) -> Iterator[tuple[Any, Batch]]:
    """Yield what is computed for each batch and the batch, in order and alike in all processes.

    Whole batches go round among the processes, so that what is computed is what one process would
    have computed, bit for bit on machines alike.

    Args:
        samples: gone through once, in order.
        compute: called with the number of a batch, from 1 on, and the batch.
        then: called when every process has computed one; may talk to the others.
        with_inputs: whether batches of other processes are needed with their inputs.
    """
    group, number = samples.group, 0
    for batch, size in samples.in_turn():
        mine = number + min(group.rank, size - 1) + 1
        answer = compute(mine, batch)
        then()
        if group.is_alone:
            yield answer, batch
            continue
        inputs = batch.inputs if with_inputs else None
        items, form = trees.tree_flatten((answer, inputs, batch.targets))
        places = [n for n, item in enumerate(items) if isinstance(item, torch.Tensor)]
        rows = group.gather_tensors([items[n] for n in places], f"batches from {number + 1} on")
        for row in rows[:size]:
            for place, tensor in zip(places, row, strict=True):
                items[place] = tensor.to(items[place].device)
            found, *parts = trees.tree_unflatten(items, form)
            yield found, Batch(*parts)
        number += size


def _is_axis(others: list[torch.Tensor], counts: list[int], dim: int) -> bool:
    """Return whether a dimension counts samples: each process' own, all other dimensions alike."""
    return all(item.shape[dim] == count for item, count in zip(others, counts, strict=True)) and (
        len({(*item.shape[:dim], *item.shape[dim + 1 :]) for item in others}) == 1
    )


def _unlike(what: str, reason: str) -> Exception:
    remedy = "let the model return a row a sample, or train in one process"
    return error(Code.DATA_INVALID, what, f"in several processes: {reason}", remedy)
