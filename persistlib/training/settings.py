"""What a training run is asked to do, checked before anything starts."""

from __future__ import annotations

import difflib
import math
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypedDict

from persistlib.errors import Code, Finding, UsageError, error_of, finding
from persistlib.training.augmentation import steps_of
from persistlib.training.optimizers import OPTIMIZERS, option_faults
from persistlib.training.precision import PRECISIONS
from persistlib.training.schedules import SCHEDULES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pydantic import JsonValue

BALANCED = "balanced"
_SEED_LIMIT = 1 << 63


class Numbers(TypedDict, total=False):
    """The settings that have defaults, as `finetune` takes them; see `Settings`."""

    seed: int
    keep: str
    batch_size: int
    optimizer: str
    optimizer_options: Mapping[str, Any]
    weight_decay: float
    schedule: str
    schedule_options: Mapping[str, Any]
    label_smoothing: float
    class_weights: str | Sequence[float] | None
    patience: int | None
    accumulate: int
    clip: float | None
    precision: str
    workers: int
    augment: str | Sequence[Mapping[str, Any]]
    checkpoint_every: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The numbers of a run.

    Attributes:
        epochs: how often all training samples are gone through.
        lr: learning rate at the start.
        seed: of the order of samples, their augmentation, and dropout.
        keep: the weights kept: of the best epoch on the held-out samples, or of the last; or those
            of the best, and all others as versions in the run's folder.
        batch_size: samples a batch, at most.
        optimizer: one of torch's, such as adamw, or sgd with momentum 0.9.
        optimizer_options: what else that optimizer takes, such as {"momentum": 0.8}.
        weight_decay: decoupled (adamw) or added to the gradient (sgd); without meaning for an
            optimizer that has none.
        schedule: how the learning rate goes: cosine to zero or constant, from batch to batch; or
            one of torch's schedulers, such as onecyclelr.
        schedule_options: what that scheduler takes, such as {"step_size": 3}.
        label_smoothing: of the default loss while training; held-out loss is without.
        class_weights: of the default loss while training: a number a class, or "balanced" for the
            inverse of how often each occurs; held-out loss is without.
        patience: after how many epochs that were not better than the best before the run ends;
            None never.
        accumulate: batches whose gradients make one step of the optimizer together.
        clip: the most that the norm of all gradients may be; None for any.
        precision: what the model computes in: f32, or bf16 or f16 where torch holds it to be safe.
        augment: how training images are varied: words, or steps (`augmentation`); none when empty.
        workers: processes that load the samples of a data set; 0 for this one.
        checkpoint_every: steps after which a checkpoint is written, besides each epoch's end.
    """

    epochs: int
    lr: float
    seed: int = 0
    keep: str = "best"
    batch_size: int = 32
    optimizer: str = "adamw"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    weight_decay: float = 0.01
    schedule: str = "cosine"
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    label_smoothing: float = 0.1
    class_weights: str | Sequence[float] | None = None
    patience: int | None = None
    accumulate: int = 1
    clip: float | None = None
    precision: str = "f32"
    workers: int = 0
    augment: str | Sequence[Mapping[str, Any]] = ()
    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        if faults := list(self._faults()):
            raise error_of(faults)

    def _faults(self) -> Iterator[Finding]:
        for name, (holds, wanted) in _RULES.items():
            value = getattr(self, name)
            kinds = int if wanted.startswith("a whole") else (int, float)
            if value is None and name in _OPTIONAL:
                continue
            if isinstance(value, bool) or not isinstance(value, kinds) or not holds(value):
                yield finding(Code.USAGE, name, f"{value!r} is not {wanted}")
        for name, words in _WORDS.items():
            if not isinstance(value := getattr(self, name), str) or value not in words:
                yield finding(Code.USAGE, name, f"{value!r} is not one of {', '.join(words)}")
        yield from self._option_faults()
        yield from self._augment_faults()
        yield from self._weight_faults()

    def _option_faults(self) -> Iterator[Finding]:
        tables: tuple[tuple[str, Mapping[str, Any]], ...] = (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
        )
        for name, table in tables:
            if isinstance(word := getattr(self, name), str) and word in table:
                options = getattr(self, f"{name}_options")
                yield from option_faults(f"{name}_options", options, table[word])

    def _augment_faults(self) -> Iterator[Finding]:
        try:
            self.steps  # noqa: B018 - what raises is looked for
        except UsageError as fault:
            yield from fault.findings

    def _weight_faults(self) -> Iterator[Finding]:
        given: Any = self.class_weights
        if given is None or given == BALANCED:
            return
        if isinstance(given, str) or not all(
            isinstance(item, (int, float)) and 0 <= item < math.inf for item in given
        ):
            reason = f"{given!r} is neither {BALANCED!r} nor a number from 0 on for each class"
            yield finding(Code.USAGE, "class_weights", reason)

    @property
    def steps(self) -> list[dict[str, JsonValue]]:
        """How training images are varied, step by step."""
        return steps_of(self.augment) if self.augment else []

    def lr_at(self, progress: float) -> float | None:
        """Return the learning rate after this part of the run, from 0 to 1.

        None where one of torch's schedulers says it.
        """
        if self.schedule == "constant":
            return self.lr
        if self.schedule != "cosine":
            return None
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by name, as `finetune` takes them."""
        weights = self.class_weights
        plain = weights if weights is None or isinstance(weights, str) else list(weights)
        return {**asdict(self), "class_weights": plain, "augment": self.steps}

    def optimizer_record(self, *, smooths: bool) -> dict[str, JsonValue]:
        """Return what the manifest says of the optimizer; what is at its default stays unsaid.

        Args:
            smooths: whether smoothing of labels has a meaning for the loss.
        """
        given = self.to_dict()
        always = (*_ALWAYS, "label_smoothing") if smooths else _ALWAYS
        record: dict[str, JsonValue] = {name: given[name] for name in always}
        record |= {name: given[name] for name, usual in _USUAL.items() if given[name] != usual}
        record["name"] = self.optimizer
        return record


