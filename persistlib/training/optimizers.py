"""Torch's optimizers by name, and their state by the names of parameters.

Torch keeps an optimizer's state by position: loaded into a model whose layers are declared in
another order, the moments land on other parameters without a word. Here a state belongs to a name.

Law: `put_state(optimizer, names, *take_state(optimizer, names))` changes no bit.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any

import torch

from persistlib.errors import Code, PersistlibError, error, finding
from persistlib.training.memory import is_out_of_memory
from persistlib.wording import first_line

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping

    from persistlib.errors import Finding

MOMENTUM = 0.9
# They need a closure, or gradients that no dense layer gives.
_UNUSABLE = ("Optimizer", "LBFGS", "SparseAdam")

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    name.lower(): kind
    for name, kind in sorted(vars(torch.optim).items())
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and name not in _UNUSABLE
}


def option_faults(
    location: str, options: Mapping[str, Any], kind: type[Any] | None
) -> Iterator[Finding]:
    """Yield a fault for each option that a class does not take; None takes none."""
    known = [] if kind is None else list(inspect.signature(kind).parameters)[1:]
    for name in options:
        if name not in known:
            remedy = f"it takes {', '.join(known)}" if known else "it takes none"
            yield finding(Code.USAGE, f"{location}.{name}", "is not known", remedy)


def make(
    name: str, groups: list[dict[str, Any]], *, lr: float, decay: float, options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Return a new optimizer.

    Args:
        name: one of `OPTIMIZERS`.
        groups: each with `params`, and what differs from the rest.
        lr: learning rate of groups that have none of their own.
        decay: weight decay, where the optimizer has one.
        options: its other arguments.

    Raises:
        UsageError: the optimizer refuses its arguments.
    """
    kind: Any = OPTIMIZERS[name]
    usual = {"momentum": MOMENTUM} if name == "sgd" else {}
    if "weight_decay" in inspect.signature(kind).parameters:
        usual["weight_decay"] = decay
    try:
        made: torch.optim.Optimizer = kind(groups, lr=lr, **(usual | dict(options)))
    except (TypeError, ValueError, RuntimeError) as fault:
        raise error(Code.USAGE, "optimizer", f"{name}: {fault}", "see torch.optim") from fault
    return made


@contextlib.contextmanager
def stepping(name: str, where: str) -> Generator[None]:
    """Say of what an optimizer raises in a step that it is the optimizer's.

    Raises:
        UsageError: it refuses gradients or parameters of such a kind.
        RuntimeError: memory ran out.
    """
    try:
        yield
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as fault:
        if isinstance(fault, PersistlibError) or is_out_of_memory(fault):
            raise
        remedy = "take another optimizer; gradients that are sparse or complex are not for all, nor"
        remedy += " for every weight_decay and precision"
        reason = f"{where}: {first_line(fault)}"
        raise error(Code.USAGE, f"optimizer {name}", reason, remedy) from fault


def take_state(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str]
) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, Any]]]:
    """Return an optimizer's state: tensors by `SLOT/NAME`, and by name each slot that is none.

    Args:
        optimizer: whose.
        names: of parameters, by `id`.

    Raises:
        TrainingError: a slot holds what no checkpoint keeps.
    """
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for parameter, slots in optimizer.state.items():
        name = names[id(parameter)]
        plain[name] = {}
        for slot, value in slots.items():
            if isinstance(value, torch.Tensor) and value.layout is torch.strided:
                tensors[f"{slot}/{name}"] = value
            elif isinstance(value, (bool, int, float, type(None))):
                plain[name][slot] = value
            else:
                raise _unkept(optimizer, slot, value)
    return tensors, plain


def put_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
    plain: Mapping[str, Mapping[str, Any]],
) -> None:
    """Give an optimizer the state that `take_state` gave, of the parameters that are named.

    Args:
        optimizer: whose.
        parameters: those that get their state back, by name.
        tensors: as `take_state`.
        plain: as `take_state`.
    """
    for name, slots in plain.items():
        if name in parameters:
            optimizer.state[parameters[name]] = dict(slots)
    for key, value in tensors.items():
        slot, _, name = key.partition("/")
        if name in parameters and name in plain:
            parameter = parameters[name]
            optimizer.state[parameter][slot] = _laid_out(value, parameter)


def _laid_out(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return a slot's value where and how its parameter lies; counts of steps stay on the host."""
    if value.shape == parameter.shape and value.ndim:
        return torch.empty_like(parameter, dtype=value.dtype).detach().copy_(value)
    place = parameter.device if value.ndim else torch.device("cpu")
    return value.to(place, copy=True)


def group_numbers(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return what each group of an optimizer is set to, its parameters aside."""
    return [
        {name: value for name, value in group.items() if name not in {"params", "param_names"}}
        for group in optimizer.param_groups
    ]


def put_group_numbers(
    optimizer: torch.optim.Optimizer, groups: Iterable[Mapping[str, Any]]
) -> None:
    """Set each group to what `group_numbers` gave; names that it has not are passed over.

    Raises:
        TypeError: a value is of another kind.
    """
    for group, numbers in zip(optimizer.param_groups, groups, strict=True):
        for name in group.keys() & numbers.keys():
            if not _are_alike(group[name], numbers[name]):
                raise TypeError(f"{name} is a {type(numbers[name]).__name__}")
            group[name] = numbers[name]


def _are_alike(one: Any, other: Any) -> bool:
    """Return whether a number may stand for another: of their kind, tuples member by member."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_are_alike, one, other))
    numbers = (int, float)
    both = isinstance(one, numbers) and isinstance(other, numbers)
    return type(one) is type(other) or (both and bool not in {type(one), type(other)})


def _unkept(optimizer: torch.optim.Optimizer, slot: str, value: Any) -> PersistlibError:
    kind = type(optimizer).__name__
    reason = f"keeps a {type(value).__name__} as {slot}, which no checkpoint holds"
    return error(Code.USAGE, f"optimizer {kind}", reason, "use another optimizer, or no run folder")
