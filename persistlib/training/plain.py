"""Plain Python values as JSON and back, with what JSON has no word for.

Law: `decode(encode(value)) == value`, types included, for None, booleans, integers, floats of every
kind, texts, lists, tuples, and dicts of such keys and values. A subclass becomes the plain type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from persistlib.errors import Code, error

_FLOAT, _TUPLE, _MAP = "$float", "$tuple", "$map"


def encode(value: Any) -> Any:
    """Return a value as JSON.

    Raises:
        UsageError: it is not plain.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return _scalar(value)
    if isinstance(value, tuple):
        return {_TUPLE: [encode(item) for item in value]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        if all(isinstance(name, str) and not name.startswith("$") for name in value):
            return {name: encode(item) for name, item in value.items()}
        return {_MAP: [[encode(name), encode(item)] for name, item in value.items()]}
    raise error(Code.USAGE, type(value).__name__, "is no plain value", "give numbers and texts")


def _scalar(value: bool | float | str | None) -> Any:
    if isinstance(value, float):
        number = float(value)
        is_said = math.isfinite(number) and not (number == 0 and math.copysign(1, number) < 0)
        return number if is_said else {_FLOAT: repr(number)}
    if value is None or isinstance(value, bool):
        return value
    return int(value) if isinstance(value, int) else str(value)


def decode(value: Any) -> Any:
    """Return what `encode` was given.

    Raises:
        ValueError: it never gave that.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if not any(name.startswith("$") for name in value):
        return {name: decode(item) for name, item in value.items()}
    ((tag, inner),) = value.items()
    if tag == _FLOAT and isinstance(inner, str):
        return float(inner)
    if tag == _TUPLE and isinstance(inner, list):
        return tuple(decode(item) for item in inner)
    if tag == _MAP and isinstance(inner, list):
        return {decode(name): decode(item) for name, item in inner}
    raise ValueError(tag)
