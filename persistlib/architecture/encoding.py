"""Values of a recipe as JSON, with tags for what JSON lacks.

Laws: `decode(encode(value)) == value`, types included, and `encode(decode(data)) == data` for every
`data` that `encode` returns.

JSON's own null, true and false, strings, finite floats, integers within 64 bits and lists stand for
themselves, and so does an object whose keys are strings in order, none beginning with `$`. The rest
is an object with one key:

| tag | value |
| --- | --- |
| `{"$tuple": [...]}` | a tuple |
| `{"$size": [...]}` | a `torch.Size` |
| `{"$set": [...]}`, `{"$frozenset": [...]}` | its items, sorted by their JSON text |
| `{"$dict": [[key, value], ...]}` | a dict that a JSON object would reorder or cannot spell |
| `{"$ordered": [[key, value], ...]}` | a `collections.OrderedDict` |
| `{"$float": "nan"}` | `nan`, `inf`, `-inf`, `-0.0` |
| `{"$int": "36893488147419103232"}` | an integer beyond 64 bits, in decimals |
| `{"$complex": [real, imaginary]}` | a complex number |
| `{"$dtype": "float16"}` | `torch.float16` |
| `{"$device": "cpu"}` | a `torch.device` |
| `{"$object": "torch.nn:BatchNorm2d"}` | a class or function by its qualified name |
| `{"$enum": ["package.module:Class", "MEMBER"]}` | a member of an enumeration |
| `{"$partial": {"function": ..., "arguments": [...], "keywords": {...}}}` | `functools.partial` |

Names are resolved under the rules of `persistlib.architecture.trusted`: a value never imports what
a builder could not.
"""

from __future__ import annotations

import enum
import json
import math
from collections import OrderedDict
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any

import torch

from persistlib.architecture import trusted
from persistlib.canonical import INTEGER_LIMIT
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from persistlib.errors import PersistlibError

_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "-0.0": -0.0}
_DEPTH = 32
# 4,300 is Python's own limit for reading an integer.
_DIGITS = 1000


class NotPlainError(ValueError):
    """A value that a recipe cannot say.

    Attributes:
        value: the part that cannot be said.
    """

    def __init__(self, value: object, reason: str) -> None:
        super().__init__(reason)
        self.value = value


def encode(value: Any) -> Any:
    """Return a value as JSON with tags.

    Raises:
        NotPlainError: a part of it is neither plain nor importable by name.
    """
    return _encode(value, 0)


def decode(data: Any, trust: Collection[str] = ()) -> Any:
    """Return the value that JSON with tags stands for.

    Raises:
        ArchitectureError: an unknown or malformed tag, or a name that is untrusted or unknown.
    """
    return _decode(data, trust, 0)


