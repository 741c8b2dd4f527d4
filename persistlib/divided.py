"""Modules whose tensors are divided among processes: FSDP2, HSDP, tensor parallel.

Law: `hollow(model)` has the classes, the names, the shapes, the dtypes and the ties that the model
had before it was divided; of divided tensors it has no values, and takes no memory for them.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Mapping

_DISTRIBUTED = "torch.distributed."
# Attributes that dividing a module leaves in it: torch.distributed._composable.contract, fsdp, and
# tensor._api.distribute_module.
_MARKS = ("__composable_api_state_key", "_fsdp", "_is_fsdp", "_distribute_module_applied")


def is_divided(tensor: torch.Tensor) -> bool:
    """Return whether a tensor lies in several processes."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def has_parts(model: nn.Module) -> bool:
    """Return whether some tensor of a module lies in several processes."""
    return any(map(is_divided, (*model.parameters(), *model.buffers())))


@torch.no_grad()
def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor; every process that has a part of a divided one calls this."""
    made: Any = tensor
    return made.full_tensor() if is_divided(tensor) else tensor


def settle(model: nn.Module) -> None:
    """Let FSDP2 put its parameters back where they lie between two steps."""
    for module in model.modules():
        if (reshard := getattr(module, "reshard", None)) is not None and _is_ours(type(module)):
            reshard()


def hollow(model: nn.Module) -> nn.Module:
    """Return a module as the model was before it was divided; itself where it never was."""
    return _hollow(model, {}, {}) if has_parts(model) else model


def _hollow(
    module: nn.Module, modules: dict[int, nn.Module], tensors: dict[int, torch.Tensor]
) -> nn.Module:
    if (known := modules.get(id(module))) is not None:
        return known
    kind = _own_class(type(module))
    made: nn.Module = object.__new__(kind)
    modules[id(module)] = made
    state = {
        name: _without_ours(name, value)
        for name, value in vars(module).items()
        if not name.startswith(_MARKS)
    }
    for kinds in ("_parameters", "_buffers"):
        own: Mapping[str, torch.Tensor | None] = state[kinds]
        state[kinds] = {name: _stand_in(item, tensors) for name, item in own.items()}
    children: Mapping[str, nn.Module | None] = state["_modules"]
    state["_modules"] = {
        name: child if child is None else _hollow(child, modules, tensors)
        for name, child in children.items()
    }
    vars(made).update(state)
    return made


def _own_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class that a module had: FSDP2 gives it one of its own over it."""
    if not _is_ours(kind):
        return kind
    return next(k for k in kind.__mro__[1:] if issubclass(k, nn.Module))


def _is_ours(kind: type[Any]) -> bool:
    return any(
        k.__name__ == "FSDPModule" and k.__module__.startswith(_DISTRIBUTED) for k in kind.__mro__
    )


def _stand_in(tensor: torch.Tensor | None, made: dict[int, torch.Tensor]) -> torch.Tensor | None:
    if tensor is None or not is_divided(tensor):
        return tensor
    if id(tensor) not in made:
        empty = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
        is_parameter = isinstance(tensor, nn.Parameter)
        made[id(tensor)] = (
            nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
        )
    return made[id(tensor)]


def _without_ours(name: str, value: Any) -> Any:
    """Return an attribute without the hooks that divide a module."""
    if not (name.startswith("_") and name.endswith("_hooks")) or not hasattr(value, "items"):
        return value
    return type(value)((key, hook) for key, hook in value.items() if not _divides(hook))


def _divides(hook: Any) -> bool:
    hook = getattr(hook, "hook", hook)
    while isinstance(hook, functools.partial):
        hook = hook.func
    owner = getattr(hook, "__self__", None)
    places = (getattr(hook, "__module__", None), type(owner).__module__)
    return any(str(place).startswith(_DISTRIBUTED) for place in places)
