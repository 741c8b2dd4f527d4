"""What fine-tuning a known builder on a data set will do, stated before it starts.

A plan is made whole (data read, model built, its last layer replaced) and can then be shown and
carried out: `persistlib.finetune(plan.model, plan.train, plan.valid, **plan.arguments)`.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from persistlib.architecture import recipe
from persistlib.errors import Code, UsageError, error
from persistlib.manifest import schema
from persistlib.patterns import matches, select
from persistlib.preprocessing import Size
from persistlib.training import randomness, strategies
from persistlib.training.data import ImageData, PreparedImages, Split, open_data
from persistlib.training.head import drop_auxiliary_heads, find_head, replace_head
from persistlib.training.presets import EDGE, ZOO, preprocessings

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Mapping

    from pydantic import JsonValue

    from persistlib.patterns import Patterns
    from persistlib.preprocessing import ImagePreprocessing
    from persistlib.training.head import Head
    from persistlib.training.settings import Settings
    from persistlib.training.strategies import Strategy, StrategyLike

_SHOWN_CLASSES = 12


@dataclass(frozen=True, slots=True)
class NewHead:
    """The new last layer: its path, numbers in, classes before and now."""

    path: str
    was: int
    classes: int


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
        split: which train and which are held out.
        fraction: of each class that is held out.
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
    fraction: float
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
        return PreparedImages(self.data, self.split.train, self.preprocessing)

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
            "data": self.data.record(self.split, fraction=self.fraction, seed=self.settings.seed),
        }

    def rows(self) -> tuple[tuple[str, str], ...]:
        """Return the plan in words: a heading and a sentence each."""
        classes, size, run = self.data.classes, self.preprocessing.size, self.settings
        head, divided = self.head, f"{len(self.split.train):,} to train on"
        divided += f", {len(self.split.valid):,} held out"
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
            ("split", f"{divided}; stratified, seed {run.seed}"),
            ("images", f"{edges} pixels, {self.preprocessing.channels} channels"),
            ("model", f"{self.builder}, beginning from {begin}"),
            ("last layer", f"{head.path}: {head.was:,} classes become {head.classes:,}{dropped}"),
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
        return f"{self.strategy.kind}{more}{slower}"

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
            "split": {
                "train": len(self.split.train),
                "valid": len(self.split.valid),
                "fraction": self.fraction,
                "seed": self.settings.seed,
            },
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
    builder: str,
    *,
    data: str | os.PathLike[str],
    weights: object = None,
    freeze: Patterns | None = None,
    strategy: StrategyLike = None,
    resize: int | None = None,
    fraction: float = 0.2,
    settings: Settings,
    trust: Collection[str] = (),
    arguments: Mapping[str, Any] | None = None,
) -> Plan:
    """Return a plan for fine-tuning what a builder builds on labelled images.

    Args:
        builder: `package.module:callable`, or the bare name of one of torchvision's.
        data: as `open_data`.
        weights: as `persistlib.build`.
        freeze: patterns; None freezes all but the new last layer, or what the strategy says.
        strategy: as `finetune`.
        resize: edge of the square images; None takes what torchvision's weights were made for.
        fraction: of each class that is held out.
        settings: epochs, learning rate, seed and the rest.
        trust: packages that may be imported beyond torch and torchvision.
        arguments: the builder's own.

    Raises:
        TrainingError: the data cannot be trained on, the weights do not fit, or the last layer
            cannot be told.
        ArchitectureError: the builder is unknown, untrusted, or failed.
        UsageError: the model refuses images of that size, or an argument is out of range.
    """
    builder = builder if ":" in builder else f"{ZOO}:{builder}"
    images = open_data(data)
    split = images.split(fraction=fraction, seed=settings.seed)
    # Fresh values are drawn from the seed too: a run that goes on begins with the same model.
    with randomness.own(settings.seed, torch.device("cpu")):
        model = recipe.build(builder, weights=weights, trust=trust, **(arguments or {}))
    dropped = drop_auxiliary_heads(model)
    preprocessing, head = _fitting(model, preprocessings(builder, model, weights, resize))
    example = _example(preprocessing)
    classes = len(images.classes)
    replace_head(model, head, classes, example=example, seed=settings.seed)
    usual = ("*", f"!{head.path}.*") if strategy is None else ()
    patterns = usual if freeze is None else _as_tuple(freeze)
    resolved = strategies.resolve(strategy, model, example, freeze=patterns, epochs=settings.epochs)
    if any(matches(phase.freeze, f"{head.path}.weight") for phase in resolved.phases):
        remedy = f"add '!{head.path}.*' to the patterns"
        raise error(Code.USAGE, "freeze", f"freezes the new last layer {head.path}", remedy)
    return Plan(
        builder=builder,
        model=model,
        head=NewHead(head.path, head.width, classes),
        dropped=dropped,
        data=images,
        split=split,
        fraction=fraction,
        preprocessing=preprocessing,
        freeze=patterns,
        wish=strategy,
        strategy=resolved,
        counts=_counts(model, resolved.phases[-1].freeze),
        settings=settings,
        lineage=recipe.origin(model),
    )


def _fitting(
    model: torch.nn.Module, candidates: tuple[ImagePreprocessing, ...]
) -> tuple[ImagePreprocessing, Head]:
    """Return the first preprocessing whose images the model takes, and the model's last layer.

    Raises:
        PersistlibError: as `find_head`, for the last candidate.
    """
    *others, last = candidates
    for candidate in others:
        with contextlib.suppress(UsageError):
            return candidate, find_head(model, _example(candidate))
    return last, find_head(model, _example(last))


def _example(preprocessing: ImagePreprocessing) -> torch.Tensor:
    size = preprocessing.size or Size(EDGE, EDGE)
    return torch.zeros(1, preprocessing.channels, *size)


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
