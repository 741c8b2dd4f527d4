"""A recipe for the torch and torchvision that are here, where they know fewer arguments.

Law: what is left out is an argument that the callable here does not have, with the value that the
release which saved it had as its default. `torch.nn.BatchNorm2d(bias=True)` of torch 2.12 is
`BatchNorm2d()` before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from persistlib.architecture.arguments import signature
from persistlib.architecture.trusted import resolve
from persistlib.compat import frameworks
from persistlib.compat.offers import is_default
from persistlib.errors import PersistlibError
from persistlib.installed import package_version

if TYPE_CHECKING:
    from collections.abc import Mapping

    from persistlib.compat.frameworks import Framework
    from persistlib.manifest.schema import Architecture


def fitted(recipe: Architecture, saved: Mapping[str, str]) -> Architecture:
    """Return a recipe without the arguments that the packages here do not have, nor need.

    Args:
        recipe: as it was saved.
        saved: versions of the packages that saved it.
    """
    then = {
        package: found
        for package in frameworks.PACKAGES
        if package_version(package) != saved.get(package)
        and (found := frameworks.framework(package, saved.get(package)))
    }
    if not then:
        return recipe
    edits = tuple(
        edit.model_copy(update={"arguments": _fitted(edit.builder, edit.arguments, then)})
        if edit.builder is not None
        else edit
        for edit in recipe.edits
    )
    arguments = _fitted(recipe.builder, recipe.arguments, then)
    return recipe.model_copy(update={"arguments": arguments, "edits": edits})


def _fitted(
    builder: str, arguments: Mapping[str, Any], then: Mapping[str, Framework]
) -> Mapping[str, Any]:
    release = then.get(builder.partition(".")[0])
    definition = release.find(builder) if release else None
    if definition is None or not arguments:
        return arguments
    before = frameworks.accepted(definition, then).defaults
    lacking = _lacking(builder, arguments)
    return {
        name: value
        for name, value in arguments.items()
        if not (name in lacking and is_default(before.get(name), value))
    }


def _lacking(builder: str, arguments: Mapping[str, Any]) -> frozenset[str]:
    """Return the arguments that a callable here does not have; none where that cannot be told."""
    here = {
        package: found
        for package in frameworks.PACKAGES
        if (found := frameworks.framework(package, package_version(package)))
    }
    release = here.get(builder.partition(".")[0])
    definition = release.find(builder) if release and release.is_exact else None
    if definition is not None:
        taken = frameworks.accepted(definition, here)
        return frozenset() if taken.is_open else frozenset(arguments) - frozenset(taken.defaults)
    try:
        parameters = signature(resolve(builder))
    except PersistlibError:
        return frozenset()
    if not parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return frozenset()
    return frozenset(arguments) - frozenset(parameters)
