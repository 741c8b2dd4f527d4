"""What goes in and comes out of an adapted model: shapes, labels and preprocessing follow."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from persistlib.errors import Code, warn
from persistlib.preprocessing import Size, parse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from persistlib.adaptation.classes import Head
    from persistlib.adaptation.trial import Image
    from persistlib.adaptation.wishes import Classes
    from persistlib.manifest.schema import Interface, TensorSpec
    from persistlib.preprocessing import ImagePreprocessing

_PREPARED = (1, 3)  # channels that images can be prepared for


class Followed(NamedTuple):
    """An interface after a change, and what has to be told of it."""

    interface: Interface
    notes: tuple[str, ...] = ()


def with_size(interface: Interface, image: Image, size: Size) -> Followed:
    """Return the interface for images of another size.

    What is cropped keeps its share of the picture: `resize` grows as `crop` does.
    """
    given = _with_extents(interface, image, {-2: size.height, -1: size.width})
    if interface.preprocessing is None:
        return Followed(given)
    record = parse(interface.preprocessing)
    return Followed(_prepared(given, _resized(record, size)))


def _resized(record: ImagePreprocessing, size: Size) -> ImagePreprocessing:
    if record.resize is None and record.crop is None:
        return record
    before = record.size or size
    resize = record.resize
    if isinstance(resize, Size):
        edges = zip(resize, before, size, strict=True)
        resize = Size(*(round(edge * new / old) for edge, old, new in edges))
    elif resize is not None:
        resize = max(round(resize * max(size) / max(before)), *size)
    has_crop = record.crop is not None or size.height != size.width
    crop = size if has_crop and not isinstance(record.resize, Size) else record.crop and size
    return dataclasses.replace(record, resize=resize, crop=crop)


def with_channels(interface: Interface, image: Image, channels: int) -> Followed:
    """Return the interface for images of another number of channels.

    Mean and deviation become the averages over the channels where there is one afterwards, and are
    repeated where there were none to tell apart. Preprocessing that no record says is left out.
    """
    given = _with_extents(interface, image, {1: channels})
    if interface.preprocessing is None:
        return Followed(given)
    record = parse(interface.preprocessing)
    if channels not in _PREPARED or record.channels != image.channels:
        reason = f"no record prepares images of {channels} channels; it is left out"
        warn(Code.PREPROCESSING, "interface.preprocessing", reason, "prepare inputs yourself")
        note = f"preprocessing left out: {reason}"
        return Followed(given.model_copy(update={"preprocessing": None}), (note,))
    mean, std = ((sum(values) / len(values),) * channels for values in (record.mean, record.std))
    made = dataclasses.replace(record, channels=channels, mean=mean, std=std)
    differed = len({*record.mean}) > 1 or len({*record.std}) > 1
    note = "pictures are normalised by the averages of the channels' figures, which differed"
    return Followed(_prepared(given, made), (note,) if differed else ())


def with_classes(
    interface: Interface,
    head: Head,
    classes: Classes,
    outputs: Sequence[str],
    *,
    labelled: bool,
) -> Followed:
    """Return the interface with other classes at one of the outputs.

    Args:
        interface: as it was.
        head: the layer that was replaced.
        classes: its new ones.
        outputs: names of the model's outputs in evaluation, in order.
        labelled: whether the interface's labels are those of this output.
    """
    if head.output not in outputs:
        return Followed(interface)
    at = outputs.index(head.output)
    specs = list(interface.outputs)
    if len(specs) == len(outputs) and len(specs[at].shape) > head.axis:
        specs[at] = _with_axes(specs[at], {head.axis: classes.number})
    given = interface.model_copy(update={"outputs": tuple(specs)})
    if not labelled:
        return Followed(given)
    note = "the new classes have no labels" if interface.labels and not classes.labels else ""
    return Followed(given.model_copy(update={"labels": classes.labels}), (note,) if note else ())


def _with_extents(interface: Interface, image: Image, axes: dict[int, int]) -> Interface:
    specs = list(interface.inputs)
    if specs:
        specs[image.place] = _with_axes(specs[image.place], axes)
    return interface.model_copy(update={"inputs": tuple(specs)})


def _with_axes(spec: TensorSpec, axes: dict[int, int]) -> TensorSpec:
    """Return a spec with other extents where they were fixed; free ones stay free."""
    shape = list(spec.shape)
    for axis, extent in axes.items():
        if isinstance(shape[axis], int):
            shape[axis] = extent
    return spec.model_copy(update={"shape": tuple(shape)})


def _prepared(interface: Interface, record: ImagePreprocessing) -> Interface:
    return interface.model_copy(update={"preprocessing": record.to_dict()})
