"""Recurrent layers: step by step as ONNX says, or by torch's own where that is the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional

from persistlib.errors import Code, error
from persistlib.graph_modules.registry import Call, operator
from persistlib.graph_modules.sizes import require_loops

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

_DEFAULTS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
# torch's order of gates by ONNX's: of z, r, h and of i, o, f, c.
_ORDER = {"RNN": [0], "GRU": [1, 0, 2], "LSTM": [0, 2, 3, 1]}

_ACTIVATIONS: dict[str, Callable[[Tensor, float | None, float | None], Tensor]] = {
    "relu": lambda x, _a, _b: x.relu(),
    "tanh": lambda x, _a, _b: x.tanh(),
    "sigmoid": lambda x, _a, _b: x.sigmoid(),
    "softsign": lambda x, _a, _b: functional.softsign(x),
    "softplus": lambda x, _a, _b: functional.softplus(x),
    "affine": lambda x, a, b: x * _or(a, 1.0) + _or(b, 0.0),
    "leakyrelu": lambda x, a, _b: functional.leaky_relu(x, _or(a, 0.01)),
    "thresholdedrelu": lambda x, a, _b: torch.where(x > _or(a, 1.0), x, torch.zeros_like(x)),
    "scaledtanh": lambda x, a, b: _or(a, 1.0) * (x * _or(b, 1.0)).tanh(),
    "hardsigmoid": lambda x, a, b: (x * _or(a, 0.2) + _or(b, 0.5)).clamp(0, 1),
    "elu": lambda x, a, _b: functional.elu(x, _or(a, 1.0)),
}
_TAKES_ALPHA = frozenset(
    {"affine", "leakyrelu", "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu"}
)
_TAKES_BETA = frozenset({"affine", "scaledtanh", "hardsigmoid"})


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


class _Layer(NamedTuple):
    """One direction of a layer: weights (gates x hidden, ...), and its activations."""

    w: Tensor
    r: Tensor
    wb: Tensor
    rb: Tensor
    peepholes: Tensor | None
    functions: list[Callable[[Tensor], Tensor]]


class _Inputs(NamedTuple):
    """The inputs of a recurrent node, time first."""

    x: Tensor
    w: Tensor
    r: Tensor
    b: Tensor | None
    lengths: Tensor | None
    h: Tensor | None
    c: Tensor | None = None
    p: Tensor | None = None


@operator("LSTM", "GRU", "RNN")
def recurrent(call: Call, *given: Tensor | None) -> tuple[Tensor, ...]:
    """Return the outputs of every step (time, directions, batch, hidden) and the last states."""
    values = _Inputs(*given, *(None,) * (6 - len(given)))  # type: ignore[arg-type] # positions are the format's
    is_batch_first = bool(call.get("layout", 0))
    if is_batch_first:
        h, c = (None if s is None else s.transpose(0, 1) for s in (values.h, values.c))
        values = values._replace(x=values.x.transpose(0, 1), h=h, c=c)
    require_loops(call, values.x.shape[0])
    y, states = _fused(call, values) if _is_usual(call, values) else _stepped(call, values)
    if is_batch_first:
        return y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in states)
    return y, *states


def _is_usual(call: Call, values: _Inputs) -> bool:
    """Return whether torch's own layer computes the same."""
    kind = call.operator
    usual = [name.lower() for name in _DEFAULTS[kind]]
    said = [name.lower() for name in call.get("activations") or usual]
    return (
        said in (usual, usual * 2)
        and values.lengths is None
        and values.p is None
        and call.get("clip") is None
        and not call.get("input_forget", 0)
        and (kind != "GRU" or bool(call.get("linear_before_reset", 0)))
        and values.x.is_floating_point()
    )


def _fused(call: Call, values: _Inputs) -> tuple[Tensor, list[Tensor]]:
    kind = call.operator
    x, directions = values.x, values.w.shape[0]
    is_reverse = call.get("direction", "forward") == "reverse"
    hidden = values.r.shape[-1]
    zeros = x.new_zeros((directions, x.shape[1], hidden))
    h = zeros if values.h is None else values.h
    weights: list[Tensor] = []
    for way in range(directions):
        b = x.new_zeros(2 * _GATES[kind] * hidden) if values.b is None else values.b[way]
        parts = (values.w[way], values.r[way], *b.chunk(2))
        weights += [_reordered(part, kind) for part in parts]
    state: Any = (h, zeros if values.c is None else values.c) if kind == "LSTM" else h
    layer: Any = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN": torch.rnn_tanh}[kind]
    x = x.flip(0) if is_reverse else x
    y, *states = layer(x, state, weights, True, 1, 0.0, False, directions == 2, False)
    y = y.flip(0) if is_reverse else y
    return y.reshape(*y.shape[:2], directions, hidden).transpose(1, 2), states


def _reordered(part: Tensor, kind: str) -> Tensor:
    gates = part.chunk(_GATES[kind])
    return torch.cat([gates[index] for index in _ORDER[kind]])


