"""What is frozen while a run goes through its phases, beside what the caller froze by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from persistlib.architecture import freezing
from persistlib.errors import Code, error
from persistlib.patterns import matches

if TYPE_CHECKING:
    from torch import nn

    from persistlib.architecture.freezing import Frozen
    from persistlib.training.strategies import Phase, Strategy


class Before(NamedTuple):
    """What was frozen before the run: it stays so.

    Attributes:
        parameters: by `id`, those that did not train.
        modules: by `id`, those that were kept in evaluation.
    """

    parameters: frozenset[int]
    modules: frozenset[int]


def before(model: nn.Module) -> Before:
    """Return what is frozen now."""
    return Before(
        frozenset(id(item) for item in model.parameters() if not item.requires_grad),
        frozenset(id(item) for item in model.modules() if freezing.is_kept_in_eval(item)),
    )


def trained(model: nn.Module, phase: Phase, held: Before) -> dict[str, nn.Parameter]:
    """Return what trains in a phase, each parameter once, by its first name."""
    named = list(model.named_parameters(remove_duplicate=False))
    frozen = {id(item) for name, item in named if matches(phase.freeze, name)}
    return {
        name: item
        for name, item in model.named_parameters()
        if id(item) not in frozen | held.parameters
    }


def ever_trained(model: nn.Module, strategy: Strategy, held: Before) -> dict[str, nn.Parameter]:
    """Return what trains in some phase, in the order of the model.

    Raises:
        TrainingError: there is a phase in which nothing trains.
    """
    names: set[str] = set()
    for phase in strategy.phases:
        some = trained(model, phase, held)
        if not some:
            count = sum(1 for _ in model.parameters())
            remedy = "take the last layer back, such as freeze=['*', '!fc.*']"
            where = f"freeze, epoch {phase.epoch}" if len(strategy.phases) > 1 else "freeze"
            raise error(Code.NOTHING_TO_TRAIN, where, f"{count} parameters frozen", remedy)
        names |= some.keys()
    return {name: item for name, item in model.named_parameters() if name in names}


def apply(model: nn.Module, phase: Phase, held: Before) -> Frozen:
    """Freeze what a phase says, and what was frozen before; let all else train.

    Modules of which every parameter of their own is frozen keep their statistics too.
    """
    give_back(model, held)
    frozen = freezing.freeze(model, phase.freeze)
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        has_buffers = next(module.buffers(recurse=False), None) is not None
        if own and has_buffers and not any(item.requires_grad for item in own):
            freezing.keep_in_eval(module)
    return frozen


def give_back(model: nn.Module, held: Before) -> None:
    """Let all train again but what was frozen before the run."""
    for parameter in model.parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.requires_grad_(id(parameter) not in held.parameters)
    for module in model.modules():
        if freezing.is_kept_in_eval(module) and id(module) not in held.modules:
            freezing.let_go(module)
