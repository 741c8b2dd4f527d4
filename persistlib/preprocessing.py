"""How an image becomes a model's input: one implementation for training, `run` and `predict`.

A record such as `{"kind": "image", "channels": 3, "resize": 256, "crop": 224, "mean": [...],
"std": [...]}` stands in the manifest; `docs/manifest.md` explains its keys. The steps, in order:
convert to the channels, resize, crop the centre, divide by `scale`, subtract `mean`, divide by
`std`. On 8-bit images they give bit for bit what torchvision's
`transforms.ImageClassification` gives for a Pillow image, without torch.

Laws: `parse(p.to_dict()) == p`, and `apply([path], p) == apply([images.read_image(path)], p)`.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from persistlib.errors import Code, PersistlibError, error, error_of, finding
from persistlib.images import MAX_PIXELS, pixels_of, unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from PIL import Image
    from pydantic import JsonValue

    from persistlib.errors import Finding
    from persistlib.images import Pixels

INTERPOLATIONS = ("nearest", "box", "bilinear", "bicubic", "lanczos")
_MAX_EDGE = 8192
_CHANNELS = (1, 3)
# ITU-R BT.601, as Pillow's conversion to grey.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class Size(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int


@dataclass(frozen=True, slots=True)
class ImagePreprocessing:
    """How an image becomes an array of shape (channels, height, width).

    Attributes:
        channels: 1 (grey) or 3 (RGB).
        scale: pixel values are divided by it: 255 for 8-bit images.
        resize: None; the length of the shorter edge, the aspect kept; or height and width.
        crop: the central part that is kept; None keeps all, but a square when `resize` is one
            number, so that every image ends with the same shape.
        interpolation: how `resize` weighs neighbours; antialiased when shrinking.
        mean: subtracted after scaling, one a channel.
        std: divided by afterwards, one a channel.
    """

    channels: int = 3
    scale: float = 255.0
    resize: int | Size | None = None
    crop: Size | None = None
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    @property
    def size(self) -> Size | None:
        """The height and width of every result; None where each image keeps its own."""
        if self.crop is not None:
            return self.crop
        return Size(self.resize, self.resize) if isinstance(self.resize, int) else self.resize

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the record as a manifest holds it."""
        record: dict[str, JsonValue] = {"kind": "image", "channels": self.channels}
        record["scale"] = self.scale
        if self.resize is not None:
            record["resize"] = self.resize if isinstance(self.resize, int) else [*self.resize]
            record["interpolation"] = self.interpolation
        if self.crop is not None:
            record["crop"] = [*self.crop]
        record["mean"] = [*self.mean]
        record["std"] = [*self.std]
        return record


def parse(record: Mapping[str, JsonValue]) -> ImagePreprocessing:
    """Return a preprocessing record as a value.

    `kind` defaults to "image", `channels` to the length of `mean`, or 3; the rest as in
    `ImagePreprocessing`.

    Raises:
        SessionError: a key is unknown or a value is malformed; every fault is reported.
    """
    faults: list[tuple[str, str]] = [(key, "unknown") for key in record if key not in _READERS]
    values: dict[str, Any] = {}
    for key, read in _READERS.items():
        if (raw := record.get(key)) is not None:
            try:
                values[key] = read(raw)
            except ValueError as fault:
                faults.append((key, str(fault)))
    values.pop("kind", None)
    channels = values.setdefault("channels", len(values.get("mean", ())) or 3)
    if not faults:
        for key, neutral in (("mean", 0.0), ("std", 1.0)):
            values.setdefault(key, (neutral,) * channels)
        faults.extend(_contradictions(ImagePreprocessing(**values)))
    if faults:
        remedy = "correct the interface's preprocessing (docs/manifest.md)"
        raise error_of(
            finding(Code.PREPROCESSING, f"preprocessing.{key}", reason, remedy)
            for key, reason in faults
        )
    return ImagePreprocessing(**values)


