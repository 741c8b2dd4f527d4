"""Parametrized tensors: orthogonal, spectral and weight norms, of torch's new kind and of its old.

Law: `parametrize(module, edit)` for every edit of `parametrizations(live)` gives a module whose
parametrizations are those of `live`.

The new kind (`torch.nn.utils.parametrizations`) changes the module's class and keeps the tensor in
a child `parametrizations`; the old kind (`torch.nn.utils.weight_norm`) is a hook that recomputes a
tensor attribute before each forward.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.utils import parametrizations as known
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from persistlib.architecture import trusted
from persistlib.architecture.arguments import NotRecoverableError, recover
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Mapping

_NEW = "torch.nn.utils.parametrizations"
_OLD = "torch.nn.utils"


class Parametrization(NamedTuple):
    """One parametrization: the tensor's name, and what was called on it with which arguments."""

    tensor: str
    builder: str
    arguments: Mapping[str, Any]


def plain_class(module: torch.nn.Module) -> type[torch.nn.Module]:
    """Return the class that a module had before anything was parametrized."""
    cls = type(module)
    return cls.__bases__[0] if is_parametrized(module) else cls


def is_parametrized(module: torch.nn.Module) -> bool:
    """Return whether a module has parametrizations of the new kind."""
    # `parametrize.is_parametrized` asks with hasattr, which runs a module's own __getattr__.
    return isinstance(module._modules.get("parametrizations"), torch.nn.ModuleDict) and (  # noqa: SLF001
        type(module).__module__ == parametrize.__name__
    )


def recomputed(module: torch.nn.Module) -> frozenset[str]:
    """Return the names of tensor attributes that hooks of the old kind compute."""
    return frozenset(hook.name for hook in _hooks(module))


def parametrizations(module: torch.nn.Module) -> list[Parametrization]:
    """Return what was called on a module, in an order that can be repeated.

    Raises:
        NotRecoverableError: a parametrization keeps too little to be made again.
    """
    found = [_old(hook) for hook in _hooks(module)]
    if is_parametrized(module):
        for tensor, chain in _chains(module).items():
            found += [_new(tensor, link) for link in chain.children()]
    return found


def parametrize_tensor(
    module: torch.nn.Module, what: Parametrization, trust: Collection[str]
) -> None:
    """Carry out one parametrization.

    Raises:
        ArchitectureError: it is neither one of torch's nor a trusted module class.
    """
    function: Any = trusted.resolve(what.builder, trust)
    if what.builder in trusted.PARAMETRIZATIONS:
        function(module, what.tensor, **what.arguments)
    elif isinstance(function, type) and issubclass(function, torch.nn.Module):
        parametrize.register_parametrization(module, what.tensor, function(**what.arguments))
    else:
        raise error(Code.BAD_RECIPE, what.builder, "not a parametrization")


def tensors_of(tensor: str) -> tuple[str, ...]:
    """Return the names that a tensor and its parts go by, before and after."""
    return (tensor, *(f"{tensor}_{part}" for part in ("g", "v", "u", "orig")))


def original_shape(module: torch.nn.Module, tensor: str) -> torch.Size | None:
    """Return the shape that a parametrized tensor had, computing nothing."""
    for name in (f"{tensor}_orig", f"{tensor}_v"):
        if (part := module._parameters.get(name)) is not None:  # noqa: SLF001 - computes nothing
            return part.shape
    if not is_parametrized(module):
        return None
    originals = _chains(module)[tensor]._parameters  # noqa: SLF001 - as above
    for name in ("original", "original1"):
        if (part := originals.get(name)) is not None:
            return part.shape
    return None


@contextlib.contextmanager
def orthogonal_on_meta() -> Generator[None]:
    """Let orthogonal parametrizations be registered on the meta device; needs the lock.

    Factoring a matrix has no meta kernel, and `register_parametrization` takes the
    NotImplementedError for a map without an inverse: it would go on, without the buffer `base`.
    """
    inverse: Any = known._Orthogonal.right_inverse  # noqa: SLF001 - no public form

    def right_inverse(self: Any, tensor: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor
        if not tensor.is_meta:
            result = inverse(self, tensor)
            return result
        result = inverse(self, torch.randn(tensor.shape, dtype=tensor.dtype))
        if self.base is not None:
            self.base = self.base.to("meta")
        return result.to("meta")

    patched: Any = known._Orthogonal  # noqa: SLF001 - as above
    patched.right_inverse = right_inverse
    try:
        yield
    finally:
        patched.right_inverse = inverse


def has_foreign_hooks(module: torch.nn.Module) -> bool:
    """Return whether a module has forward hooks that no recipe restores."""
    before = len(module._forward_pre_hooks) - len(_hooks(module))  # noqa: SLF001 - no public form
    return bool(before or module._forward_hooks)  # noqa: SLF001 - as above


def _hooks(module: torch.nn.Module) -> list[Any]:
    hooks = module._forward_pre_hooks.values()  # noqa: SLF001 - torch offers no other way
    return [hook for hook in hooks if isinstance(hook, (WeightNorm, SpectralNorm))]


def _chains(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return the lists of parametrizations of a parametrized module, by tensor."""
    holder = module._modules["parametrizations"]  # noqa: SLF001 - getattr would compute
    assert holder is not None
    return dict(holder.named_children())


def _old(hook: Any) -> Parametrization:
    if isinstance(hook, WeightNorm):
        return Parametrization(hook.name, f"{_OLD}:weight_norm", {"dim": hook.dim})
    return Parametrization(
        hook.name,
        f"{_OLD}:spectral_norm",
        {"n_power_iterations": hook.n_power_iterations, "eps": hook.eps, "dim": hook.dim},
    )


def _new(tensor: str, link: torch.nn.Module) -> Parametrization:
    kind = type(link)
    if kind is known._WeightNorm:  # noqa: SLF001 - the only mark of weight_norm's second form
        return Parametrization(tensor, f"{_NEW}:weight_norm", {"dim": _attribute(link, "dim")})
    if kind is known._SpectralNorm:  # noqa: SLF001 - as above
        names = ("n_power_iterations", "eps", "dim")
        arguments = {name: _attribute(link, name) for name in names}
        return Parametrization(tensor, f"{_NEW}:spectral_norm", arguments)
    if kind is known._Orthogonal:  # noqa: SLF001 - as above
        arguments = {
            "orthogonal_map": _attribute(link, "orthogonal_map").name,
            "use_trivialization": link._buffers.get("base") is not None,  # noqa: SLF001
        }
        return Parametrization(tensor, f"{_NEW}:orthogonal", arguments)
    name = trusted.builder_name(kind)
    if name is None:
        raise NotRecoverableError(f"{kind.__qualname__} cannot be imported by its name")
    return Parametrization(tensor, name, recover(link))


def _attribute(link: torch.nn.Module, name: str) -> Any:
    value = vars(link).get(name)
    # spectral_norm of a vector or of a 1-d weight keeps nothing beside its eps.
    return {"n_power_iterations": 1, "dim": 0}[name] if value is None else value
