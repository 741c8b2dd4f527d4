"""From a live module to the recipe that rebuilds it, or an error that says why there is none.

Law: a recipe is given only for a module whose rebuild has (a) the same names, shapes, classes,
order and sharing, (b) the same plain configuration in every module, and (c) bit-equal outputs on
one input, where one is known.

Candidates in order: the recipe that `persistlib.build` recorded, the caller's `architecture=`,
torchvision's builders by the zoo's index, the module's own class by its import path. Of those that
fit, the fewest edits win.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from persistlib.architecture import trusted, zoo
from persistlib.architecture.arguments import signature, trace
from persistlib.architecture.behaviour import Inputs, TrialFailedError, probe, same_outputs
from persistlib.architecture.compare import Difference, differences
from persistlib.architecture.encoding import NotPlainError, encode
from persistlib.architecture.express import InexpressibleError, express, infer
from persistlib.architecture.parametrized import plain_class
from persistlib.architecture.recipe import Recipe, recorded
from persistlib.architecture.skeleton import SLOWER, built_really, rebuild
from persistlib.architecture.structure import (
    dtype_name,
    outlines,
    places,
    source_digest,
    structure_digest,
)
from persistlib.architecture.values import class_name
from persistlib.errors import ArchitectureError, Code, Severity, error, finding
from persistlib.manifest.schema import Architecture

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from persistlib.errors import Finding, PersistlibError

# Builders of one class that share half of their tensors are many; beyond these none came first.
_MOST = 4


@dataclass(frozen=True)
class Description:
    """A module's architecture.

    Attributes:
        architecture: the recipe, with the digests of structure and source.
        skeleton: the module rebuilt from it: parameters on the meta device, buffers as built.
        findings: what a save has to tell.
    """

    architecture: Architecture
    skeleton: nn.Module
    findings: tuple[Finding, ...] = field(default=())


def describe(
    model: nn.Module,
    *,
    architecture: str | Mapping[str, Any] | Architecture | None = None,
    trust: Collection[str] = (),
    inputs: Any = None,
) -> Description:
    """Return the architecture of a live module.

    Args:
        model: the module with values, on any device; it is left as it was.
        architecture: a builder's name, or a recipe, where nothing was recorded.
        trust: packages that the recipe may name beyond the allow-list; the classes of the module
            itself are trusted here, since they run already.
        inputs: arguments of `forward` to compare outputs on.

    Raises:
        ArchitectureError: no recipe rebuilds the module, or the nearest one differs; the error
            names the first module and attribute that no edit says.
        ModelError: the module keeps tensors where no file can hold them.
    """
    _refuse_strays(model)
    vouched = frozenset(trust) | _own_modules(model)
    recipe = _fitting(model, architecture, vouched)
    rebuilt = rebuild(recipe.builder, recipe.arguments, recipe.edits, trust=vouched)
    if found := differences(model, rebuilt):
        raise _lookalike(recipe.builder, found[0])
    findings = _behaviour(model, recipe, inputs, vouched)
    if reason := built_really(rebuilt):
        findings.append(finding(Code.BUILT_REALLY, recipe.builder, reason, SLOWER, Severity.NOTE))
    described = Architecture(
        builder=recipe.builder,
        arguments=dict(recipe.arguments),
        edits=recipe.edits,
        structure=structure_digest(model),
        source=source_digest(trusted.resolve_builder(recipe.builder, vouched)),
    )
    return Description(described, rebuilt, tuple(findings))


def _fitting(
    model: nn.Module, given: str | Mapping[str, Any] | Architecture | None, trust: Collection[str]
) -> Recipe:
    """Return the recipe with the fewest edits of the first source that has one."""
    nearest: tuple[Recipe, InexpressibleError] | None = None
    refusals: list[PersistlibError] = []
    for source in _sources(model, given):
        best: Recipe | None = None
        for candidate in source:
            try:
                fitted = fit(model, candidate, trust)
            except InexpressibleError as fault:
                nearest = nearest or (candidate, fault)
                continue
            except ArchitectureError as fault:
                refusals.append(fault)
                continue
            if best is None or len(fitted.edits) < len(best.edits):
                best = fitted
            if len(fitted.edits) == len(candidate.edits):
                break
        if best is not None:
            return best
    if nearest is not None:
        raise _inexpressible(*nearest)
    if refusals:
        raise refusals[0]
    try:
        infer(model)
    except InexpressibleError as fault:
        raise _no_architecture(model, str(fault)) from fault
    raise _no_architecture(model, "nothing is known that builds such a module")


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
        yield [Recipe(c.entry.builder, {}) for c in zoo.candidates(root, rows)[:_MOST]]
    with contextlib.suppress(InexpressibleError):
        yield [Recipe(*infer(model))]


def fit(model: nn.Module, candidate: Recipe, trust: Collection[str]) -> Recipe:
    """Return a candidate with the arguments and edits that make it the live module's.

    Raises:
        InexpressibleError: a difference that neither says.
        ArchitectureError: the candidate cannot be built.
    """
    built = rebuild(candidate.builder, candidate.arguments, candidate.edits, trust=trust)
    plain: Recipe | None = None
    fault: InexpressibleError | None = None
    try:
        plain = candidate.changed(express(model, built, trust))
    except InexpressibleError as caught:
        fault = caught
    if plain is not None and len(plain.edits) == len(candidate.edits):
        return plain
    guessed = _guessed_arguments(model, built, candidate, trust)
    if guessed is not None:
        try:
            other = rebuild(candidate.builder, guessed.arguments, candidate.edits, trust=trust)
            better = guessed.changed(express(model, other, trust))
        except (InexpressibleError, ArchitectureError):
            pass
        else:
            if plain is None or len(better.edits) < len(plain.edits):
                return better
    if plain is None:
        assert fault is not None
        raise fault
    return plain


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
            if encode(ours) != encode(theirs):
                arguments[name] = encode(ours)
        except NotPlainError:
            continue
    if arguments == candidate.arguments:
        return None
    return Recipe(candidate.builder, arguments, candidate.edits)


def _behaviour(
    model: nn.Module, recipe: Recipe, inputs: Any, trust: Collection[str]
) -> list[Finding]:
    """Compare outputs; return a warning where that could not be done.

    Raises:
        ArchitectureError: the outputs differ.
    """
    if inputs is not None:
        given = Inputs.of(inputs)
    elif shapes := zoo.inputs_of(recipe.builder):
        given = probe(model, shapes)
    else:
        return [_untried(model, "no input is known to run it on", "give example_inputs=")]
    copy = rebuild(recipe.builder, recipe.arguments, recipe.edits, trust=trust)
    try:
        same = same_outputs(model, copy, given)
    except TrialFailedError as fault:
        return [_untried(model, str(fault), "give example_inputs= that it runs on")]
    if not same:
        raise error(
            Code.LOOKALIKE,
            recipe.builder,
            "names, classes and configuration agree, but the rebuilt module gives other outputs",
            "something outside the module's attributes takes part, such as a hook or a global;"
            " make it a part of the module's class",
        )
    return []


def _untried(model: nn.Module, reason: str, remedy: str) -> Finding:
    return finding(
        Code.BEHAVIOUR_UNTRIED,
        type(model).__qualname__,
        f"outputs of the rebuilt module were not compared: {reason}",
        remedy,
        Severity.WARNING,
    )


def _own_modules(model: nn.Module) -> frozenset[str]:
    """Return the modules that define what the live module is made of: they run already."""
    known = places(model)
    found = {type(inner).__module__ for inner in model.modules()}
    for inner in model.modules():
        for outline in outlines(inner, known).values():
            found |= set(_names(outline.data))
    return frozenset(found - {"__main__", "builtins"})


def _names(data: Any) -> Iterator[str]:
    """Yield the modules of all objects that an outline refers to by name."""
    if isinstance(data, dict):
        for key, value in data.items():
            if key == "$object" and isinstance(value, str):
                yield value.partition(":")[0]
            else:
                yield from _names(value)
    elif isinstance(data, list):
        for item in data:
            yield from _names(item)


def _refuse_strays(model: nn.Module) -> None:
    known = places(model)
    for path, inner in model.named_modules():
        for name, outline in outlines(inner, known).items():
            if outline.strays:
                raise error(
                    Code.MODEL_STATE,
                    f"{path}.{name}".strip("."),
                    f"holds a {outline.strays[0]} that is no child of any module: its tensors"
                    " are in no state_dict",
                    "register it as a child, in torch.nn.ModuleList or ModuleDict",
                )


def _lookalike(builder: str, found: Difference) -> PersistlibError:
    return error(
        Code.LOOKALIKE,
        found.location,
        f"differs from what {builder} builds: {found}",
        "build it with persistlib.build, or make the difference an argument of its class",
    )


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
