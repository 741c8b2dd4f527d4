"""How far a pairing has come, and the ways to go on from there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from persistlib.alignment.foreign import Block
    from persistlib.alignment.solving import Write
    from persistlib.alignment.state import State
    from persistlib.alignment.tape import Replay


@dataclass
class Progress:
    """How far the pairing has come.

    Attributes:
        position: the next operator on the tape.
        replay: the values so far.
        state: the tensors so far.
        partners: of each core of the graph, the module's cores that it was paired with, as bits.
        used: blocks of the graph, or parts of them, that have a partner.
        done: operators that have run, by their place on the tape.
    """

    position: int
    replay: Replay
    state: State
    partners: dict[int, int] = field(default_factory=dict)
    used: set[int | tuple[int, int]] = field(default_factory=set)
    done: set[int] = field(default_factory=set)

    def copied(self) -> Progress:
        """Return the same progress, to go another way from here."""
        return Progress(
            self.position,
            self.replay.copied(),
            self.state.copied(),
            dict(self.partners),
            set(self.used),
            set(self.done),
        )


class Option(NamedTuple):
    """One way to go on.

    Attributes:
        blocks: the partners in the graph.
        marks: what of them is used up: an index, or an index and the number of a part.
        writes: what they say.
        expected: what must come out.
    """

    blocks: tuple[Block, ...]
    marks: frozenset[int | tuple[int, int]]
    writes: list[Write]
    expected: NDArray[Any]
