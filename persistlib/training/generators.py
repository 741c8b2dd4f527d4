"""Random generators of the caller's own, which batches or samples are drawn with.

A loader, its samplers and its data set may each have some, of torch, numpy or Python. The global
ones are `randomness`'.

Law: after `put(item, state(item))` a generator goes on with the numbers that would have come.
"""

from __future__ import annotations

import contextlib
import functools
import json
import random
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

Own: TypeAlias = "torch.Generator | np.random.Generator | np.random.RandomState | random.Random"
_KINDS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
# Of no interest, and large: what has an attribute for each of a million samples.
_OPAQUE = (torch.Tensor, np.ndarray, str, bytes, type, ModuleType, FunctionType)
_MOST = 64  # members of a list in which generators are looked for, such as transforms
_DEPTH = 8
_ARRAY = "$array"


def found_in(root: Any) -> list[Own]:
    """Return the generators that an object holds, itself or in what it holds, each once.

    They come in the order of attributes, which is that of the code that made the object.
    """
    return list({id(item): item for item in _found(root, _DEPTH, set())}.values())


def state(item: Own) -> torch.Tensor:
    """Return the state of a generator, uint8."""
    if isinstance(item, torch.Generator):
        return item.get_state()
    text = json.dumps(_plain(item), default=_array)
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def put(item: Own, value: torch.Tensor) -> None:
    """Give a generator a state that `state` gave.

    Raises:
        RuntimeError: it is none of this kind of generator.
        TypeError: as RuntimeError.
        ValueError: as RuntimeError.
        LookupError: as RuntimeError.
    """
    if isinstance(item, torch.Generator):
        item.set_state(value)
        return
    known = json.loads(value.numpy().tobytes(), object_hook=_of_array)
    if isinstance(item, random.Random):
        version, words, gauss = known
        item.setstate((version, tuple(words), gauss))
    elif isinstance(item, np.random.Generator):
        item.bit_generator.state = known
    else:
        item.set_state(known)


def states(name: str, own: Sequence[Own]) -> dict[str, torch.Tensor]:
    """Return the states of generators, by a name and their numbers."""
    return {f"{name}{number}": state(item) for number, item in enumerate(own)}


def put_all(name: str, own: Sequence[Own], known: Mapping[str, torch.Tensor]) -> bool:
    """Give generators the states that `states` gave; return whether they are the same ones.

    Those that are not are left alone.
    """
    wanted = {f"{name}{number}": item for number, item in enumerate(own)}
    given = {key: value for key, value in known.items() if key.rstrip("0123456789") == name}
    if wanted.keys() != given.keys():
        return False
    before = [state(item) for item in own]
    try:
        for key, item in wanted.items():
            put(item, given[key])
    except (LookupError, RuntimeError, TypeError, ValueError):
        for item, value in zip(own, before, strict=True):
            put(item, value)
        return False
    return True


@contextlib.contextmanager
def untouched(own: Sequence[Own]) -> Generator[None]:
    """Give generators back as they were, whatever is drawn meanwhile."""
    known = states("own", own)
    try:
        yield
    finally:
        put_all("own", own, known)


def _plain(item: np.random.Generator | np.random.RandomState | random.Random) -> Any:
    if isinstance(item, random.Random):
        return item.getstate()
    if isinstance(item, np.random.Generator):
        return item.bit_generator.state
    return item.get_state(legacy=False)


def _found(value: Any, depth: int, seen: set[int]) -> Iterator[Own]:
    if isinstance(value, _KINDS):
        yield value
    elif depth and id(value) not in seen and not isinstance(value, _OPAQUE):
        seen.add(id(value))
        for inner in _held(value):
            yield from _found(inner, depth - 1, seen)


def _held(value: Any) -> list[Any]:
    """Return what an object holds."""
    if isinstance(value, Mapping):
        held = [*value.values()] if len(value) <= _MOST else []
    elif isinstance(value, (list, tuple)):
        held = [*value] if len(value) <= _MOST else []
    elif isinstance(value, functools.partial):
        held = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, (MethodType, BuiltinFunctionType)):
        held = [value.__self__]
    else:
        held = []
    return [*held, *getattr(value, "__dict__", {}).values()]


def _array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {_ARRAY: value.dtype.str, "values": value.tolist()}
    return value.item()


def _of_array(value: dict[str, Any]) -> Any:
    return np.array(value["values"], value[_ARRAY]) if _ARRAY in value else value
