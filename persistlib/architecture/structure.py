"""What a module is besides its values: paths, classes, plain configuration, tensor rows.

Law: `structure_digest` depends on nothing else, and is the same in every process.
"""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from persistlib.architecture.edits import INTERNALS
from persistlib.architecture.freezing import is_kept_in_eval
from persistlib.architecture.parametrized import is_parametrized, plain_class, recomputed
from persistlib.architecture.values import Outline, class_name, outline
from persistlib.digests import PREFIX, digest
from persistlib.dtypes import of_torch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    import torch

    from persistlib.manifest.schema import Manifest

_OURS = "_persistlib_"
# `torch.nn.RNN` and its kin keep references to their own parameters.
_DERIVED = frozenset({"_flat_weight_refs", "_flat_weights"})


class Row(NamedTuple):
    """A tensor that a module owns: its role, its own name, and the tensor."""

    role: str
    name: str
    tensor: torch.Tensor


def places(module: nn.Module) -> dict[int, str]:
    """Return the first path of every module in the tree, by the module's `id`."""
    return {id(inner): path for path, inner in module.named_modules()}


def paths(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every path and its module, a shared module at each of its paths."""
    yield from module.named_modules(remove_duplicate=False)


def attributes(module: nn.Module) -> dict[str, Any]:
    """Return a module's plain attributes: all that torch and persistlib do not keep there.

    A child, parameter or buffer that is None counts as an attribute None.
    """
    derived = recomputed(module) | (_DERIVED if isinstance(module, nn.RNNBase) else frozenset())
    found = {
        name: value
        for name, value in vars(module).items()
        if name not in INTERNALS and name not in derived and not name.startswith(_OURS)
    }
    if is_kept_in_eval(module):
        del found["train"]
    for registry in (module._parameters, module._buffers, module._modules):  # noqa: SLF001 - None members have no public form
        found |= {name: None for name, member in registry.items() if member is None}
    return found


def children(module: nn.Module) -> dict[str, nn.Module]:
    """Return the children that are not None, a shared one under each of its names."""
    return {name: child for name, child in module._modules.items() if child is not None}  # noqa: SLF001 - named_children leaves out second names


def outlines(module: nn.Module, known: Mapping[int, str]) -> dict[str, Outline]:
    """Return the outline of every plain attribute that is not a tensor itself."""
    import torch

    found = {
        name: outline(value, known)
        for name, value in attributes(module).items()
        if not isinstance(value, torch.Tensor)
    }
    transient = module._non_persistent_buffers_set  # noqa: SLF001 - has no public form
    found["non-persistent buffers"] = Outline(sorted(transient))
    return found


def configuration(module: nn.Module) -> dict[str, Any]:
    """Return the plain configuration of one module as JSON, by attribute."""
    known = places(module)
    return {name: found.data for name, found in outlines(module, known).items()}


def rows(module: nn.Module) -> list[Row]:
    """Return the tensors that a module owns itself, by role and name."""
    import torch

    members: list[tuple[str, Mapping[str, Any]]] = [
        ("parameter", module._parameters),  # noqa: SLF001 - order and None members
        ("buffer", module._buffers),  # noqa: SLF001 - as above
        ("attribute", attributes(module)),
    ]
    return sorted(
        (
            Row(role, name, tensor)
            for role, registry in members
            for name, tensor in registry.items()
            if isinstance(tensor, torch.Tensor)
        ),
        key=lambda row: row[:2],
    )


def structure_digest(
    module: nn.Module, dtypes: Mapping[str, str] | None = None, *, without: Collection[str] = ()
) -> str:
    """Return `blake3:` and the digest of a module's structure.

    Args:
        module: on any device, the meta device included.
        dtypes: safetensors dtype names by tensor name, where they differ from the module's own.
        without: paths of parts that are left out.
    """
    given = dtypes or {}
    known = places(module)
    content = [
        [path, known[id(inner)], *_content(path, inner, known, given)]
        for path, inner in sorted(paths(module), key=lambda item: item[0])
        if not is_within(path, without)
    ]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return PREFIX + digest(text.encode())


def is_within(path: str, parts: Collection[str]) -> bool:
    """Return whether a module is one of some parts, or lies in one."""
    return any(f"{path}.".startswith(f"{part}.") for part in parts)


def is_as_saved(module: nn.Module, manifest: Manifest) -> bool:
    """Return whether a rebuilt module is configured as the saved one was."""
    weights = manifest.weights
    dtypes = {record.name: record.dtype for record in weights.tensors}
    dtypes |= {alias: dtypes[name] for alias, name in weights.aliases.items() if name in dtypes}
    return structure_digest(module, dtypes) == manifest.architecture.structure


def _content(
    path: str, module: nn.Module, known: Mapping[int, str], dtypes: Mapping[str, str]
) -> list[Any]:
    """Return class, children's order, configuration and tensor rows of one module."""
    prefix = f"{path}." if path else ""
    tensors = [
        [role, name, dtypes.get(prefix + name) or dtype_name(tensor), list(tensor.shape)]
        for role, name, tensor in rows(module)
    ]
    plain = {name: found.data for name, found in outlines(module, known).items()}
    return [module_class_name(module), list(children(module)), plain, tensors]


def module_class_name(module: nn.Module) -> str:
    """Return a module's qualified class name; torch names the classes of parametrized ones."""
    name = class_name(plain_class(module))
    return f"{name} parametrized" if is_parametrized(module) else name


def dtype_name(tensor: torch.Tensor) -> str:
    """Return a tensor's dtype as the manifest spells it, or as torch does where it has none."""
    known = of_torch(str(tensor.dtype))
    return known.name if known else str(tensor.dtype).removeprefix("torch.")


def source_digest(builder: Callable[..., Any]) -> str | None:
    """Return `blake3:` and the digest of the file that defines a builder; None without a source."""
    try:
        text = inspect.getsource(inspect.getmodule(inspect.unwrap(builder)) or builder)
    except (OSError, TypeError):
        return None
    return PREFIX + digest(text.encode())
