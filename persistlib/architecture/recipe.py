"""Building a real module from a recipe, and remembering the recipe on it.

Law: `describe(build(builder, **arguments)).architecture` holds that builder and those arguments.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from persistlib.architecture import edits as editing
from persistlib.architecture import fetching, pretrained
from persistlib.architecture.encoding import NotPlainError, encode
from persistlib.architecture.skeleton import with_defaults
from persistlib.errors import Code, TrainingError, error
from persistlib.manifest.schema import Architecture, Edit, Lineage

if TYPE_CHECKING:
    from torch import nn

_RECIPE = "_persistlib_recipe"
_ORIGIN = "_persistlib_origin"
_FILES = (".pth", ".pt", ".safetensors")


@dataclass(frozen=True)
class Recipe:
    """How a module was built.

    Attributes:
        builder: `package.module:callable`.
        arguments: keyword arguments, encoded.
        edits: changes after building.
    """

    builder: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()

    @classmethod
    def of(cls, given: str | Mapping[str, Any] | Architecture) -> Recipe:
        """Return a recipe from a builder's name, a mapping as in a manifest, or a manifest's own.

        Raises:
            ArchitectureError: the mapping is no recipe.
        """
        if isinstance(given, str):
            return cls(given)
        if isinstance(given, Architecture):
            return cls(given.builder, given.arguments, given.edits)
        unknown = set(given) - {"kind", "builder", "arguments", "edits", "structure", "source"}
        if unknown or not isinstance(given.get("builder"), str):
            raise error(
                Code.BAD_RECIPE,
                "architecture",
                "builder, arguments and edits are expected",
                "see docs/manifest.md",
            )
        arguments = given.get("arguments", {})
        return cls(given["builder"], _encoded(arguments), _edits(given.get("edits", ())))

    def changed(self, more: Iterable[Edit]) -> Recipe:
        """Return the recipe with more edits."""
        return Recipe(self.builder, self.arguments, (*self.edits, *more))


def recorded(module: nn.Module) -> Recipe | None:
    """Return the recipe that `build` recorded on a module."""
    found = vars(module).get(_RECIPE)
    return found if isinstance(found, Recipe) else None


def remember(module: nn.Module, recipe: Recipe) -> None:
    """Record on a module what builds it, so that a save tries that first."""
    vars(module)[_RECIPE] = recipe


def origin(module: nn.Module) -> Lineage | None:
    """Return where `build` or `load` took a module's weights from."""
    return next(iter(ancestry(module)), None)


def ancestry(module: nn.Module) -> tuple[Lineage, ...]:
    """Return where a module's weights came from, and where those did, nearest first."""
    found = vars(module).get(_ORIGIN, ())
    return found if isinstance(found, tuple) else ()


def build(
    builder: str,
    *,
    weights: object = None,
    edits: Iterable[Edit | Mapping[str, Any]] = (),
    trust: Collection[str] = (),
    **arguments: Any,
) -> nn.Module:
    """Return a module built for real, which remembers its recipe.

    Args:
        builder: `package.module:callable`, such as `torchvision.models:resnet50`.
        weights: a name that torchvision knows ("DEFAULT"), or a checkpoint file (.pth, .pt,
            .safetensors) whose names, shapes and dtypes must be the model's, or one that is open;
            None leaves the initial values.
        edits: changes after building, as in a manifest.
        trust: packages, or dotted prefixes, that may be imported beyond torch and torchvision.
        **arguments: the builder's own keyword arguments.

    Raises:
        ArchitectureError: the builder is unknown or untrusted, or it raised.
        UsageError: an argument is not plain, so no recipe could hold it.
        TrainingError: the weights do not fit.
    """
    recipe = Recipe(builder, _encoded(arguments), _edits(edits))
    path = checkpoint_path(weights)
    if isinstance(weights, pretrained.Opened):
        module = _from_file(recipe, weights, trust)
    elif path is not None:
        with pretrained.open_checkpoint(path) as reader:
            module = _from_file(recipe, pretrained.Opened(reader, path), trust)
    elif weights is not None:
        module, recipe = _pretrained(recipe, weights, trust)
    else:
        module = _plain(recipe, trust)
        editing.apply(module, recipe.edits, trust)
    remember(module, recipe)
    return module


def _plain(recipe: Recipe, trust: Collection[str]) -> nn.Module:
    arguments = with_defaults(recipe.builder, recipe.arguments, trust)
    return editing.call(recipe.builder, arguments, trust)


def _from_file(recipe: Recipe, opened: pretrained.Opened, trust: Collection[str]) -> nn.Module:
    """Return the module with a file's values, which fit it before its edits or after them."""
    module = _plain(recipe, trust)
    found = pretrained.load(module, *opened)
    editing.apply(module, recipe.edits, trust)
    if isinstance(found, pretrained.Unfit) and recipe.edits:
        again = pretrained.load(module, *opened)
        found = found if isinstance(again, pretrained.Unfit) else again
    if isinstance(found, pretrained.Unfit):
        raise TrainingError(found.findings)
    descend(module, found)
    return module


def descend(module: nn.Module, parent: Lineage, ancestors: tuple[Lineage, ...] = ()) -> None:
    """Record on a module where its weights came from, and where those did, nearest first."""
    vars(module)[_ORIGIN] = (parent, *ancestors)


def _pretrained(
    recipe: Recipe, weights: object, trust: Collection[str]
) -> tuple[nn.Module, Recipe]:
    """Return a module with torchvision's weights, and the recipe with what they configured."""
    module = fetching.fetch(recipe, weights, trust)
    plain = pretrained.resolved(Recipe(recipe.builder, recipe.arguments), module, trust)
    descend(module, pretrained.fetched_from(recipe, weights, module))
    editing.apply(module, recipe.edits, trust)
    return module, plain.changed(recipe.edits)


def checkpoint_path(weights: object) -> str | None:
    """Return the path of a weights file; None where `weights=` is none."""
    if isinstance(weights, os.PathLike):
        return os.fsdecode(weights)
    if isinstance(weights, str) and (weights.endswith(_FILES) or os.sep in weights):
        return weights
    return None


def _encoded(arguments: Any) -> dict[str, Any]:
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise error(Code.BAD_RECIPE, "arguments", "a mapping of names to values is expected")
    return {name: _encoded_argument(name, value) for name, value in arguments.items()}


def _encoded_argument(name: str, value: Any) -> Any:
    try:
        return value if _is_encoded(value) else encode(value)
    except NotPlainError as fault:
        raise error(
            Code.USAGE,
            name,
            f"a recipe cannot hold this argument: {fault}",
            "pass plain values, or classes and functions that can be imported by name",
        ) from fault


def _is_encoded(value: Any) -> bool:
    """Say whether a value is a tagged one already, as a manifest's arguments are."""
    return isinstance(value, dict) and any(str(key).startswith("$") for key in value)


def _edits(given: Iterable[Edit | Mapping[str, Any]]) -> tuple[Edit, ...]:
    try:
        return tuple(
            edit if isinstance(edit, Edit) else Edit(**_edit_fields(edit)) for edit in given
        )
    except (ValidationError, TypeError) as fault:
        reason = fault.errors()[0]["msg"] if isinstance(fault, ValidationError) else str(fault)
        raise error(
            Code.BAD_RECIPE, "edits", f"not an edit: {reason}", "see docs/manifest.md"
        ) from fault


def _edit_fields(edit: Mapping[str, Any]) -> dict[str, Any]:
    fields = dict(edit)
    if "arguments" in fields:
        fields["arguments"] = _encoded(fields["arguments"])
    return fields
