"""What a module remembers outside its parameters and buffers: tensors and numbers in attributes.

A queue in a plain attribute, a temperature that falls from step to step, a count of calls: the next
step depends on them as it does on weights.

Law: `put(model, take(model))` changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from persistlib.architecture.edits import INTERNALS
from persistlib.architecture.module_state import set_unsaved, unsaved_tensors
from persistlib.training import plain

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping

    from torch import nn

_SCALARS = (bool, int, float, type(None))


class Memory(NamedTuple):
    """What a module remembers.

    Attributes:
        tensors: by dotted name.
        numbers: by dotted name, as JSON; also containers of nothing but numbers. Texts are none:
            they may say where to write.
    """

    tensors: Mapping[str, torch.Tensor]
    numbers: Mapping[str, Any]

    def since(self, before: Memory) -> Memory:
        """Return the tensors, and the numbers that are not what they were."""
        was = before.numbers
        numbers = {n: item for n, item in self.numbers.items() if n not in was or was[n] != item}
        return Memory(self.tensors, numbers)

    def over(self, before: Memory) -> Memory:
        """Return what `since` was called with, given what it gave."""
        return Memory({**before.tensors, **self.tensors}, {**before.numbers, **self.numbers})

    def without(self, names: Container[str]) -> Memory:
        """Return the memory without some numbers."""
        return Memory(self.tensors, {n: v for n, v in self.numbers.items() if n not in names})


def take(model: nn.Module) -> Memory:
    """Return what a module remembers now, in copies of its own."""
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    return Memory(
        {
            name: item.detach().clone()
            for name, item in unsaved_tensors(model)
            if name not in buffers and _is_kept(item)
        },
        {
            f"{path}.{name}".removeprefix("."): plain.encode(value)
            for path, module in model.named_modules()
            for name, value in vars(module).items()
            if name not in INTERNALS and _is_number(value)
        },
    )


def put(model: nn.Module, memory: Memory) -> list[str]:
    """Put tensors and numbers back in their attributes; return the names that have no place.

    A tensor may come where None stands, as before the first call.
    """
    now, places = take(model), dict(unsaved_tensors(model))
    given = {
        name: item.to(places[name].device if name in places else item.device, copy=True)
        for name, item in memory.tensors.items()
    }
    set_unsaved(model, {name: item for name, item in given.items() if name in places})
    rest: dict[str, Any] = {name: item for name, item in given.items() if name not in places}
    changed = memory.since(now).numbers
    rest |= {name: plain.decode(value) for name, value in changed.items()}
    return [name for name, value in rest.items() if not _set(model, name, value)]


def _set(model: nn.Module, name: str, value: Any) -> bool:
    """Set an attribute that holds a number or None now; return whether there is one."""
    path, _, attribute = name.rpartition(".")
    owner = dict(model.named_modules()).get(path)
    own = {} if owner is None else vars(owner)
    if attribute in INTERNALS or attribute not in own or not _is_number(own[attribute]):
        return False
    if not isinstance(value, torch.Tensor) and not _is_number(value):
        return False
    setattr(owner, attribute, value)
    return True


def _is_kept(item: torch.Tensor) -> bool:
    """Return whether a tensor is more than a value that the next call computes anew."""
    return item.grad_fn is None and item.layout is torch.strided and not item.is_quantized


def _is_number(value: Any) -> bool:
    return all(isinstance(item, _SCALARS) for item in _leaves(value))


def _leaves(value: Any) -> Iterator[Any]:
    """Yield what plain containers hold, and what dicts are keyed by where that is no text."""
    if type(value) is dict:
        for key, inner in value.items():
            yield 0 if type(key) is str else key
            yield from _leaves(inner)
    elif type(value) in {list, tuple}:
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value