def text(data: Any) -> str:
    """Return JSON as one text, in which 1, 1.0 and true differ as they do not in Python."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def _encode(value: Any, depth: int) -> Any:
    if depth > _DEPTH:
        raise NotPlainError(value, f"nested deeper than {_DEPTH}")
    if value is None or (isinstance(value, (bool, str)) and type(value) in (bool, str)):
        return _plain_text(value) if isinstance(value, str) else value
    if isinstance(value, enum.Enum):
        return {"$enum": [_named(type(value)), value.name]}
    writer = _WRITERS.get(type(value))
    if writer is not None:
        return writer(value, lambda item: _encode(item, depth + 1))
    if isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        return {"$object": _named(value)}
    raise NotPlainError(value, f"a {type(value).__qualname__} is not plain")


def _plain_text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as fault:
        raise NotPlainError(value, "a text with an unpaired surrogate") from fault
    return value


def _named(value: Any) -> str:
    name = trusted.builder_name(value)
    if name is None:
        shown = getattr(value, "__qualname__", type(value).__qualname__)
        raise NotPlainError(value, f"{shown} cannot be imported by its name")
    return name


def _int(value: int, _inner: Callable[[Any], Any]) -> Any:
    if -INTEGER_LIMIT <= value <= INTEGER_LIMIT:
        return value
    if value.bit_length() > 3 * _DIGITS:
        raise NotPlainError(value, f"an integer of more than {_DIGITS} digits")
    return {"$int": str(value)}


def _float(value: float, _inner: Callable[[Any], Any]) -> Any:
    if math.isfinite(value) and (value != 0 or math.copysign(1, value) > 0):
        return value
    return {"$float": repr(value)}


def _mapping(value: dict[Any, Any], inner: Callable[[Any], Any]) -> Any:
    keys = list(value)
    if all(type(key) is str and not key.startswith("$") for key in keys) and keys == sorted(keys):
        return {_plain_text(key): inner(item) for key, item in value.items()}
    return {"$dict": _pairs(value, inner)}


def _pairs(value: dict[Any, Any], inner: Callable[[Any], Any]) -> list[list[Any]]:
    return [[inner(key), inner(item)] for key, item in value.items()]


def _sorted(value: Collection[Any], inner: Callable[[Any], Any]) -> list[Any]:
    return sorted(map(inner, value), key=text)


def _partial(value: partial[Any], inner: Callable[[Any], Any]) -> Any:
    if vars(value):
        raise NotPlainError(value, "a partial with attributes of its own")
    return {
        "$partial": {
            "function": inner(value.func),
            "arguments": [inner(item) for item in value.args],
            "keywords": inner(value.keywords),
        }
    }


_WRITERS: dict[type, Callable[[Any, Callable[[Any], Any]], Any]] = {
    int: _int,
    float: _float,
    complex: lambda v, inner: {"$complex": [inner(v.real), inner(v.imag)]},
    list: lambda v, inner: [inner(item) for item in v],
    tuple: lambda v, inner: {"$tuple": [inner(item) for item in v]},
    torch.Size: lambda v, inner: {"$size": [inner(item) for item in v]},
    set: lambda v, inner: {"$set": _sorted(v, inner)},
    frozenset: lambda v, inner: {"$frozenset": _sorted(v, inner)},
    dict: _mapping,
    OrderedDict: lambda v, inner: {"$ordered": _pairs(v, inner)},
    torch.dtype: lambda v, _inner: {"$dtype": str(v).removeprefix("torch.")},
    torch.device: lambda v, _inner: {"$device": str(v)},
    partial: _partial,
}


def _decode(data: Any, trust: Collection[str], depth: int) -> Any:
    if depth > _DEPTH:
        raise _bad(f"nested deeper than {_DEPTH}")

    def inner(item: Any) -> Any:
        return _decode(item, trust, depth + 1)

    if isinstance(data, list):
        return [inner(item) for item in data]
    if not isinstance(data, dict):
        return data
    tags = [key for key in data if key.startswith("$")]
    if not tags:
        return {key: inner(item) for key, item in data.items()}
    if len(data) != 1 or tags[0] not in _READERS:
        raise _bad(f"unknown tag {tags[0]!r}")
    try:
        return _READERS[tags[0]](data[tags[0]], inner, trust)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, OverflowError) as fault:
        raise _bad(f"{tags[0]}: {fault}") from fault


def _bad(reason: str) -> PersistlibError:
    return error(Code.BAD_RECIPE, "value", reason, "see docs/manifest.md for the tags")


def _list(data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise TypeError("a list is expected")
    return data


def _read_pairs(data: Any, inner: Callable[[Any], Any]) -> list[tuple[Any, Any]]:
    pairs = [(inner(key), inner(item)) for key, item in map(_list, _list(data))]
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key stands twice")
    return pairs


def _read_items(data: Any, inner: Callable[[Any], Any]) -> frozenset[Any]:
    items = [inner(item) for item in _list(data)]
    if len(result := frozenset(items)) != len(items):
        raise ValueError("an item stands twice")
    return result


def _read_int(data: Any) -> int:
    if not isinstance(data, str) or len(data) > _DIGITS:
        raise ValueError("not decimals")
    return int(data)


def _read_dtype(data: Any) -> torch.dtype:
    dtype = getattr(torch, data)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"torch.{data} is no dtype")
    return dtype


def _read_enum(data: Any, trust: Collection[str]) -> enum.Enum:
    name, member = _list(data)
    kind = trusted.resolve(name, trust)
    if not (isinstance(kind, type) and issubclass(kind, enum.Enum)):
        raise TypeError(f"{name} is no enumeration")
    return kind[member]


def _read_partial(data: Any, inner: Callable[[Any], Any]) -> partial[Any]:
    if not isinstance(data, dict) or set(data) != {"function", "arguments", "keywords"}:
        raise ValueError("function, arguments and keywords are expected")
    return partial(
        inner(data["function"]), *inner(_list(data["arguments"])), **inner(data["keywords"])
    )


_READERS: dict[str, Callable[[Any, Callable[[Any], Any], Collection[str]], Any]] = {
    "$tuple": lambda d, inner, _t: tuple(inner(item) for item in _list(d)),
    "$size": lambda d, inner, _t: torch.Size([inner(item) for item in _list(d)]),
    "$set": lambda d, inner, _t: set(_read_items(d, inner)),
    "$frozenset": lambda d, inner, _t: _read_items(d, inner),
    "$dict": lambda d, inner, _t: dict(_read_pairs(d, inner)),
    "$ordered": lambda d, inner, _t: OrderedDict(_read_pairs(d, inner)),
    "$float": lambda d, _i, _t: _FLOATS[d],
    "$int": lambda d, _i, _t: _read_int(d),
    "$complex": lambda d, inner, _t: complex(*map(inner, _list(d))),
    "$dtype": lambda d, _i, _t: _read_dtype(d),
    "$device": lambda d, _i, _t: torch.device(d),
    "$object": lambda d, _i, trust: trusted.resolve(d, trust),
    "$enum": lambda d, _i, trust: _read_enum(d, trust),
    "$partial": lambda d, inner, _t: _read_partial(d, inner),
}
