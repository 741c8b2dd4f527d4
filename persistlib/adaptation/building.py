"""A module built from a recipe with somebody's weights, and adapted: names, what fits, the rest."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Literal

from persistlib.adaptation.adapting import Origin, adapt
from persistlib.adaptation.partial import REPORT, new_names, take_file
from persistlib.adaptation.wishes import parse
from persistlib.architecture import pretrained, recipe
from persistlib.architecture.trusted import ZOO
from persistlib.errors import Code, error
from persistlib.manifest.schema import Interface
from persistlib.selection import Selection, wrapper_of
from persistlib.sources import open_file

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from torch import nn

    from persistlib.adaptation.partial import Fit
    from persistlib.adaptation.wishes import Wishes


def build(
    builder: str,
    weights: object,
    adaptation: Mapping[str, Any] | None,
    *,
    strict: bool | Literal["report"],
    edits: Iterable[Any],
    trust: Collection[str],
    arguments: Mapping[str, Any],
) -> nn.Module:
    """Return a module as `architecture.recipe.build` does, adapted.

    Args:
        builder: `package.module:callable`.
        weights: as there.
        adaptation: what is asked; `rename` is about the names in the weights file.
        strict: "report" takes the tensors that fit where not all do.
        edits: changes after building.
        trust: packages that may be imported.
        arguments: the builder's own.

    Raises:
        UsageError: names are to be changed, or parts taken, of what is no file.
        PersistlibError: as building and adapting.
    """
    wishes, partly = parse(adaptation), strict == REPORT
    path = recipe.checkpoint_path(weights)
    fit: Fit | None = None
    names: dict[str, str] = {}
    if path is not None and (partly or wishes.rename is not None):
        with open_file(path) as file:
            chosen, names = _renamed(file, wishes)
            opened = pretrained.Opened(chosen, path)
            if partly:
                module = recipe.build(builder, edits=edits, trust=trust, **arguments)
                fit = take_file(module, chosen, path)
                recipe.descend(module, pretrained.loaded_from(*opened))
            else:
                module = recipe.build(
                    builder, weights=opened, edits=edits, trust=trust, **arguments
                )
    elif partly or wishes.rename is not None:
        asked = 'strict="report"' if partly else "adapt.rename"
        raise error(Code.USAGE, asked, "is about a weights file", "pass weights=PATH")
    else:
        module = recipe.build(builder, weights=weights, edits=edits, trust=trust, **arguments)
    parent = recipe.origin(module)
    origin = Origin(parent=parent, unchanged=(parent,) if parent else (), fit=fit, renamed=names)
    built = recipe.recorded(module)
    assert built is not None
    interface = Interface(labels=_labels(builder, weights))
    return adapt(module, built, interface, wishes, origin, trust=trust)


def _renamed(file: Any, wishes: Wishes) -> tuple[Any, dict[str, str]]:
    """Return a checkpoint under the names asked for, and of each name in it the new one."""
    names = new_names(wishes.rename, (*file.tensors, *file.aliases))
    wrapper = len(wrapper_of(names.values()))
    chosen = {old: new[wrapper:] for old, new in names.items()}
    return Selection(file, chosen), chosen


def _labels(builder: str, weights: object) -> tuple[str, ...] | None:
    """Return the classes that torchvision's weights were made for."""
    module, _, name = builder.partition(":")
    if weights is None or not module.startswith(ZOO):
        return None
    meta = getattr(weights, "meta", None)
    if isinstance(weights, str):
        from torchvision.models import get_model_weights

        with contextlib.suppress(ValueError, KeyError):
            members: Any = get_model_weights(name)
            meta = members[weights.rpartition(".")[2]].meta
    categories = (meta or {}).get("categories")
    return tuple(categories) if categories else None
