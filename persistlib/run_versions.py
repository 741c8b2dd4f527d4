"""Each epoch of a run as a bundle: the first one whole, the others over it.

Laws: a version is what `save` makes of the model at the end of its epoch, in evaluation, without
stored examples; a version that is written again, since the run went on from before it, is the same.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from persistlib import examples
from persistlib.bundle import reading
from persistlib.errors import PersistlibError
from persistlib.manifest.schema import Interface
from persistlib.parents import bundles_in, with_parent
from persistlib.saving import Plan, save_module

if TYPE_CHECKING:
    from torch import nn

    from persistlib.bundle import Bundle
    from persistlib.manifest.schema import Lineage, Training
    from persistlib.parents import Parent
    from persistlib.training.loop import Folder


def kept_in(
    folder: Folder,
    interface: Interface | None,
    lineage: tuple[Lineage, ...],
    *,
    name: str | None,
    license: str | None,  # noqa: A002 - a promised name, and the field's word for it
) -> Folder:
    """Return the folder of a run with the way in which its versions are saved.

    Args:
        folder: of the run.
        interface: as `persistlib.save`, as are all that follow.
        lineage: ancestors.
        name: the model's name.
        license: SPDX identifier.
    """
    plan = Plan(interface=interface or Interface(), lineage=lineage, name=name, license=license)
    return replace(folder, write_version=partial(_write, plan))


def _write(plan: Plan, model: nn.Module, path: str, training: Training, inputs: Any) -> None:
    """Save a model at the end of an epoch, and leave it in evaluation."""
    named = examples.name_inputs(model, inputs)
    shown = examples.Examples(named, examples.run(model, named))
    interface = examples.describe_interface(plan.interface, shown)
    model.eval()

    def work(parent: Parent | None) -> None:
        made = replace(plan, interface=interface, training=training, parent=parent)
        save_module(model, path, made, architecture=None, onnx=False, overwrite=True)

    with_parent(_first(path), path, work)


def _first(path: str) -> str | None:
    """Return the first whole version beside one, on which it may stand; None without any."""
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        return None
    others = (other for other, _ in bundles_in(folder) if other != path)
    return next((other for other in others if _is_whole(other)), None)


def _is_whole(path: str) -> bool:
    def look(bundle: Bundle) -> bool:
        return bundle.manifest.weights.base is None

    try:
        return reading(path, look)
    except PersistlibError:
        return False
