"""The identity of labelled data: what manifests have stored of them stays what it was."""

from __future__ import annotations

from typing import Any

import numpy as np
from blake3 import blake3

from persistlib.preprocessing import ImagePreprocessing, Size
from persistlib.training.arrays import ArrayData
from persistlib.training.data import PreparedImages
from persistlib.training.labelled import ImageData
from persistlib.training.sample_digests import digest_of_labelled
from persistlib.training.tables import TableData, row_digests

LABELS, CLASSES = (1, 0, 1), ("a", "bé")
SAMPLES = tuple(blake3(bytes([number])).digest() for number in range(3))
ROWS = np.arange(6, dtype=np.float64).reshape(3, 2)
RECORD = ImagePreprocessing(3, 255.0, 8, Size(8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)


def images() -> ImageData:
    pixels = tuple(np.zeros((3, 2, 2), np.uint8))
    return ImageData(name="n", images=pixels, labels=LABELS, classes=CLASSES, digests=SAMPLES)


def table(**told: Any) -> TableData:
    empty: dict[str, Any] = {"labels": (), "classes": (), "targets": None}
    given: dict[str, Any] = {"name": "t", "columns": ("x", "y"), "target_names": ("c",), **told}
    return TableData(rows=ROWS, digests=row_digests(ROWS), **{**empty, **given})


# As the release before computed them, each in a place of its own.
def test_digests_of_labelled_data_are_what_they_were() -> None:
    assert images().digest == (
        "blake3:35344c24046b0d8162b460bfe236d7637a6a62a5ca14a5bf0b9f6b2b58f5d6b4"
    )
    assert PreparedImages(images(), (2, 0), RECORD).digest == (
        "blake3:15ebcf5a2180ab1f46797e89235d8d5385454321f183915238c264d986c403eb"
    )
    assert ArrayData(ROWS, np.array(LABELS), CLASSES, is_prepared=True).digest == (
        "blake3:3dc64b1aec74305359ab99d05d3d51d7ca2f032be541f348a206bab3709cbb58"
    )
    classes = table(labels=LABELS, classes=CLASSES, task="classification")
    assert classes.digest == (
        "blake3:9b054c41a71ea4a1b48d127d250e1804613f5c0dd07eb10f5a21ff9d62ff1434"
    )
    targets = np.array([[0.5], [1.5], [-2]], np.float32)
    assert table(targets=targets, task="regression").digest == (
        "blake3:28ca8cea695ce848a4a90bd4aeb27e544b15753f56bc5a002d29e6176bb32aa3"
    )


def test_a_digest_of_labelled_samples_is_of_their_order_and_their_classes_names() -> None:
    plain = digest_of_labelled(SAMPLES, LABELS, CLASSES)
    others = (
        digest_of_labelled(SAMPLES[::-1], LABELS[::-1], CLASSES),
        digest_of_labelled(SAMPLES[1:] + SAMPLES[:1], LABELS[1:] + LABELS[:1], CLASSES),
        digest_of_labelled(SAMPLES, (1, 1, 1), CLASSES),
        digest_of_labelled(SAMPLES, LABELS, ("a", "c")),
        digest_of_labelled(SAMPLES, LABELS, CLASSES, b"before"),
    )
    assert plain not in others
    assert len(set(others)) == len(others)
    # A class that no sample has is no part of it, and neither is a class' number.
    assert plain == digest_of_labelled(SAMPLES, (2, 1, 2), ("none", *CLASSES))
