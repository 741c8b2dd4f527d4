"""How training images are varied: transforms of torchvision, by name and plain arguments.

Steps are data, such as `{"name": "RandomHorizontalFlip", "p": 0.5}`, or words, such as `flip:0.5`.
Names and their arguments stand in one table; nothing else can be named. They work on pixels that
were resized and cropped and are not scaled yet, so that one epoch costs no second decoding and
colours are colours. Arrays and data sets of one's own are varied as they are.

Law: what a sample becomes follows from the random state alone, which the run seeds from (seed,
epoch, index); `steps_of(words)` of what `steps_of` gave is that again.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from persistlib.errors import Code, PersistlibError, UsageError, error, error_of, finding
from persistlib.training import nests
from persistlib.wording import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pydantic import JsonValue

    from persistlib.errors import Finding
    from persistlib.training.batches import Batches

_LARGEST = 8192
_IMAGE_RANK = 3
_CHANNELS = (1, 3)


class _Kind(NamedTuple):
    """A transform that may be named.

    Attributes:
        name: in `torchvision.transforms.v2`.
        parameters: the arguments that it may be given.
        of_word: the arguments that a number after the word means; None where there is none.
        usual: all that the word alone means, so that the record says it.
        needs_pixels: whether it means colours, and takes 8-bit pixels alone.
        is_sized: whether it takes the image's size as its first argument.
    """

    name: str
    parameters: tuple[str, ...]
    of_word: Callable[[float], dict[str, Any]] | None
    usual: Mapping[str, Any]
    needs_pixels: bool = False
    is_sized: bool = False


def _p(value: float) -> dict[str, Any]:
    return {"p": value}


def _whole(name: str) -> Callable[[float], dict[str, Any]]:
    return lambda value: {name: int(value) if value == int(value) else value}


_HALF = {"p": 0.5}
_COLOURS = ("brightness", "contrast", "saturation")
_MOVED = ("degrees", "translate", "scale", "shear", "fill")
# By the word that means it at the command line.
KINDS: Mapping[str, _Kind] = {
    "flip": _Kind("RandomHorizontalFlip", ("p",), _p, _HALF),
    "vflip": _Kind("RandomVerticalFlip", ("p",), _p, _HALF),
    "crop": _Kind(
        *("RandomCrop", ("padding", "fill", "padding_mode"), _whole("padding"), {"padding": 4}),
        is_sized=True,
    ),
    "zoom": _Kind(
        *("RandomResizedCrop", ("scale", "ratio")),
        lambda value: {"scale": [value, 1.0]},
        {"scale": [0.25, 1.0], "ratio": [0.75, 1.3333]},
        is_sized=True,
    ),
    "rotate": _Kind(
        "RandomRotation", ("degrees", "fill"), lambda value: {"degrees": value}, {"degrees": 15.0}
    ),
    "shift": _Kind(
        *("RandomAffine", _MOVED),
        lambda value: {"translate": [value, value]},
        {"degrees": 0.0, "translate": [0.1, 0.1]},
    ),
    "perspective": _Kind(
        *("RandomPerspective", ("distortion_scale", "p", "fill")),
        lambda value: {"distortion_scale": value},
        {"distortion_scale": 0.5, **_HALF},
    ),
    "erase": _Kind(
        *("RandomErasing", ("p", "scale", "ratio", "value"), _p),
        {**_HALF, "scale": [0.02, 0.33], "ratio": [0.3, 3.3], "value": 0},
    ),
    "blur": _Kind(
        *("GaussianBlur", ("kernel_size", "sigma"), _whole("kernel_size")),
        {"kernel_size": 3, "sigma": [0.1, 2.0]},
    ),
    "jitter": _Kind(
        *("ColorJitter", (*_COLOURS, "hue")),
        lambda value: dict.fromkeys(_COLOURS, value),
        dict.fromkeys(_COLOURS, 0.2),
        needs_pixels=True,
    ),
    "grey": _Kind("RandomGrayscale", ("p",), _p, {"p": 0.1}, needs_pixels=True),
    "sharpen": _Kind(
        *("RandomAdjustSharpness", ("sharpness_factor", "p")),
        lambda value: {"sharpness_factor": value},
        {"sharpness_factor": 2.0, **_HALF},
        needs_pixels=True,
    ),
    "autocontrast": _Kind("RandomAutocontrast", ("p",), _p, _HALF, needs_pixels=True),
    "equalize": _Kind("RandomEqualize", ("p",), _p, _HALF, needs_pixels=True),
    "invert": _Kind("RandomInvert", ("p",), _p, _HALF, needs_pixels=True),
    "posterize": _Kind(
        *("RandomPosterize", ("bits", "p"), _whole("bits"), {"bits": 4, **_HALF}),
        needs_pixels=True,
    ),
    "solarize": _Kind(
        *("RandomSolarize", ("threshold", "p"), _whole("threshold"), {"threshold": 128, **_HALF}),
        needs_pixels=True,
    ),
    "trivial": _Kind(
        *("TrivialAugmentWide", ("num_magnitude_bins",), _whole("num_magnitude_bins")),
        {"num_magnitude_bins": 31},
        needs_pixels=True,
    ),
    "rand": _Kind(
        *("RandAugment", ("num_ops", "magnitude"), _whole("magnitude")),
        {"num_ops": 2, "magnitude": 9},
        needs_pixels=True,
    ),
    "auto": _Kind("AutoAugment", ("policy",), None, {"policy": "imagenet"}, needs_pixels=True),
    "augmix": _Kind(
        *("AugMix", ("severity", "mixture_width", "alpha"), _whole("severity")),
        {"severity": 3, "mixture_width": 3, "alpha": 1.0},
        needs_pixels=True,
    ),
}
_BY_NAME = {kind.name: kind for kind in KINDS.values()}


def steps_of(given: str | Sequence[Mapping[str, Any]]) -> list[dict[str, JsonValue]]:
    """Return steps as data, each with its name first.

    Args:
        given: words by commas, each with a number after a colon or not (`flip,crop:4`), or steps.

    Raises:
        UsageError: a name, an argument or a value is none of the table's; every fault is reported.
    """
    faults: list[Finding] = []
    steps: list[dict[str, JsonValue]] = []
    words: Sequence[Any] = given.split(",") if isinstance(given, str) else given
    for number, item in enumerate(words):
        where = f"augment[{number}]"
        try:
            steps.append(_of_word(item.strip()) if isinstance(item, str) else _of_step(item))
            _built(steps[-1], (32, 32))
        except ValueError as fault:
            faults.append(finding(Code.USAGE, where, f"{fault}", _remedy()))
    if faults:
        raise error_of(faults)
    return steps


def _of_word(word: str) -> dict[str, JsonValue]:
    name, colon, text = word.partition(":")
    if (kind := KINDS.get(name)) is None:
        raise ValueError(f"{word!r} is no step")
    if not colon:
        return _checked(kind, kind.usual)
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None
    if kind.of_word is None:
        raise ValueError(f"{name} takes no number")
    return _checked(kind, {**kind.usual, **kind.of_word(value)})


def _of_step(step: Any) -> dict[str, JsonValue]:
    if not hasattr(step, "items") or "name" not in step:
        raise ValueError(f"{step!r} is no mapping with a name")
    if (kind := _BY_NAME.get(step["name"])) is None:
        raise ValueError(f"{step['name']!r} is no transform that may be named")
    return _checked(kind, {name: value for name, value in step.items() if name != "name"})


def _checked(kind: _Kind, arguments: Mapping[str, Any]) -> dict[str, JsonValue]:
    for name, value in arguments.items():
        if name not in kind.parameters:
            raise ValueError(f"{kind.name} takes {', '.join(kind.parameters)}, and no {name!r}")
        if not _is_plain(value):
            raise ValueError(f"{name}={value!r} is no plain number within {_LARGEST}")
    plain: dict[str, JsonValue] = {"name": kind.name}
    for name, value in arguments.items():
        plain[name] = [*value] if isinstance(value, (list, tuple)) else value
    return plain


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return 0 < len(value) <= _LARGEST and all(map(_is_plain, value))
    if isinstance(value, (int, float)):
        return math.isfinite(value) and abs(value) <= _LARGEST
    return isinstance(value, str) and value.isidentifier()


def _built(step: Mapping[str, Any], size: tuple[int, int]) -> Any:
    """Return the transform of a step, for images of a size.

    Raises:
        ValueError: torchvision refuses the arguments.
    """
    from torchvision.transforms import v2

    arguments = {name: value for name, value in step.items() if name != "name"}
    kind = _BY_NAME[step["name"]]
    try:
        if "policy" in arguments:
            arguments["policy"] = v2.AutoAugmentPolicy(arguments["policy"])
        if kind.is_sized:
            arguments["size"] = size
        return getattr(v2, kind.name)(**arguments)
    except (TypeError, ValueError) as fault:
        raise ValueError(f"{kind.name}: {fault}") from fault


def _remedy() -> str:
    return f"name some of {', '.join(KINDS)}, as flip,crop:4; or steps (docs/fine-tuning.md)"


class Variation:
    """Steps one after the other, on images of shape (channels, height, width)."""

    def __init__(self, steps: Sequence[Mapping[str, Any]]) -> None:
        self._steps = steps
        self._built: dict[tuple[int, int], list[Any]] = {}
        self.needs_pixels = [s["name"] for s in steps if _BY_NAME[s["name"]].needs_pixels]

    def __call__(self, image: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
        """Return an image varied; with a mask of its size both, moved alike.

        The random state of torch's global generator says how.
        """
        from torchvision import tv_tensors

        height, width = image.shape[-2:]
        if (height, width) not in self._built:
            self._built[height, width] = [_built(step, (height, width)) for step in self._steps]
        if mask is None:
            for step in self._built[height, width]:
                image = step(image)
            return image
        both = tv_tensors.Image(image), tv_tensors.Mask(mask)
        for step in self._built[height, width]:
            both = step(*both)
        return tuple(item.as_subclass(torch.Tensor) for item in both)


class VariedSamples(Dataset[tuple[Any, Any]]):
    """Samples whose images are varied anew whenever they are asked for.

    Attributes:
        fixed: never: no features are kept of them.
        of_arrays: whether they come of arrays, and of no data set.
    """

    fixed = False

    def __init__(self, samples: Any, steps: Sequence[Mapping[str, Any]], plain: Batches) -> None:
        self._samples = samples
        self._vary = Variation(steps)
        self._plain = plain
        self._size = plain.size
        self.of_arrays = plain.known_targets() is not None
        self._require_images()

    @property
    def digest(self) -> str:
        """The identity of the samples; how they are varied is a setting of the run."""
        return self._plain.digest()

    def __len__(self) -> int:
        assert self._size is not None
        return self._size

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if hasattr(self._samples, "varied"):
            return self._samples.varied(index, self._vary)  # type: ignore[no-any-return]
        if (targets := self._plain.known_targets()) is None:
            image, target = self._samples[index]
        else:
            image, target = self._samples[0][index], nests.each(lambda item: item[index], targets)
        return varied(image, target, self._vary)

    def _require_images(self) -> None:
        """Try the steps on a sample, so that what cannot be varied is said before the training.

        Raises:
            UsageError: there are no single samples, or they are no images that the steps take.
        """
        if self._size is None:
            raise _unfit("batches of one's own", "give arrays or a data set, or vary them there")
        before = torch.get_rng_state()
        try:
            self[0]
        except PersistlibError:
            raise
        except Exception as fault:
            # Transforms raise what they like, and so does anybody's data set.
            raise _unfit(first_line(fault), "leave that step out") from fault
        finally:
            torch.set_rng_state(before)


def varied(image: Any, target: Any, vary: Variation) -> tuple[Any, Any]:
    """Return an image varied, and its target; a mask is moved as its image is.

    Raises:
        UsageError: it is no image, or a step needs 8-bit pixels.
    """
    image = torch.from_numpy(image) if isinstance(image, np.ndarray) else image
    if not isinstance(image, torch.Tensor) or image.ndim != _IMAGE_RANK:
        what = tuple(image.shape) if isinstance(image, torch.Tensor) else type(image).__name__
        raise _unfit(f"a sample is {what}", "images are (channels, height, width)")
    if image.dtype != torch.uint8 and vary.needs_pixels:
        steps = ", ".join(vary.needs_pixels)
        raise _unfit(f"{steps} on numbers of {image.dtype}", "colours are of 8-bit pixels alone")
    mask = torch.as_tensor(target) if isinstance(target, (np.ndarray, torch.Tensor)) else None
    if mask is not None and mask.shape[-2:] == image.shape[-2:]:
        return vary(image, mask)  # type: ignore[no-any-return]
    return vary(image), target


def _unfit(reason: str, remedy: str) -> UsageError:
    made = error(Code.USAGE, "augment", reason, remedy)
    assert isinstance(made, UsageError)
    return made


def in_words(steps: Sequence[Mapping[str, Any]]) -> str:
    """Return steps in words, in their order."""
    words: list[str] = []
    for step in steps:
        arguments = [f"{name} {value}" for name, value in step.items() if name != "name"]
        tail = f" ({', '.join(arguments)})" if arguments else ""
        words.append(f"{step['name']}{tail}")
    return ", ".join(words)
