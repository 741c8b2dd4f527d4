"""What real Keras 3 writes: small models of every rule, run as a program in a process of its own.

Keras sets up its backend for the whole process, and warns; neither is wanted among the tests.
`python keras_written.py FOLDER` writes each model as NAME.h5, NAME.keras and NAME.weights.h5, and
NAME.npz with inputs and outputs of two batch sizes.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

BATCHES = (2, 5)
IMAGE, SEQUENCE, VOLUME, VECTOR = (9, 8, 4), (7, 4), (5, 6, 4, 4), (6,)


def single(shape: tuple[int, ...], make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the builder of a model of one layer."""

    def build(keras: Any) -> Any:
        read = keras.Input(shape)
        return keras.Model(read, make(keras.layers)(read))

    return build


def _stacked(cell: str) -> Callable[[Any], Any]:
    return lambda ly: ly.RNN(
        ly.StackedRNNCells([getattr(ly, cell)(3), getattr(ly, cell)(3)]),
        return_sequences=True,
        name="layer",
    )


def _bidirectional(kind: str) -> Callable[[Any], Any]:
    return lambda ly: ly.Bidirectional(
        getattr(ly, kind)(3, return_sequences=True), merge_mode="concat", name="layer"
    )


def _two_bidirectional(keras: Any, kind: str) -> Any:
    ly = keras.layers
    read = keras.Input(SEQUENCE)
    hidden = ly.Bidirectional(getattr(ly, kind)(3, return_sequences=True), name="first")(read)
    hidden = ly.Bidirectional(getattr(ly, kind)(5, return_sequences=True), name="second")(hidden)
    return keras.Model(read, hidden)


def _nested(keras: Any) -> Any:
    ly = keras.layers
    innermost = keras.Sequential([keras.Input((6,)), ly.Dense(5, name="dense")], name="innermost")
    inner_read = keras.Input((6,))
    hidden = ly.Dense(4, activation="tanh", name="head")(innermost(inner_read))
    inner = keras.Model(inner_read, hidden, name="inner")
    read = keras.Input((6,))
    return keras.Model(read, ly.Dense(3, name="dense")(inner(read)))


def _timed_model(keras: Any) -> Any:
    ly = keras.layers
    inner = keras.Sequential([keras.Input((4,)), ly.Dense(5, name="dense")], name="inner")
    read = keras.Input(SEQUENCE)
    return keras.Model(read, ly.TimeDistributed(inner, name="timed")(read))


def _attention(**options: Any) -> Callable[[Any], Any]:
    def build(keras: Any) -> Any:
        read = keras.Input((7, 6))
        layer = keras.layers.MultiHeadAttention(2, 3, name="layer", **options)
        return keras.Model(read, layer(read, read))

    return build


def _flat(keras: Any) -> Any:
    ly = keras.layers
    read = keras.Input(IMAGE)
    hidden = ly.Flatten(name="flat")(ly.Conv2D(3, 2, activation="relu", name="conv")(read))
    return keras.Model(read, ly.Dense(5, name="dense")(ly.Dropout(0.5)(hidden)))


def _network(keras: Any) -> Any:
    """Images and sequences, with everything that most models have, compiled and trained a step."""
    ly = keras.layers
    image, words = keras.Input((12, 12, 3), name="image"), keras.Input((6,), name="words")
    x = ly.Conv2D(8, 3, use_bias=False, name="stem")(image)
    x = ly.BatchNormalization(name="stem_bn")(x)
    x = ly.ReLU(name="stem_relu")(x)
    x = ly.DepthwiseConv2D(3, depth_multiplier=2, name="dw")(x)
    x = ly.BatchNormalization(name="dw_bn")(x)
    x = ly.PReLU(shared_axes=[1, 2], name="dw_prelu")(x)
    x = ly.SeparableConv2D(6, 3, name="sep")(x)
    x = ly.Dropout(0.3, name="drop")(x)
    x = ly.GlobalAveragePooling2D(name="pool")(x)
    y = ly.Embedding(11, 5, name="embed")(words)
    y = ly.Bidirectional(ly.LSTM(4, return_sequences=True), name="lstm")(y)
    y = ly.GRU(3, name="gru")(y)
    both = ly.Concatenate(name="join")([x, y])
    model = keras.Model([image, words], ly.Dense(4, activation="softmax", name="dense")(both))
    model.compile("adam", "sparse_categorical_crossentropy")
    generator = np.random.default_rng(0)
    data = [generator.random((8, 12, 12, 3)), generator.integers(0, 11, (8, 6))]
    model.fit(data, generator.integers(0, 4, 8), verbose=0)
    return model


