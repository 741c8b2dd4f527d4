"""Tensors in a tensor, a mapping, a tuple, or a nest of these: the samples of a batch together.

Law: what is done to a nest is done to each tensor in it, and the form stays.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

_PLAIN = (bool, int, float, str, bytes)


def each(change: Callable[[torch.Tensor], torch.Tensor], nest: Any) -> Any:
    """Return a nest with each tensor changed; what is no tensor stays, and a list becomes a tuple.

    A named tuple stays one, and so does a dataclass.
    """
    if isinstance(nest, torch.Tensor):
        return change(nest)
    if isinstance(nest, Mapping):
        return {name: each(change, item) for name, item in nest.items()}
    if isinstance(nest, (list, tuple)):
        return like(nest, [each(change, item) for item in nest])
    if (own := fields_of(nest)) is not None:
        return _filled(nest, {name: each(change, item) for name, item in own.items()})
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
    elif (own := fields_of(nest)) is not None:
        items = [*own.items()]
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


def rows(nest: Any, chosen: slice | torch.Tensor, samples: int) -> Any:
    """Return a nest with some rows of each tensor that has one a sample; the rest as it is.

    Args:
        nest: of tensors.
        chosen: which rows.
        samples: how many there are.
    """
    return each(lambda item: item[chosen] if item.ndim and len(item) == samples else item, nest)


def joined(nests: Sequence[Any]) -> Any:
    """Return nests of one form as one, their samples after one another.

    Single numbers in tensors become a row. What is neither tensor nor plain value is left out: None
    stands in its place.

    Raises:
        RuntimeError: their shapes do not fit.
        ValueError: their forms differ.
    """
    first = nests[0]
    if isinstance(first, torch.Tensor):
        return torch.cat([*nests]) if first.ndim else torch.stack([*nests])
    if isinstance(first, Mapping):
        return {name: joined([nest[name] for nest in nests]) for name in first}
    if isinstance(first, (list, tuple)):
        return like(first, [joined(parts) for parts in zip(*nests, strict=True)])
    if (own := fields_of(first)) is not None:
        parts = {name: joined([getattr(nest, name) for nest in nests]) for name in own}
        return _filled(first, parts)
    return first if isinstance(first, _PLAIN) else None


def equal(left: Any, right: Any) -> bool:
    """Return whether two nests of tensors alone have one form and the same values."""
    pairs = [*leaves(left)], [*leaves(right)]
    if [path for path, _ in pairs[0]] != [path for path, _ in pairs[1]]:
        return False
    return all(
        isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.equal(b)
        for (_, a), (_, b) in zip(*pairs, strict=True)
    )


def fields_of(nest: Any) -> dict[str, Any] | None:
    """Return the fields of a dataclass, such as a model may answer with; None of anything else."""
    if not dataclasses.is_dataclass(nest) or isinstance(nest, type):
        return None
    return {item.name: getattr(nest, item.name) for item in dataclasses.fields(nest)}


def _filled(form: Any, parts: Mapping[str, Any]) -> Any:
    """Return a dataclass with other fields."""
    made = copy.copy(form)
    for name, item in parts.items():
        object.__setattr__(made, name, item)
    return made


def like(form: Any, items: Sequence[Any]) -> Any:
    """Return items as a tuple, as a named one where the form is one."""
    return type(form)(*items) if hasattr(form, "_fields") else tuple(items)
