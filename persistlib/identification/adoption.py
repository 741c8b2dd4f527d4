"""The module that a weights file was identified as, with the file's values.

Law: the module's state_dict has the file's bits, every one of them, and no tensor has others;
BatchNorm's counters alone, where the file lacks them, are 0.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import torch

from persistlib.architecture import pretrained, recipe, zoo, zoo_forms
from persistlib.checkpoint import identity
from persistlib.errors import Code, TrainingError, error
from persistlib.manifest.schema import Lineage
from persistlib.selection import Selection
from persistlib.sources import open_file

if TYPE_CHECKING:
    from torch import nn

    from persistlib.checkpoint import CheckpointReader
    from persistlib.errors import PersistlibError
    from persistlib.identification.reading import Identification

_CONVERTED = "converted-from"
_SEED = 0


class Adopted(NamedTuple):
    """A module made from a weights file.

    Attributes:
        module: with the file's values, in evaluation mode; it remembers its recipe.
        inputs: what it can be tried with; None where its outputs are no tensors.
        lineage: the file.
    """

    module: nn.Module
    inputs: torch.Tensor | None
    lineage: Lineage


def adopt(found: Identification, *, key: str | None = None) -> Adopted:
    """Return the module that a file was identified as.

    Args:
        found: what `persistlib.identify` said of the file.
        key: as it was given to that.

    Raises:
        ArchitectureError: no builder is claimed.
        TrainingError: the file has changed since, or a tensor's dtype does not fit.
    """
    if found.format == "bundle":
        raise error(Code.USAGE, found.path, "is a bundle already", "persistlib.load opens it")
    if found.builder is None:
        raise _unclaimed(found)
    trust = {"timm"} if found.builder.startswith("timm.") else ()
    module = recipe.build(
        found.builder, edits=found.edits, trust=trust, **dict(found.arguments)
    ).eval()
    with open_file(found.path, key=key) as source:
        chosen = Selection(source, {file: name for name, file in found.names.items()})
        _take_dtypes(module, chosen)
        loaded = pretrained.load(module, chosen, found.path)
        if isinstance(loaded, pretrained.Unfit):
            raise TrainingError(loaded.findings)
        origin = Lineage(
            relation=_CONVERTED, id=identity(source), source=os.path.basename(found.path)
        )
    return Adopted(module, _inputs(found, module), origin)


def _unclaimed(found: Identification) -> PersistlibError:
    """Return the error that says what is missing for a claim."""
    differing = found.candidates[0].differing if found.candidates else ()
    names = ", ".join(item.name for item in differing)
    reason = found.verdict.removeprefix("not claimed: ") + (f"; not {names}" if names else "")
    return error(
        Code.NO_ARCHITECTURE,
        found.path,
        reason,
        "build the module yourself, load the file into it, and persistlib.save it",
    )


def _take_dtypes(module: nn.Module, chosen: CheckpointReader) -> None:
    """Give the module's floating-point tensors the dtypes that they have in the file."""
    for name, tensor in module.state_dict(keep_vars=True).items():
        entry = chosen.tensors.get(chosen.aliases.get(name, name))
        if entry is None or not tensor.is_floating_point():
            continue
        dtype = entry.dtype.torch
        if dtype.is_floating_point:
            tensor.data = tensor.data.to(dtype)


def _inputs(found: Identification, module: nn.Module) -> torch.Tensor | None:
    """Return what the module can be tried with, as far as the zoo knows."""
    assert found.builder is not None
    shapes = zoo.inputs_of(found.builder)
    dtypes = {tensor.dtype for tensor in module.parameters()}
    if len(shapes) != 1 or len(shapes[0]) < 4 or len(dtypes) != 1:
        return None
    extents = list(shapes[0])
    first = _first_modules(found.builder)
    for edit in found.edits:
        if edit["path"] in first:
            extents[1] = edit["arguments"]["in_channels"]
    if "image_size" in found.arguments:
        extents[-2:] = [found.arguments["image_size"]] * 2
    drawn = torch.rand(extents, generator=torch.Generator().manual_seed(_SEED))
    return drawn.to(dtypes.pop())


def _first_modules(builder: str) -> set[str]:
    """Return the paths of the modules that a builder's input goes into."""
    return {
        step.path
        for form in zoo_forms.forms()
        for step in form.steps
        if form.builder == builder and step.kind == zoo_forms.CHANNELS
    }
