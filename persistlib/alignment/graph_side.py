"""A stranger's graph ready to be paired: its blocks, and every value they name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from persistlib.alignment.foreign import PRODUCT
from persistlib.alignment.steps import Constants

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from persistlib.alignment.foreign import Block, Step
    from persistlib.alignment.network import Network

_MATRIX = 2


class GraphSide:
    """Blocks with numbers.

    Attributes:
        network: the graph.
        blocks: its weighted operators.
        arrays: constants, and values for one seeded input, by name.
    """

    def __init__(
        self, network: Network, blocks: Sequence[Block], arrays: Mapping[str, NDArray[Any]]
    ) -> None:
        self.network = network
        self.blocks = tuple(blocks)
        self.arrays = arrays

    def weight(self, block: Block) -> NDArray[Any] | None:
        """Return a block's weight, of a product as a matrix with inputs first."""
        array = self.arrays.get(block.weight)
        if array is None or block.kind != PRODUCT:
            return array
        attributes = block.node.attributes
        if array.ndim != _MATRIX or attributes.get("transA"):
            return None
        if attributes.get("transB"):
            array = array.T
        alpha = float(attributes.get("alpha", 1.0))
        return array if alpha == 1 else array * array.dtype.type(alpha)

    def constants(self, chain: Sequence[Step]) -> list[Constants] | None:
        """Return steps with their numbers; None where one is not known."""
        found: list[Constants] = []
        for step in chain:
            arrays = [self.arrays.get(name) for name in step.constants]
            known = [array for array in arrays if array is not None]
            if len(known) != len(arrays):
                return None
            if step.scale != 1:
                known = [array * array.dtype.type(step.scale) for array in known]
            found.append(Constants(step.kind, tuple(known), step.epsilon))
        return found

    def matrix(self, block: Block) -> NDArray[Any]:
        """Return the matrix of a product, which is known to have one."""
        array = self.weight(block)
        assert array is not None
        return array

    def outputs(self, block: Block) -> int:
        """Return how many numbers a product gives."""
        return int(self.matrix(block).shape[1])

    def after(self, block: Block, count: int) -> NDArray[Any] | None:
        """Return what stands after some of a block's steps; None where no value is that."""
        name = block.core if not count else ""
        if count and count <= len(block.chain):
            name = block.chain[count - 1].after
        return self.arrays.get(name)
