"""Freezing that holds: parameters stop training, and statistics stop moving.

`requires_grad = False` alone lets BatchNorm statistics move (https://github.com/pytorch/pytorch/
issues/66073), and `track_running_stats = False` changes what the model computes. Only evaluation
mode, kept through every `train()`, holds them: a frozen module that owns buffers ignores
`train(True)` until `unfreeze`.

Law: after any training, every frozen tensor and every buffer of a frozen module is bit-equal to
before.
"""

from __future__ import annotations

import difflib
import functools
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

Patterns = str | tuple[str, ...] | list[str]


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


def matches(patterns: Patterns, name: str) -> bool:
    """Return whether a dotted name is selected.

    A pattern is a glob over the whole name, or names a module and with it all below; a leading `!`
    takes back; the last pattern that matches decides.
    """
    selected = False
    for pattern in _as_tuple(patterns):
        bare = pattern.removeprefix("!")
        if fnmatchcase(name, bare) or fnmatchcase(name, f"{bare}.*"):
            selected = bare == pattern
    return selected


def select(patterns: Patterns, names: Iterable[str]) -> tuple[str, ...]:
    """Return the selected names in their order.

    Raises:
        TrainingError: a pattern matches no name at all.
    """
    known = tuple(names)
    for pattern in _as_tuple(patterns):
        bare = pattern.removeprefix("!")
        if not any(matches(bare, name) for name in known):
            near = difflib.get_close_matches(bare, _prefixes(known), 1)
            raise error(
                Code.PATTERN_UNMATCHED,
                pattern,
                "matches no tensor of the model",
                f"did you mean {near[0]}?" if near else f"names begin with {_first(known)}",
            )
    return tuple(name for name in known if matches(patterns, name))


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
        parameters[name].requires_grad_(requires_grad=False)
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
            del module.__dict__["train"]
            module.train(model.training)
    return trained


def keep_in_eval(module: nn.Module) -> None:
    """Put a module in evaluation for good; its children still follow `train()`."""
    module.training = False
    # An attribute of the instance, found before the class's method; a partial of a module-level
    # function survives deepcopy and pickling, and refers to the copy afterwards.
    module.__dict__["train"] = functools.partial(_train_children_only, module)


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


def _as_tuple(patterns: Patterns | Sequence[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _prefixes(names: Iterable[str]) -> list[str]:
    prefixes: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            stem = ".".join(parts[:count])
            prefixes[stem] = prefixes[f"{stem}.*"] = None
    return list(prefixes)


def _first(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(name.split(".")[0] for name in names)) or "nothing"
