"""Which parts of a model train, from which epoch on, and how fast: as data.

A strategy becomes phases: from an epoch on, what some patterns select is frozen. So every strategy
is kept by the one `freeze`, and the manifest says what was done.

    full             everything trains
    head             the last block alone
    last:3           the last three blocks
    gradual:2        the last block, and one block more every two epochs
    {"kind": "patterns", "freeze": ["*", "!fc"]}
    {"kind": "gradual", "phases": [{"epoch": 1, "freeze": ["*", "!fc"]},
                                   {"epoch": 4, "freeze": []}]}

`rate_decay` makes each block learn slower than the one after it, by that factor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from persistlib.errors import Code, PersistlibError, error
from persistlib.patterns import as_tuple, select
from persistlib.training.depth import blocks

if TYPE_CHECKING:
    from pydantic import JsonValue
    from torch import nn

    from persistlib.patterns import Patterns
    from persistlib.training.depth import Block

# A word such as `last:3`, or a mapping; None is what `freeze` alone says.
StrategyLike: TypeAlias = "str | Mapping[str, Any] | None"

_WORD = re.compile(r"(?P<kind>[a-z]+)(?:[:(](?P<count>\d+)\)?)?")
# What each kind may say, and the member that a number behind its word means.
_MEMBERS: dict[str, tuple[str, ...]] = {
    "full": (),
    "head": (),
    "last": ("blocks",),
    "patterns": ("freeze",),
    "gradual": ("every", "blocks", "phases"),
}
KINDS = tuple(_MEMBERS)
_REMEDY = "give full, head, last:N, gradual, gradual:N, or a mapping (docs/fine-tuning.md)"


class Phase(NamedTuple):
    """What is frozen from an epoch on.

    Attributes:
        epoch: the first, from 1 on.
        freeze: patterns.
    """

    epoch: int
    freeze: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Strategy:
    """A strategy for one model.

    Attributes:
        kind: one of `KINDS`.
        phases: in order; the first begins at epoch 1.
        rates: the learning rate of a parameter relative to the run's, where it differs.
        rate_decay: what these rates came from; 1 where all are the same.
        count: the number behind its word, such as 3 of `last:3`.
    """

    kind: str
    phases: tuple[Phase, ...]
    rates: Mapping[str, float] = field(default_factory=dict)
    rate_decay: float = 1.0
    count: int | None = None

    def __str__(self) -> str:
        return self.kind if self.count is None else f"{self.kind}:{self.count}"

    def phase(self, epoch: int) -> Phase:
        """Return the phase that an epoch lies in."""
        return [phase for phase in self.phases if phase.epoch <= epoch][-1]

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the strategy as the manifest holds it."""
        phases: list[JsonValue] = [
            {"epoch": phase.epoch, "freeze": [*phase.freeze]} for phase in self.phases
        ]
        record: dict[str, JsonValue] = {"kind": self.kind, "phases": phases}
        return record if self.rate_decay == 1 else {**record, "rate_decay": self.rate_decay}


def resolve(
    given: StrategyLike, model: nn.Module, inputs: Any, *, freeze: Patterns, epochs: int
) -> Strategy:
    """Return what a strategy means for a model; the model is left as it was.

    Args:
        given: a word, a mapping, or None for what `freeze` says.
        model: whose blocks are counted.
        inputs: of a batch, with which the model is run once where blocks are counted.
        freeze: patterns of what is frozen besides, in every phase.
        epochs: of the run; later phases are left out.

    Raises:
        UsageError: the strategy is none, or the model has fewer blocks.
        TrainingError: a pattern matches nothing.
    """
    wish = wish_of(given)
    kind, decay = wish["kind"], wish.get("rate_decay", 1.0)
    counted = kind in {"head", "last"} or (kind == "gradual" and "phases" not in wish)
    ordered = blocks(model, inputs) if counted or decay != 1 else ()
    phases = _phases(wish, ordered, epochs)
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    names += [name for name, _ in model.named_buffers(remove_duplicate=False)]
    more = as_tuple(freeze)
    for patterns in (*(phase.freeze for phase in phases), more):
        select(patterns, names)
    rates = {
        name: decay**distance
        for distance, block in enumerate(reversed(ordered))
        for name in block.parameters
        if decay != 1 and distance
    }
    together = tuple(Phase(phase.epoch, (*phase.freeze, *more)) for phase in phases)
    number = wish.get(next(iter(_MEMBERS[kind]), ""))
    return Strategy(kind, together, rates, decay, number if isinstance(number, int) else None)


