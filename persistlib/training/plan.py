"""What fine-tuning a known builder on a data set will do, stated before it starts.

A plan is made whole (data read, model built, its last layer replaced) and can then be shown and
carried out: `persistlib.finetune(plan.model, plan.train, plan.valid, **plan.arguments)`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from persistlib.architecture import recipe
from persistlib.errors import Code, PersistlibError, error
from persistlib.manifest import schema
from persistlib.patterns import matches, select
from persistlib.preprocessing import ImagePreprocessing
from persistlib.table_rows import TablePreprocessing
from persistlib.training import beginnings, strategies, table_beginnings
from persistlib.training.augmentation import in_words
from persistlib.training.data import ImageData, PreparedImages, prepared_rows, size_findings
from persistlib.training.data_sources import survey_data
from persistlib.training.head import replace_head
from persistlib.training.labelled import Asked, Survey
from persistlib.training.table_beginnings import columns_of
from persistlib.training.tables import TableData
from persistlib.wording import counted, first_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from pydantic import JsonValue

    from persistlib.patterns import Patterns
    from persistlib.preparing import Preparation
    from persistlib.training.batches import Samples
    from persistlib.training.beginnings import Beginning, Saved
    from persistlib.training.settings import Settings
    from persistlib.training.splits import Split
    from persistlib.training.strategies import Strategy, StrategyLike
    from persistlib.training.table_beginnings import RowsBeginning

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

    def to_dict(self) -> dict[str, JsonValue]:
        """Return where it is, and its classes before and now."""
        return {"path": self.path, "was": self.was, "classes": self.classes}

    def __str__(self) -> str:
        if self.is_kept:
            return f"{self.path}: kept, {self.classes:,} classes as in the bundle"
        text = f"{self.path}: {self.was:,} classes become {self.classes:,}"
        if self.was == self.classes:
            text = f"{self.path}: made anew for {self.classes:,} classes"
        if self.left_out is None:
            return text
        return f"{text}; that of the weights, {self.left_out:,} classes, is left out"


@dataclass(frozen=True, slots=True)
class Counts:
    """How much trains and how much is frozen; as text what is frozen.

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

    def __str__(self) -> str:
        counts = counted(self.buffers, "buffer"), counted(self.owners, "module")
        still = "{} of {} (BatchNorm)".format(*counts) if self.buffers else ""
        parts = (counted(self.frozen, "parameter") if self.frozen else "", still)
        return "; ".join(part for part in parts if part) or "nothing"


