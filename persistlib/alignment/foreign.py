"""The weighted operators of a stranger's graph, each with the steps that stand behind it.

An operator is a core (a convolution, a product with a matrix, a look-up) or only a value, and a
chain of steps. Whatever stands between them has no weights, and is no matter for pairing: what
comes out of it is compared by value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from persistlib.alignment import steps
from persistlib.alignment.network import LAYOUT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from persistlib.alignment.network import Network, Node

CONVOLUTION, PRODUCT, LOOKUP, JOINING, SLOPE, VALUE = (
    *("convolution", "product", "lookup", "joining", "slope", "value"),
)
# Kinds that count as a place in the data flow; steps are merged and split by exporters.
CORES = frozenset({CONVOLUTION, PRODUCT, LOOKUP})
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "FusedConv"})
_PRODUCTS = frozenset({"Gemm", "MatMul", "FusedMatMul"})
_STEPS: Mapping[str, str] = {
    "Add": steps.ADD,
    "Sub": steps.SUBTRACT,
    "Mul": steps.MULTIPLY,
    "Div": steps.DIVIDE,
}
_COMMUTES = frozenset({"Add", "Mul"})
_NORMS = frozenset(
    {
        *("LayerNormalization", "GroupNormalization"),
        *("RMSNormalization", "InstanceNormalization"),
    }
)
_CHAIN = 16  # steps behind one operator; a longer chain is another operator's


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a graph.

    Attributes:
        kind: a word of `steps`.
        constants: names of its numbers.
        after: the value that it gives.
        epsilon: of BatchNorm.
        scale: factor of its number, which Gemm may have.
    """

    kind: str
    constants: tuple[str, ...]
    after: str
    epsilon: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Block:
    """A weighted operator.

    Attributes:
        index: its place among all.
        kind: a word of this module.
        node: the operator itself.
        inputs: the values that go in.
        weight: name of its weight; empty where it has none.
        core: what comes out before the steps; empty where no value of the graph is that.
        chain: the steps.
        above: the cores that its inputs depend on, a bit each by index.
        norm: of a value that is first normalised, the node that does.
    """

    index: int
    kind: str
    node: Node
    inputs: tuple[str, ...]
    weight: str
    core: str
    chain: tuple[Step, ...]
    above: int
    norm: Node | None = None


def blocks(network: Network) -> list[Block]:
    """Return the weighted operators of a graph, in its order."""
    return _Blocks(network).found


