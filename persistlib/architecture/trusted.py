"""Which names a recipe may use, and what they stand for.

Law: a name outside the allow-list and outside `trust` is refused before anything is imported.

Without trust a recipe reaches torch's and torchvision's module classes, torchvision's registered
model builders, torch's pure functions, and nothing else: both packages also hold functions that
download or unpickle, and those are no part of any architecture.
"""

from __future__ import annotations

import difflib
import importlib
import re
import shlex
import sys
from functools import cache
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import torch

from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Collection

    from persistlib.errors import PersistlibError

ZOO = "torchvision.models"  # where a name without a module is looked for
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
# Where a module class may come from without the caller's word.
_PACKAGES = ("torch.nn", ZOO, "torchvision.ops")
# Of torch's own operators, those that reach a file or foreign memory; the rest of `torch`, where
# `load` lives, is no operator and not allowed at all.
_REACHING_OUT = frozenset({"from_file", "frombuffer"})
# Modules of our own, which hold what they are given to be harmless.
_OWN = frozenset(
    {
        "persistlib.architecture.wide_linear:WideLinear",
        "persistlib.graph_modules:GraphModule",
        "persistlib.keras_models:KerasModel",
    }
)
PARAMETRIZATIONS = frozenset(
    {
        "torch.nn.utils.parametrizations:orthogonal",
        "torch.nn.utils.parametrizations:spectral_norm",
        "torch.nn.utils.parametrizations:weight_norm",
        "torch.nn.utils:spectral_norm",
        "torch.nn.utils:weight_norm",
    }
)
_EXAMPLE = "name one such as torchvision.models:resnet18"


def whole_name(builder: str) -> str:
    """Return a builder as `package.module:name`; a bare name is one of torchvision's."""
    return builder if ":" in builder else f"{ZOO}:{builder}"


def within(module: str, prefixes: Collection[str]) -> bool:
    """Return whether a dotted module name is one of `prefixes` or lies below one."""
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


def resolve(name: str, trust: Collection[str] = ()) -> Any:
    """Return the object that `package.module:qualified.name` stands for.

    Args:
        name: what a recipe says.
        trust: packages, or dotted prefixes, beyond the allow-list.

    Raises:
        ArchitectureError: malformed, untrusted (nothing was imported), or not there.
    """
    if not _NAME.fullmatch(name):
        raise error(Code.BAD_RECIPE, name, "not a name of the form package.module:name", _EXAMPLE)
    module, _, qualified = name.partition(":")
    if module == "__main__":
        raise error(
            Code.UNTRUSTED,
            name,
            "a name of the script that ran cannot be found by another process",
            "move the class or function to a module that can be imported",
        )
    trusted = within(module, trust)
    if not trusted and not _allowed_module(module, qualified):
        raise untrusted(name)
    found = _find(name, module, qualified)
    if not trusted and not _allowed(found, module, qualified):
        raise untrusted(name)
    return found


def resolve_builder(name: str, trust: Collection[str] = ()) -> Any:
    """Return the callable that builds a module: a module class or a function.

    Raises:
        ArchitectureError: as for `resolve`, or it is neither a module class nor a builder.
    """
    found = resolve(name, trust)
    module = name.partition(":")[0]
    is_class = isinstance(found, type) and issubclass(found, torch.nn.Module)
    is_builder = isinstance(found, FunctionType) and (
        within(module, trust) or _is_registered(found)
    )
    if not (is_class or is_builder or (callable(found) and within(module, trust))):
        raise error(
            Code.BAD_RECIPE, name, "neither a module class nor a builder of models", _EXAMPLE
        )
    return found


def name_of(value: Any) -> str | None:
    """Return the name that resolves to `value` itself, or None when there is none.

    Lambdas, local functions and classes, and whatever was replaced since have none.
    """
    qualified = getattr(value, "__qualname__", None)
    homes = [getattr(value, "__module__", None)]
    if isinstance(value, BuiltinFunctionType):
        # Torch's own are of a private module, and public in one of these.
        qualified = value.__name__
        homes = ["torch.nn.functional", "torch", *homes]
    if not isinstance(qualified, str):
        return None
    for home in homes:
        found: Any = sys.modules.get(home) if isinstance(home, str) else None
        for part in qualified.split("."):
            found = getattr(found, part, None)
        if found is value and _NAME.fullmatch(f"{home}:{qualified}"):
            return f"{home}:{qualified}"
    return None


