"""What an attribute holds, as JSON: for comparing and for digests, never for rebuilding.

Law: two values with the same outline and the same parts behave alike as far as Python can see; the
outline alone is the same in every process, never made from `repr`, `id` or memory addresses.

Where `encoding` refuses what cannot be built again by name, an outline still says what is there:
objects by class and attributes, local functions by name and closure, tensors by shape, modules by
their place in the tree.
"""

from __future__ import annotations

import enum
import functools
import weakref
from dataclasses import dataclass, field
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from persistlib.architecture.encoding import NotPlainError, encode, text
from persistlib.architecture.trusted import name_of
from persistlib.digests import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_DEPTH = 24


@dataclass
class Outline:
    """An attribute's value as JSON, and the parts that JSON cannot tell apart.

    Attributes:
        data: JSON.
        code: code of the local functions met on the way.
        tensors: tensors inside opaque objects, which nothing else compares or saves.
        strays: classes of modules with tensors that are no children of any module.
    """

    data: Any = None
    code: list[CodeType] = field(default_factory=list)
    tensors: list[torch.Tensor] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)

    def same(self, other: Outline) -> bool:
        """Return whether both stand for values that behave alike."""
        return (
            text(self.data) == text(other.data)
            and self.code == other.code
            and len(self.tensors) == len(other.tensors)
            and all(map(same_values, self.tensors, other.tensors))
        )


def outline(value: Any, places: Mapping[int, str]) -> Outline:
    """Return the outline of an attribute's value.

    Args:
        value: anything.
        places: the path of each module of the tree, by its `id`.
    """
    result = Outline()
    result.data = _Writer(result, places).write(value)
    return result


def same_values(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors have one dtype and shape and the same bits."""
    if one.dtype != other.dtype or one.shape != other.shape or one.is_meta != other.is_meta:
        return False
    if one.is_meta or one is other:
        return True
    pair = [tensor.detach().cpu().contiguous().reshape(-1) for tensor in (one, other)]
    return torch.equal(*(tensor.view(torch.uint8) for tensor in pair))


def class_name(cls: type) -> str:
    """Return a class's qualified name."""
    return f"{cls.__module__}.{cls.__qualname__}"


class _Writer:
    """Walks one value; cycles are named by how far up they lead."""

    def __init__(self, result: Outline, places: Mapping[int, str]) -> None:
        self._result = result
        self._places = places
        self._above: list[int] = []
        self._opaque = 0

    def write(self, value: Any) -> Any:
        if not isinstance(value, (list, tuple, dict, set, frozenset, functools.partial)):
            try:
                return encode(value)
            except NotPlainError:
                pass
        if id(value) in self._above:
            return {"$cycle": len(self._above) - self._above.index(id(value))}
        if len(self._above) > _DEPTH:
            return {"$deep": class_name(type(value))}
        self._above.append(id(value))
        try:
            return self._composite(value)
        finally:
            self._above.pop()

    def _composite(self, value: Any) -> Any:
        # Tensors are saved where only lists, tuples and dicts lead to them.
        hidden = not isinstance(value, (torch.Tensor, list, tuple, dict))
        self._opaque += hidden
        try:
            for kinds, writer in self._writers():
                if isinstance(value, kinds):
                    return writer(value)
            return self._instance(value)
        finally:
            self._opaque -= hidden

    def _writers(self) -> Iterable[tuple[Any, Callable[[Any], Any]]]:
        yield torch.Tensor, self._tensor
        yield nn.Module, self._module
        yield FunctionType, self._function
        yield MethodType, lambda v: {"$method": [self.write(v.__func__), self.write(v.__self__)]}
        yield functools.partial, self._partial
        yield weakref.ReferenceType, lambda v: {"$weak": self.write(v())}
        yield ModuleType, lambda v: {"$import": v.__name__}
        yield (type, BuiltinFunctionType), lambda v: {"$object": f"{v.__module__}:{v.__qualname__}"}
        yield enum.Enum, lambda v: {"$enum": [class_name(type(v)), v.name]}
        yield np.ndarray, self._array
        yield np.generic, lambda v: {"$numpy": [str(v.dtype), v.tobytes().hex()]}
        yield dict, lambda v: self._items(v, [[self.write(k), self.write(i)] for k, i in v.items()])
        yield (list, tuple), lambda v: self._items(v, [self.write(item) for item in v])
        yield (set, frozenset), lambda v: self._items(v, sorted(map(self.write, v), key=str))

    def _tensor(self, value: torch.Tensor) -> Any:
        if self._opaque:
            self._result.tensors.append(value)
        return {"$tensor": [kind(value), list(value.shape)]}

    def _module(self, value: nn.Module) -> Any:
        place = self._places.get(id(value))
        if place is None:
            if any(True for _ in (*value.parameters(), *value.buffers())):
                self._result.strays.append(class_name(type(value)))
            return {"$stray": class_name(type(value)), "attributes": self._attributes(value)}
        return {"$module": place}

    def _function(self, value: FunctionType) -> Any:
        """Write a function that no name leads to: a lambda, a local one, or one since replaced."""
        self._result.code.append(value.__code__)
        cells = value.__closure__ or ()
        return {
            "$local": f"{value.__module__}:{value.__qualname__}",
            "closure": [self.write(_content(cell)) for cell in cells],
            "defaults": self.write([value.__defaults__, value.__kwdefaults__]),
        }

    def _partial(self, value: functools.partial[Any]) -> Any:
        parts = (value.func, value.args, value.keywords, vars(value))
        return {"$partial": [self.write(part) for part in parts]}

    def _array(self, value: np.ndarray) -> Any:
        if value.dtype.hasobject:
            return {"$array": [str(value.dtype), self.write(value.tolist())]}
        data = np.ascontiguousarray(value)
        return {"$array": [str(value.dtype), list(value.shape), digest(data.view(np.uint8).data)]}

    def _items(self, value: Any, items: list[Any]) -> Any:
        more = self._attributes(value)
        written = {f"${class_name(type(value))}": items}
        return {**written, "attributes": more} if more else written

    def _instance(self, value: Any) -> Any:
        if name := name_of(value):
            return {"$object": name}
        attributes = self._attributes(value)
        if not attributes:
            return {"$instance": class_name(type(value)), "parts": self._reduced(value)}
        return {"$instance": class_name(type(value)), "attributes": attributes}

    def _attributes(self, value: Any) -> Any:
        slots = [s for cls in type(value).__mro__ for s in _slots(cls)]
        found = {name: getattr(value, name) for name in slots if hasattr(value, name)}
        found |= getattr(value, "__dict__", {})
        return {name: self.write(item) for name, item in sorted(found.items())}

    def _reduced(self, value: Any) -> Any:
        """Write an object of a C type by what pickling it would call, where it says so."""
        try:
            parts = value.__reduce_ex__(4)
        except Exception:  # noqa: BLE001 - whatever a foreign type raises means: it does not say
            return None
        if not isinstance(parts, tuple):
            return self.write(parts)
        # What follows the state are iterators over the items of a list or dict.
        return self.write([*parts[:3], *(list(items) for items in parts[3:5] if items)])


def kind(tensor: torch.Tensor) -> str:
    """Return what casting a module keeps of a dtype: floating, complex, or the very dtype."""
    if tensor.dtype.is_floating_point:
        return "floating"
    return "complex" if tensor.dtype.is_complex else str(tensor.dtype)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _slots(cls: type) -> tuple[str, ...]:
    slots = cls.__dict__.get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in {"__dict__", "__weakref__"})