def require_known(names: Iterable[str], others: Iterable[str]) -> None:
    """Refuse what is no setting of a run, with the one that was likely meant.

    Args:
        names: what was given.
        others: what may be given besides the settings.

    Raises:
        UsageError: a name is not known; each is reported.
    """
    known = sorted({item.name for item in fields(Settings)} | set(others))
    faults: list[Finding] = []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            remedy = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}"
            faults.append(finding(Code.USAGE, name, "fine-tuning takes no such argument", remedy))
    if faults:
        raise error_of(faults)


_ALWAYS = ("lr", "weight_decay", "schedule", "batch_size")
_USUAL: dict[str, JsonValue] = {
    "optimizer_options": {},
    "schedule_options": {},
    "class_weights": None,
    "accumulate": 1,
    "clip": None,
    "precision": "f32",
}
_OPTIONAL = ("patience", "clip", "checkpoint_every")
_COUNT = (lambda value: value >= 1, "a whole number from 1 on")
_RULES: dict[str, tuple[Callable[[float], bool], str]] = {
    "epochs": _COUNT,
    "batch_size": _COUNT,
    "accumulate": _COUNT,
    "patience": _COUNT,
    "checkpoint_every": _COUNT,
    "workers": (lambda value: value >= 0, "a whole number from 0 on"),
    "seed": (lambda value: 0 <= value < _SEED_LIMIT, "a whole number from 0 to 2**63 - 1"),
    "lr": (lambda value: 0 < value < math.inf, "a number above 0"),
    "clip": (lambda value: 0 < value < math.inf, "a number above 0"),
    "weight_decay": (lambda value: 0 <= value < math.inf, "a number from 0 on"),
    "label_smoothing": (lambda value: 0 <= value < 1, "a number from 0 to below 1"),
}
LAST, ALL = "last", "all"
KEPT = ("best", LAST, ALL)
_WORDS: dict[str, tuple[str, ...]] = {
    "keep": KEPT,
    "optimizer": tuple(OPTIMIZERS),
    "schedule": tuple(SCHEDULES),
    "precision": PRECISIONS,
}