def builder_name(function: Any) -> str | None:
    """Return the shortest public name of a torchvision or torch.nn builder, or `name_of` it."""
    name = name_of(function)
    if name is None:
        return None
    module, _, qualified = name.partition(":")
    for depth in range(2, module.count(".") + 2):
        package = ".".join(module.split(".")[:depth])
        if (
            within(module, _PACKAGES)
            and getattr(sys.modules.get(package), qualified, None) is function
        ):
            return f"{package}:{qualified}"
    return name


def untrusted(name: str) -> PersistlibError:
    """Return the error for a name that the caller has not vouched for."""
    package = name.partition(".")[0].partition(":")[0]
    return error(
        Code.UNTRUSTED,
        name,
        "neither on the allow-list nor in a trusted package; nothing was imported",
        vouching(package),
    )


def vouching(package: str) -> str:
    """Return the remedy for what nobody has vouched for, in Python and on the command line."""
    return f"if you trust that code: trust={{{package!r}}}, or --trust {shlex.quote(package)}"


def _allowed_module(module: str, qualified: str) -> bool:
    """Say from the text alone whether a name may be looked up."""
    if f"{module}:{qualified}" in _OWN:
        return True
    if module == "torch":
        return not qualified.startswith("_") and qualified not in _REACHING_OUT
    return within(module, _PACKAGES) and "." not in qualified and not qualified.startswith("__")


def _allowed(found: Any, module: str, qualified: str) -> bool:
    """Say whether an object that was found on the allow-list may be used."""
    if f"{module}:{qualified}" in PARAMETRIZATIONS | _OWN:
        return True
    if isinstance(found, type):
        return within(found.__module__, _PACKAGES) and issubclass(found, torch.nn.Module)
    if module == "torch":
        # torch names them nowhere else, and its stubs not at all.
        operators: Any = vars(torch._C)["_VariableFunctions"]  # noqa: SLF001
        return isinstance(found, BuiltinFunctionType) and found is getattr(
            operators, qualified, None
        )
    if module == "torch.nn.functional":
        return not qualified.startswith("_") and _is_function_of_tensors(found)
    return isinstance(found, FunctionType) and _is_registered(found)


def _is_function_of_tensors(found: Any) -> bool:
    if isinstance(found, BuiltinFunctionType):
        return True
    return isinstance(found, FunctionType) and found.__module__ in {
        "torch.nn.functional",
        "torch._jit_internal",
    }


def _find(name: str, module: str, qualified: str) -> Any:
    """Import the module, and return the object."""
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as fault:
        missing = fault.name or ""
        if missing == module or module.startswith(f"{missing}."):
            raise _unknown(
                name, f"no module {missing!r}", "install the package that has it"
            ) from fault
        raise error(Code.BUILDER_FAILED, name, f"importing its module failed: {fault}") from fault
    except Exception as fault:
        raise error(Code.BUILDER_FAILED, name, f"importing its module failed: {fault}") from fault
    for part in qualified.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), 1)
            hint = f"did you mean {module}:{near[0]}?" if near else ""
            raise _unknown(name, f"{getattr(found, '__name__', module)} has no {part!r}", hint)
        found = getattr(found, part)
    if isinstance(found, ModuleType):
        raise _unknown(name, "a module, not a callable", "")
    return found


def _unknown(name: str, reason: str, remedy: str) -> PersistlibError:
    return error(Code.UNKNOWN_BUILDER, name, reason, remedy)


def _is_registered(function: FunctionType) -> bool:
    """Say whether torchvision lists a function among its model builders."""
    return function in _registered()


@cache
def _registered() -> frozenset[Any]:
    try:
        from torchvision import models
    except ImportError:
        return frozenset()
    return frozenset(models.get_model_builder(name) for name in models.list_models())
