"""The last steps of loading a bundle whose tensors or whose model are to be adapted."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from persistlib.adaptation.adapting import Origin, adapt
from persistlib.adaptation.partial import complete, new_names
from persistlib.adaptation.record import RELATION
from persistlib.architecture.module_state import assign, restore_training, unsaved_tensors
from persistlib.architecture.recipe import Recipe
from persistlib.architecture.restoring import refuse_meta, restore_unsaved
from persistlib.manifest.schema import Lineage

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import nn

    from persistlib.adaptation.partial import Fit
    from persistlib.adaptation.wishes import Wishes
    from persistlib.architecture.module_state import StateTensor
    from persistlib.manifest.schema import Manifest


class Stored(NamedTuple):
    """What was read of a bundle, every byte verified.

    Attributes:
        tensors: of the state_dict, by every name.
        unsaved: bytes of the tensors outside it.
        path: of the bundle.
    """

    tensors: Mapping[str, StateTensor]
    unsaved: Mapping[str, memoryview]
    path: str


def adapted(
    model: nn.Module,
    manifest: Manifest,
    stored: Stored,
    wishes: Wishes,
    *,
    partly: bool,
    trust: Collection[str],
) -> nn.Module:
    """Return the module of a bundle, adapted, which carries the record of what was done.

    Args:
        model: what the recipe builds, its parameters without values.
        manifest: the bundle's.
        stored: what was read of it.
        wishes: what is asked.
        partly: whether tensors that fit are taken where not all do.
        trust: packages that may be imported beyond the allow-list.

    Raises:
        PersistlibError: tensors do not fit, or an adaptation does not apply.
    """
    names = new_names(wishes.rename, tuple(stored.tensors))
    tensors: Mapping[str, StateTensor] = {
        new: stored.tensors[old]._replace(name=new) for old, new in names.items()
    }
    found: Fit | None = None
    if partly:
        model, tensors, found = complete(
            model, manifest.architecture, tensors, stored.path, trust=trust
        )
    assign(model, tensors)
    _restore(model, manifest, stored, partly=partly, names=names)
    name = manifest.name or os.path.basename(os.path.abspath(stored.path))
    parent = Lineage(
        relation=RELATION, id=manifest.bundle_id, source=name, license=manifest.license
    )
    ancestors = manifest.lineage
    origin = Origin(
        parent=parent, ancestors=ancestors, unchanged=ancestors, fit=found, renamed=names
    )
    recipe = Recipe.of(manifest.architecture)
    return adapt(model, recipe, manifest.interface, wishes, origin, trust=trust)


def _restore(
    model: nn.Module, manifest: Manifest, stored: Stored, *, partly: bool, names: Mapping[str, str]
) -> None:
    """Put back what a module remembers besides its state_dict, as far as it has places for it."""
    state = manifest.state
    may_lack = partly or any(old != new for old, new in names.items())
    if may_lack:
        places = {name for name, _ in unsaved_tensors(model)}
        kept = {n: record for n, record in state.unsaved_buffers.items() if n in places}
        state = state.model_copy(update={"unsaved_buffers": kept})
    restore_unsaved(model, state, stored.unsaved, strict=not may_lack)
    refuse_meta(model)
    paths = {path for path, _ in model.named_modules(remove_duplicate=False)}
    in_eval = tuple(path for path in state.frozen_modules_in_eval if path in paths or not may_lack)
    restore_training(model, state.training, in_eval)
