"""LSTM, GRU and RNN as the one operator that ONNX has for each.

Torch unrolls a recurrence step by step, which fixes the number of steps to the example's, or makes
a loop of it, which runs far slower. While a trace is `kept_whole`, each becomes an operator of
ours that the trace does not look into, and `TRANSLATIONS` says what stands for it in a graph. What
ONNX cannot say (projections, packed sequences) is left to torch.
"""

from __future__ import annotations

from types import BuiltinFunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from onnxscript import opset18
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class _Kind(NamedTuple):
    """A recurrence: ONNX's operator, where torch's gates stand in it, and its attributes.

    Torch orders the gates of an LSTM i f g o and ONNX i o f g; of a GRU r z n and z r n.
    """

    operator: str
    gates: tuple[int, ...]
    attributes: Mapping[str, Any]


_KINDS = {
    "lstm": _Kind("LSTM", (0, 3, 1, 2), {}),
    "gru": _Kind("GRU", (1, 0, 2), {"linear_before_reset": 1}),
    "rnn_tanh": _Kind("RNN", (0,), {"activations": ["Tanh"]}),
    "rnn_relu": _Kind("RNN", (0,), {"activations": ["Relu"]}),
}
_LSTM = "lstm"
op: Any = opset18  # its own types know no lists and no values
_ARGUMENTS = 9  # of the functions that take a whole tensor; those for packed sequences have others


_OPTIONS = "bool has_biases, int layers, bool bidirectional, bool batch_first"


@torch.library.custom_op(
    "persistlib::lstm",
    mutates_args=(),
    schema=f"(Tensor x, Tensor[] hidden, Tensor[] weights, {_OPTIONS}) -> (Tensor, Tensor, Tensor)",
)
def lstm(
    x: torch.Tensor, hidden: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], *options: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what `torch.lstm` does in evaluation."""
    return torch.lstm(x, tuple(hidden), list(weights), *_in_evaluation(*options))


@torch.library.custom_op(
    "persistlib::recurrence",
    mutates_args=(),
    schema=f"(str kind, Tensor x, Tensor hidden, Tensor[] weights, {_OPTIONS}) -> (Tensor, Tensor)",
)
def recurrence(
    kind: str, x: torch.Tensor, hidden: torch.Tensor, weights: Sequence[torch.Tensor], *options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the function of torch named `kind` does in evaluation."""
    function: Callable[..., tuple[torch.Tensor, torch.Tensor]] = getattr(torch, kind)
    return function(x, hidden, list(weights), *_in_evaluation(*options))


def _in_evaluation(has_biases: bool, layers: int, *directions: bool) -> Any:
    """Return the options of torch's function, without dropout and training."""
    return (has_biases, layers, 0.0, False, *directions)


