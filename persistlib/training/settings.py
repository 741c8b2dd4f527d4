"""What a training run is asked to do, checked before anything starts."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from persistlib.errors import Code, Finding, error_of, finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pydantic import JsonValue

MOMENTUM = 0.9
_SEED_LIMIT = 1 << 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The numbers of a run.

    Attributes:
        epochs: how often all training samples are gone through.
        lr: learning rate at the start.
        seed: of the order of samples and of dropout.
        keep: the weights kept: of the best epoch on the held-out samples, or of the last.
        batch_size: samples a batch, at most.
        optimizer: adamw, or sgd with momentum 0.9.
        weight_decay: decoupled (adamw) or added to the gradient (sgd).
        schedule: how the learning rate goes from batch to batch: cosine to zero, or constant.
        label_smoothing: of the default loss while training; held-out loss is without.
    """

    epochs: int
    lr: float
    seed: int = 0
    keep: str = "best"
    batch_size: int = 32
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    schedule: str = "cosine"
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        if faults := list(self._faults()):
            raise error_of(faults)

    def _faults(self) -> Iterator[Finding]:
        rules: tuple[tuple[str, Callable[[float], bool], str], ...] = (
            ("epochs", lambda value: value >= 1, "a whole number from 1 on"),
            ("batch_size", lambda value: value >= 1, "a whole number from 1 on"),
            ("seed", lambda value: 0 <= value < _SEED_LIMIT, "a whole number from 0 to 2**63 - 1"),
            ("lr", lambda value: 0 < value < math.inf, "a number above 0"),
            ("weight_decay", lambda value: 0 <= value < math.inf, "a number from 0 on"),
            ("label_smoothing", lambda value: 0 <= value < 1, "a number from 0 to below 1"),
        )
        for name, holds, wanted in rules:
            value = getattr(self, name)
            kinds = int if wanted.startswith("a whole") else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not holds(value):
                yield finding(Code.USAGE, name, f"{value!r} is not {wanted}")
        for name, words in (("keep", KEPT), ("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if (value := getattr(self, name)) not in words:
                yield finding(Code.USAGE, name, f"{value!r} is not one of {', '.join(words)}")

    def optimizer_for(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """Return a new optimizer of the parameters."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, lr=self.lr, momentum=MOMENTUM, weight_decay=self.weight_decay
            )
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)

    def lr_at(self, progress: float) -> float:
        """Return the learning rate after this part of the run, from 0 to 1."""
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the numbers by name, as `finetune` takes them."""
        return asdict(self)

    def optimizer_record(self) -> dict[str, JsonValue]:
        """Return what the manifest says of the optimizer."""
        record: dict[str, JsonValue] = {
            name: asdict(self)[name]
            for name in ("lr", "weight_decay", "schedule", "batch_size", "label_smoothing")
        }
        record["name"] = self.optimizer
        return record


KEPT = ("best", "last")
OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "constant")
