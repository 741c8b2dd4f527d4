"""Tensors in a tensor, a mapping, a tuple, or a nest of these: the samples of a batch together.

Law: what is done to a nest is done to each tensor in it, and the form stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch


def each(change: Callable[[torch.Tensor], torch.Tensor], nest: Any) -> Any:
    """Return a nest with each tensor changed; what is no tensor stays, and a list becomes a tuple.

    A named tuple stays one.
    """
    if isinstance(nest, torch.Tensor):
        return change(nest)
    if isinstance(nest, Mapping):
        return {name: each(change, item) for name, item in nest.items()}
    if isinstance(nest, (list, tuple)):
        return like(nest, [each(change, item) for item in nest])
    return nest


def leaves(nest: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all that is no mapping and no sequence, with where it stands, such as `a.0`."""
    if isinstance(nest, torch.Tensor):
        yield path, nest
        return
    if isinstance(nest, Mapping):
        items: list[tuple[Any, Any]] = [*nest.items()]
    elif isinstance(nest, (list, tuple)):
        items = [*enumerate(nest)]
    else:
        yield path, nest
        return
    for name, item in items:
        yield from leaves(item, f"{path}.{name}" if path else str(name))


def tensors(nest: Any) -> list[torch.Tensor]:
    """Return the tensors in a nest."""
    return [item for _, item in leaves(nest) if isinstance(item, torch.Tensor)]


def count(nest: Any) -> int:
    """Return how many samples a nest holds: the extent of its first tensor's first axis."""
    return len(nest if isinstance(nest, torch.Tensor) else tensors(nest)[0])


def joined(nests: Sequence[Any]) -> Any:
    """Return nests of one form as one, their samples after one another.

    Raises:
        RuntimeError: their shapes do not fit.
        ValueError: their forms differ.
    """
    first = nests[0]
    if isinstance(first, torch.Tensor):
        return torch.cat([*nests])
    if isinstance(first, Mapping):
        return {name: joined([nest[name] for nest in nests]) for name in first}
    if isinstance(first, (list, tuple)):
        return like(first, [joined(parts) for parts in zip(*nests, strict=True)])
    return first


def equal(left: Any, right: Any) -> bool:
    """Return whether two nests of tensors alone have one form and the same values."""
    pairs = [*leaves(left)], [*leaves(right)]
    if [path for path, _ in pairs[0]] != [path for path, _ in pairs[1]]:
        return False
    return all(
        isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.equal(b)
        for (_, a), (_, b) in zip(*pairs, strict=True)
    )


def like(form: Any, items: Sequence[Any]) -> Any:
    """Return items as a tuple, as a named one where the form is one."""
    return type(form)(*items) if hasattr(form, "_fields") else tuple(items)
