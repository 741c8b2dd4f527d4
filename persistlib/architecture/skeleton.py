"""Modules rebuilt from a recipe, with buffers but without the parameters' values.

Law: building leaves nothing behind but the module (see `isolation`).

Parameters go to the meta device as they are registered, so their initial values are never computed;
buffers stay real, for nothing else holds the non-persistent ones. A constructor that needs a
parameter's values is run for real, and the parameters let go afterwards.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from persistlib.architecture import edits
from persistlib.architecture.isolation import isolated
from persistlib.architecture.parametrized import orthogonal_on_meta
from persistlib.errors import ArchitectureError, Code, warn

if TYPE_CHECKING:
    from collections.abc import Collection, Generator

    from persistlib.manifest.schema import Architecture, Edit

_REASON = "_persistlib_built_really"
SLOWER = "building it takes longer, and memory for its initial values; nothing else differs"

# In-place fills; those of torch.nn.init are known by their module.
_FILLS = frozenset(
    getattr(torch.Tensor, name)
    for name in (
        *("normal_", "uniform_", "random_", "bernoulli_", "exponential_", "log_normal_"),
        *("fill_", "zero_", "erfinv_", "clamp_", "add_", "mul_"),
    )
)


def skeleton(architecture: Architecture, *, trust: Collection[str] = ()) -> nn.Module:
    """Return the module that a recipe describes, its parameters on the meta device.

    Args:
        architecture: builder, arguments and edits.
        trust: packages, or dotted prefixes, that may be imported beyond the allow-list.

    Raises:
        ArchitectureError: the recipe names what is unknown or untrusted, or cannot be carried out.
    """
    module = rebuild(architecture.builder, architecture.arguments, architecture.edits, trust=trust)
    if reason := built_really(module):
        warn(Code.BUILT_REALLY, architecture.builder, reason, SLOWER)
    return module


def built_really(module: nn.Module) -> str | None:
    """Return why a rebuilt module's parameters had to be computed first; None if they had not."""
    reason: str | None = vars(module).get(_REASON)
    return reason


def rebuild(
    builder: str, arguments: Any, changes: tuple[Edit, ...] = (), *, trust: Collection[str] = ()
) -> nn.Module:
    """Return what `builder` and `changes` give, its parameters on the meta device.

    Raises:
        ArchitectureError: as for `skeleton`.
    """
    try:
        with isolated(), _parameters_on_meta():
            return _build(builder, arguments, changes, trust)
    except ArchitectureError as fault:
        if fault.code not in {Code.BUILDER_FAILED.identifier, Code.BAD_RECIPE.identifier}:
            raise
        reason = fault.reason
    # A fault of the recipe itself shows again, and is raised, when it is built for real.
    with isolated():
        module = _build(builder, arguments, changes, trust)
        _release_values(module)
    vars(module)[_REASON] = f"its constructor needs the values of parameters ({reason})"
    return module


def with_values(architecture: Architecture, *, trust: Collection[str] = ()) -> nn.Module:
    """Return the module that a recipe describes, with the initial values of a fresh process.

    Raises:
        ArchitectureError: as for `skeleton`.
    """
    with isolated():
        return _build(architecture.builder, architecture.arguments, architecture.edits, trust)


def _build(
    builder: str, arguments: Any, changes: tuple[Edit, ...], trust: Collection[str]
) -> nn.Module:
    module = edits.call(builder, with_defaults(builder, arguments, trust), trust)
    edits.apply(module, changes, trust)
    return module


def with_defaults(builder: str, arguments: Any, trust: Collection[str]) -> Any:
    """Return the arguments, with torchvision told to fetch no backbone."""
    from persistlib.architecture.arguments import signature
    from persistlib.architecture.trusted import resolve_builder

    if not builder.startswith("torchvision."):
        return arguments
    asked = {"weights", "weights_backbone"} & set(signature(resolve_builder(builder, trust)))
    return {**dict.fromkeys(asked), **arguments}


@contextlib.contextmanager
def _parameters_on_meta() -> Generator[None]:
    """Send every parameter that this thread registers to the meta device; needs the lock."""
    register = nn.Module.register_parameter
    thread = threading.get_ident()
    # Keyed by identity: one parameter registered twice stays one.
    sent: Any = WeakIdKeyDictionary()

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta and threading.get_ident() == thread:
            if param not in sent:
                sent[param] = _on_meta(param)
            param = sent[param]
        register(self, name, param)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]  # no other hook
    try:
        with orthogonal_on_meta(), _FillsSkipped():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]  # put back


class _FillsSkipped(TorchFunctionMode):
    """Skips in-place fills of tensors without values: torch runs them in Python, for nothing.

    They are half the time of building vit_l_16.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        if func in _FILLS or getattr(func, "__module__", "") == nn.init.__name__:
            tensor = args[0] if args else given["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **given)


def _on_meta(parameter: nn.Parameter) -> nn.Parameter:
    if nn.parameter.is_lazy(parameter):
        return parameter
    empty = torch.empty_like(parameter, device="meta")
    return nn.Parameter(empty, requires_grad=parameter.requires_grad)


def _release_values(module: nn.Module) -> None:
    """Put every parameter on the meta device, shared ones staying shared."""
    sent: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        registry = owner._parameters  # noqa: SLF001 - assignment would run a module's own code
        for name, parameter in registry.items():
            if parameter is not None and not parameter.is_meta:
                registry[name] = sent.setdefault(id(parameter), _on_meta(parameter))
