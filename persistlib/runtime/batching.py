"""Many samples through a graph, some at a time.

Law: for a graph that computes each sample by itself, the joined outputs of the pieces are the
outputs of the whole, whatever the size of a piece. Which inputs hold samples is told by the
graph's shapes, never by chance: the first axis of the first input that has one, and every other
first axis of the same name or fixed extent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from persistlib.dtypes import DType
from persistlib.errors import Code, error
from persistlib.runtime.tensors import conform

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from persistlib.manifest.schema import Interface, TensorSpec

# Images at once where nothing says how many: more only costs memory.
BATCH = 32
_ROWS = "samples"
_IMAGE_RANK = 4  # samples, channels, height, width


@dataclass(frozen=True, slots=True)
class Pieces:
    """Inputs that are fed some samples at a time.

    Attributes:
        arrays: all inputs by name.
        sampled: the names of those that hold samples.
        axis: how many samples the graph takes, or the name of that number.
        count: how many samples there are.
        size: how many go in at once.
    """

    arrays: Mapping[str, NDArray[Any]]
    sampled: frozenset[str]
    axis: int | str
    count: int
    size: int

    def parts(self) -> Iterator[tuple[dict[str, NDArray[Any]], int]]:
        """Yield the inputs of each piece, filled up where they must be, and its own samples."""
        for start in range(0, max(self.count, 1), self.size):
            rows = min(self.size, self.count - start)
            piece = {
                name: self._part(array, start, rows) if name in self.sampled else array
                for name, array in self.arrays.items()
            }
            yield piece, rows

    def _part(self, array: NDArray[Any], start: int, rows: int) -> NDArray[Any]:
        part = array[start : start + rows]
        if rows == self.size or isinstance(self.axis, str):
            return part
        return np.concatenate([part, np.repeat(part[-1:], self.size - rows, axis=0)])


def pieces(inputs: object, specs: Sequence[TensorSpec], batch_size: int | None) -> Pieces:
    """Return the inputs cut into pieces.

    Args:
        inputs: as `Session.run`, of any number of samples.
        specs: what the graph takes.
        batch_size: samples at once; None for `BATCH`, or what the graph says.

    Raises:
        SessionError: the graph has no axis for samples, or an input does not fit it.
        UsageError: the size is no count, or not the one that the graph is fixed to.
    """
    axis = next((spec.shape[0] for spec in specs if spec.shape), None)
    if axis is None:
        reason, remedy = "no input has an axis for samples", "use run()"
        raise error(Code.SESSION_INPUT, "inputs", reason, remedy)
    if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
        raise error(Code.USAGE, "batch_size", f"{batch_size!r} is no count", "give 1 or more")
    is_fixed = isinstance(axis, int)
    if is_fixed and batch_size not in (None, axis):
        reason = f"the graph takes {axis} samples at once, and no other number"
        raise error(Code.USAGE, "batch_size", reason, "leave it out")
    sampled = frozenset(spec.name for spec in specs if spec.shape and spec.shape[0] == axis)
    free = [
        spec.model_copy(update={"shape": (_ROWS, *spec.shape[1:])})
        if spec.name in sampled
        else spec
        for spec in specs
    ]
    arrays = {name: np.asarray(_on_host(array)) for name, array in conform(inputs, free).items()}
    count = len(arrays[next(spec.name for spec in specs if spec.name in sampled)])
    size = axis if isinstance(axis, int) else batch_size or BATCH
    if is_fixed and not (size and count):
        reason = f"{count} samples for a graph that takes {size} at once"
        raise error(Code.SESSION_INPUT, "inputs", reason, "export it with a free first axis")
    return Pieces(arrays, sampled, axis, count, size)


def _on_host(array: Any) -> Any:
    return array.cpu() if hasattr(array, "cpu") else array


def cut(
    outputs: Mapping[str, NDArray[Any]], rows: int, pieces: Pieces, specs: Sequence[TensorSpec]
) -> dict[str, NDArray[Any]]:
    """Return a piece's outputs without those of the samples that only filled it up.

    Args:
        outputs: what the graph gave.
        rows: samples of the piece itself.
        pieces: what it is one of.
        specs: what the graph gives.

    Raises:
        SessionError: an output has no row for each sample.
    """
    fed = rows if isinstance(pieces.axis, str) else pieces.size
    for spec in specs:
        # A graph may tell nothing of a shape, and that looks as if it had no axes.
        axis = spec.shape[0] if spec.shape else pieces.axis
        given = outputs[spec.name].shape
        if given[:1] != (fed,) or (isinstance(axis, int) and axis != pieces.axis):
            reason = f"shape {given} for {fed} samples: it has no row for each"
            raise error(Code.SESSION_INPUT, spec.name, reason, "use run() on all samples at once")
    return {name: array[:rows] for name, array in outputs.items()}


def joined(parts: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Return the outputs of all pieces, one after the other; there is at least one piece."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def samples_at_once(specs: Sequence[TensorSpec]) -> int:
    """Return how many samples to prepare at once for a graph."""
    extent = specs[0].shape[0] if specs and specs[0].shape else BATCH
    return max(extent, 1) if isinstance(extent, int) else BATCH


def zeros(specs: Sequence[TensorSpec], interface: Interface | None) -> dict[str, NDArray[Any]]:
    """Return inputs of zeros: one sample, and an image's size where preprocessing says it."""
    from persistlib import preparing

    size: tuple[int, ...] = ()
    if interface is not None and interface.preprocessing is not None:
        size = preparing.sample_shape(preparing.parse(interface.preprocessing))[1:]
    made: dict[str, NDArray[Any]] = {}
    for index, spec in enumerate(specs):
        shape = [extent if isinstance(extent, int) else 1 for extent in spec.shape]
        if index == 0 and size and len(shape) == _IMAGE_RANK:
            free = [isinstance(extent, str) for extent in spec.shape[2:]]
            shape[2:] = [e if f else s for e, f, s in zip(size, free, shape[2:], strict=True)]
        made[spec.name] = np.zeros(shape, DType[spec.dtype].numpy)
    return made