@dataclass(frozen=True, slots=True)
class Plan:
    """A fine-tuning run that is ready to start.

    Attributes:
        builder: `package.module:callable`.
        model: with its new last layer.
        head: the new last layer; None where targets are numbers.
        dropped: paths of auxiliary heads that were removed.
        data: all images, or rows.
        split: which train, which are held out, and who says so.
        preprocessing: how they become inputs; None where they are inputs.
        freeze: patterns of what is frozen in every phase.
        wish: the strategy as it was asked for; None is what `freeze` says.
        strategy: what trains when, with these patterns.
        counts: what the last phase freezes.
        settings: epochs, learning rate, seed and the rest.
        lineage: the weights it begins from.
    """

    builder: str
    model: torch.nn.Module
    head: NewHead | None
    dropped: tuple[str, ...]
    data: ImageData | TableData
    split: Split
    preprocessing: Preparation | None
    freeze: tuple[str, ...]
    wish: StrategyLike
    strategy: Strategy
    counts: Counts
    settings: Settings
    lineage: schema.Lineage | None

    @property
    def is_of_images(self) -> bool:
        """Whether it trains on images, and not on rows."""
        return isinstance(self.data, ImageData)

    @property
    def train(self) -> Samples:
        """The samples to train on."""
        return self._samples(self.split.train, is_varied=bool(self.settings.augment))

    @property
    def valid(self) -> Samples:
        """The held-out samples."""
        return self._samples(self.split.valid)

    def _samples(self, indices: tuple[int, ...], *, is_varied: bool = False) -> Samples:
        data, record = self.data, self.preprocessing
        if isinstance(data, TableData):
            assert record is None or isinstance(record, TablePreprocessing)
            return prepared_rows(data, indices, record, self.model)
        assert isinstance(record, ImagePreprocessing)
        return PreparedImages(data, indices, record, is_varied=is_varied)

    @property
    def arguments(self) -> dict[str, Any]:
        """What `persistlib.finetune` takes besides model and samples."""
        record = self._preparation()
        return {
            **self.settings.to_dict(),
            "freeze": self.freeze,
            "strategy": self.wish,
            "interface": schema.Interface(preprocessing=record, labels=self._names),
            **({"task": self.data.task} if isinstance(self.data, TableData) else {}),
            "data": self.data.record(self.split),
        }

    def rows(self) -> tuple[tuple[str, str], ...]:
        """Return the plan in words: a heading and a sentence each."""
        run = self.settings
        epochs = counted(run.epochs, "epoch")
        steps = f"{run.optimizer}, lr {run.lr:g} ({run.schedule})"
        begin = self.lineage.source if self.lineage else "fresh values"
        trained = f"{self.counts.trained:,} of {self.counts.trained + self.counts.frozen:,}"
        dropped = f"; auxiliary heads dropped: {', '.join(self.dropped)}" if self.dropped else ""
        return (
            *self._data_rows(),
            ("split", f"{self.split}"),
            *self._input_rows(),
            *((("varied", f"{in_words(run.steps)}; no features are kept"),) if run.augment else ()),
            ("model", f"{self.builder}, beginning from {begin}"),
            *((("last layer", f"{self.head}{dropped}"),) if self.head else ()),
            *((("strategy", self._strategy()),) if self.wish is not None else ()),
            ("trained", f"{trained} parameters"),
            ("frozen", str(self.counts)),
            ("run", f"{epochs}, {steps}, batches of {run.batch_size}, seed {run.seed}"),
        )

    def _data_rows(self) -> Iterator[tuple[str, str]]:
        data, classes = self.data, self.data.classes
        what = "images" if isinstance(data, ImageData) else f"rows of {len(data.columns):,} columns"
        yield "data", f"{data.name}: {len(data):,} {what}"
        if isinstance(data, TableData):
            yield "target", f"{', '.join(data.target_names)}: {data.task}"
        if classes:
            yield "classes", f"{len(classes)}: {first_of(classes, _SHOWN_CLASSES)}"

    def _input_rows(self) -> Iterator[tuple[str, str]]:
        record = self.preprocessing
        if record is None or isinstance(record, TablePreprocessing):
            how = "standardized by mean and deviation, which the bundle keeps"
            yield "rows", "as they are" if record is None else how
            return
        size = record.size
        edges = f"{size.height} x {size.width}" if size else "as they come"
        yield "images", f"{edges} pixels, {record.channels} channels"

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
            "data": self._data(),
            "split": {**self.split.sizes, **self.split.how},
            "preprocessing": self._preparation(),
            "head": None if self.head is None else self.head.to_dict(),
            "dropped": list(self.dropped),
            "freeze": list(self.freeze),
            "strategy": self.strategy.to_dict(),
            "trained_parameters": self.counts.trained,
            "frozen_parameters": self.counts.frozen,
            "frozen_buffers": self.counts.buffers,
            "frozen_modules": self.counts.owners,
            "settings": self.settings.to_dict(),
        }

    def _preparation(self) -> dict[str, JsonValue] | None:
        return None if self.preprocessing is None else self.preprocessing.to_dict()

    @property
    def _names(self) -> tuple[str, ...]:
        """What the outputs are called: classes, or the columns that are to be told."""
        if isinstance(self.data, TableData) and not self.data.classes:
            return self.data.target_names
        return self.data.classes

    def _data(self) -> dict[str, JsonValue]:
        data = self.data
        found: dict[str, JsonValue] = {
            "name": data.name,
            "digest": data.digest,
            "classes": list(data.classes),
        }
        if isinstance(data, ImageData):
            return {**found, "images": len(data)}
        told: list[JsonValue] = [*data.target_names]
        return {**found, "rows": len(data), "task": data.task, "targets": told}


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
    target: str | None = None,
    task: str | None = None,
    settings: Settings,
    trust: Collection[str] = (),
    arguments: Mapping[str, Any] | None = None,
) -> Plan:
    """Return a plan for fine-tuning what a builder builds, or a bundle, on images or a table.

    The last layer of a bundle stays where it was trained for the very classes of the data.

    Args:
        builder: `package.module:callable`, the bare name of one of torchvision's, or a bundle.
        data: as `open_data`.
        weights: as `persistlib.build`, but for the last layer; a bundle has its own.
        freeze: patterns; None freezes all but the new last layer of a model for images, or what
            the strategy says.
        strategy: as `finetune`.
        resize: edge of the square images; None takes what the bundle, or torchvision's weights,
            were made for.
        fraction: of each class that is held out; None takes the data's own division, else 0.2.
        split: as `open_data`.
        target: the columns of a table that are to be told, by commas; None for the last.
        task: what they are; None for what they look like (`tables`).
        settings: epochs, learning rate, seed and the rest.
        trust: packages that may be imported beyond torch and torchvision.
        arguments: the builder's own.

    Raises:
        TrainingError: the data cannot be trained on, the weights do not fit, or the last layer
            cannot be told.
        ArchitectureError: the builder is unknown, untrusted, or failed.
        UsageError: the model refuses images of that size, or rows of that width, or an argument is
            out of range.
    """
    strategies.wish_of(strategy)  # before anything that takes long
    survey = survey_data(data, _asked(builder, split, target, task))
    if isinstance(survey.data, TableData):
        table_beginnings.require_meant(survey.data, resize=resize, augment=settings.augment)
    how: dict[str, Any] = {"seed": settings.seed, "trust": trust, "arguments": arguments or {}}
    begun = _begin(builder, survey, weights, resize, how)
    found = _whole(survey, begun)
    chosen = found.split(fraction=fraction, seed=settings.seed)
    record = begun.preprocessing or _standardized(found, chosen)
    model, example = begun.model, _example(found, record)
    head = _new_head(begun, found.classes)
    if begun.head and head and not head.is_kept:
        replace_head(model, begun.head, head.classes, example=example, seed=settings.seed)
    patterns = _patterns(freeze, strategy, head, found)
    resolved = strategies.resolve(strategy, model, example, freeze=patterns, epochs=settings.epochs)
    _require_trained(head, resolved)
    return Plan(
        builder=begun.builder,
        model=model,
        head=head,
        dropped=begun.dropped,
        data=found,
        split=chosen,
        preprocessing=record,
        freeze=patterns,
        wish=strategy,
        strategy=resolved,
        counts=_counts(model, resolved.phases[-1].freeze),
        settings=settings,
        lineage=recipe.origin(model),
    )


