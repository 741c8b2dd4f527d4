"""Image files and arrays as pixels; Pillow decodes, within bounds, and nothing is executed."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from persistlib.errors import Code, PersistlibError, error

if TYPE_CHECKING:
    from PIL import Image

Pixels: TypeAlias = NDArray[Any]

# Formats that Pillow decodes in its own process and without a helper program: EPS would start
# Ghostscript, WMF asks the system, and containers of other files have no place here.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
ENDINGS = frozenset(
    {
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".dib", ".tif"),
        *(".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    }
)
# Pillow warns of a decompression bomb just above this.
MAX_PIXELS = 89_000_000
MAX_FILE = 512 << 20


def read_image(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Return an image file as 8-bit pixels: (height, width) when grey, else (height, width, 3).

    The first frame, turned as its EXIF data says; 16-bit grey is brought to 8 bits; transparency
    is dropped, as torchvision's loaders do.

    Raises:
        SessionError: it is no image of `FORMATS`, is damaged, or larger than `MAX_PIXELS`.
    """
    from PIL import Image

    where = os.fspath(path)
    try:
        with open(_open(path), "rb") as file, Image.open(file, formats=FORMATS) as image:
            return _decode(image, where)
    except PersistlibError:
        raise
    except Exception as fault:
        # Decoders raise whatever their bytes lead them to: struct.error, SyntaxError, EOFError.
        raise unreadable(where, _told(fault)) from fault


def _told(fault: Exception) -> str:
    """Return why a file is no image; Pillow names its own stream where it knows none."""
    from PIL import UnidentifiedImageError

    if isinstance(fault, UnidentifiedImageError):
        return "no image of a format that is read"
    return getattr(fault, "strerror", None) or str(fault) or type(fault).__name__


def has_image_ending(name: str) -> bool:
    """Return whether a file's name ends as that of an image of `FORMATS` may; or has no ending."""
    ending = os.path.splitext(name)[1].lower()
    return not ending or ending in ENDINGS


def pixels_of(image: Pixels | Image.Image | str | os.PathLike[str], where: str) -> Pixels:
    """Return an image as an array of (height, width) or (height, width, 3).

    Args:
        image: a file, a Pillow image, or an array with 1, 3 or 4 channels last, or none.
        where: what errors call it.

    Raises:
        SessionError: it cannot be read, or holds what is no finite number.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    if not isinstance(image, np.ndarray):
        try:
            return _decode(image, where)
        except (AttributeError, OSError, SyntaxError, ValueError) as fault:
            raise unreadable(where, f"{type(image).__name__}: {fault}") from fault
    shape = image.shape
    if len(shape) not in {2, 3} or 0 in shape or shape[2:] not in {(), (1,), (3,), (4,)}:
        expected = "expected (height, width) or (height, width, 1, 3 or 4)"
        raise unreadable(where, f"an array of shape {shape}; {expected}")
    if image.dtype.kind not in "uif" or not np.isfinite(image).all():
        raise unreadable(where, f"an array of {image.dtype} that holds no finite numbers")
    if len(shape) == 2:
        return image
    return image[:, :, 0] if shape[2] == 1 else image[:, :, :3]


def unreadable(where: str, reason: str) -> PersistlibError:
    """Return the error of an image that cannot be used."""
    remedy = f"give an image that Pillow reads ({', '.join(FORMATS)})"
    return error(Code.IMAGE_UNREADABLE, where, reason, remedy)


def _open(path: str | os.PathLike[str]) -> int:
    """Return a descriptor of a regular file of bounded size."""
    # O_NONBLOCK: a named pipe must not hang the reader.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE:
        os.close(fd)
        raise unreadable(os.fspath(path), f"not a regular file of at most {MAX_FILE >> 20} MiB")
    return fd


def _decode(image: Image.Image, where: str) -> NDArray[np.uint8]:
    """Return a Pillow image as 8-bit grey or RGB pixels."""
    from PIL import ImageOps

    if image.width * image.height > MAX_PIXELS:
        raise unreadable(where, f"{image.width} x {image.height} is beyond {MAX_PIXELS} pixels")
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise unreadable(where, "floating point pixels do not say what is white")
    if image.mode.startswith("I"):
        wide = np.asarray(image.convert("I"))
        if not 0 <= int(wide.min()) <= int(wide.max()) <= 0xFFFF:
            raise unreadable(where, "pixel values outside 0 to 65535")
        return ((wide + 128) // 257).astype(np.uint8)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # directly to RGB, Pillow warns
    return np.array(image.convert("L" if image.mode in {"1", "L", "LA"} else "RGB"))
