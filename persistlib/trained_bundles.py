"""The bundle that a training ends in: what would refuse it is found before the first epoch.

Laws: what is refused here, saving would refuse after all epochs; a run that is complete and gone on
with leaves its bundle as it stands.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch.nn.parameter import is_lazy

from persistlib.architecture.describe import describe
from persistlib.architecture.module_state import capture, tensor_bytes
from persistlib.bundle import reading
from persistlib.digests import digest
from persistlib.divided import has_parts
from persistlib.errors import PersistlibError
from persistlib.processes import by_first
from persistlib.rehearsal import rehearse
from persistlib.training import loop, run_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from persistlib.bundle import Bundle
    from persistlib.files import StrPath
    from persistlib.training.loop import FinetuneResult, Folder


def require(
    model: nn.Module,
    out: StrPath,
    folder: Folder,
    *,
    epochs: int,
    overwrite: bool = False,
    alone: bool = False,
) -> None:
    """Refuse a training whose result could not be saved.

    The module is built once more, without values, and not run.

    Args:
        model: what will be trained.
        out: the bundle to save.
        folder: of the run.
        epochs: how many are asked for.
        overwrite: whether a bundle that stands there is replaced.
        alone: whether each of several processes trains for itself.

    Raises:
        TargetError: something stands there, or the place cannot be used.
        ArchitectureError: no recipe rebuilds the module.
        ModelError: the module keeps tensors where no file can hold them.
        UsageError: it is no module.
    """
    is_taken_up = not overwrite and _is_complete(out, folder, epochs)
    by_first(partial(_require, model, None if is_taken_up else out, overwrite), alone=alone)


def _require(model: nn.Module, out: StrPath | None, overwrite: bool) -> None:
    named = loop.require_model(model)
    if out is not None:
        rehearse(out, overwrite=overwrite)
    # What the first batch shapes is not yet what it will be; `loop` says why it takes no parts.
    if not any(is_lazy(item) for item in named.values()) and not has_parts(model):
        describe(model, is_hollow=True)


def _is_complete(out: StrPath, folder: Folder, epochs: int) -> bool:
    """Return whether the run is to be gone on with, has nothing left to do, and has its bundle."""
    if not folder.resume or folder.path is None:
        return False
    done = run_folder.epochs_done(folder.path)

    def look(bundle: Bundle) -> bool:
        training = bundle.manifest.training
        if training is None or training.epochs != done:
            return False
        return done >= epochs or training.strategy.get("stopped_early") is True

    try:
        return done > 0 and reading(out, look)
    except PersistlibError:
        return False


def keep_or(
    save: Callable[[], object],
    result: FinetuneResult,
    out: StrPath,
    *,
    overwrite: bool = False,
    alone: bool = False,
) -> None:
    """Save a result, unless it is that of a run gone on with whose bundle has its very weights.

    Raises:
        PersistlibError: saving failed.
    """

    def work() -> None:
        if overwrite or result.resumed is None or not _stands(result.model, out):
            save()

    by_first(work, alone=alone)


def _stands(model: nn.Module, out: StrPath) -> bool:
    """Return whether the bundle at a place has the tensors of a module, bit for bit."""
    state = capture(model)

    def look(bundle: Bundle) -> bool:
        weights = bundle.manifest.weights
        stored = {row.name: row.blake3 for row in weights.tensors}
        held = {item.name: digest(tensor_bytes(item.tensor)) for item in state.tensors}
        return stored == held and weights.aliases == state.aliases

    try:
        return reading(out, look)
    except PersistlibError:
        return False
