"""Outputs of a model as a person and as a program read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from persistlib.cli.answer import Table
from persistlib.cli.text import shape
from persistlib.dtypes import by_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from persistlib.cli.answer import JSON

_SHOWN = 4  # values of each output that a row has room for
_TOLD = 64  # values of each output in JSON; more belong into a file


def outputs_data(outputs: Mapping[str, NDArray[Any]]) -> list[JSON]:
    """Return outputs as JSON: what they are, and their values where they are few."""
    return [
        {
            "name": name,
            "dtype": _dtype(array),
            "shape": [*array.shape],
            "lowest": _extreme(array, "min"),
            "highest": _extreme(array, "max"),
            "values": _plain(array).tolist() if array.size <= _TOLD else None,
        }
        for name, array in outputs.items()
    ]


def outputs_table(outputs: Mapping[str, NDArray[Any]]) -> Table:
    """Return outputs as a table: what they are, their range, and the first values of each."""
    rows = tuple(
        (
            name,
            shape(_dtype(array), array.shape),
            _number(_extreme(array, "min")),
            _number(_extreme(array, "max")),
            _first(array),
        )
        for name, array in outputs.items()
    )
    return Table(("output", "", "lowest", "highest", "first values"), rows, frozenset({2, 3}))


def _dtype(array: NDArray[Any]) -> str:
    row = by_name("numpy", array.dtype.name)
    return array.dtype.name if row is None else row.name


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array in a dtype whose elements Python has."""
    row = by_name("numpy", array.dtype.name)
    return array.astype(np.float32) if row is not None and row.value.extension else array


def _extreme(array: NDArray[Any], which: str) -> float | int | bool | None:
    """Return the lowest or highest value; None where there is none, or where values have no order.

    A value that is not a number is the extreme: it must not go unseen.
    """
    if not array.size or array.dtype.kind not in "biufV":
        return None
    plain = _plain(array)
    found: float | int | bool = getattr(plain, which)().item()
    return found


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _first(array: NDArray[Any]) -> str:
    flat = _plain(array).reshape(-1)[:_SHOWN].tolist()
    more = " …" if array.size > _SHOWN else ""
    return ", ".join(f"{v:.5g}" if isinstance(v, (int, float)) else str(v) for v in flat) + more
