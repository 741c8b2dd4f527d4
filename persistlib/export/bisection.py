"""Where a graph departs from what it was made of: the first operator that computes otherwise.

Every value inside the graph that the reference knows too becomes an input, given the reference's
own bits; what stands between two such values is run alone. So an error shows where it is made and
nowhere else, and whatever stands before an operator that is named was right. Where no operator
departs by itself, the graph is run whole with its inner values as outputs: errors add up, or the
runtime's own rewriting makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from persistlib.dtypes import DType
from persistlib.errors import PersistlibError
from persistlib.export.comparison import INTEGERS, deviation, is_float
from persistlib.export.excerpt import Excerpt, excerpt, producers, type_number, value_types
from persistlib.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    import onnx
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]

# Values held at once, of the reference and of the graph; the graph is gone through in such steps.
_STEP = 32
_MESSAGE = 80  # of operators' names in one line
ALONE, TOGETHER, REWRITTEN = "alone", "together", "rewritten"


class Reference(Protocol):
    """What the values inside the graph should be, for the inputs that it is run on."""

    def known(self, name: str) -> bool:
        """Return whether the reference has a value of this name."""
        ...

    def module(self, name: str) -> str:
        """Return the path of the submodule that a value comes from, empty where not known."""
        ...

    def __call__(self, names: Collection[str]) -> dict[str, NDArray[Any]]:
        """Return the named values, as far as they are arrays."""
        ...


class Graph(NamedTuple):
    """A graph at hand.

    Attributes:
        proto: it is left as it is.
        external: its external data by name.
        names: of its values to those of the reference, where these differ.
        limit: how far a float value of the graph may be off, relative to its spread.
    """

    proto: onnx.ModelProto
    external: Mapping[str, memoryview]
    names: Mapping[str, str]
    limit: float


@dataclass(frozen=True, slots=True)
class Departure:
    """Where a graph departs.

    Attributes:
        how: "alone": the operator itself, given the reference's inputs; "together": the first value
            that is off in a run of the whole graph, where no operator departs by itself;
            "rewritten": as that, but only where the runtime rewrites the operators before it.
        value: the value that is off.
        node: the operator's name.
        operator: its type.
        among: operators that stand between the last values that agree and this one.
        inputs: values that the reference has too and that agree.
        module: path of the submodule that the value comes from; empty where it is not known.
        deviation: how far it is off, relative to its spread.
        limit: how far it may be.
    """

    how: str
    value: str
    node: str
    operator: str
    among: tuple[str, ...]
    inputs: tuple[str, ...]
    module: str
    deviation: float
    limit: float

    def __str__(self) -> str:
        whose = f" of {self.module}" if self.module else ""
        off = f"is off by {self.deviation:.2g} of its spread, at most {self.limit:g} is"
        place = f"{self.node or self.value} ({self.operator}){whose}"
        if len(self.among) > 1:
            others = ", ".join(name for name in self.among if name != self.node)
            place += f" or what leads to it alone ({_short(others)})"
        if self.how == ALONE:
            given = _short(", ".join(self.inputs)) or "none"
            return f"it first departs at {place}: with inputs that agree ({given}) it {off}"
        if self.how == TOGETHER:
            return f"no operator departs by itself; the first value that {off} comes from {place}"
        return f"only as the runtime rewrites the graph the value of {place} {off}"


def locate(graph: Graph, feeds: Arrays, reference: Reference) -> Departure | None:
    """Return where the graph departs from the reference for some inputs; None where nothing does.

    Args:
        graph: what is looked at.
        feeds: its inputs by name.
        reference: what its values should be for these inputs.
    """
    search = _Search(graph, feeds, reference)
    return search.alone() or search.together() or search.rewritten()


class _Search:
    """One look at a graph: which of its values the reference has, in the graph's order."""

    def __init__(self, graph: Graph, feeds: Arrays, reference: Reference) -> None:
        self.graph, self.feeds, self.reference = graph, feeds, reference
        self.produced, self.types = producers(graph.proto), value_types(graph.proto)
        self.theirs = {
            name: their
            for name in self.produced
            if reference.known(their := graph.names.get(name, name))
        }
        self.outputs = {value.name for value in graph.proto.graph.output}

    def alone(self) -> Departure | None:
        """Return the first operator that departs, given what it should be given."""
        found: list[Departure] = []
        for names in _steps(tuple(self.theirs)):
            found += self._departures(names)
            if found:
                break
        if len(found) > 1:  # a value may be noise around nothing: take the one that matters
            return next((one for one in found if self._mends(one)), found[0])
        return found[0] if found else None

    def _departures(self, names: Sequence[str]) -> list[Departure]:
        """Return those of some values that are off, each computed from agreed values alone."""
        part = excerpt(self.graph.proto, names, cut=self.theirs)
        needed = [name for name in part.inputs if name in self.theirs]
        expected = self._expected({*names, *needed})
        if missing := set(needed) - expected.keys():
            # No tensor there, such as a size: it is computed and not given.
            self.theirs = {n: theirs for n, theirs in self.theirs.items() if n not in missing}
            return self._departures([name for name in names if name not in missing])
        computed = self._run(part, expected)
        if computed is None and len(names) > 1:
            middle = len(names) // 2
            return self._departures(names[:middle]) + self._departures(names[middle:])
        return list(self._off(ALONE, names, expected, computed or {}))

    def together(self) -> Departure | None:
        """Return the first value that is off when the graph is run whole."""
        for names in _steps(tuple(self.theirs)):
            if found := self._exposed(names, TOGETHER):
                return found
        return None

    def rewritten(self) -> Departure | None:
        """Return the first value that is off when it alone is looked at, by halving."""
        names = tuple(self.theirs)
        low, high, last = 0, len(names), None
        while low < high:
            middle = (low + high) // 2
            if found := self._exposed(names[middle : middle + 1], REWRITTEN):
                last, high = found, middle
            else:
                low = middle + 1
        return last

    def _exposed(self, names: Sequence[str], how: str) -> Departure | None:
        expected = self._expected(names)
        computed = self._run(excerpt(self.graph.proto, names, cut=()), expected)
        return next(self._off(how, names, expected, computed or {}), None)

    def _mends(self, departure: Departure) -> bool:
        """Return whether the graph's outputs agree once this value alone is put right."""
        outputs = [name for name in self.theirs if name in self.outputs]
        if departure.value in outputs:
            return True
        expected = self._expected({*outputs, departure.value})
        part = excerpt(self.graph.proto, outputs, cut=(departure.value,))
        computed = self._run(part, expected)
        return computed is not None and not list(self._off(ALONE, outputs, expected, computed))

    def _off(
        self, how: str, names: Sequence[str], expected: Arrays, computed: Arrays
    ) -> Iterator[Departure]:
        for name in names:
            if name in expected and name in computed:
                limit = self.graph.limit if is_float(expected[name]) else INTEGERS
                off = deviation(expected[name], computed[name])
                if off > limit:
                    yield self._departure(how, name, off, limit)

    def _expected(self, names: Collection[str]) -> dict[str, NDArray[Any]]:
        asked = {self.theirs[name]: name for name in names}
        return {asked[theirs]: array for theirs, array in self.reference(asked.keys()).items()}

    def _run(self, part: Excerpt, expected: Arrays) -> dict[str, NDArray[Any]] | None:
        """Return what the runtime makes of a part; None where it cannot run it."""
        given = {n: a for n, a in (*self.feeds.items(), *expected.items()) if n in part.inputs}
        types = {name: type_number(array) for name, array in expected.items()} | self.types
        data = part.proto(given, types).SerializeToString()
        try:
            session = open_session(data, external=self.graph.external, threads=1)
            feeds = {
                spec.name: given[spec.name].astype(DType[spec.dtype].numpy, copy=False)
                for spec in session.inputs
            }
            return {part.original(name): array for name, array in session.run(feeds).items()}
        except PersistlibError:
            return None

    def _departure(self, how: str, name: str, off: float, limit: float) -> Departure:
        part = excerpt(self.graph.proto, [name], cut=self.theirs)
        node = self.produced[name]
        return Departure(
            how=how,
            value=name,
            node=node.name,
            operator=node.op_type,
            among=tuple(inner.name or inner.op_type for inner in part.nodes),
            inputs=part.inputs,
            module=self.reference.module(self.theirs[name]),
            deviation=off,
            limit=limit,
        )


def _short(text: str) -> str:
    return text if len(text) <= _MESSAGE else f"{text[:_MESSAGE]} ..."


def _steps(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), _STEP):
        yield names[start : start + _STEP]
