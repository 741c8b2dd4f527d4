"""Operators by domain and name, and what each is called with.

An operator is a pure function of tensors. It gets the call (attributes, version, wanted outputs)
and its inputs in order, None for one that was left out, and returns its output or a tuple of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

MICROSOFT = "com.microsoft"
# What a value is: a tensor, a sequence as a list, None for an optional without one.
Value = Any


@dataclass(frozen=True)
class Call:
    """One node, ready to be run.

    Attributes:
        operator: its name.
        version: of the operator set that the node was written for.
        attributes: by name; a tensor as a tensor, a graph as its number.
        outputs: names of the outputs, empty for one that nobody wants.
        location: what errors name.
    """

    operator: str
    version: int
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("",)
    location: str = ""

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute, or what stands for one that was left out."""
        return self.attributes.get(name, default)

    def wants(self, index: int) -> bool:
        """Return whether somebody uses an output."""
        return index < len(self.outputs) and bool(self.outputs[index])


class Run(Protocol):
    """One forward pass, for operators that depend on more than their inputs.

    Attributes:
        training: whether the module is in training mode.
    """

    training: bool

    def body(self, graph: int, inputs: Sequence[Value]) -> list[Value]:
        """Return the outputs of a graph inside the graph."""
        ...

    def turn(self, call: Call) -> None:
        """Count one turn of a loop; raise where there were too many."""
        ...


class Operator(NamedTuple):
    """A row of the table.

    Attributes:
        function: called with the call (and the run, where `runs`) and the inputs.
        runs: whether it also takes the run.
        numbers: positions of inputs that are numbers of the program and no weights.
    """

    function: Callable[..., Any]
    runs: bool = False
    numbers: frozenset[int] = frozenset()


_Key = tuple[str, str]
OPERATORS: dict[_Key, Operator] = {}


def operator(
    *names: str, domain: str = "", runs: bool = False, numbers: Collection[int] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that enters a function in the table under some names."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            OPERATORS[domain, name] = Operator(function, runs, frozenset(numbers))
        return function

    return enter


def plain(functions: Mapping[str, Callable[..., Any]], domain: str = "") -> None:
    """Enter functions that need nothing but their inputs."""
    for name, function in functions.items():
        OPERATORS[domain, name] = Operator(_without_call(function))


def _without_call(function: Callable[..., Any]) -> Callable[..., Any]:
    def called(_: Call, *inputs: Value) -> Value:
        return function(*inputs)

    return called
