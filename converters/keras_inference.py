"""The layers of an `.h5` file of weights alone, where names and ranks leave one class.

Law: a layer gets a class only if no other class of the Keras release that wrote the file has
variables of these names and ranks. What two classes could have made is an error that names both.

Up to Keras 2.3 a layer with `kernel` and `bias` is a Dense, a locally connected or a convolutional
layer, and the ranks tell which; transposed convolutions of two and three axes of space exist, and
are told by the side that the bias fits. Keras 2.4 brought Conv1DTranspose and EinsumDense, which
leave no rank without doubt. Batch normalisation has names of its own in every release.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from persistlib.converters.keras_config import Layer
from persistlib.converters.keras_names import REMEDY, plain
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from persistlib.checkpoint import Entry
    from persistlib.converters.keras_details import Details

_Shapes = dict[str, tuple[int, ...]]
_STATISTICS = {"moving_mean", "moving_variance"}
# Releases before this one have no class that another could be taken for.
_CLEAR = (2, 4)


def inferred(
    details: Details, entries: tuple[Entry, ...], location: str
) -> tuple[Layer, list[str]]:
    """Return a model of the layers that the weights tell, and a note that says so.

    Raises:
        FormatError: some layer could be of two classes.
    """
    layers: dict[str, _Shapes] = {}
    for entry, (group, weight) in zip(entries, details.paths, strict=True):
        layers.setdefault(group, {})[_variable(group, weight)] = entry.shape
    numbers = re.match(r"(\d{1,4})\.(\d{1,4})", details.version)
    is_clear = numbers is not None and (int(numbers[1]), int(numbers[2])) < _CLEAR
    parts: dict[tuple[str, ...], Layer] = {}
    for group, shapes in layers.items():
        kinds = _kinds(shapes, is_clear=is_clear)
        if len(kinds) != 1:
            said = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            choice = f"could be {' or '.join(kinds)}" if kinds else "tell no class"
            raise error(
                Code.FORMAT_LAYOUT,
                f"{location}: {group}",
                f"the file has no configuration, and the weights ({said}) {choice}",
                f"convert the whole model's file (model.save), or {REMEDY.partition(':')[0]}",
            )
        parts["layers", group] = Layer(group, kinds[0], _config(shapes), (group,))
    told = ", ".join(f"{layer.name} {layer.kind}" for layer in parts.values())
    note = (
        f"the file has no configuration; classes as names and ranks tell them in Keras "
        f"{details.version}: {told}"
    )
    return Layer("model", "Model", {}, (), parts), [note]


def _variable(group: str, weight: str) -> str:
    """Return what a layer calls a weight, or all its path where it is of a layer inside."""
    scope, _, name = plain(weight).rpartition("/")
    return name if re.fullmatch(re.escape(group) + r"(_\d+)?", scope) else plain(weight)


def _kinds(shapes: _Shapes, *, is_clear: bool) -> list[str]:
    """Return the classes that have variables of these names and shapes."""
    names = set(shapes)
    if shapes.keys() >= _STATISTICS:
        return ["BatchNormalization"] if names <= _STATISTICS | {"gamma", "beta"} else []
    if not is_clear:
        return _doubtful(names)
    if names == {"embeddings"}:
        return ["Embedding"]
    if "bias" in names and len(shapes["bias"]) == 1:
        return _with_bias(names, shapes)
    return []


def _doubtful(names: set[str]) -> list[str]:
    """Return what newer releases could have made of these names."""
    if names <= {"kernel", "bias"} and "kernel" in names:
        return ["a Dense or convolution", "its transpose", "an EinsumDense"]
    return []


def _with_bias(names: set[str], shapes: _Shapes) -> list[str]:
    space = max(len(shape) for shape in shapes.values()) - 2
    if names == {"depthwise_kernel", "pointwise_kernel", "bias"} and space in {1, 2}:
        return [f"SeparableConv{space}D"]
    if names == {"depthwise_kernel", "bias"} and space == 2:
        return ["DepthwiseConv2D"]
    if names != {"kernel", "bias"} or not 0 <= space <= 3:
        return []
    (filters,) = shapes["bias"]
    kernel = shapes["kernel"]
    found = []
    if kernel[-1] == filters:
        found.append(f"Conv{space}D" if space else "Dense")
    if space > 1 and kernel[-2] == filters:
        found.append(f"Conv{space}DTranspose")
    return found


def _config(shapes: Mapping[str, Any]) -> dict[str, bool]:
    return {
        "use_bias": "bias" in shapes,
        "scale": "gamma" in shapes,
        "center": "beta" in shapes,
    }