def _recurrent(kind: str, **options: Any) -> Callable[[Any], Any]:
    return single(
        SEQUENCE,
        lambda ly: getattr(ly, kind)(3, return_sequences=True, name="layer", **options),
    )


def _bf16(keras: Any) -> Any:
    read = keras.Input(VECTOR, dtype="bfloat16")
    return keras.Model(read, keras.layers.Dense(3, dtype="bfloat16", name="layer")(read))


MODELS: dict[str, Callable[[Any], Any]] = {
    "conv1d": single(SEQUENCE, lambda ly: ly.Conv1D(6, 3, name="layer")),
    "conv2d": single(IMAGE, lambda ly: ly.Conv2D(6, (3, 2), name="layer")),
    "conv2d_groups": single(IMAGE, lambda ly: ly.Conv2D(6, 3, groups=2, name="layer")),
    "conv2d_bare": single(IMAGE, lambda ly: ly.Conv2D(6, 3, use_bias=False, name="layer")),
    "conv3d": single(VOLUME, lambda ly: ly.Conv3D(6, (2, 3, 2), name="layer")),
    "conv1d_turned": single(SEQUENCE, lambda ly: ly.Conv1DTranspose(6, 3, strides=2, name="layer")),
    "conv2d_turned": single(
        IMAGE, lambda ly: ly.Conv2DTranspose(6, (3, 2), strides=2, name="layer")
    ),
    "conv3d_turned": single(VOLUME, lambda ly: ly.Conv3DTranspose(6, (2, 3, 2), name="layer")),
    "depthwise1d": single(SEQUENCE, lambda ly: ly.DepthwiseConv1D(3, name="layer")),
    "depthwise2d": single(
        IMAGE, lambda ly: ly.DepthwiseConv2D((3, 2), depth_multiplier=3, name="layer")
    ),
    "separable1d": single(SEQUENCE, lambda ly: ly.SeparableConv1D(6, 3, name="layer")),
    "separable2d": single(
        IMAGE, lambda ly: ly.SeparableConv2D(6, (3, 2), depth_multiplier=2, name="layer")
    ),
    "dense": single(VECTOR, lambda ly: ly.Dense(3, name="layer")),
    "dense_bare": single(VECTOR, lambda ly: ly.Dense(3, use_bias=False, name="layer")),
    "einsum": single(
        SEQUENCE, lambda ly: ly.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d", name="layer")
    ),
    "einsum_turned": single(SEQUENCE, lambda ly: ly.EinsumDense("...c,dc->...d", 5, name="layer")),
    "batch_norm": single(IMAGE, lambda ly: ly.BatchNormalization(name="layer")),
    "batch_norm_no_scale": single(
        IMAGE, lambda ly: ly.BatchNormalization(scale=False, name="layer")
    ),
    "batch_norm_no_center": single(
        IMAGE, lambda ly: ly.BatchNormalization(center=False, name="layer")
    ),
    "batch_norm_bare": single(
        IMAGE, lambda ly: ly.BatchNormalization(scale=False, center=False, name="layer")
    ),
    "layer_norm": single(SEQUENCE, lambda ly: ly.LayerNormalization(name="layer")),
    "layer_norm_no_center": single(
        SEQUENCE, lambda ly: ly.LayerNormalization(center=False, name="layer")
    ),
    "group_norm": single(IMAGE, lambda ly: ly.GroupNormalization(2, name="layer")),
    "embedding": single((7,), lambda ly: ly.Embedding(9, 5, name="layer")),
    "prelu": single(IMAGE, lambda ly: ly.PReLU(shared_axes=[1, 2], name="layer")),
    "prelu_one": single(IMAGE, lambda ly: ly.PReLU(shared_axes=[1, 2, 3], name="layer")),
    "prelu_vector": single(VECTOR, lambda ly: ly.PReLU(name="layer")),
    "simple_rnn": _recurrent("SimpleRNN"),
    "simple_rnn_relu": _recurrent("SimpleRNN", activation="relu"),
    "lstm": _recurrent("LSTM"),
    "lstm_bare": _recurrent("LSTM", use_bias=False),
    "gru": _recurrent("GRU"),
    "gru_bare": _recurrent("GRU", use_bias=False),
    "bidirectional_lstm": single(SEQUENCE, _bidirectional("LSTM")),
    "bidirectional_gru": single(SEQUENCE, _bidirectional("GRU")),
    "two_lstm": lambda keras: _two_bidirectional(keras, "LSTM"),
    "two_gru": lambda keras: _two_bidirectional(keras, "GRU"),
    "stacked_lstm": single(SEQUENCE, _stacked("LSTMCell")),
    "stacked_gru": single(SEQUENCE, _stacked("GRUCell")),
    "stacked_rnn": single(SEQUENCE, _stacked("SimpleRNNCell")),
    "timed": single(SEQUENCE, lambda ly: ly.TimeDistributed(ly.Dense(5), name="layer")),
    "timed_model": _timed_model,
    "nested": _nested,
    "attention": _attention(),
    "attention_bare": _attention(use_bias=False),
    "flat": _flat,
    "network": _network,
}
# Models that have no equivalent in torch, or none that the rules know.
REFUSED: dict[str, Callable[[Any], Any]] = {
    "bf16": _bf16,
    "gru_before": _recurrent("GRU", reset_after=False),
    "lstm_relu": _recurrent("LSTM", activation="relu"),
    "lstm_hard": _recurrent("LSTM", recurrent_activation="hard_sigmoid"),
    "backwards": _recurrent("LSTM", go_backwards=True),
    "stack_sizes": single(
        SEQUENCE,
        lambda ly: ly.RNN(ly.StackedRNNCells([ly.LSTMCell(3), ly.LSTMCell(2)]), name="layer"),
    ),
    "stack_both_ways": single(
        SEQUENCE,
        lambda ly: ly.Bidirectional(
            ly.RNN(ly.StackedRNNCells([ly.LSTMCell(3), ly.LSTMCell(3)])), name="layer"
        ),
    ),
    "attention_sizes": single(
        (7, 6), lambda ly: lambda x: ly.MultiHeadAttention(2, 5, name="layer")(x, x)
    ),
    "einsum_heads": single(
        SEQUENCE, lambda ly: ly.EinsumDense("abc,cde->abde", (None, 2, 5), name="layer")
    ),
    "prelu_places": single(IMAGE, lambda ly: ly.PReLU(name="layer")),
    "normalization": single(VECTOR, lambda ly: ly.Normalization(name="layer")),
    "spectral": single(VECTOR, lambda ly: ly.SpectralNormalization(ly.Dense(3), name="layer")),
    "layer_norm_axes": single(IMAGE, lambda ly: ly.LayerNormalization([1, 2], name="layer")),
    "lstm_2d": single((5, 8, 8, 3), lambda ly: ly.ConvLSTM2D(2, 3, name="layer")),
}


