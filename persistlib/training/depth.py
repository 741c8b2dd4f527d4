"""The blocks of a model in the order in which they run, for strategies that count from the end.

A block is what its authors repeat or name: a residual block, an encoder layer, a plain layer of a
sequence. Containers are looked into; a class of its own is a block, unless it holds a container of
several modules of one such class with more than one layer each (an encoder with its layers). Layers
without a matrix, such as a normalization, belong to the block before them.

Law: every parameter belongs to exactly one block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from persistlib.architecture.behaviour import untouched
from persistlib.training.batches import call

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_MATRIX = 2  # dimensions of a weight that is more than a scale


class Block(NamedTuple):
    """A block of a model.

    Attributes:
        paths: of its modules, and names of parameters that stand outside them.
        parameters: names of all its parameters.
    """

    paths: tuple[str, ...]
    parameters: tuple[str, ...]


def blocks(model: nn.Module, inputs: Any) -> tuple[Block, ...]:
    """Return the blocks of a model, the first that runs first.

    What never runs counts as before all others, and so do parameters of their own that modules
    with blocks in them have (a class token, an embedding of positions).

    Args:
        model: run once, in evaluation; left as it was.
        inputs: of a batch.
    """
    units = dict(_units("", model))
    order = _order(model, units, inputs)
    named = dict(model.named_parameters())
    owner: dict[str, str] = {}
    for name in named:
        homes = [path for path in units if f"{name}.".startswith(f"{path}.")]
        owner[name] = max(homes, key=len) if homes else ""
    groups: list[list[str]] = []
    for path in order:
        own = [name for name, home in owner.items() if home == path]
        if groups and all(named[name].ndim < _MATRIX for name in own):
            groups[-1].append(path)
        elif own:
            groups.append([path])
    loose = [name for name, home in owner.items() if not home]
    result = [
        Block(tuple(group), tuple(name for name, home in owner.items() if home in group))
        for group in groups
    ]
    if not loose:
        return tuple(result)
    first = result[0] if result else Block((), ())
    return (Block((*loose, *first.paths), (*loose, *first.parameters)), *result[1:])


def _units(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that are blocks, or join one."""
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if type(child) in _CONTAINERS or _repeats(child):
            yield from _units(inner, child)
        elif next(child.parameters(), None) is not None:
            yield inner, child


def _repeats(module: nn.Module) -> bool:
    """Return whether a module holds a container of several modules of one class of their own."""
    for container in module.modules():
        if not isinstance(container, _CONTAINERS):
            continue
        classes = [
            type(child)
            for child in container.children()
            if not isinstance(child, _CONTAINERS) and _is_composed(child)
        ]
        if any(classes.count(kind) > 1 for kind in classes):
            return True
    return False


def _is_composed(module: nn.Module) -> bool:
    """Return whether a module is more than one layer: a convolution with its norm is one."""
    return sum(item.ndim >= _MATRIX for item in module.parameters()) > 1


@torch.no_grad()
def _order(model: nn.Module, units: dict[str, nn.Module], inputs: Any) -> list[str]:
    """Return the paths of units, those that never run first, then in the order of running."""
    entered: dict[str, None] = {}

    def watch(path: str, module: nn.Module) -> Any:
        def enter(*_: Any) -> None:
            entered.setdefault(path)

        return module.register_forward_pre_hook(enter)

    with untouched(model):
        model.eval()
        hooks = [watch(path, module) for path, module in units.items()]
        try:
            call(model, inputs)
        finally:
            for hook in hooks:
                hook.remove()
    return [*(path for path in units if path not in entered), *entered]
