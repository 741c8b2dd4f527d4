"""The adaptations that were asked for, carried out in order: size, channels, classes.

Law: what was done, and nothing else, stands in the record that the model carries; saved again and
loaded, the model is bit-equal.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persistlib.adaptation import interfaces
from persistlib.adaptation.channels import replace_stems
from persistlib.adaptation.classes import find_heads, replace_head, untried
from persistlib.adaptation.image_size import resize
from persistlib.adaptation.record import Adaptation, Change, descended, remember
from persistlib.adaptation.trial import trial_of
from persistlib.architecture.recipe import remember as remember_recipe
from persistlib.errors import Code, error
from persistlib.examples import Examples, describe_interface, name_inputs

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import nn

    from persistlib.adaptation.interfaces import Followed
    from persistlib.adaptation.partial import Fit
    from persistlib.adaptation.trial import Image, Trial
    from persistlib.adaptation.wishes import Classes, Wishes
    from persistlib.architecture.recipe import Recipe
    from persistlib.manifest.schema import Interface, Lineage


@dataclass
class _Adapted:
    """A model on its way, with what is known of it."""

    model: nn.Module
    recipe: Recipe
    interface: Interface
    changes: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()

    def follow(self, changes: tuple[Change, ...], followed: Followed) -> None:
        """Add what was done."""
        self.changes += changes
        self.interface, notes = followed
        self.notes += notes

    def trial(self) -> Trial:
        """Return a trial of the model as it is now."""
        return trial_of(self.model, self.recipe, self.interface)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a model came from before it was adapted.

    Attributes:
        parent: the model itself; None for initial values.
        ancestors: its own lineage.
        unchanged: the lineage of the model if nothing is changed.
        fit: which stored tensors were taken, where not all had to be.
        renamed: stored names to the model's, where they differ.
    """

    parent: Lineage | None = None
    ancestors: tuple[Lineage, ...] = ()
    unchanged: tuple[Lineage, ...] = ()
    fit: Fit | None = None
    renamed: Mapping[str, str]


def adapt(
    model: nn.Module,
    recipe: Recipe,
    interface: Interface,
    wishes: Wishes,
    origin: Origin,
    *,
    trust: Collection[str] = (),
) -> nn.Module:
    """Return a model changed as asked, which carries the record of it.

    Args:
        model: with values; changed in place, or built anew for another image size.
        recipe: what builds it.
        interface: what is known of its inputs and outputs.
        wishes: what is asked.
        origin: where it came from.
        trust: packages that may be imported beyond the allow-list.

    Raises:
        ArchitectureError: an adaptation does not apply, or several layers could be meant.
    """
    if wishes.example_inputs is not None and not interface.inputs:
        inputs = name_inputs(model, wishes.example_inputs)
        interface = describe_interface(interface, Examples(inputs, {}))
    work = _Adapted(model, recipe, interface)
    if wishes.size is not None:
        _size(work, wishes, trust)
    if wishes.channels is not None:
        _channels(work, wishes.channels)
    if wishes.classes is not None:
        _classes(work, wishes.classes, wishes.seed)
    found = origin.fit
    record = Adaptation(
        changes=work.changes,
        missing=found.missing if found else (),
        unexpected=found.unexpected if found else (),
        reshaped=found.reshaped if found else (),
        renamed={old: new for old, new in origin.renamed.items() if old != new},
        notes=work.notes,
        interface=work.interface,
        lineage=origin.unchanged,
    )
    _remember(work, record, origin)
    return work.model


def _remember(work: _Adapted, record: Adaptation, origin: Origin) -> None:
    if origin.parent is not None and tuple(record.words()):
        lineage = descended(record, origin.parent, origin.ancestors)
        record = dataclasses.replace(record, lineage=lineage)
    remember(work.model, record)
    remember_recipe(work.model, work.recipe)


def _image(trial: Trial, key: str) -> Image:
    image = trial.image()
    if image is None:
        reason = "no input is a batch of images: numbers on three axes or more"
        raise error(Code.ADAPTATION, f"adapt.{key}", reason, "leave it out")
    return image


def _size(work: _Adapted, wishes: Wishes, trust: Collection[str]) -> None:
    assert wishes.size is not None
    trial = work.trial()
    image = _image(trial, "image_size")
    made = resize(work.model, work.recipe, trial, image, wishes.size, trust=trust)
    work.model, work.recipe = made.model, made.recipe
    if made.changes:
        work.follow(made.changes, interfaces.with_size(work.interface, image, wishes.size))


def _channels(work: _Adapted, channels: int) -> None:
    trial = work.trial()
    image = _image(trial, "channels")
    changes = tuple(replace_stems(work.model, trial, image, channels))
    if changes:
        work.follow(changes, interfaces.with_channels(work.interface, image, channels))


def _classes(work: _Adapted, asked: Mapping[str, Classes], seed: int) -> None:
    trial = work.trial()
    heads = find_heads(trial, [path for path in asked if path])
    if left := untried(trial, heads):
        work.notes += (f"left as they were, since no run went through them: {', '.join(left)}",)
    main, outputs, labels = trial.main(), tuple(trial.outputs), work.interface.labels
    for head in heads:
        classes = asked[head.path] if head.path in asked else asked[""]
        is_main = head.output == main
        is_known = labels is not None and len(labels) == head.size and (is_main or "" in asked)
        change = replace_head(
            work.model, head, classes, labels=labels if is_known else None, seed=seed
        )
        followed = interfaces.with_classes(work.interface, head, classes, outputs, labelled=is_main)
        work.follow((change,), followed)
