"""From a live module to the recipe that rebuilds it, or an error that says why there is none.

Law: a recipe is given only for a module whose rebuild has (a) the same names, shapes, classes,
order and sharing, (b) the same plain configuration in every module, and (c) bit-equal outputs on
one input, where one is known.

Which recipes come into question is told in `candidates`; what they promise is believed only after
the module was rebuilt from the recipe alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from persistlib.architecture import trusted, zoo
from persistlib.architecture.behaviour import Inputs, TrialFailedError, probe, same_outputs
from persistlib.architecture.candidates import fitting, from_recipe
from persistlib.architecture.compare import Difference, differences
from persistlib.architecture.parametrized import has_foreign_hooks
from persistlib.architecture.skeleton import SLOWER, built_really
from persistlib.architecture.structure import (
    outlines,
    places,
    source_digest,
    structure_digest,
)
from persistlib.errors import Code, Severity, error, finding
from persistlib.manifest.schema import Architecture

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from persistlib.architecture.recipe import Recipe
    from persistlib.errors import Finding, PersistlibError


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
    inputs: Any = None,
    is_hollow: bool = False,
) -> Description:
    """Return the architecture of a live module, whose own classes are trusted: they run already.

    Args:
        model: the module with values, on any device; it is left as it was.
        architecture: a builder's name, or a recipe, where nothing was recorded.
        inputs: arguments of `forward` to compare outputs on.
        is_hollow: whether the module has no values that it could be run with.

    Raises:
        ArchitectureError: no recipe rebuilds the module, or the nearest one differs; the error
            names the first module and attribute that no edit says.
        ModelError: the module keeps tensors where no file can hold them.
    """
    _refuse_strays(model)
    vouched = _own_modules(model)
    recipe, built = fitting(model, architecture, vouched)
    rebuilt = from_recipe(recipe, vouched)
    if found := differences(model, rebuilt):
        raise _lookalike(recipe.builder, found[0])
    if is_hollow:
        where = "its tensors are divided among processes"
        findings = [_untried(model, where, "load the bundle, and save it in one process")]
    else:
        findings = _behaviour(model, recipe, inputs, built or from_recipe(recipe, vouched))
    findings += _hooks(model, Severity.WARNING if findings else Severity.NOTE)
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


def _behaviour(model: nn.Module, recipe: Recipe, inputs: Any, copied: nn.Module) -> list[Finding]:
    """Compare outputs; return a warning where that could not be done.

    Args:
        model: the live module.
        recipe: what rebuilds it.
        inputs: arguments of `forward`, or None.
        copied: the module rebuilt, which is used up.

    Raises:
        ArchitectureError: the outputs differ.
    """
    if inputs is not None:
        given = Inputs.of(inputs)
    elif shapes := zoo.inputs_of(recipe.builder):
        given = probe(model, shapes, recipe.arguments)
    else:
        return [_untried(model, "no input is known to run it on", "give example_inputs=")]
    try:
        same = same_outputs(model, copied, given)
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


def _hooks(model: nn.Module, severity: Severity) -> list[Finding]:
    """Return a finding for hooks around `forward`: harmless where the outputs were compared."""
    return [
        finding(
            Code.HOOKS_DROPPED,
            path or type(model).__qualname__,
            "its forward hooks are not saved",
            "register them again after loading",
            severity,
        )
        for path, module in model.named_modules()
        if has_foreign_hooks(module)
    ]


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
