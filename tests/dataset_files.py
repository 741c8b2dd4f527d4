"""Data sets in the files that their authors publish, written small."""

from __future__ import annotations

import gzip
import importlib
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# The original files of one version are pickles; here they are written, and never read.
pickle: Any = importlib.import_module("pickle")

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


def pictures(count: int, seed: int, classes: int = 10) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return pixels of (count, 32, 32, 3), whose colour and stripes tell the label, and labels."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % classes).astype(np.uint8)
    pixels = rng.integers(0, 50, (count, 32, 32, 3), np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[:: 1 + int(label) // 3, :, int(label) % 3] += 180
    return pixels, labels


def records(pixels: NDArray[Any], *labels: NDArray[Any]) -> bytes:
    """Return a binary batch: labels, then the planes of each image."""
    planes = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    return np.column_stack([*labels, planes]).astype(np.uint8).tobytes()


def write_cifar10(root: Path, per_batch: int = 10) -> Path:
    """Write the binary version as it is unpacked; return its folder."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for number, name in enumerate(BATCHES):
        (folder / f"{name}.bin").write_bytes(records(*pictures(per_batch, number)))
    (folder / "batches.meta.txt").write_text("\n".join(CLASSES) + "\n\n")
    return folder


def write_cifar10_python(root: Path, per_batch: int = 10, protocol: int = 2) -> Path:
    """Write the version for Python as it is unpacked, by the pickler of this Python."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number, name in enumerate(BATCHES):
        pixels, labels = pictures(per_batch, number)
        planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(per_batch, -1)
        batch = {b"batch_label": b"a batch", b"labels": labels.tolist(), b"data": planes}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    meta = {"num_cases_per_batch": per_batch, "label_names": [*CLASSES], "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=protocol))
    return folder


def python2_batch(pixels: NDArray[Any], labels: NDArray[Any]) -> bytes:
    """Return a batch as Python 2 wrote the published ones: its texts are of 8-bit characters."""
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(len(pixels), -1)
    data = planes.tobytes()
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    return b"".join(
        (
            b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03",
            b"U\x06labelsq\x04]q\x05(" + numbers + b"e",
            b"U\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08",
            b"K\x00\x85q\x09U\x01bq\x0a\x87q\x0bRq\x0c(K\x01",
            b"M" + struct.pack("<H", len(pixels)) + b"M\x00\x0c\x86q\x0d",
            b"cnumpy\ndtype\nq\x0eU\x02u1q\x0fK\x00K\x01\x87q\x10Rq\x11(K\x03U\x01|q\x12",
            b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x13b\x89",
            b"T" + struct.pack("<i", len(data)) + data + b"q\x14tq\x15bu.",
        )
    )


def idx(array: NDArray[Any]) -> bytes:
    """Return the bytes of an idx file of uint8 numbers."""
    head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


def write_mnist(
    folder: Path, train: int = 40, test: int = 20, *, packed: bool = False, stem: str = ""
) -> Path:
    """Write images of 28 x 28 with a bright row or column that tells the label."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("t10k", test)):
        rng = np.random.default_rng(count)
        labels = np.arange(count) % 10
        images = rng.integers(0, 40, (count, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[2 + 2 * label : 5 + 2 * label] += 200
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx(np.asarray(array))
            name = f"{stem}{part}-{kind}-ubyte" + (".gz" if packed else "")
            (folder / name).write_bytes(gzip.compress(data) if packed else data)
    return folder