def _asked(
    builder: str | Saved, split: str | os.PathLike[str] | None, target: str | None, task: str | None
) -> Asked:
    return Asked(
        listing=None if split is None else os.fspath(split),
        target=None if target is None else [name.strip() for name in target.split(",")],
        task=task,
        columns=columns_of(builder),
    )


def _begin(
    builder: str | Saved, survey: Survey, weights: object, resize: int | None, how: dict[str, Any]
) -> Beginning | RowsBeginning:
    """Return what the run begins from; what is wrong with the data goes before what fails here."""
    data = survey.data
    try:
        if isinstance(data, TableData):
            if isinstance(builder, str):
                return table_beginnings.of_builder(builder, weights, data, **how)
            return table_beginnings.of_bundle(builder, data)
        if isinstance(builder, str):
            return beginnings.of_builder(builder, weights, resize=resize, **how)
        return beginnings.of_bundle(builder, resize=resize)
    except PersistlibError:
        survey.require()
        raise


def _whole(survey: Survey, begun: Beginning | RowsBeginning) -> ImageData | TableData:
    """Return the data when nothing is wrong with them, and images end with one size.

    Raises:
        TrainingError: something is; every fault is reported.
    """
    findings = survey.findings
    if isinstance(survey.data, ImageData) and isinstance(begun.preprocessing, ImagePreprocessing):
        findings = (*findings, *size_findings(survey.data, begun.preprocessing))
    return Survey(survey.data, findings).require()


def _example(data: ImageData | TableData, record: Preparation | None) -> torch.Tensor:
    if record is not None:
        return beginnings.example(record)
    assert isinstance(data, TableData)
    return torch.zeros(1, len(data.columns))


def _standardized(data: ImageData | TableData, chosen: Split) -> TablePreprocessing | None:
    """Return what standardizes a table by the rows to train on; None for prepared inputs."""
    assert isinstance(data, TableData)
    if data.is_prepared:
        return None
    return TablePreprocessing.of(data.columns, data.rows[[*chosen.train]])


def _new_head(begun: Beginning | RowsBeginning, classes: tuple[str, ...]) -> NewHead | None:
    if begun.head is None:
        return None
    path, _, width = begun.head
    is_kept = begun.labels == classes and width == len(classes)
    return NewHead(path, width, len(classes), begun.left_out, is_kept)


def _patterns(
    freeze: Patterns | None,
    strategy: StrategyLike,
    head: NewHead | None,
    data: ImageData | TableData,
) -> tuple[str, ...]:
    """Return what is frozen: of a model for images all but the last layer, unless asked."""
    if freeze is not None:
        return (freeze,) if isinstance(freeze, str) else tuple(freeze)
    is_usual = strategy is None and head is not None and isinstance(data, ImageData)
    return ("*", f"!{head.path}.*") if is_usual and head else ()


def _require_trained(head: NewHead | None, resolved: Strategy) -> None:
    """Refuse a strategy that freezes a new last layer.

    Raises:
        UsageError: it does.
    """
    if head and any(matches(phase.freeze, f"{head.path}.weight") for phase in resolved.phases):
        remedy = f"add '!{head.path}.*' to the patterns"
        raise error(Code.USAGE, "freeze", f"freezes the new last layer {head.path}", remedy)


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
