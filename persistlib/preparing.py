"""How what a person has becomes a model's input, whatever it is: an image, or a row of a table.

The record's `kind` says which (`preprocessing`, `table_rows`); without one it is an image.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from persistlib import preprocessing, table_rows
from persistlib.preprocessing import ImagePreprocessing
from persistlib.table_rows import TablePreprocessing

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from pydantic import JsonValue

Preparation: TypeAlias = ImagePreprocessing | TablePreprocessing


def parse(record: Mapping[str, JsonValue]) -> Preparation:
    """Return a manifest's record as a value.

    Raises:
        SessionError: it is malformed; every fault is reported.
    """
    is_table = record.get("kind") == table_rows.KIND
    return table_rows.parse(record) if is_table else preprocessing.parse(record)


def apply(items: Any, record: Mapping[str, JsonValue] | Preparation) -> NDArray[np.float32]:
    """Return images, or rows, as one array with samples along the first axis.

    Raises:
        SessionError: as `preprocessing.apply`, and `table_rows.apply`.
    """
    if not isinstance(record, (ImagePreprocessing, TablePreprocessing)):
        record = parse(record)
    if isinstance(record, TablePreprocessing):
        return table_rows.apply(items, record)
    return preprocessing.apply(items, record)


def items_of(given: Any) -> Sequence[Any]:
    """Return what is to be prepared one after the other: a lone path, image or row is one."""
    if isinstance(given, (str, os.PathLike, Mapping)):
        return [given]
    if hasattr(given, "__len__"):
        several: Sequence[Any] = given
        return several
    return [*given] if hasattr(given, "__iter__") else [given]


def sample_shape(record: Preparation) -> tuple[int, ...]:
    """Return the shape of one prepared sample; empty where each image keeps its own."""
    if isinstance(record, TablePreprocessing):
        return (len(record.columns),)
    return (record.channels, *record.size) if record.size else ()
