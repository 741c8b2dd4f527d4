"""What fine-tuning a known builder on a data set will do, stated before it starts.

A plan is made whole (data read, model built, its last layer replaced) and can then be shown and
carried out: `persistlib.finetune(plan.model, plan.train, plan.valid, **plan.arguments)`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persistlib.architecture import recipe
from persistlib.errors import Code, PersistlibError, error
from persistlib.manifest import schema
from persistlib.patterns import matches, select
from persistlib.training import beginnings, strategies
from persistlib.training.augmentation import in_words
from persistlib.training.data import ImageData, PreparedImages, Split, size_findings
from persistlib.training.data_sources import survey_data
from persistlib.training.head import replace_head
from persistlib.training.labelled import Asked, Survey

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import torch
    from pydantic import JsonValue

    from persistlib.patterns import Patterns
    from persistlib.preprocessing import ImagePreprocessing
    from persistlib.training.beginnings import Beginning, Saved
    from persistlib.training.settings import Settings
    from persistlib.training.strategies import Strategy, StrategyLike

_SHOWN_CLASSES = 12


@dataclass(frozen=True, slots=True)
class NewHead:
    """The new last layer: its path, classes before and now.

    Attributes:
        path: dotted.
        was: classes that the model had.
        classes: those of the data.
        left_out: classes of the last layer in the weights, where it was of another width.
        is_kept: whether it is that of a bundle, made for the very classes of the data.
    """

    path: str
    was: int
    classes: int
    left_out: int | None = None
    is_kept: bool = False

    def __str__(self) -> str:
        if self.is_kept:
            return f"{self.path}: kept, {self.classes:,} classes as in the bundle"
        text = f"{self.path}: {self.was:,} classes become {self.classes:,}"
        if self.left_out is None:
            return text
        return f"{text}; that of the weights, {self.left_out:,} classes, is left out"


@dataclass(frozen=True, slots=True)
class Counts:
    """How much trains and how much is frozen.

    Attributes:
        trained: elements of parameters that train.
        frozen: elements of those that do not.
        buffers: tensors, such as BatchNorm statistics, that stand still.
        owners: modules that own them and are kept in evaluation.
    """

    trained: int
    frozen: int
    buffers: int
    owners: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A fine-tuning run that is ready to start.

    Attributes:
        builder: `package.module:callable`.
        model: with its new last layer.
        head: the new last layer.
        dropped: paths of auxiliary heads that were removed.
        data: all images.
        split: which train, which are held out, and who says so.
        preprocessing: how images become inputs.
        freeze: patterns of what is frozen in every phase.
        wish: the strategy as it was asked for; None is what `freeze` says.
        strategy: what trains when, with these patterns.
        counts: what the last phase freezes.
        settings: epochs, learning rate, seed and the rest.
        lineage: the weights it begins from.
    """

    builder: str
    model: torch.nn.Module
    head: NewHead
    dropped: tuple[str, ...]
    data: ImageData
    split: Split
    preprocessing: ImagePreprocessing
    freeze: tuple[str, ...]
    wish: StrategyLike
    strategy: Strategy
    counts: Counts
    settings: Settings
    lineage: schema.Lineage | None

    @property
    def train(self) -> PreparedImages:
        """The samples to train on."""
        how = {"is_varied": bool(self.settings.augment)}
        return PreparedImages(self.data, self.split.train, self.preprocessing, **how)

    @property
    def valid(self) -> PreparedImages:
        """The held-out samples."""
        return PreparedImages(self.data, self.split.valid, self.preprocessing)

    @property
    def arguments(self) -> dict[str, Any]:
        """What `persistlib.finetune` takes besides model and samples."""
        record = self.preprocessing.to_dict()
        return {
            **self.settings.to_dict(),
            "freeze": self.freeze,
            "strategy": self.wish,
            "interface": schema.Interface(preprocessing=record, labels=self.data.classes),
            "data": self.data.record(self.split),
        }

    def rows(self) -> tuple[tuple[str, str], ...]:
        """Return the plan in words: a heading and a sentence each."""
        classes, size, run = self.data.classes, self.preprocessing.size, self.settings
        steps = f"{run.optimizer}, lr {run.lr:g} ({run.schedule})"
        names = ", ".join(classes[:_SHOWN_CLASSES])
        more = ", ..." if len(classes) > _SHOWN_CLASSES else ""
        begin = self.lineage.source if self.lineage else "fresh values"
        edges = f"{size.height} x {size.width}" if size else "as they come"
        trained = f"{self.counts.trained:,} of {self.counts.trained + self.counts.frozen:,}"
        still = f"{self.counts.buffers} buffers of {self.counts.owners} modules (BatchNorm)"
        dropped = f"; auxiliary heads dropped: {', '.join(self.dropped)}" if self.dropped else ""
        return (
            ("data", f"{self.data.name}: {len(self.data):,} images"),
            ("classes", f"{len(classes)}: {names}{more}"),
            ("split", f"{self.split}"),
            ("images", f"{edges} pixels, {self.preprocessing.channels} channels"),
            *((("varied", f"{in_words(run.steps)}; no features are kept"),) if run.augment else ()),
            ("model", f"{self.builder}, beginning from {begin}"),
            ("last layer", f"{self.head}{dropped}"),
            *((("strategy", self._strategy()),) if self.wish is not None else ()),
            ("trained", f"{trained} parameters"),
            ("frozen", f"{self.counts.frozen:,} parameters; {still}"),
            ("run", f"{run.epochs} epochs, {steps}, batches of {run.batch_size}, seed {run.seed}"),
        )

    def _strategy(self) -> str:
        """Return the strategy in words."""
        phases, decay = self.strategy.phases, self.strategy.rate_decay
        begin = ", ".join(str(phase.epoch) for phase in phases[1:])
        more = f"; one block more from epochs {begin} on" if begin else ""
        slower = f"; each block learns {decay:g} times as fast as the next" if decay != 1 else ""
        return f"{self.strategy}{more}{slower}"

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the plan as data, as `--json` gives it."""
        return {
            "builder": self.builder,
            "weights": self.lineage.model_dump(mode="json") if self.lineage else None,
            "data": {
                "name": self.data.name,
                "digest": self.data.digest,
                "classes": list(self.data.classes),
                "images": len(self.data),
            },
            "split": {**self.split.sizes, **self.split.how},
            "preprocessing": self.preprocessing.to_dict(),
            "head": {"path": self.head.path, "was": self.head.was, "classes": self.head.classes},
            "dropped": list(self.dropped),
            "freeze": list(self.freeze),
            "strategy": self.strategy.to_dict(),
            "trained_parameters": self.counts.trained,
            "frozen_parameters": self.counts.frozen,
            "frozen_buffers": self.counts.buffers,
            "frozen_modules": self.counts.owners,
            "settings": self.settings.to_dict(),
        }


def plan(
    builder: str | Saved,
    *,
    data: str | os.PathLike[str],
    weights: object = None,
    freeze: Patterns | None = None,
    strategy: StrategyLike = None,
    resize: int | None = None,
    fraction: float | None = None,
    split: str | os.PathLike[str] | None = None,
    settings: Settings,
    trust: Collection[str] = (),
    arguments: Mapping[str, Any] | None = None,
) -> Plan:
    """Return a plan for fine-tuning what a builder builds, or a bundle, on labelled images.

    The last layer of a bundle stays where it was trained for the very classes of the data.

    Args:
        builder: `package.module:callable`, the bare name of one of torchvision's, or a bundle.
        data: as `open_data`.
        weights: as `persistlib.build`, but for the last layer; a bundle has its own.
        freeze: patterns; None freezes all but the new last layer, or what the strategy says.
        strategy: as `finetune`.
        resize: edge of the square images; None takes what the bundle, or torchvision's weights,
            were made for.
        fraction: of each class that is held out; None takes the data's own division, else 0.2.
        split: as `open_data`.
        settings: epochs, learning rate, seed and the rest.
        trust: packages that may be imported beyond torch and torchvision.
        arguments: the builder's own.

    Raises:
        TrainingError: the data cannot be trained on, the weights do not fit, or the last layer
            cannot be told.
        ArchitectureError: the builder is unknown, untrusted, or failed.
        UsageError: the model refuses images of that size, or an argument is out of range.
    """
    strategies.wish_of(strategy)  # before anything that takes long
    survey = survey_data(data, Asked(listing=None if split is None else os.fspath(split)))
    how: dict[str, Any] = {"resize": resize, "seed": settings.seed, "trust": trust}
    begun = _begin(builder, survey, weights, arguments or {}, how)
    findings = (*survey.findings, *size_findings(survey.data, begun.preprocessing))
    images = Survey(survey.data, findings).require()
    model, example = begun.model, beginnings.example(begun.preprocessing)
    head = _new_head(begun, images.classes)
    if not head.is_kept:
        replace_head(model, begun.head, head.classes, example=example, seed=settings.seed)
    usual = ("*", f"!{head.path}.*") if strategy is None else ()
    patterns = usual if freeze is None else _as_tuple(freeze)
    resolved = strategies.resolve(strategy, model, example, freeze=patterns, epochs=settings.epochs)
    if any(matches(phase.freeze, f"{head.path}.weight") for phase in resolved.phases):
        remedy = f"add '!{head.path}.*' to the patterns"
        raise error(Code.USAGE, "freeze", f"freezes the new last layer {head.path}", remedy)
    return Plan(
        builder=begun.builder,
        model=model,
        head=head,
        dropped=begun.dropped,
        data=images,
        split=images.split(fraction=fraction, seed=settings.seed),
        preprocessing=begun.preprocessing,
        freeze=patterns,
        wish=strategy,
        strategy=resolved,
        counts=_counts(model, resolved.phases[-1].freeze),
        settings=settings,
        lineage=recipe.origin(model),
    )


def _begin(
    builder: str | Saved,
    survey: Survey,
    weights: object,
    arguments: Mapping[str, Any],
    how: dict[str, Any],
) -> Beginning:
    """Return what the run begins from; what is wrong with the data goes before what fails here."""
    try:
        if isinstance(builder, str):
            return beginnings.of_builder(builder, weights, arguments=arguments, **how)
        return beginnings.of_bundle(builder, resize=how["resize"])
    except PersistlibError:
        survey.require()
        raise


def _new_head(begun: Beginning, classes: tuple[str, ...]) -> NewHead:
    path, _, width = begun.head
    is_kept = begun.labels == classes and width == len(classes)
    return NewHead(path, width, len(classes), begun.left_out, is_kept)


def _counts(model: torch.nn.Module, patterns: tuple[str, ...]) -> Counts:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = [name for name, _ in model.named_buffers(remove_duplicate=False)]
    frozen = set(select(patterns, [*parameters, *buffers]))
    held = {id(item) for name, item in parameters.items() if name in frozen}
    sizes = {id(item): item.numel() for item in parameters.values()}
    still = [name for name in buffers if name in frozen]
    return Counts(
        trained=sum(size for key, size in sizes.items() if key not in held),
        frozen=sum(sizes[key] for key in held),
        buffers=len(still),
        owners=len({name.rpartition(".")[0] for name in still}),
    )


def _as_tuple(patterns: Patterns) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)
