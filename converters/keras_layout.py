"""torch's names and axes for the weights of Keras' layers, told by the layers' classes.

Law: a layer of torch's class that holds these tensors computes what Keras' layer does (images and
sequences with their channels first, where torch wants them so). A weight whose rule is not known is
an error that names the layer, its class and the variable; nothing is guessed from shapes or order.

A rule is a pure function from a layer's configuration and weights to `Made` tensors: each says
which weights it is made of and how. Nothing is computed before it is asked for.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, NamedTuple

from persistlib.converters.keras_variables import (
    CONVOLUTIONS,
    DEPTHWISE,
    SEPARABLE,
    TRANSPOSED,
    uses_bias,
)
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import NoReturn

    import numpy as np

    from persistlib.checkpoint import Entry
    from persistlib.converters.keras_config import Layer
    from persistlib.dtypes import DType

    Make = Callable[..., np.ndarray]

Path = tuple[str, ...]
REMEDY = "convert without layout: weights keep the names they have in the file"


class Made(NamedTuple):
    """A tensor of a torch layer, and what it is made of.

    Attributes:
        name: its name in the layer, such as "weight".
        dtype: element type.
        shape: extents.
        sources: names of the weights it is made of.
        make: from those weights' arrays to its own; None where the bytes are the same.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    sources: tuple[str, ...] = ()
    make: Make | None = None


class Weights:
    """The weights of one layer, each taken once by the layer's rule.

    Attributes:
        layer: the layer.
        notes: what the rule wants said.
    """

    def __init__(self, layer: Layer, found: Mapping[tuple[Path, str], Entry], where: str) -> None:
        self.layer, self.notes = layer, list[str]()
        self._left, self._where = dict(found), where

    def has(self, variable: str, *place: str) -> bool:
        """Return whether the file holds a variable."""
        return (place, variable) in self._left

    def take(self, variable: str, rank: int | None, *place: str) -> Entry:
        """Return a variable of as many axes as the rule is about, None for any number.

        Raises:
            FormatError: the file has none, or it has another rank.
        """
        entry = self._left.pop((place, variable), None)
        if entry is None:
            self.refuse(f"{self.layer}: the file has no {'/'.join((*place, variable))}")
        if rank not in (None, len(entry.shape)):
            self.refuse(f"{self.layer}: {variable} has shape {entry.shape}, not {rank} axes")
        return entry

    def finish(self) -> None:
        """Refuse what the rule did not take.

        Raises:
            FormatError: a weight is left.
        """
        for place, variable in self._left:
            self.refuse(f"{self.layer}: no rule is known for {'/'.join((*place, variable))}")

    def refuse(self, reason: str) -> NoReturn:
        """Raise the error for a layer that the rules say nothing about."""
        raise error(Code.FORMAT_LAYOUT, self._where, reason, REMEDY)


def same(name: str, entry: Entry) -> Made:
    """Return a tensor that is a weight as it is."""
    return Made(name, entry.dtype, entry.shape, (entry.name,))


def transposed(name: str, entry: Entry, axes: tuple[int, ...]) -> Made:
    """Return a tensor that is a weight with its axes in another order."""
    shape = tuple(entry.shape[axis] for axis in axes)
    return Made(name, entry.dtype, shape, (entry.name,), lambda array: array.transpose(axes))


def filled(name: str, dtype: DType, shape: tuple[int, ...], value: int) -> Made:
    """Return a tensor of zeros or ones, for what torch has and Keras leaves out."""

    def make() -> np.ndarray:
        import numpy as np

        return np.full(shape, value, dtype.numpy)

    return Made(name, dtype, shape, (), make)


def _bias(weights: Weights) -> list[Made]:
    if uses_bias(weights.layer.kind, weights.layer.config) or weights.has("bias"):
        return [same("bias", weights.take("bias", 1))]
    return []


def _convolution(weights: Weights) -> list[Made]:
    """Kernel (space, in / groups, out) to torch's (out, in / groups, space)."""
    return [_kernel(weights, "kernel", "weight"), *_bias(weights)]


def _transposed_convolution(weights: Weights) -> list[Made]:
    """Kernel (space, out, in) to torch's (in, out, space)."""
    if weights.layer.config.get("groups", 1) != 1:
        weights.refuse(f"{weights.layer}: no rule is known for groups")
    return [_kernel(weights, "kernel", "weight"), *_bias(weights)]


def _kernel(weights: Weights, variable: str, name: str) -> Made:
    """Both last axes to the front, the last one first."""
    space = _space(weights.layer)
    if weights.layer.config.get("dim_ordering") == "th":
        weights.refuse(f"{weights.layer}: no rule is known for Theano's order of axes")
    entry = weights.take(variable, space + 2)
    return transposed(name, entry, (space + 1, space, *range(space)))


def _space(layer: Layer) -> int:
    """Return how many axes of space a convolution has, as its class is called."""
    found = re.search(r"([123])D", layer.kind)
    assert found is not None
    return int(found[1])


def _depthwise(weights: Weights) -> list[Made]:
    """Kernel (space, in, multiplier) to torch's (in x multiplier, 1, space), groups = in."""
    return [_depthwise_kernel(weights, "kernel", "weight"), *_bias(weights)]