def wish_of(given: StrategyLike) -> dict[str, Any]:
    """Return a strategy as a mapping, its members checked.

    Raises:
        UsageError: it is none.
    """
    if given is None:
        return {"kind": "patterns", "freeze": ()}
    if isinstance(given, str):
        match = _WORD.fullmatch(given.replace(" ", ""))
        members = _MEMBERS.get(match["kind"]) if match else None
        if match is None or members is None or (match["count"] and not members):
            raise _unknown(given, "is no strategy")
        wish = {"kind": match["kind"]}
        return _checked(wish | ({members[0]: int(match["count"])} if match["count"] else {}))
    try:
        return _checked(dict(given))
    except (TypeError, ValueError) as fault:
        raise _unknown(given, "is no strategy") from fault


def _checked(wish: dict[str, Any]) -> dict[str, Any]:
    kind = wish.get("kind")
    if not isinstance(kind, str) or kind not in _MEMBERS:
        raise _unknown(kind, f"is none of {', '.join(KINDS)}")
    if strange := [name for name in wish if name not in {"kind", "rate_decay", *_MEMBERS[kind]}]:
        raise _unknown(strange[0], f"is not known of {kind}")
    for name in ("blocks", "every"):
        value = wish.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise _unknown(f"{name}={value!r}", "is not a whole number from 1 on")
    decay = wish.get("rate_decay", 1.0)
    if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 < decay <= 1:
        raise _unknown(f"rate_decay={decay!r}", "is not a number above 0, at most 1")
    if (kind == "last" and "blocks" not in wish) or (kind == "patterns" and "freeze" not in wish):
        raise _unknown(kind, f"needs {_MEMBERS[kind][0]}")
    return wish


def _phases(wish: Mapping[str, Any], ordered: tuple[Block, ...], epochs: int) -> tuple[Phase, ...]:
    if wish["kind"] == "patterns":
        return (Phase(1, _patterns(wish["freeze"])),)
    if "phases" in wish:
        return _given_phases(wish["phases"])
    if wish["kind"] == "full":
        return (Phase(1, ()),)
    wanted = wish.get("blocks", 1 if wish["kind"] == "head" else len(ordered))
    if wanted > len(ordered):
        reason = f"{wanted} blocks; the model has {len(ordered)}"
        raise error(Code.USAGE, "strategy", reason, "give fewer, or full")
    if wish["kind"] != "gradual":
        return (Phase(1, _all_but(ordered, wanted)),)
    every = wish.get("every", 1)
    phases = (Phase(1 + (n - 1) * every, _all_but(ordered, n)) for n in range(1, wanted + 1))
    return tuple(phase for phase in phases if phase.epoch <= epochs)


def _all_but(ordered: tuple[Block, ...], count: int) -> tuple[str, ...]:
    """Return patterns that freeze all but the last blocks."""
    if count == len(ordered):
        return ()
    return ("*", *(f"!{path}" for block in ordered[-count:] for path in block.paths))


def _given_phases(given: Any) -> tuple[Phase, ...]:
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise _unknown("phases", "is not a list of phases")
    phases: list[Phase] = []
    for item in given:
        if not isinstance(item, Mapping) or set(item) != {"epoch", "freeze"}:
            raise _unknown("phases", "a phase has epoch and freeze")
        epoch = item["epoch"]
        least = phases[-1].epoch + 1 if phases else 1
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < least:
            raise _unknown("phases", "epochs are whole numbers that rise")
        phases.append(Phase(epoch, _patterns(item["freeze"])))
    if phases[0].epoch != 1:
        raise _unknown("phases", "the first begins at epoch 1")
    return tuple(phases)


def _patterns(given: Any) -> tuple[str, ...]:
    several = isinstance(given, Sequence) and all(isinstance(item, str) for item in given)
    if not isinstance(given, str) and not several:
        raise _unknown("freeze", "is neither a pattern nor a list of patterns")
    return as_tuple(given)


def _unknown(what: object, reason: str) -> PersistlibError:
    return error(Code.USAGE, "strategy", f"{what} {reason}", _REMEDY)
