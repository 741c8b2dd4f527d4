"""What a fine-tuning on a table begins from: a builder's model, or a bundle, that takes rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from persistlib import preparing
from persistlib.architecture import freezing, pretrained, recipe
from persistlib.errors import Code, error, error_of, finding
from persistlib.table_rows import TablePreprocessing
from persistlib.training.beginnings import Saved, built, named_builder, take
from persistlib.training.head import find_head, require_taken

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import nn

    from persistlib.training.head import Head
    from persistlib.training.tables import TableData


class RowsBeginning(NamedTuple):
    """A model that takes rows.

    Attributes:
        builder: `package.module:callable`.
        model: with the values that it begins from, in evaluation mode.
        dropped: paths of auxiliary heads: none.
        preprocessing: how rows become inputs, where a bundle says it.
        head: the last layer; None where it gives no classes.
        left_out: as `Beginning`.
        labels: the classes that a bundle's last layer was trained for.
    """

    builder: str
    model: nn.Module
    dropped: tuple[str, ...]
    preprocessing: TablePreprocessing | None
    head: Head | None
    left_out: int | None = None
    labels: tuple[str, ...] | None = None


def of_builder(
    builder: str,
    weights: object,
    data: TableData,
    *,
    seed: int,
    trust: Collection[str],
    arguments: Mapping[str, Any],
) -> RowsBeginning:
    """Return what a builder builds, with weights; a last layer of classes is left out of these.

    Raises:
        TrainingError: the weights do not fit, or the last layer cannot be told.
        ArchitectureError: the builder is unknown, untrusted, or failed.
        UsageError: the weights are a folder, or the model refuses rows of that width.
    """
    builder = named_builder(builder)
    model, path = built(builder, weights, seed=seed, trust=trust, arguments=arguments)
    head = _head(model, data)
    if path is not None:
        with pretrained.open_checkpoint(path) as reader:
            take(model, reader, path, apart=(head.path,) if head else ())
    return RowsBeginning(builder, model, (), None, head)


def of_bundle(saved: Saved, data: TableData) -> RowsBeginning:
    """Return the model of a bundle, of which nothing is frozen any more.

    Rows are standardized as the bundle says, where it does.

    Raises:
        TrainingError: the last layer cannot be told.
        UsageError: the model refuses rows of that width, or is for images.
    """
    model, manifest = saved
    known = manifest.interface.preprocessing
    freezing.unfreeze(model, "*")
    recipe.remember(model, recipe.Recipe.of(manifest.architecture))
    record = preparing.parse(known) if known else None
    if record is not None and (data.is_prepared or not isinstance(record, TablePreprocessing)):
        reason = "the bundle takes images, and these are rows"
        if isinstance(record, TablePreprocessing):
            reason = "the bundle takes columns by name, and these are inputs without"
        remedy = "give what the bundle was trained on (persistlib inspect)"
        raise error(Code.USAGE, data.name, reason, remedy)
    builder, labels = manifest.architecture.builder, manifest.interface.labels
    return RowsBeginning(builder, model, (), record, _head(model, data), None, labels)


def columns_of(builder: str | Saved) -> tuple[str, ...] | None:
    """Return the columns that a bundle takes; None where it does not say, or is none."""
    known = None if isinstance(builder, str) else builder.manifest.interface.preprocessing
    record = preparing.parse(known) if known else None
    return record.columns if isinstance(record, TablePreprocessing) else None


def _head(model: nn.Module, data: TableData) -> Head | None:
    """Return the last layer of a classifier; None where targets are numbers.

    Raises:
        TrainingError: it cannot be told.
        UsageError: the model refuses rows of that width.
    """
    row = torch.zeros(1, len(data.columns))
    if not data.classes:
        require_taken(model, row)
        return None
    return find_head(model, row)


def require_meant(data: TableData, **given: object) -> None:
    """Refuse what is asked of images, where the data are rows.

    Args:
        data: the rows.
        **given: arguments that only images have a use for; what is None or empty is not asked.

    Raises:
        UsageError: something is given; each is reported.
    """
    reason, remedy = f"{data.name} has rows, no images", "leave it out"
    faults = [finding(Code.USAGE, name, reason, remedy) for name, value in given.items() if value]
    if faults:
        raise error_of(faults)