class _Blocks:
    """One walk over a graph."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.found: list[Block] = []
        self._above: dict[str, int] = {}
        for node in network.nodes:
            above = 0
            for name in (*node.inputs, *node.captured):
                above |= self._above.get(name, 0)
            made = self._block(node, above)
            if made is not None:
                self.found.append(made)
                if made.kind in CORES:
                    above |= 1 << made.index
            for name in node.outputs:
                if name not in network.constants:
                    self._above[name] = above

    def _is_constant(self, name: str) -> bool:
        return name in self.network.constants

    def _block(self, node: Node, above: int) -> Block | None:
        if not node.outputs or all(self._is_constant(name) for name in node.outputs if name):
            return None
        makers = {
            **dict.fromkeys(_CONVOLUTIONS, self._convolution),
            **dict.fromkeys(_PRODUCTS, self._product),
            **dict.fromkeys(_STEPS, self._value),
            **dict.fromkeys(_NORMS, self._norm),
            "BatchNormalization": self._value,
            "Gather": self._lookup,
            "Concat": self._joining,
            "PRelu": self._slope,
        }
        make = makers.get(node.operator)
        return None if make is None else make(node, above)

    def _made(
        self,
        node: Node,
        kind: str,
        inputs: tuple[str, ...],
        above: int,
        *,
        weight: str = "",
        bias: str = "",
    ) -> Block:
        own = (Step(steps.ADD, (bias,), node.outputs[0], scale=_beta(node)),) if bias else ()
        return Block(
            index=len(self.found),
            kind=kind,
            node=node,
            inputs=inputs,
            weight=weight,
            core="" if bias else node.outputs[0],
            chain=(*own, *self._chain(node.outputs[0])),
            above=above,
        )

    def _convolution(self, node: Node, above: int) -> Block | None:
        x, weight, bias = (node.input(i) for i in range(3))
        if not self._is_constant(weight) or self._is_constant(x) or node.input(3):
            return None
        return self._made(node, CONVOLUTION, (x,), above, weight=weight, bias=bias)

    def _product(self, node: Node, above: int) -> Block | None:
        x, weight, bias = (node.input(i) for i in range(3))
        if not self._is_constant(weight) or self._is_constant(x):
            return None
        if bias and not self._is_constant(bias):
            return None
        return self._made(node, PRODUCT, (x,), above, weight=weight, bias=bias)

    def _lookup(self, node: Node, above: int) -> Block | None:
        table, places = node.input(0), node.input(1)
        if not self._is_constant(table) or self._is_constant(places):
            return None
        return self._made(node, LOOKUP, (places,), above, weight=table)

    def _joining(self, node: Node, above: int) -> Block | None:
        if not any(self._is_constant(name) for name in node.inputs):
            return None
        return self._made(node, JOINING, node.inputs, above)

    def _slope(self, node: Node, above: int) -> Block | None:
        x, weight = node.input(0), node.input(1)
        if not self._is_constant(weight) or self._is_constant(x):
            return None
        return self._made(node, SLOPE, (x,), above, weight=weight)

    def _value(self, node: Node, above: int) -> Block | None:
        found = self._step(node)
        if found is None:
            return None
        x, _ = found
        chain = tuple(self._chain(x, node))
        return Block(len(self.found), VALUE, node, (x,), "", x, chain, above)

    def _norm(self, node: Node, above: int) -> Block | None:
        x, weight, bias = (node.input(i) for i in range(3))
        if self._is_constant(x) or not self._is_constant(weight):
            return None
        after = node.outputs[0]
        own = [Step(steps.MULTIPLY, (weight,), "" if bias else after)]
        own += [Step(steps.ADD, (bias,), after)] if bias else []
        chain = (*own, *self._chain(after))
        return Block(len(self.found), VALUE, node, (x,), "", "", chain, above, norm=node)

    def _chain(self, value: str, first: Node | None = None) -> Iterator[Step]:
        """Yield the steps that begin at a value, or with one of the nodes that take it."""
        node = first or self.network.only_taker(value)
        for _ in range(_CHAIN):
            while node is not None and node.operator in LAYOUT and node is not first:
                node = self.network.only_taker(node.outputs[0])
            found = None if node is None else self._step(node)
            if node is None or found is None:
                return
            yield found[1]
            node = self.network.only_taker(node.outputs[0])

    def _step(self, node: Node) -> tuple[str, Step] | None:
        """Return a node as a step, and the value that it is applied to."""
        x, after = node.input(0), next(iter(node.outputs), "")
        if node.operator == "BatchNormalization":
            numbers = node.inputs[1:5]
            is_plain = not self._is_constant(x) and all(map(self._is_constant, numbers))
            if not is_plain or node.attributes.get("training_mode") or len(numbers) != _NUMBERS:
                return None
            epsilon = float(node.attributes.get("epsilon", 1e-5))
            return x, Step(steps.NORMALISE, tuple(numbers), after, epsilon)
        if node.operator not in _STEPS:
            return None
        other = node.input(1)
        if node.operator in _COMMUTES and self._is_constant(x):
            x, other = other, x
        if self._is_constant(x) or not self._is_constant(other):
            return None
        return x, Step(_STEPS[node.operator], (other,), after)


_NUMBERS = 4  # of BatchNorm: weight, bias, mean and variance


def _beta(node: Node) -> float:
    return float(node.attributes.get("beta", 1.0)) if node.operator == "Gemm" else 1.0