def _contradictions(record: ImagePreprocessing) -> Iterator[tuple[str, str]]:
    if record.channels not in _CHANNELS:
        yield "channels", f"{record.channels} is neither 1 nor 3"
    for key in ("mean", "std"):
        if (given := len(getattr(record, key))) != record.channels:
            yield key, f"{given} numbers for {record.channels} channels"
    if not all(value > 0 for value in record.std):
        yield "std", "must be above 0"
    if record.crop is not None and record.resize is not None:
        edges = (record.resize,) * 2 if isinstance(record.resize, int) else record.resize
        if any(part > whole for part, whole in zip(record.crop, edges, strict=True)):
            yield "crop", "larger than what resize leaves"


def _number(raw: JsonValue) -> float:
    if isinstance(raw, bool) or not isinstance(raw, (int, float)) or not math.isfinite(raw):
        raise ValueError(f"{raw!r} is not a finite number")
    return float(raw)


def _numbers(raw: JsonValue) -> tuple[float, ...]:
    if not isinstance(raw, (list, tuple)):
        raise ValueError(f"{raw!r} is not a list of numbers")  # noqa: TRY004 - data, not a call
    return tuple(_number(item) for item in raw)


def _positive(raw: JsonValue) -> float:
    if (value := _number(raw)) <= 0:
        raise ValueError(f"{raw!r} is not above 0")
    return value


def _edge(raw: JsonValue) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int) or not 1 <= raw <= _MAX_EDGE:
        raise ValueError(f"{raw!r} is not a whole number from 1 to {_MAX_EDGE}")
    return raw


def _edges(raw: JsonValue) -> Size:
    if not isinstance(raw, (list, tuple)) or len(raw) != len(Size._fields):
        raise ValueError(f"{raw!r} is neither one number nor height and width")
    return Size(*map(_edge, raw))


def _resize(raw: JsonValue) -> int | Size:
    return _edges(raw) if isinstance(raw, (list, tuple)) else _edge(raw)


def _crop(raw: JsonValue) -> Size:
    return _edges(raw) if isinstance(raw, (list, tuple)) else Size(_edge(raw), _edge(raw))


def _one_of(*words: str) -> Callable[[JsonValue], str]:
    def read(raw: JsonValue) -> str:
        if not isinstance(raw, str) or raw not in words:
            raise ValueError(f"{raw!r} is not one of {', '.join(words)}")
        return raw

    return read


# The one list of keys, each with what reads it.
_READERS: dict[str, Callable[[JsonValue], object]] = {
    "kind": _one_of("image"),
    "channels": _edge,
    "scale": _positive,
    "resize": _resize,
    "crop": _crop,
    "interpolation": _one_of(*INTERPOLATIONS),
    "mean": _numbers,
    "std": _numbers,
}


def apply(
    images: Sequence[Pixels | Image.Image | str | os.PathLike[str]],
    preprocessing: Mapping[str, JsonValue] | ImagePreprocessing,
) -> NDArray[np.float32]:
    """Return images as one array of shape (images, channels, height, width).

    Args:
        images: files, Pillow images, or arrays of shape (height, width) or (height, width,
            channels). 8-bit arrays are images; arrays of other numbers keep their fractions
            through `resize`.
        preprocessing: a manifest's record, or one already parsed.

    Raises:
        SessionError: the record is malformed, images cannot be read, or end with different
            shapes; every image that cannot be read is named.
    """
    if not isinstance(preprocessing, ImagePreprocessing):
        preprocessing = parse(preprocessing)
    size = preprocessing.size or Size(0, 0)
    batch: NDArray[np.float32] | None = None
    faults: list[Finding] = []
    for index, image in enumerate(images):
        where = os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"image {index}"
        try:
            prepared = scaled(fitted(image, preprocessing, where), preprocessing)
        except PersistlibError as fault:
            faults += fault.findings
            continue
        if batch is None:
            batch = np.empty((len(images), *prepared.shape), np.float32)
        if batch.shape[1:] != prepared.shape:
            reason = f"{_extents(prepared)} pixels, where the first has {_extents(batch[0])}"
            raise error(Code.PREPROCESSING, where, reason, "run it alone, or record a resize")
        batch[index] = prepared
    if faults:
        raise error_of(faults)
    if batch is None:
        return np.empty((0, preprocessing.channels, *size), np.float32)
    return batch


