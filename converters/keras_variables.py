"""What Keras' layers call their variables, and in which order: files that number them say no more.

The order is that of `Layer.save_own_variables`, as read in the sources of Keras 3.0 to 3.15: the
trainable ones in the order they are made, then the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

# A variable, and the argument without which there is none.
_Variable = tuple[str, str]
_KERNEL: tuple[_Variable, ...] = (("kernel", ""), ("bias", "use_bias"))
_AFFINE: tuple[_Variable, ...] = (("gamma", "scale"), ("beta", "center"))
_CELL: tuple[_Variable, ...] = (("kernel", ""), ("recurrent_kernel", ""), ("bias", "use_bias"))
_SEPARABLE: tuple[_Variable, ...] = (
    ("depthwise_kernel", ""),
    ("pointwise_kernel", ""),
    ("bias", "use_bias"),
)
CONVOLUTIONS = ("Conv1D", "Conv2D", "Conv3D")
TRANSPOSED = ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
DEPTHWISE = ("DepthwiseConv1D", "DepthwiseConv2D")
SEPARABLE = ("SeparableConv1D", "SeparableConv2D")
CELLS = ("GRUCell", "LSTMCell", "SimpleRNNCell")
_ORDER: Mapping[str, tuple[_Variable, ...]] = {
    **dict.fromkeys((*CONVOLUTIONS, *TRANSPOSED, *DEPTHWISE, "Dense", "EinsumDense"), _KERNEL),
    **dict.fromkeys(SEPARABLE, _SEPARABLE),
    **dict.fromkeys(CELLS, _CELL),
    **dict.fromkeys(("LayerNormalization", "GroupNormalization"), _AFFINE),
    "BatchNormalization": (*_AFFINE, ("moving_mean", ""), ("moving_variance", "")),
    "Embedding": (("embeddings", ""),),
    "PReLU": (("alpha", ""),),
}


def variable_names(kind: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a layer of Keras' class `kind` calls its variables, in order; nothing if unknown.

    Args:
        kind: the class.
        config: the layer's arguments; those that are absent are as Keras' defaults, true.
    """
    config = {**config, "use_bias": uses_bias(kind, config)}
    return tuple(
        name for name, needs in _ORDER.get(kind, ()) if not needs or config.get(needs, True)
    )


def uses_bias(kind: str, config: Mapping[str, Any]) -> bool:
    """Return whether a layer has a bias; Keras 1 calls the argument `bias`."""
    if kind == "EinsumDense":
        return config.get("bias_axes") is not None
    return bool(config.get("use_bias", config.get("bias", True)))
