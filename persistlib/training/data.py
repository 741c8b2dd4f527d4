"""Labelled images as torch takes them, each prepared as the model's manifest says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from blake3 import blake3
from torch.utils.data import Dataset

from persistlib import preprocessing
from persistlib.canonical import encode
from persistlib.digests import PREFIX
from persistlib.training.labelled import DIGITS, ImageData, Split, open_data

if TYPE_CHECKING:
    from collections.abc import Sequence

    from persistlib.preprocessing import ImagePreprocessing

__all__ = ["DIGITS", "ImageData", "PreparedImages", "Split", "open_data"]

# Prepared images are kept in memory up to this; beyond, each is prepared whenever it is asked for.
_MEMORY = 1 << 30


class PreparedImages(Dataset[tuple[torch.Tensor, int]]):
    """Some of the images, prepared as the model takes them, each with the index of its class.

    Attributes:
        fixed: each is the same every time; nothing is augmented.
        digest: of the images, their labels in order, and how they are prepared.
    """

    fixed = True

    def __init__(self, data: ImageData, indices: Sequence[int], record: ImagePreprocessing) -> None:
        self._images = [data.images[index] for index in indices]
        self._labels = [data.labels[index] for index in indices]
        self._record = record
        self.digest = _digest(data, indices, record)
        self._prepared: torch.Tensor | None = None
        size = record.size
        if size and 4 * record.channels * size.height * size.width * len(indices) <= _MEMORY:
            self._prepared = torch.from_numpy(preprocessing.apply(self._images, record))

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self._prepared is not None:
            return self._prepared[index], self._labels[index]
        image = preprocessing.apply([self._images[index]], self._record)[0]
        return torch.from_numpy(image), self._labels[index]


def _digest(data: ImageData, indices: Sequence[int], record: ImagePreprocessing) -> str:
    hasher = blake3(encode(record.to_dict()))
    for index in indices:
        hasher.update(data.digests[index] + data.classes[data.labels[index]].encode() + b"\n")
    return PREFIX + hasher.hexdigest()