def fill(model: Any, seed: int) -> None:
    """Give every weight values of its own, variances positive ones."""
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        values = generator.standard_normal(variable.shape)
        if "variance" in variable.path:
            values = np.abs(values) + 0.5
        elif "count" in variable.path:
            continue
        variable.assign(values.astype(np.float32))


def inputs_of(model: Any, batch: int) -> list[np.ndarray]:
    """Return inputs from a seed: whole numbers where an embedding reads them."""
    generator = np.random.default_rng(batch)
    found: list[np.ndarray] = []
    for tensor in model.inputs:
        shape = (batch, *tensor.shape[1:])
        if len(shape) == 2 and tensor.shape[1] in {6, 7} and has_embedding(model):
            found.append(generator.integers(0, 9, shape).astype(np.int64))
        else:
            found.append(generator.standard_normal(shape).astype(np.float32))
    return found


def has_embedding(model: Any) -> bool:
    """Return whether some layer is an embedding."""
    return any(type(layer).__name__ == "Embedding" for layer in model.layers)


def main(folder: Path) -> None:
    """Write every model."""
    os.environ["KERAS_BACKEND"] = "torch"
    keras: Any = importlib.import_module("keras")
    for seed, (name, build) in enumerate((MODELS | REFUSED).items()):
        model = build(keras)
        if name != "bf16":
            fill(model, seed)
        model.save(folder / f"{name}.h5")
        model.save(folder / f"{name}.keras")
        model.save_weights(folder / f"{name}.weights.h5")
        arrays: dict[str, Any] = {}
        for batch in BATCHES if name in MODELS else ():
            inputs = inputs_of(model, batch)
            arrays |= {f"input{n}_{batch}": value for n, value in enumerate(inputs)}
            arrays[f"output_{batch}"] = np.asarray(model.predict(inputs, verbose=0))
        for variable in model.weights:
            arrays[f"weight_{variable.path}"] = np.asarray(
                keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32"))
            )
        np.savez(folder / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