def _like(
    x: torch.Tensor, hidden: torch.Tensor, *, bidirectional: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a sequence of outputs and a last state without values."""
    width = hidden.shape[-1] * (2 if bidirectional else 1)
    return x.new_empty((*x.shape[:-1], width)), torch.empty_like(hidden)


def _lstm_shape(
    x: torch.Tensor, hidden: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], *options: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    del weights
    outputs, last = _like(x, hidden[0], bidirectional=options[2])
    return outputs, last, torch.empty_like(hidden[1])


def _recurrence_shape(
    kind: str, x: torch.Tensor, hidden: torch.Tensor, weights: Sequence[torch.Tensor], *options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    del kind, weights
    return _like(x, hidden, bidirectional=options[2])


lstm.register_fake(_lstm_shape)
recurrence.register_fake(_recurrence_shape)


class KeptWhole(TorchFunctionMode):
    """While it lasts, recurrences of whole tensors are the operators above."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call the function, or the operator that stands for it."""
        kind = getattr(func, "__name__", "") if isinstance(func, BuiltinFunctionType) else ""
        if kind not in _KINDS or kwargs or not _is_whole(args):
            return func(*args, **(kwargs or {}))
        sequence, hidden, weights, has_biases, layers, _, _, bidirectional, batch_first = args
        options = (has_biases, layers, bidirectional, batch_first)
        if kind == _LSTM:
            return lstm(sequence, list(hidden), list(weights), *options)
        return recurrence(kind, sequence, hidden, list(weights), *options)


def _is_whole(args: tuple[Any, ...]) -> bool:
    """Return whether the arguments are a whole tensor's, and no direction has a projection."""
    if len(args) != _ARGUMENTS or not isinstance(args[3], bool):
        return False
    _, _, weights, has_biases, layers, _, training, bidirectional, _ = args
    return len(weights) == layers * (2 if bidirectional else 1) * (4 if has_biases else 2) and (
        not training
    )


def _lstm_graph(
    x: Any, hidden: Sequence[Any], weights: Sequence[Any], *options: Any
) -> tuple[Any, ...]:
    return _graph(_Stack(_LSTM, *options), x, hidden, weights)


def _recurrence_graph(
    kind: str, x: Any, hidden: Any, weights: Sequence[Any], *options: Any
) -> tuple[Any, ...]:
    return _graph(_Stack(kind, *options), x, (hidden,), weights)


class _Stack(NamedTuple):
    """What a recurrence of several layers is, beside its tensors."""

    kind: str
    has_biases: bool
    layers: int
    bidirectional: bool
    batch_first: bool


def _graph(
    stack: _Stack, sequence: Any, hidden: Sequence[Any], weights: Sequence[Any]
) -> tuple[Any, ...]:
    """Return the values of a graph: the outputs, then each last state."""
    width = int(hidden[0].shape[2])
    directions = 2 if stack.bidirectional else 1
    each = (4 if stack.has_biases else 2) * directions
    x = op.Transpose(sequence, perm=[1, 0, 2]) if stack.batch_first else sequence
    last: list[list[Any]] = [[] for _ in hidden]
    for layer in range(stack.layers):
        rows = (layer * directions, (layer + 1) * directions)
        starts = [
            state if stack.layers == 1 else op.Slice(state, [rows[0]], [rows[1]], [0])
            for state in hidden
        ]
        x, *states = _layer(
            stack, x, starts, weights[layer * each : (layer + 1) * each], width=width
        )
        for kept, state in zip(last, states, strict=True):
            kept.append(state)
    outputs = op.Transpose(x, perm=[1, 0, 2]) if stack.batch_first else x
    return (outputs, *(s[0] if len(s) == 1 else op.Concat(*s, axis=0) for s in last))


def _layer(
    stack: _Stack, x: Any, starts: Sequence[Any], weights: Sequence[Any], *, width: int
) -> tuple[Any, ...]:
    """Return one layer's outputs, of both directions side by side, and its last states."""
    kind = _KINDS[stack.kind]
    each = 4 if stack.has_biases else 2
    parts = [weights[start : start + each] for start in range(0, len(weights), each)]
    ordered = [[_ordered(w, kind.gates, width) for w in part] for part in parts]
    inputs = [_joined([op.Unsqueeze(part[i], [0]) for part in ordered]) for i in range(2)]
    biases = None
    if stack.has_biases:
        both = [op.Unsqueeze(op.Concat(part[2], part[3], axis=0), [0]) for part in ordered]
        biases = _joined(both)
    attributes = dict(kind.attributes)
    if "activations" in attributes:
        attributes["activations"] = attributes["activations"] * len(parts)
    y, *states = getattr(op, kind.operator)(
        x,
        *inputs,
        biases,
        None,
        *starts,
        direction="bidirectional" if stack.bidirectional else "forward",
        hidden_size=width,
        **attributes,
    )
    if not stack.bidirectional:
        return (op.Squeeze(y, [1]), *states)
    side = op.Transpose(y, perm=[0, 2, 1, 3])
    return (op.Reshape(side, [0, 0, 2 * width]), *states)


def _ordered(weight: Any, gates: Sequence[int], width: int) -> Any:
    """Return a weight with its gates in ONNX's order."""
    if len(gates) == 1:
        return weight
    parts = [op.Slice(weight, [g * width], [(g + 1) * width], [0]) for g in gates]
    return op.Concat(*parts, axis=0)


def _joined(parts: Sequence[Any]) -> Any:
    return parts[0] if len(parts) == 1 else op.Concat(*parts, axis=0)


TRANSLATIONS: Mapping[Any, Callable[..., Any]] = {
    torch.ops.persistlib.lstm.default: _lstm_graph,
    torch.ops.persistlib.recurrence.default: _recurrence_graph,
}
