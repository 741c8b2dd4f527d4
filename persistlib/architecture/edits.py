"""Edits: what changes a built module into the one that was saved, step by step.

| op | path | further fields |
| --- | --- | --- |
| replace | an existing submodule | `builder`, `arguments` of what stands there afterwards |
| insert | a new submodule | `builder`, `arguments`; `index` among its siblings, null at the end |
| remove | an existing submodule | `attribute`: instead, a plain attribute of the module at `path` |
| share | a submodule, new or not | `value`: path of the module that stands there as well |
| set | an existing module | `attribute`, and its plain `value`; null empties a child or parameter |
| parametrize | an existing module | `attribute`: the tensor; `builder`, `arguments` |

Law: edits reach modules and their plain attributes, and nothing else of Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from persistlib.architecture.encoding import decode
from persistlib.architecture.parametrized import Parametrization, parametrize_tensor
from persistlib.architecture.trusted import resolve_builder
from persistlib.errors import Code, PersistlibError, error

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from persistlib.manifest.schema import Edit

# What torch keeps for itself in every module, by name; an edit never touches it.
INTERNALS = frozenset(vars(nn.Module())) | {"_non_persistent_buffers_set", "_compiled_call_impl"}


def apply(module: nn.Module, edits: Iterable[Edit], trust: Collection[str] = ()) -> None:
    """Carry out edits on a module, in order.

    Raises:
        ArchitectureError: an edit's path, attribute or builder does not fit.
    """
    for number, edit in enumerate(edits):
        _apply(module, edit, number, trust)


def _apply(module: nn.Module, edit: Edit, number: int, trust: Collection[str]) -> None:
    try:
        _OPERATIONS[edit.op](module, edit, trust)
    except PersistlibError:
        raise
    except Exception as fault:
        raise error(
            Code.BAD_RECIPE,
            f"edits.{number} ({edit.op} {edit.path})",
            f"{type(fault).__name__}: {fault}",
            "check the edit against the module's own paths",
        ) from fault


def call(builder: str, arguments: Any, trust: Collection[str]) -> nn.Module:
    """Return what a builder builds.

    Raises:
        ArchitectureError: unknown or untrusted, it raised, or what it gave is no module.
    """
    function = resolve_builder(builder, trust)
    keywords = decode(arguments, trust)
    refuse_downloads(builder, keywords)
    try:
        module = function(**keywords)
    except Exception as fault:
        raise error(
            Code.BUILDER_FAILED,
            builder,
            f"{type(fault).__name__}: {fault}",
            "check its arguments",
        ) from fault
    if not isinstance(module, nn.Module):
        raise error(Code.BAD_RECIPE, builder, f"gave a {type(module).__qualname__}, no module")
    return module


# torchvision's builders fetch and unpickle pretrained weights when one of these is given; its
# detection and segmentation builders fetch a backbone when `weights_backbone` is left out.
_DOWNLOADS = frozenset({"weights", "weights_backbone", "pretrained", "pretrained_backbone"})


def refuse_downloads(builder: str, arguments: Any) -> None:
    """Raise when a recipe for torchvision asks for pretrained weights."""
    if builder.startswith("torchvision.") and (
        asked := sorted(name for name in _DOWNLOADS & set(arguments) if arguments[name])
    ):
        raise error(
            Code.BAD_RECIPE,
            builder,
            f"a recipe never asks for pretrained weights ({asked[0]})",
            "pass weights= to persistlib.build; the recipe keeps what they configure",
        )


def child(module: nn.Module, path: str) -> nn.Module:
    """Return the submodule at a dotted path, looked up in children alone.

    Raises:
        ArchitectureError: there is none.
    """
    for name in path.split(".") if path else ():
        found = module._modules.get(name)  # noqa: SLF001 - getattr would run a module's code
        if found is None:
            raise error(Code.BAD_RECIPE, path, f"no submodule {name!r} there")
        module = found
    return module


def _parent(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    prefix, _, name = path.rpartition(".")
    if not name:
        raise error(Code.BAD_RECIPE, "edit", "the path of a submodule is empty")
    return child(module, prefix), name


def _replace(module: nn.Module, edit: Edit, trust: Collection[str]) -> None:
    parent, name = _parent(module, edit.path)
    if name not in parent._modules:  # noqa: SLF001 - the same look-up as `child`
        raise error(Code.BAD_RECIPE, edit.path, "there is no submodule to replace")
    parent._modules[name] = _built(edit, trust)  # noqa: SLF001 - add_module would do the same


def _insert(module: nn.Module, edit: Edit, trust: Collection[str]) -> None:
    parent, name = _parent(module, edit.path)
    if parent._modules.get(name) is not None:  # noqa: SLF001 - as above
        raise error(Code.BAD_RECIPE, edit.path, "a submodule already stands there")
    vars(parent).pop(name, None)
    parent.add_module(name, _built(edit, trust))
    if edit.index is not None:
        _move(parent, name, edit.index)


def _move(parent: nn.Module, name: str, index: int) -> None:
    children = parent._modules  # noqa: SLF001 - order has no public form
    order = [other for other in children if other != name]
    order.insert(index, name)
    for other in order:
        children[other] = children.pop(other)


def _remove(module: nn.Module, edit: Edit, _trust: Collection[str]) -> None:
    if edit.attribute is not None:
        owner = child(module, edit.path)
        del vars(owner)[_attribute(edit)]
        return
    parent, name = _parent(module, edit.path)
    del parent._modules[name]  # noqa: SLF001 - delattr would do the same


def _share(module: nn.Module, edit: Edit, _trust: Collection[str]) -> None:
    parent, name = _parent(module, edit.path)
    if not isinstance(edit.value, str):
        raise error(Code.BAD_RECIPE, edit.path, "the value of share is a path")
    shared = child(module, edit.value)
    if parent in shared.modules():
        raise error(Code.BAD_RECIPE, edit.path, "a module cannot stand inside itself")
    parent._modules[name] = shared  # noqa: SLF001 - as above


def _set(module: nn.Module, edit: Edit, trust: Collection[str]) -> None:
    owner, name = child(module, edit.path), _attribute(edit)
    value = decode(edit.value, trust)
    for registry in (owner._parameters, owner._buffers, owner._modules):  # noqa: SLF001 - as above
        if name in registry:
            if value is not None:
                raise error(Code.BAD_RECIPE, edit.path, f"{name!r} can only be emptied")
            registry[name] = None
            return
    vars(owner)[name] = value


def _parametrize(module: nn.Module, edit: Edit, trust: Collection[str]) -> None:
    if edit.attribute is None or edit.builder is None:
        raise error(Code.BAD_RECIPE, edit.path, "parametrize needs attribute and builder")
    what = Parametrization(edit.attribute, edit.builder, decode(edit.arguments, trust))
    parametrize_tensor(child(module, edit.path), what, trust)


def _built(edit: Edit, trust: Collection[str]) -> nn.Module:
    if edit.builder is None:
        raise error(Code.BAD_RECIPE, edit.path, f"{edit.op} needs a builder")
    return call(edit.builder, edit.arguments, trust)


def _attribute(edit: Edit) -> str:
    name = edit.attribute
    if name is None or not name.isidentifier() or name.startswith("__") or name in INTERNALS:
        raise error(Code.BAD_RECIPE, edit.path, f"{name!r} is no plain attribute")
    return name


_OPERATIONS: dict[str, Callable[[nn.Module, Edit, Collection[str]], None]] = {
    "replace": _replace,
    "insert": _insert,
    "remove": _remove,
    "share": _share,
    "set": _set,
    "parametrize": _parametrize,
}