def fitted(
    image: Pixels | Image.Image | str | os.PathLike[str], record: ImagePreprocessing, where: str
) -> Pixels:
    """Return one image as (channels, height, width), resized and cropped and not yet scaled.

    Args:
        image: as `apply`.
        record: how it is prepared.
        where: what errors call it.

    Raises:
        SessionError: it cannot be read, resized or cropped.
    """
    pixels = pixels_of(image, where)
    from PIL import Image

    given = Size(*pixels.shape[:2])
    end, resized = size_after(given, record, where), _resized(given, record.resize)
    method = Image.Resampling[record.interpolation.upper()]
    if pixels.dtype == np.uint8:
        image = Image.fromarray(pixels).convert("RGB" if record.channels == 3 else "L")
        planes = np.atleast_3d(
            np.asarray(image.resize((resized.width, resized.height), method))
        ).transpose(2, 0, 1)
    else:
        values = _with_channels(pixels.astype(np.float32), record.channels)
        images = (Image.fromarray(plane) for plane in values)
        planes = np.stack(
            [np.asarray(im.resize((resized.width, resized.height), method)) for im in images]
        )
    return _centre(planes, end)


def scaled(planes: Pixels, record: ImagePreprocessing) -> NDArray[np.float32]:
    """Return what `fitted` gave as the model takes it: divided by `scale`, shifted, divided.

    Law: `scaled(fitted(image, p, ""), p)` is `apply([image], p)[0]`.
    """
    column = (record.channels, 1, 1)
    result: NDArray[np.float32] = planes.astype(np.float32)
    result /= np.float32(record.scale)
    result -= np.array(record.mean, np.float32).reshape(column)
    result /= np.array(record.std, np.float32).reshape(column)
    return result


def size_after(given: Size, record: ImagePreprocessing, where: str) -> Size:
    """Return the size that an image of a given size ends with.

    Raises:
        SessionError: it cannot be resized, or is smaller than the part that is kept.
    """
    resized = _resized(given, record.resize)
    if resized.height * resized.width > MAX_PIXELS:
        raise unreadable(where, "too long and thin to be resized")
    end = record.size or resized
    if end.height > resized.height or end.width > resized.width:
        reason = f"{resized.height} x {resized.width} pixels, smaller than the crop"
        raise error(Code.PREPROCESSING, where, reason, "record a resize, or give a larger image")
    return end


def _resized(given: Size, resize: int | Size | None) -> Size:
    """Return the size after resizing; the longer edge is rounded down, as torchvision does."""
    if resize is None or isinstance(resize, Size):
        return resize or given
    short, long = sorted(given)
    longer = int(resize * long / short)
    return Size(longer, resize) if given.height > given.width else Size(resize, longer)


def _with_channels(values: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """Return numbers of (height, width[, 3]) as (channels, height, width)."""
    if values.ndim == 3:
        planes = (values @ _LUMA)[None] if channels == 1 else np.moveaxis(values, 2, 0)
    else:
        planes = np.broadcast_to(values, (channels, *values.shape))
    return np.ascontiguousarray(planes, np.float32)


def _centre(planes: Pixels, crop: Size) -> Pixels:
    height, width = planes.shape[1:]
    top, left = round((height - crop.height) / 2), round((width - crop.width) / 2)
    return planes[:, top : top + crop.height, left : left + crop.width]


def _extents(planes: Pixels) -> str:
    return f"{planes.shape[-2]} x {planes.shape[-1]}"
