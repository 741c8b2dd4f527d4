"""Which recipes may rebuild a live module, and what each needs in arguments and edits to do so.

Candidates in order: the recipe that `persistlib.build` recorded and the caller's `architecture=`,
torchvision's builders by the zoo's index, the module's own class by its import path. A later source
counts only where all before it fail; of one source the fewest edits win.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

from persistlib.architecture import trusted, zoo
from persistlib.architecture.arguments import signature, trace
from persistlib.architecture.encoding import NotPlainError, encode, text
from persistlib.architecture.express import InexpressibleError, express, infer
from persistlib.architecture.parametrized import plain_class
from persistlib.architecture.recipe import Recipe, recorded
from persistlib.architecture.skeleton import rebuild
from persistlib.architecture.structure import dtype_name
from persistlib.architecture.values import class_name
from persistlib.errors import ArchitectureError, Code, error

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from torch import nn

    from persistlib.errors import PersistlibError
    from persistlib.manifest.schema import Architecture

# Builders of one class that share half of their tensors are many; beyond these none came first.
_MOST = 4


class Fitted(NamedTuple):
    """A recipe that should rebuild a module, and what it was told from.

    Attributes:
        recipe: the recipe.
        built: a module that it builds, where one was built already.
    """

    recipe: Recipe
    built: nn.Module | None


def fitting(
    model: nn.Module, given: str | Mapping[str, Any] | Architecture | None, trust: Collection[str]
) -> Fitted:
    """Return the recipe with the fewest edits of the first source that has one."""
    problems: list[PersistlibError] = []
    for source in _sources(model, given):
        best: Fitted | None = None
        for recipe in source:
            found = _try(model, recipe, trust, problems)
            if found and (best is None or len(found.recipe.edits) < len(best.recipe.edits)):
                best = found
            if found and found.recipe.edits == recipe.edits:
                break
        if best is not None:
            return best
    # What differs from a candidate says more than that another could not be built.
    problems.sort(key=lambda problem: problem.code != Code.LOOKALIKE.identifier)
    if problems:
        raise problems[0]
    try:
        infer(model)
    except InexpressibleError as fault:
        raise _no_architecture(model, str(fault)) from fault
    raise _no_architecture(model, "nothing is known that builds such a module")


def _try(
    model: nn.Module, recipe: Recipe, trust: Collection[str], problems: list[PersistlibError]
) -> Fitted | None:
    """Return a candidate made to fit, or None and add to `problems` why it does not."""
    try:
        return _fit(model, recipe, trust)
    except InexpressibleError as fault:
        problems.append(_inexpressible(recipe, fault))
    except ArchitectureError as fault:
        problems.append(fault)
    return None


def _sources(
    model: nn.Module, given: str | Mapping[str, Any] | Architecture | None
) -> Iterator[list[Recipe]]:
    """Yield groups of candidates; a later group counts only where all before it fail."""
    stated: list[Recipe] = []
    if (known := recorded(model)) is not None:
        stated += [known, *([Recipe(known.builder, known.arguments)] if known.edits else [])]
    if given is not None:
        stated.append(Recipe.of(given))
    if stated:
        yield stated
    if given is not None:
        return
    root = class_name(plain_class(model))
    if trusted.within(root, ("torchvision",)):
        rows = [
            (name, dtype_name(tensor), tuple(tensor.shape))
            for name, tensor in model.state_dict(keep_vars=True).items()
        ]
        ranked = zoo.candidates(root, rows)[:_MOST]
        for _, tied in itertools.groupby(ranked, lambda c: (c.missing, c.extra)):
            yield [Recipe(candidate.entry.builder) for candidate in tied]
    with contextlib.suppress(InexpressibleError):
        yield [Recipe(*infer(model))]


def fit(model: nn.Module, candidate: Recipe, trust: Collection[str]) -> Recipe:
    """Return a candidate with the arguments and edits that make it the live module's.

    Raises:
        ArchitectureError: a difference that neither says, or the candidate cannot be built.
    """
    try:
        return _fit(model, candidate, trust).recipe
    except InexpressibleError as fault:
        raise _inexpressible(candidate, fault) from fault


def _fit(model: nn.Module, candidate: Recipe, trust: Collection[str]) -> Fitted:
    first: Fitted | InexpressibleError
    built = from_recipe(candidate, trust)
    try:
        first = _with_edits(model, candidate, built, trust)
    except InexpressibleError as fault:
        first = fault
    if isinstance(first, Fitted) and first.built is not None:
        return first
    if (guessed := _guessed_arguments(model, built, candidate, trust)) is not None:
        with contextlib.suppress(InexpressibleError, ArchitectureError):
            second = _with_edits(model, guessed, from_recipe(guessed, trust), trust)
            if isinstance(first, InexpressibleError) or len(second.recipe.edits) < len(
                first.recipe.edits
            ):
                return second
    if isinstance(first, InexpressibleError):
        raise first
    return first


def _with_edits(
    model: nn.Module, candidate: Recipe, built: nn.Module, trust: Collection[str]
) -> Fitted:
    added = express(model, built, trust)
    return Fitted(candidate.changed(added), None if added else built)


def from_recipe(recipe: Recipe, trust: Collection[str]) -> nn.Module:
    """Return what a recipe builds, its parameters on the meta device."""
    return rebuild(recipe.builder, recipe.arguments, recipe.edits, trust=trust)


def _guessed_arguments(
    model: nn.Module, built: nn.Module, candidate: Recipe, trust: Collection[str]
) -> Recipe | None:
    """Return the candidate with arguments for root attributes that differ and are constructor's.

    torchvision's builders pass what they do not know on to the root class.
    """
    names = {*signature(trusted.resolve_builder(candidate.builder, trust))} | {
        *signature(plain_class(model))
    }
    arguments = dict(candidate.arguments)
    for name in names - {"self", "args", "kwargs", "weights", "weights_backbone", "progress"}:
        ours, theirs = trace(model, name), trace(built, name)
        try:
            if text(encode(ours)) != text(encode(theirs)):
                arguments[name] = encode(ours)
        except NotPlainError:
            continue
    if arguments == candidate.arguments:
        return None
    return Recipe(candidate.builder, arguments, candidate.edits)


def _inexpressible(recipe: Recipe, fault: InexpressibleError) -> PersistlibError:
    return error(
        Code.LOOKALIKE,
        fault.location,
        f"differs from what {recipe.builder} builds, and no edit says it: {fault}",
        "use functions and classes that can be imported, or functools.partial of them; or build"
        " the module with persistlib.build",
    )


def _no_architecture(model: nn.Module, reason: str) -> PersistlibError:
    return error(
        Code.NO_ARCHITECTURE,
        type(model).__qualname__,
        reason,
        "build it with persistlib.build(...), or pass architecture='package.module:function', or"
        " define its class in an importable module with plain arguments kept in attributes of the"
        " same names",
    )