def _depthwise_kernel(weights: Weights, variable: str, name: str) -> Made:
    space = _space(weights.layer)
    entry = weights.take(variable, space + 2)
    *extents, channels, multiplier = entry.shape
    shape = (channels * multiplier, 1, *extents)
    axes = (space, space + 1, *range(space))
    return Made(
        name,
        entry.dtype,
        shape,
        (entry.name,),
        lambda array: array.transpose(axes).reshape(shape),
    )


def _separable(weights: Weights) -> list[Made]:
    """Two convolutions, `depthwise` without bias and `pointwise` with it."""
    depthwise = _depthwise_kernel(weights, "depthwise_kernel", "depthwise.weight")
    pointwise = _kernel(weights, "pointwise_kernel", "pointwise.weight")
    return [depthwise, pointwise, *(m._replace(name="pointwise.bias") for m in _bias(weights))]


def _dense(weights: Weights) -> list[Made]:
    """Kernel (in, out) to torch's (out, in)."""
    return [transposed("weight", weights.take("kernel", 2), (1, 0)), *_bias(weights)]


def _einsum_dense(weights: Weights) -> list[Made]:
    """An equation that sums over the last axis and puts another in its place is a Dense."""
    config = weights.layer.config
    found = re.fullmatch(r"([a-zA-Z.]+),([a-zA-Z]{2})->([a-zA-Z.]+)", str(config.get("equation")))
    read, kernel, written = found.groups() if found else ("", "", "")
    axes = {read[-1:] + written[-1:]: (1, 0), written[-1:] + read[-1:]: (0, 1)}.get(kernel)
    is_dense = read[:-1] == written[:-1] and read[-1:] not in written and written[-1:] not in read
    if axes is None or not is_dense or config.get("bias_axes") not in (None, "", written[-1:]):
        weights.refuse(f"{weights.layer}: the equation {config.get('equation')} makes it no Dense")
    made = [transposed("weight", weights.take("kernel", 2), axes)]
    if config.get("bias_axes"):
        made.append(same("bias", weights.take("bias", 1)))
    return made


def _batch_normalization(weights: Weights) -> list[Made]:
    return [
        *_affine(weights),
        same("running_mean", weights.take("moving_mean", 1)),
        same("running_var", weights.take("moving_variance", 1)),
    ]


def _affine(weights: Weights) -> list[Made]:
    """Gamma and beta to weight and bias, which torch's layers have both or neither.

    With one of the two the other is filled with what it does without: ones, or zeros.
    """
    names = {"gamma": ("weight", "scale", 1), "beta": ("bias", "center", 0)}
    wanted = {
        variable: weights.layer.config.get(argument, True) or weights.has(variable)
        for variable, (_, argument, _) in names.items()
    }
    found = {variable: weights.take(variable, 1) for variable, is_in in wanted.items() if is_in}
    if not found:
        weights.notes.append(f"{weights.layer} has neither gamma nor beta: affine=False in torch")
        return []
    other = next(iter(found.values()))
    made: list[Made] = []
    for variable, (name, argument, value) in names.items():
        if variable in found:
            made.append(same(name, found[variable]))
        else:
            made.append(filled(name, other.dtype, other.shape, value))
            what = "ones" if value else "zeros"
            weights.notes.append(
                f"{weights.layer} has {argument}=False: its {name} is all {what}, as torch needs it"
            )
    return made


def _layer_normalization(weights: Weights) -> list[Made]:
    config = weights.layer.config
    axis = config.get("axis", -1)
    last = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    if config.get("rms_scaling") or type(last) is not int or last < -1:
        weights.refuse(f"{weights.layer}: only mean and variance of the last axis have a rule")
    if last != -1:
        weights.notes.append(
            f"{weights.layer} normalises axis {last}: torch's LayerNorm only ever the last ones"
        )
    return _affine(weights)


def _embedding(weights: Weights) -> list[Made]:
    return [same("weight", weights.take("embeddings", 2))]


def _prelu(weights: Weights) -> list[Made]:
    """Slopes that differ by channel alone: torch has one for each, or one for all."""
    alpha = weights.take("alpha", None)
    if math.prod(alpha.shape) != math.prod(alpha.shape[-1:]):
        weights.refuse(
            f"{weights.layer}: alpha has shape {alpha.shape}; in torch slopes differ by channel"
        )
    return [Made("weight", alpha.dtype, (math.prod(alpha.shape),), (alpha.name,))]


RULES: Mapping[str, Callable[[Weights], list[Made]]] = {
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    **dict.fromkeys(TRANSPOSED, _transposed_convolution),
    **dict.fromkeys(DEPTHWISE, _depthwise),
    **dict.fromkeys(SEPARABLE, _separable),
    "BatchNormalization": _batch_normalization,
    "Dense": _dense,
    "EinsumDense": _einsum_dense,
    "Embedding": _embedding,
    "GroupNormalization": _affine,
    "LayerNormalization": _layer_normalization,
    "PReLU": _prelu,
}
