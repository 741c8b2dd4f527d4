"""Whether a model was trained on the samples that it is judged on, as its manifest tells.

Law: a model is judged by its own manifest's split, alone as well as beside another model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.errors import Code, warn
from persistlib.training.splits import again

if TYPE_CHECKING:
    from persistlib.evaluation.samples import Samples
    from persistlib.manifest.schema import Data


def tell_seen(samples: Samples, trained: Data | None, *, name: str = "the model") -> None:
    """Warn where a model may have been trained on some of the samples.

    Args:
        samples: what it is judged on.
        trained: what it was trained on.
        name: what it is called.
    """
    if trained is None or not _may_be_seen(samples, trained):
        return
    reason = f"{name} was trained on a part of these very samples"
    warn(Code.DATA_SEEN, trained.name, reason, "judge it on what was held out (--held-out)")


def _may_be_seen(samples: Samples, trained: Data) -> bool:
    """Return whether samples are of the data of a training, and none says that it left them out."""
    if trained.digest != samples.digest:
        return False
    split = None if samples.source is None else again(samples.source, trained.split)
    if split is None or samples.places is None:
        return True
    return not {*samples.places}.isdisjoint(split.train)