def _stepped(call: Call, values: _Inputs) -> tuple[Tensor, list[Tensor]]:
    directions = values.w.shape[0]
    is_reverse = call.get("direction", "forward") == "reverse"
    outputs: list[Tensor] = []
    lasts: list[list[Tensor]] = []
    for way in range(directions):
        y, states = _one_way(call, values, way, is_reverse=is_reverse or way == 1)
        outputs.append(y)
        lasts.append(states)
    finals = [torch.stack(states) for states in zip(*lasts, strict=True)]
    return torch.stack(outputs, 1), finals


def _one_way(
    call: Call, values: _Inputs, way: int, *, is_reverse: bool
) -> tuple[Tensor, list[Tensor]]:
    x, hidden = values.x, values.r.shape[-1]
    layer = _layer(call, values, way)
    zeros = x.new_zeros((x.shape[1], hidden))
    states = [zeros if values.h is None else values.h[way]]
    if call.operator == "LSTM":
        states.append(zeros if values.c is None else values.c[way])
    step = {"LSTM": _lstm_step, "GRU": _gru_step, "RNN": _rnn_step}[call.operator]
    projected = x @ layer.w.T + layer.wb
    steps: list[Tensor] = [zeros] * x.shape[0]
    order = range(x.shape[0])
    for at in reversed(order) if is_reverse else order:
        made = step(call, layer, projected[at], states)
        if values.lengths is not None:
            is_inside = (at < values.lengths)[:, None].to(x.device)
            steps[at] = torch.where(is_inside, made[0], zeros)
            made = [torch.where(is_inside, new, old) for new, old in zip(made, states, strict=True)]
        else:
            steps[at] = made[0]
        states = made
    return torch.stack(steps), states


def _layer(call: Call, values: _Inputs, way: int) -> _Layer:
    kind, hidden = call.operator, values.r.shape[-1]
    if values.b is None:
        wb = rb = values.x.new_zeros(_GATES[kind] * hidden)
    else:
        wb, rb = values.b[way].chunk(2)
    peepholes = None if values.p is None else values.p[way]
    return _Layer(values.w[way], values.r[way], wb, rb, peepholes, _functions(call, way))


def _functions(call: Call, way: int) -> list[Callable[[Tensor], Tensor]]:
    """Return the activations of one direction; alphas and betas go to those that take one."""
    usual = _DEFAULTS[call.operator]
    names = [name.lower() for name in call.get("activations") or usual * 2]
    alphas, betas = (
        iter(call.get("activation_alpha") or ()),
        iter(call.get("activation_beta") or ()),
    )
    made: list[Callable[[Tensor], Tensor]] = []
    for name in names:
        if name not in _ACTIVATIONS:
            raise error(Code.GRAPH_OPERATOR, call.location, f"the activation {name!r} is not known")
        a = next(alphas, None) if name in _TAKES_ALPHA else None
        b = next(betas, None) if name in _TAKES_BETA else None
        made.append(lambda x, f=_ACTIVATIONS[name], a=a, b=b: f(x, a, b))  # type: ignore[misc] # bound now
    return made[way * len(usual) : (way + 1) * len(usual)] or made[: len(usual)]


def _clipped(call: Call, value: Tensor) -> Tensor:
    limit = call.get("clip")
    return value if limit is None else value.clamp(-limit, limit)


def _rnn_step(call: Call, layer: _Layer, x: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
    return [layer.functions[0](_clipped(call, x + states[0] @ layer.r.T + layer.rb))]


def _gru_step(call: Call, layer: _Layer, x: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
    (h,) = states
    squash, bend = layer.functions
    xz, xr, xh = x.chunk(3, -1)
    rz, rr, rh = layer.r.chunk(3)
    bz, br, bh = layer.rb.chunk(3)
    z = squash(_clipped(call, xz + h @ rz.T + bz))
    r = squash(_clipped(call, xr + h @ rr.T + br))
    if call.get("linear_before_reset", 0):
        news = bend(_clipped(call, xh + r * (h @ rh.T + bh)))
    else:
        news = bend(_clipped(call, xh + (r * h) @ rh.T + bh))
    return [(1 - z) * news + z * h]


def _lstm_step(call: Call, layer: _Layer, x: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
    h, c = states
    squash, bend, final = layer.functions
    gi, go, gf, gc = (x + h @ layer.r.T + layer.rb).chunk(4, -1)
    peepholes = None if layer.peepholes is None else layer.peepholes.chunk(3)
    if peepholes is not None:
        gi, gf = gi + peepholes[0] * c, gf + peepholes[2] * c
    i = squash(_clipped(call, gi))
    f = 1 - i if call.get("input_forget", 0) else squash(_clipped(call, gf))
    c = f * c + i * bend(_clipped(call, gc))
    if peepholes is not None:
        go = go + peepholes[1] * c
    return [squash(_clipped(call, go)) * final(c), c]
