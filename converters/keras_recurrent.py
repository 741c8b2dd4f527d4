"""torch's layout of Keras' recurrent and attention layers, whose weights torch packs together.

Gates: Keras' GRU has them as z, r, h, torch as r, z, n; both have an LSTM's as i, f, g, o. torch
has two biases where Keras has one (the second is zero), and as many as Keras' GRU with reset_after.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from persistlib.converters.keras_layout import Made, Weights, filled, same, transposed
from persistlib.converters.keras_variables import uses_bias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

    from persistlib.checkpoint import Entry
    from persistlib.converters.keras_config import Layer

# What torch's layers compute inside, and with how many gates.
_GATES = {"LSTMCell": 4, "GRUCell": 3, "SimpleRNNCell": 1}
_RECURRENT = ("sigmoid",)
_ACTIVATIONS = {"LSTMCell": ("tanh",), "GRUCell": ("tanh",), "SimpleRNNCell": ("tanh", "relu")}


def _recurrent(weights: Weights) -> list[Made]:
    """A layer, or a stack of cells, in one direction."""
    if weights.layer.config.get("go_backwards"):
        weights.notes.append(f"{weights.layer} reads backwards: torch's input must be reversed")
    return _stack(weights, weights.layer, (), "")


def _bidirectional(weights: Weights) -> list[Made]:
    """Two layers, the second of them read backwards."""
    made: list[Made] = []
    for place, suffix in (("forward_layer", ""), ("backward_layer", "_reverse")):
        inner = weights.layer.parts[place,]
        if len(_cells(inner)) > 1:
            weights.refuse(
                f"{weights.layer}: torch joins both directions after every layer, "
                "Keras after the whole stack"
            )
        # Before Keras 2.4 there is one configuration, and the second layer reads the other way.
        is_said = place in weights.layer.config or not suffix
        if is_said and bool(inner.config.get("go_backwards")) != bool(suffix):
            weights.refuse(f"{weights.layer}: {place} reads the other way")
        made += _stack(weights, inner, (place,), suffix)
    if (mode := weights.layer.config.get("merge_mode")) != "concat":
        weights.notes.append(
            f"{weights.layer} merges by {mode}: torch puts the directions side by side"
        )
    return made


def _cells(layer: Layer) -> dict[tuple[str, ...], Layer]:
    """Return the cells of a recurrent layer by place, the first first."""
    cell = layer.parts.get(("cell",))
    if cell is None:
        return {}
    return {("cell", *place): part for place, part in cell.parts.items()} or {("cell",): cell}


def _stack(weights: Weights, layer: Layer, above: tuple[str, ...], suffix: str) -> list[Made]:
    cells = _cells(layer)
    kinds = {cell.kind for cell in cells.values()}
    units = {str(cell.config.get("units")) for cell in cells.values()}
    if len(kinds) != 1 or len(units) != 1:
        weights.refuse(f"{weights.layer}: torch's layers all have one class and one size")
    made: list[Made] = []
    for number, (place, cell) in enumerate(cells.items()):
        made += _cell(weights, cell, (*above, *place), f"l{number}{suffix}")
    return made


def _cell(weights: Weights, cell: Layer, place: tuple[str, ...], suffix: str) -> list[Made]:
    """Return the tensors of one cell."""
    if cell.kind not in _GATES:
        weights.refuse(f"{weights.layer}: no rule is known for cells of class {cell.kind}")
    _check_function(weights, cell)
    kernel = weights.take("kernel", 2, *place)
    recurrent = weights.take("recurrent_kernel", 2, *place)
    gates = _GATES[cell.kind]
    size = recurrent.shape[0]
    if recurrent.shape[1] != gates * size or kernel.shape[1] != gates * size:
        weights.refuse(f"{weights.layer}: {recurrent.shape} is no recurrent kernel")
    made = [
        _gated(f"weight_ih_{suffix}", kernel, cell.kind),
        _gated(f"weight_hh_{suffix}", recurrent, cell.kind),
    ]
    if not uses_bias(cell.kind, cell.config) and not weights.has("bias", *place):
        return made
    return made + _biases(weights, cell, place, suffix)


def _check_function(weights: Weights, cell: Layer) -> None:
    """Refuse what torch's layer does not compute."""
    known = {"activation": _ACTIVATIONS[cell.kind], "recurrent_activation": _RECURRENT}
    for argument, names in known.items():
        # Keras 1 says inner_activation.
        default = cell.config.get(argument.replace("recurrent", "inner"), names[0])
        said = _function(cell.config.get(argument, default))
        if said not in names:
            weights.refuse(f"{weights.layer}: torch's layer has no {argument}={said}")
    if cell.kind == "GRUCell" and not cell.config.get("reset_after", False):
        weights.refuse(
            f"{weights.layer}: torch's GRU resets after the product, this one before it "
            "(reset_after=False)"
        )


