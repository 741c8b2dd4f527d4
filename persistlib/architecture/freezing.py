"""Freezing that holds: parameters stop training, and statistics stop moving.

`requires_grad = False` alone lets BatchNorm statistics move (https://github.com/pytorch/pytorch/
issues/66073), and `track_running_stats = False` changes what the model computes. Only evaluation
mode, kept through every `train()`, holds them: a frozen module that owns buffers ignores
`train(True)` until `unfreeze`.

Law: after any training, every frozen tensor and every buffer of a frozen module is bit-equal to
before.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

from persistlib.patterns import select

if TYPE_CHECKING:
    from torch import nn

    from persistlib.patterns import Patterns


class Frozen(NamedTuple):
    """What `freeze` froze.

    Attributes:
        parameters: names of parameters that no longer train.
        modules: paths of modules now kept in evaluation.
        buffers: names of the buffers that they own.
    """

    parameters: tuple[str, ...]
    modules: tuple[str, ...]
    buffers: tuple[str, ...]


def freeze(model: nn.Module, patterns: Patterns) -> Frozen:
    """Freeze what the patterns select: its parameters, and the statistics of its modules.

    Args:
        model: changed in place.
        patterns: globs over dotted names; `["*", "!fc.*"]` leaves `fc` alone to train.

    Returns:
        What was frozen by this call.

    Raises:
        TrainingError: a pattern matches nothing.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    chosen = select(patterns, [*parameters, *buffers])
    frozen = tuple(name for name in chosen if name in parameters)
    still = tuple(name for name in chosen if name in buffers)
    owners = tuple(dict.fromkeys(name.rpartition(".")[0] for name in still))
    for name in frozen:
        parameters[name].requires_grad_(False)
    for path in owners:
        keep_in_eval(model.get_submodule(path))
    return Frozen(frozen, owners, still)


def unfreeze(model: nn.Module, patterns: Patterns) -> tuple[str, ...]:
    """Let what the patterns select train again; modules follow the root's training flag.

    Returns:
        Names of the parameters that train again.

    Raises:
        TrainingError: a pattern matches nothing.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    chosen = select(patterns, [*parameters, *buffers])
    trained = tuple(
        name
        for name in chosen
        if name in parameters
        and (parameters[name].is_floating_point() or parameters[name].is_complex())
    )
    for name in trained:
        parameters[name].requires_grad_()
    for path in dict.fromkeys(name.rpartition(".")[0] for name in chosen if name in buffers):
        module = model.get_submodule(path)
        if is_kept_in_eval(module):
            let_go(module)
            module.train(model.training)
    return trained


def keep_in_eval(module: nn.Module) -> None:
    """Put a module in evaluation for good; its children still follow `train()`."""
    module.training = False
    # An attribute of the instance, found before the class's method; a partial of a module-level
    # function survives deepcopy and pickling, and refers to the copy afterwards.
    module.__dict__["train"] = functools.partial(_train_children_only, module)


def let_go(module: nn.Module) -> None:
    """Let a module that `keep_in_eval` holds follow `train()` again."""
    del module.__dict__["train"]


def is_kept_in_eval(module: nn.Module) -> bool:
    """Return whether `freeze` keeps the module in evaluation."""
    train = vars(module).get("train")
    return isinstance(train, functools.partial) and train.func is _train_children_only


def kept_in_eval(model: nn.Module) -> tuple[str, ...]:
    """Return the paths of all modules that are kept in evaluation."""
    return tuple(path for path, module in model.named_modules() if is_kept_in_eval(module))


def _train_children_only(module: nn.Module, mode: bool = True) -> nn.Module:
    for child in module.children():
        child.train(mode)
    return module
