"""What a module computes, as the list of operators it runs on tensors without values.

Law: two modules that hold the same tensors and have equal traces compute the same bits, on inputs
of these shapes, whatever the inputs' values.

A trace costs no arithmetic: vit_l_16 takes a fraction of a second where running it twice takes
seconds. It is stronger than one run, which sees one input, and it is not always to be had: a module
whose control flow reads values has none.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch.func import functional_call
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from persistlib.architecture.module_state import tensor_bytes
from persistlib.digests import digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

Trace = list[str]
# Of a pure operator on arguments of certain shapes: dtype, shape and strides of its result.
Outcomes = dict[Any, Any]


def trace(
    module: nn.Module, positional: Sequence[Any], keywords: Mapping[str, Any], outcomes: Outcomes
) -> Trace | None:
    """Return the operators that a module runs, with where each argument comes from.

    Args:
        module: run as it stands, in its present mode; its attributes may change.
        positional: arguments of forward; only their shapes and dtypes are used.
        keywords: likewise.
        outcomes: what operators gave before, added to; another trace may be given it.

    Returns:
        A line an operator and one for the result, or None where values are needed.
    """
    state = _without_values(module)
    recorder = _Recorder({id(tensor): name for name, tensor in state.items()}, outcomes)
    given = _pytree.tree_map(_on_meta, (tuple(positional), dict(keywords)))
    for index, leaf in enumerate(_pytree.tree_leaves(given)):
        recorder.know(leaf, f"input {index}")
    try:
        with recorder:
            result = functional_call(module, state, *given)
    except Exception:  # noqa: BLE001 - whatever a module raises on such tensors, it has no trace
        return None
    return [*recorder.lines, recorder.line("result", result)]


def _without_values(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the module's tensors by every name, on the meta device, ties kept."""
    made: dict[int, torch.Tensor] = {}
    named = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    return {name: made.setdefault(id(tensor), _on_meta(tensor)) for name, tensor in named}


def _on_meta(value: Any) -> Any:
    return value.detach().to("meta") if isinstance(value, torch.Tensor) else value


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Writes a line for every operator that runs."""

    def __init__(self, names: Mapping[int, str], outcomes: Outcomes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.lines: Trace = []
        self._names = dict(names)
        self._outcomes = outcomes
        # What has a name is kept, or its id would be another's soon.
        self._kept: list[Any] = []

    def know(self, value: Any, name: str) -> None:
        """Give a tensor a name, unless it has one."""
        if isinstance(value, torch.Tensor) and id(value) not in self._names:
            self._names[id(value)] = name
            self._kept.append(value)

    def line(self, operator: object, *arguments: Any) -> str:
        """Return an operator with its arguments, each tensor by where it came from."""
        return f"{operator} {self._say(arguments)}"

    def _say(self, value: Any) -> str:
        if isinstance(value, torch.Tensor):
            name = self._names.get(id(value))
            if name is None and not value.is_meta:
                name = digest(tensor_bytes(value))
            return f"{name} {value.dtype} {tuple(value.shape)} {value.stride()}"
        if isinstance(value, (list, tuple)):
            return f"({', '.join(map(self._say, value))})"
        if isinstance(value, dict):
            return f"{{{', '.join(f'{k}: {self._say(v)}' for k, v in value.items())}}}"
        return repr(value)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        number = len(self.lines)
        line = self.line(func, args, kwargs or {})
        result = _run(func, args, kwargs or {}, self._outcomes)
        self.lines.append(line)
        for index, leaf in enumerate(_pytree.tree_leaves(result)):
            self.know(leaf, f"line {number} output {index}")
        return result


def _run(operator: Any, args: Any, kwargs: Any, outcomes: Outcomes) -> Any:
    """Return what an operator gives on tensors without values.

    torch computes shapes in Python, a third of a millisecond an operator; models repeat their
    blocks, so what a pure operator gave for such shapes is made again from their description.
    """
    leaves, spec = _pytree.tree_flatten((args, kwargs))
    if not _is_pure(operator) or any(_has_values(leaf) for leaf in leaves):
        return operator(*args, **kwargs)
    key = (operator, spec, tuple(map(_outline, leaves)))
    try:
        known = outcomes.get(key)
    except TypeError:  # an argument that cannot be a key
        return operator(*args, **kwargs)
    if known is not None:
        return _pytree.tree_map(_made, known)
    result = operator(*args, **kwargs)
    if all(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in _pytree.tree_leaves(result)):
        outcomes[key] = _pytree.tree_map(_Outline.of, result)
    return result


class _Outline:
    """A tensor's description: what is needed to make another one like it."""

    def __init__(self, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.dtype = dtype
        self.shape = shape
        self.stride = stride

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Outline:
        """Return the description of a tensor."""
        return cls(tensor.dtype, tuple(tensor.shape), tensor.stride())


def _made(known: _Outline) -> torch.Tensor:
    return torch.empty_strided(known.shape, known.stride, dtype=known.dtype, device="meta")


@functools.cache
def _is_pure(operator: Any) -> bool:
    """Return whether an operator gives new tensors alone and changes none."""
    schema = operator._schema  # noqa: SLF001 - has no public form
    return bool(schema.returns) and not any(
        argument.alias_info for argument in (*schema.arguments, *schema.returns)
    )


def _has_values(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and not leaf.is_meta


def _outline(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return torch.Tensor, leaf.dtype, tuple(leaf.shape), leaf.stride()
    return type(leaf), leaf