def _function(value: Any) -> str:
    """Return the name of an activation, as a text or as Keras 3 may write it."""
    if isinstance(value, dict):
        value = value.get("config")
    return value if isinstance(value, str) else "of another kind"


def _gated(name: str, entry: Entry, kind: str) -> Made:
    """Kernel (in, gates x units) to torch's (gates x units, in), in torch's order of gates."""
    if kind != "GRUCell":
        return transposed(name, entry, (1, 0))
    shape = entry.shape[::-1]
    return Made(name, entry.dtype, shape, (entry.name,), lambda array: _turned(array).T)


def _turned(array: np.ndarray) -> np.ndarray:
    """Return the last axis' thirds z, r, h as r, z, h."""
    import numpy as np

    first, second, third = np.split(array, 3, axis=-1)
    return np.concatenate((second, first, third), axis=-1)


def _biases(weights: Weights, cell: Layer, place: tuple[str, ...], suffix: str) -> list[Made]:
    if cell.kind == "GRUCell":
        bias = weights.take("bias", 2, *place)
        return [_row(f"bias_ih_{suffix}", bias, 0), _row(f"bias_hh_{suffix}", bias, 1)]
    bias = weights.take("bias", 1, *place)
    return [
        same(f"bias_ih_{suffix}", bias),
        filled(f"bias_hh_{suffix}", bias.dtype, bias.shape, 0),
    ]


def _row(name: str, entry: Entry, row: int) -> Made:
    shape = entry.shape[1:]
    return Made(name, entry.dtype, shape, (entry.name,), lambda array: _turned(array[row]))


def _attention(weights: Weights) -> list[Made]:
    """Query, key and value as one matrix, each head's rows after the other's.

    torch's module has one size for all: that of the query and of the output, shared out to the
    heads.
    """
    config = weights.layer.config
    parts = {p: weights.take("kernel", 3, f"{p}_dense") for p in ("query", "key", "value")}
    out = weights.take("kernel", 3, "output_dense")
    size = parts["query"].shape[0]
    heads, width = parts["query"].shape[1:]
    is_torch = all(part.shape == (size, heads, width) for part in parts.values())
    if not is_torch or out.shape != (heads, width, size) or heads * width != size:
        shapes = ", ".join(f"{name} {entry.shape}" for name, entry in parts.items())
        weights.refuse(
            f"{weights.layer}: {shapes}, output {out.shape}; torch's sizes are all one, "
            "num_heads x key_dim"
        )
    if config.get("attention_axes") not in (None, [1], 1) or config.get("use_gate"):
        weights.refuse(f"{weights.layer}: torch attends along one axis, without a gate")
    names = tuple(entry.name for entry in parts.values())
    made = [
        Made("in_proj_weight", out.dtype, (3 * size, size), names, _joined),
        Made("out_proj.weight", out.dtype, (size, size), (out.name,), _output),
    ]
    if config.get("use_bias", True):
        biases = tuple(weights.take("bias", 2, f"{part}_dense").name for part in parts)
        made.insert(1, Made("in_proj_bias", out.dtype, (3 * size,), biases, _joined_biases))
        made.append(same("out_proj.bias", weights.take("bias", 1, "output_dense")))
    return made


def _joined(*kernels: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.concatenate([kernel.reshape(kernel.shape[0], -1).T for kernel in kernels])


def _joined_biases(*biases: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.concatenate([bias.reshape(-1) for bias in biases])


def _output(kernel: np.ndarray) -> np.ndarray:
    turned: np.ndarray = kernel.reshape(-1, kernel.shape[2]).T
    return turned


RULES: Mapping[str, Callable[[Weights], list[Made]]] = {
    **dict.fromkeys(("GRU", "LSTM", "RNN", "SimpleRNN"), _recurrent),
    "Bidirectional": _bidirectional,
    "MultiHeadAttention": _attention,
}
