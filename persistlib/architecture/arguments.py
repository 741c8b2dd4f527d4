"""Constructor arguments recovered from a live module.

torch's modules, and most people's, keep what they were made with in attributes of the same names.
Where torch's own do not, `_KNOWN` says how the argument shows. What is recovered is a guess: it
counts only after the module rebuilt from it was compared with the live one.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_MISSING: Any = inspect.Parameter.empty
# Where a module lives and computes is no part of its architecture.
_PLACEMENT = frozenset({"device", "dtype"})
_RECURRENT = [
    "input_size",
    "hidden_size",
    "num_layers",
    "bias",
    "batch_first",
    "dropout",
    "bidirectional",
]


class NotRecoverableError(ValueError):
    """A module does not keep what its constructor needs."""


def recover(module: nn.Module) -> dict[str, Any]:
    """Return keyword arguments that should build a module like this one.

    Arguments without a trace and with a default are left to the default.

    Raises:
        NotRecoverableError: a required argument leaves no trace.
    """
    cls = plain(module)
    if special := _special(cls):
        return special(module)
    found: dict[str, Any] = {}
    missing: list[str] = []
    for name, parameter in signature(cls).items():
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            continue
        if name in _PLACEMENT:
            continue
        value = trace(module, name, parameter.default)
        if value is not _MISSING and parameter.kind is not parameter.POSITIONAL_ONLY:
            found[name] = value
        elif parameter.default is _MISSING:
            missing.append(name)
    if missing:
        raise NotRecoverableError(
            f"{cls.__qualname__} keeps no attribute named {' or '.join(missing)}"
        )
    return found


def signature(cls: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a constructor or builder; none where Python cannot say."""
    try:
        return inspect.signature(cls).parameters
    except (TypeError, ValueError):
        return {}


def trace(module: nn.Module, name: str, default: Any = _MISSING) -> Any:
    """Return the plain attribute that holds an argument, or `inspect.Parameter.empty`.

    A parameter of the same name (`bias`) shows whether a boolean argument was given.
    """
    plain_attributes = vars(module)
    for spelling in (name, f"_{name}"):
        if spelling in plain_attributes:
            return plain_attributes[spelling]
    tensors = {**module._parameters, **module._buffers}  # noqa: SLF001 - has no public form with None
    if isinstance(default, bool) and name in tensors:
        return tensors[name] is not None
    return _MISSING


def plain(module: nn.Module) -> type[nn.Module]:
    """Return the class to call: a parametrized module's is the one it had before."""
    from persistlib.architecture.parametrized import plain_class

    return plain_class(module)


def _special(cls: type[nn.Module]) -> Callable[[Any], dict[str, Any]] | None:
    """Return the row of `_KNOWN` for torch's own classes; a subclass may differ."""
    return _KNOWN.get(f"{cls.__module__}.{cls.__qualname__}")


def _recurrent(module: nn.RNNBase) -> dict[str, Any]:
    found = {name: getattr(module, name) for name in _RECURRENT}
    if isinstance(module, nn.LSTM):
        found["proj_size"] = module.proj_size
    elif isinstance(module, nn.RNN):
        found["nonlinearity"] = module.nonlinearity
    return found


def _attention(module: Any) -> dict[str, Any]:
    names = ("embed_dim", "num_heads", "dropout", "kdim", "vdim", "add_zero_attn", "batch_first")
    return {name: getattr(module, name) for name in names} | {
        "bias": module.in_proj_bias is not None,
        "add_bias_kv": module.bias_k is not None,
    }


def _transformer_layer(module: Any) -> dict[str, Any]:
    return {
        "d_model": module.self_attn.embed_dim,
        "nhead": module.self_attn.num_heads,
        "dim_feedforward": module.linear1.out_features,
        "dropout": module.dropout.p,
        "activation": module.activation,
        "layer_norm_eps": module.norm1.eps,
        "batch_first": module.self_attn.batch_first,
        "norm_first": module.norm_first,
        "bias": module.linear1.bias is not None,
    }


def _frozen_norm(module: Any) -> dict[str, Any]:
    return {"num_features": module.weight.shape[0], "eps": module.eps}


_KNOWN: dict[str, Callable[[Any], dict[str, Any]]] = {
    "torch.nn.modules.rnn.RNN": _recurrent,
    "torch.nn.modules.rnn.LSTM": _recurrent,
    "torch.nn.modules.rnn.GRU": _recurrent,
    "torch.nn.modules.activation.MultiheadAttention": _attention,
    "torch.nn.modules.transformer.TransformerEncoderLayer": _transformer_layer,
    "torch.nn.modules.transformer.TransformerDecoderLayer": _transformer_layer,
    "torchvision.ops.misc.FrozenBatchNorm2d": _frozen_norm,
    # Containers come back empty; their children are inserted one by one.
    "torch.nn.modules.container.Sequential": lambda _module: {},
    "torch.nn.modules.container.ModuleList": lambda _module: {},
    "torch.nn.modules.container.ModuleDict": lambda _module: {},
    "torch.nn.modules.linear.Identity": lambda _module: {},
}
