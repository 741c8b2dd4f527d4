"""Where a Keras model flattens a map of positions and channels: the order torch has is another.

Keras flattens (height, width, channel), torch (channel, height, width). Weights behind it are never
permuted, because the model in torch may permute instead; a note says which layers it is about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.converters.keras_config import Layer

# Layers that neither mix the features of one position nor have weights for each.
_PASSING = {
    *("Activation", "ActivityRegularization", "AlphaDropout", "Dropout", "ELU", "GaussianDropout"),
    *("GaussianNoise", "LeakyReLU", "Masking", "ReLU", "Softmax"),
}
# Layers looked through from one; more stand between two in no well-meant model.
_FAR = 64
# What has no positions, or has them before its channels in torch too.
_FLAT = {"Dense", "Embedding", "LSTM", "GRU", "SimpleRNN", "RNN", "Bidirectional"}


def flattened(model: Layer) -> tuple[str, ...]:
    """Return a note for each layer whose inputs were flattened with their channels last."""
    return tuple(
        f"{reader}: its input was flattened by {flat}, channels last; in torch permute to channels "
        "last before flattening, or permute this layer's inputs"
        for inner in model.walk()
        if inner.is_model
        for flat, reader in _pairs(inner)
    )


def _pairs(model: Layer) -> Iterator[tuple[Layer, str]]:
    """Yield a model's flattening layers, each with every layer that reads what it gives."""
    layers = {layer.name: layer for layer in model.parts.values()}
    before = _before(model)
    flat = {
        name
        for name, layer in layers.items()
        if _flattens(layer)
        and any(_has_channels(layers[at]) for at in _sources(layers, before, name, _PASSING))
    }
    if not flat:
        return
    readers: dict[str, list[str]] = {name: [] for name in flat}
    for name, layer in layers.items():
        if layer.kind not in _PASSING:
            for source in _sources(layers, before, name, _PASSING | {"BatchNormalization"}):
                if source in flat:
                    readers[source].append(str(layer))
    for name, found in readers.items():
        for reader in found or [f"what reads {model.name}"]:
            yield layers[name], reader


def _flattens(layer: Layer) -> bool:
    """Return whether a layer makes one axis of all."""
    target = layer.config.get("target_shape")
    is_line = layer.kind == "Reshape" and isinstance(target, list) and len(target) == 1
    return layer.kind == "Flatten" or is_line


def _before(model: Layer) -> dict[str, tuple[str, ...]]:
    """Return the names of the layers that feed each layer; in a Sequential the one before."""
    layers = list(model.parts.values())
    if any(layer.inputs for layer in layers):
        return {layer.name: layer.inputs for layer in layers}
    following = zip(layers[1:], layers, strict=False)
    return {layer.name: (other.name,) for layer, other in following}


def _sources(
    layers: dict[str, Layer], before: dict[str, tuple[str, ...]], name: str, passing: set[str]
) -> list[str]:
    """Return the layers that feed a layer, looking through those that only pass values on."""
    found: list[str] = []
    seen = {name}
    waiting = list(before.get(name, ()))
    while waiting and len(seen) < _FAR:
        at = waiting.pop()
        if at in seen or at not in layers:
            continue
        seen.add(at)
        if layers[at].kind in passing:
            waiting.extend(before.get(at, ()))
        else:
            found.append(at)
    return found


def _has_channels(layer: Layer) -> bool:
    """Return whether a layer may give positions with their channels behind them."""
    shape = layer.config.get("batch_shape", layer.config.get("batch_input_shape"))
    is_line = layer.kind == "InputLayer" and isinstance(shape, list) and len(shape) < 3
    is_first = layer.config.get("data_format") == "channels_first"
    is_flat = layer.kind in _FLAT or layer.kind.startswith("Global")
    return not (is_line or is_first or is_flat)
