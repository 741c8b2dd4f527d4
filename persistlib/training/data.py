"""Labelled images and rows as torch takes them, prepared as the model's manifest says."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from persistlib import preprocessing, table_rows
from persistlib.architecture.behaviour import untouched
from persistlib.canonical import encode
from persistlib.errors import Code, Finding, PersistlibError, finding
from persistlib.preprocessing import Size
from persistlib.training.augmentation import varied
from persistlib.training.data_sources import open_data
from persistlib.training.labelled import ImageData
from persistlib.training.sample_digests import digest_of_labelled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from persistlib.images import Pixels
    from persistlib.preprocessing import ImagePreprocessing
    from persistlib.table_rows import TablePreprocessing
    from persistlib.training.augmentation import Variation
    from persistlib.training.tables import TableData

__all__ = ["ImageData", "PreparedImages", "open_data", "prepared_rows", "size_findings"]

# Prepared images are kept in memory up to this; beyond, each is prepared whenever it is asked for.
_MEMORY = 1 << 30
_COLUMNS = 2  # axes of targets that may be several a row


class PreparedImages(Dataset[tuple[torch.Tensor, int]]):
    """Some of the images, prepared as the model takes them, each with the index of its class.

    They are kept in memory where that is small: prepared, or, where they are to be varied, resized
    and cropped.

    Attributes:
        fixed: each is the same every time; nothing is augmented.
        digest: of the images, their labels in order, and how they are prepared.
    """

    fixed = True

    def __init__(
        self,
        data: ImageData,
        indices: Sequence[int],
        record: ImagePreprocessing,
        *,
        is_varied: bool = False,
    ) -> None:
        self._images = [data.images[index] for index in indices]
        self._labels = [data.labels[index] for index in indices]
        self._record = record
        self.digest = _digest(data, indices, record)
        self._prepared: torch.Tensor | None = None
        self._fitted: list[Pixels] | None = None
        count = (
            record.channels
            * len(indices)
            * (record.size.height * record.size.width if record.size else 0)
        )
        if is_varied and 0 < count <= _MEMORY:
            self._fitted = [self._fit(index) for index in range(len(indices))]
        elif 0 < 4 * count <= _MEMORY:
            self._prepared = torch.from_numpy(preprocessing.apply(self._images, record))

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self._prepared is not None:
            return self._prepared[index], self._labels[index]
        return self._scaled(self._pixels(index)), self._labels[index]

    def varied(self, index: int, vary: Variation) -> tuple[torch.Tensor, int]:
        """Return an image varied before its pixels are scaled.

        Raises:
            UsageError: it is no image of 8-bit pixels, and a step needs these.
        """
        pixels = torch.from_numpy(np.ascontiguousarray(self._pixels(index)))
        image, label = varied(pixels, self._labels[index], vary)
        return self._scaled(image.numpy()), label

    def _pixels(self, index: int) -> Pixels:
        return self._fit(index) if self._fitted is None else self._fitted[index]

    def _fit(self, index: int) -> Pixels:
        image = self._images[index]
        return preprocessing.fitted(
            image, self._record, image if isinstance(image, str) else f"image {index}"
        )

    def _scaled(self, pixels: Pixels) -> torch.Tensor:
        return torch.from_numpy(preprocessing.scaled(pixels, self._record))


def _digest(data: ImageData, indices: Sequence[int], record: ImagePreprocessing) -> str:
    digests = (data.digests[index] for index in indices)
    labels = (data.labels[index] for index in indices)
    return digest_of_labelled(digests, labels, data.classes, encode(record.to_dict()))


def size_findings(data: ImageData, record: ImagePreprocessing) -> Iterator[Finding]:
    """Yield a finding for each image that a preparation refuses, or leaves with another size."""
    sizes = [Size(*size) for size in data.sizes]
    if not sizes and data.images:
        height, width = np.shape(data.images[0])[:2]
        sizes = [Size(height, width)]
    ends: Counter[Size] = Counter()
    found: list[tuple[str, Size]] = []
    for image, size in zip(data.images, sizes, strict=False):
        where = image if isinstance(image, str) else data.name
        try:
            found.append((where, preprocessing.size_after(size, record, where)))
            ends[found[-1][1]] += 1
        except PersistlibError as fault:
            yield finding(Code.DATA_INVALID, where, fault.reason, fault.remedy)
    if len(ends) < 2:
        return
    (usual, count), *_ = ends.most_common(1)
    for where, end in found:
        if end != usual:
            reason = f"{_words(end)} pixels, where {count} have {_words(usual)}"
            yield finding(Code.DATA_INVALID, where, reason, "resize all to one size (--resize)")


def _words(size: Size) -> str:
    return f"{size.width} x {size.height}"


def prepared_rows(
    data: TableData,
    indices: Sequence[int],
    record: TablePreprocessing | None,
    model: torch.nn.Module,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return some of the rows as a model takes them, and what it should tell of each.

    A single number is a target of shape (rows,) where the model gives it so, else of (rows, 1).
    """
    chosen = [*indices]
    rows = data.rows[chosen]
    inputs = torch.from_numpy(
        rows.astype(np.float32) if record is None else table_rows.apply(rows, record)
    )
    targets = torch.from_numpy(data.answers[chosen])
    if targets.ndim == _COLUMNS and targets.shape[1] == 1 and _is_flat(model, inputs[:2]):
        targets = targets[:, 0]
    return inputs, targets


def _is_flat(model: torch.nn.Module, inputs: torch.Tensor) -> bool:
    """Return whether a model gives one number a row, and no row of one number."""
    with untouched(model), torch.no_grad():
        model.eval()
        outputs = model(inputs)
    return isinstance(outputs, torch.Tensor) and outputs.shape == inputs.shape[:1]
