"""The samples of a model that is no classifier, or that takes several inputs by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from persistlib import preprocessing
from persistlib.errors import Code, error
from persistlib.evaluation.samples import Samples, named, unprepared
from persistlib.evaluation.seen import tell_seen
from persistlib.evaluation.targets import read_targets
from persistlib.training.sample_digests import digest_of

if TYPE_CHECKING:
    from persistlib.manifest.schema import Data, Interface
    from persistlib.training.tasks import Head


def open_task_samples(
    data: Any,
    interface: Interface,
    trained: Data | None,
    heads: tuple[Head, ...],
    choice: Mapping[str, Any],
) -> Samples:
    """Return samples with the targets of each head.

    Args:
        data: as `targets.read_targets`.
        interface: names of labels or outputs, and how an image becomes an input.
        trained: what the model was trained on.
        heads: what its outputs are for.
        choice: which of the samples, as `open_samples`; here there is none.

    Raises:
        TrainingError: there is no such data, or it does not fit; every fault is reported.
        SessionError: images are given and nothing says how they are prepared.
    """
    name = named(data)
    if asked := [word for word, value in choice.items() if value]:
        reason = f"{asked[0]} is known of data with classes alone"
        raise error(Code.DATA_INVALID, name, reason, "judge it on other data")
    given = read_targets(data, heads, name)
    if not given.is_prepared and interface.preprocessing is None:
        raise unprepared()
    # As `finetune` digests the same arrays.
    digest = digest_of((given.inputs, given.targets.get("", given.targets)))
    record = None if given.is_prepared else preprocessing.parse(interface.preprocessing or {})
    inputs = given.inputs
    samples = Samples(
        name=name,
        digest=digest,
        items=inputs if isinstance(inputs, Mapping) else list(inputs),
        targets=given.targets,
        classes=() if heads[0].name else tuple(interface.labels or ()),
        preprocessing=record,
        heads=heads,
    )
    tell_seen(samples, trained)
    return samples
