"""Finding the partner of every weighted operator of a module among those of a graph.

Law: two operators are partners only if what goes in and what comes out agree on a seeded input, to
a runtime's rounding, when the module computes with the tensors that it was given on the way. Where
several fit, those at the same place in the data flow come first, and a choice that leads nowhere is
taken back. Nothing is left to names; they only say which of several is tried first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from persistlib.alignment import joints
from persistlib.alignment.foreign import CONVOLUTION, CORES, JOINING, PRODUCT, VALUE
from persistlib.alignment.progress import Option, Progress
from persistlib.alignment.solving import solve, weight_for
from persistlib.alignment.values import NEAR, distance
from persistlib.alignment.wording import unpaired, unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from persistlib.alignment.foreign import Block
    from persistlib.alignment.graph_side import GraphSide
    from persistlib.alignment.own import OwnBlock, Skeleton
    from persistlib.alignment.state import State
    from persistlib.alignment.tape import Ref

# Choices that may be taken back for each operator, and beside that.
_PATIENCE, _LEAST = 8, 500


class _Choice(NamedTuple):
    progress: Progress
    options: list[Option]


class Pairing:
    """A search over one tape and one graph."""

    def __init__(self, skeleton: Skeleton, graph: GraphSide, progress: Progress) -> None:
        self.skeleton, self.graph = skeleton, graph
        self.progress = progress
        self._choices: list[_Choice] = []
        self._furthest: tuple[int, OwnBlock, Progress] | None = None
        self._patience = _LEAST + _PATIENCE * len(skeleton.blocks)
        self._last_use = self._lifetimes()

    def run(self) -> State:
        """Return the recovered state.

        Raises:
            ArchitectureError: an operator has no partner, or takes its weights in a way that has
                no counterpart.
        """
        ops = self.skeleton.tape.ops
        while self.progress.position < len(ops):
            op = ops[self.progress.position]
            if op.index in self.skeleton.strange:
                raise unsupported(op, self.skeleton)
            block = self.skeleton.blocks.get(op.index)
            if block is not None:
                self._pair(block)
            elif op.index not in self.progress.done and not self._is_open(op.outputs):
                self.progress.replay.run(op)
            self._forget(self.progress.position)
            self.progress.position += 1
        return self.progress.state

    def _is_open(self, refs: Sequence[Ref]) -> bool:
        """Return whether values are made of weights alone; they are computed when needed."""
        return any(self.skeleton.unknown.get(ref) for ref in refs)

    def _pair(self, block: OwnBlock) -> None:
        """Go on with the first option that holds; the others are kept."""
        options = self._options(block)
        while not self._take(block, options):
            if self._furthest is None or block.op.index >= self._furthest[0]:
                self._furthest = (block.op.index, block, self.progress)
            self._patience -= 1
            if not self._choices or self._patience < 0:
                _, first, progress = self._furthest
                raise unpaired(first, self.skeleton, self.graph, progress.used, progress.partners)
            choice = self._choices.pop()
            self.progress, options = choice.progress, choice.options
            block = self.skeleton.blocks[self.skeleton.tape.ops[self.progress.position].index]

    def _take(self, block: OwnBlock, options: list[Option]) -> bool:
        """Carry out the first option that holds; return whether there was one."""
        while options:
            option = options.pop(0)
            before = self.progress.copied() if options else None
            if self._holds(block, option):
                if before is not None:
                    self._choices.append(_Choice(before, options))
                return True
        return False

    def _holds(self, block: OwnBlock, option: Option) -> bool:
        """Run an operator with what an option says; return whether the graph's values come out."""
        progress = self.progress
        state = progress.state.copied()
        if state.write(option.writes) is not None:
            return False
        replay = progress.replay.copied()
        for op in block.ops:
            needed = (ref for ref in op.inputs if self._is_open((ref,)))
            replay.values.update({ref: state.value(ref) for ref in needed})
            try:
                replay.run(op)
            except RuntimeError:
                return False
        if distance(replay.values[block.result].numpy(), option.expected) > NEAR:
            return False
        names = [ref for op in block.ops for ref in op.inputs if self._is_open((ref,))]
        replay.forget(names)
        progress.replay, progress.state = replay, state
        progress.done.update(op.index for op in block.ops)
        progress.used |= option.marks
        for other in option.blocks:
            if other.kind in CORES and block.kind in CORES:
                progress.partners[other.index] = (
                    progress.partners.get(other.index, 0) | 1 << block.index
                )
        return True

    def _options(self, block: OwnBlock) -> list[Option]:
        """Return the ways to go on, the likeliest first."""
        if block.kind == JOINING:
            return list(joints.options(block, self.skeleton, self.graph, self.progress))
        found = [other for other in self.graph.blocks if self._is_candidate(block, other)]
        placed = [other for other in found if self._is_placed(block, other)]
        close: list[tuple[float, Block]] = []
        for group in (placed, [other for other in found if other not in placed]):
            gaps = [(self._gap(block, other), other) for other in group]
            close = [(gap, other) for gap, other in gaps if gap <= NEAR]
            if close:
                break
        names = self._names(block)
        close.sort(key=lambda item: (item[1].weight not in names, *_likeness(block, item[1])))
        options = [o for _, other in close for o in self._solved(block, other)]
        return options or list(joints.split(block, self.graph, self.progress))

    def _names(self, block: OwnBlock) -> set[str]:
        names = self.skeleton.tape.names
        refs = [block.weight, *(ref for step in block.chain for ref in step.numbers)]
        return {names[ref] for ref in refs if ref is not None and ref in names}

    def _is_candidate(self, block: OwnBlock, other: Block) -> bool:
        """Return whether a block of the graph could be the partner by its kind."""
        if other.index in self.progress.used or (other.norm is not None and not block.is_norm):
            return False
        weighted = {CONVOLUTION, PRODUCT}
        return block.kind == other.kind or (block.kind in weighted and other.kind in weighted)

    def _is_placed(self, block: OwnBlock, other: Block) -> bool:
        """Return whether both depend on the same operators."""
        above, partners = 0, self.progress.partners
        for index in _bits(other.above):
            if index not in partners:
                return False
            above |= partners[index]
        return above == block.above

    def _gap(self, block: OwnBlock, other: Block) -> float:
        """Return how far the values that go in are apart."""
        if block.kind != VALUE and self._weight(block, other) is None:
            return float("inf")
        ours = self.progress.replay.values[block.inputs[0]]
        if block.is_norm and other.norm is None:
            ours = joints.normalised(block, ours)
        theirs = self.graph.arrays.get(other.inputs[0])
        return float("inf") if theirs is None else distance(ours.numpy(), theirs)

    def _weight(self, block: OwnBlock, other: Block) -> NDArray[Any] | None:
        assert block.weight is not None
        array = self.graph.weight(other)
        if array is None:
            return None
        shape = self.progress.state.shape(block.weight)
        if block.kind == other.kind and block.kind not in {CONVOLUTION, PRODUCT}:
            return joints.reshaped(array, shape)
        return weight_for(block, shape, other.kind, array)

    def _solved(self, block: OwnBlock, other: Block) -> Iterator[Option]:
        """Yield what a partner may say: its steps all, or fewer where the rest are another's."""
        weight = None if block.weight is None else self._weight(block, other)
        kinds = [step.kind for step in block.chain]
        given = [step.kind for step in other.chain]
        counts = sorted(range(len(given) + 1), key=lambda n: (given[:n] != kinds, -n))
        for count in counts:
            expected = self.graph.after(other, count)
            chain = self.graph.constants(other.chain[:count])
            if expected is None or chain is None or (not count and block.kind == VALUE):
                continue
            writes = solve(block, self.progress.state.shape, weight, chain)
            if writes is not None:
                yield Option((other,), frozenset({other.index}), writes, expected)

    def _lifetimes(self) -> dict[int, list[Ref]]:
        """Return the values that are needed last at each operator."""
        last: dict[Ref, int] = {}
        for op in self.skeleton.tape.ops:
            for ref in (*op.inputs, *op.outputs):
                last[ref] = op.index
        kept = {*self.skeleton.tape.outputs, *self.skeleton.fixed}
        gone: dict[int, list[Ref]] = {}
        for ref, index in last.items():
            if ref not in kept:
                gone.setdefault(index, []).append(ref)
        return gone

    def _forget(self, position: int) -> None:
        self.progress.replay.forget(self._last_use.get(position, ()))


def _likeness(block: OwnBlock, other: Block) -> tuple[bool, bool, int]:
    """Return what is small where a partner's steps are a block's own.

    Of branches that are summed any order computes the same; this one keeps the graph's own bits.
    """
    own, given = ([step.kind for step in chain] for chain in (block.chain, other.chain))
    return given != own, given[: len(own)] != own, other.node.index


def _bits(number: int) -> Iterator[int]:
    while number:
        low = number & -number
        yield low.bit_length() - 1
        number ^= low
