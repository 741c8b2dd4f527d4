"""What a stranger's graph computes on one seeded input, value by value, in ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from persistlib.alignment import foreign
from persistlib.dtypes import DType
from persistlib.errors import Code, error
from persistlib.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import onnx
    from numpy.typing import NDArray

    from persistlib.alignment.foreign import Block
    from persistlib.alignment.network import Network
    from persistlib.alignment.reading import Foreign
    from persistlib.manifest.schema import TensorSpec

BATCH = 2
_SEED = 20
_IDENTIFIERS = 16  # rows of a table that is looked up, where nothing says how many there are
# Largest difference between two runtimes' values over their largest value, one operator after
# equal inputs; what differs by less is told apart by its place in the graph.
NEAR = 5e-4


class Values(NamedTuple):
    """Inputs and what comes of them.

    Attributes:
        inputs: in the graph's order.
        arrays: constants and values by name.
    """

    inputs: tuple[NDArray[Any], ...]
    arrays: dict[str, NDArray[Any]]


def draw(
    specs: Sequence[TensorSpec], extents: Mapping[int, int], rows: int = _IDENTIFIERS
) -> tuple[NDArray[Any], ...]:
    """Return an array for each input: normal floats, whole numbers below `rows`.

    Args:
        specs: what the graph takes.
        extents: what free axes behind the first are taken for, by axis.
        rows: how many rows the smallest table has that is looked up.

    Raises:
        UsageError: a free axis has no extent.
    """
    generator = np.random.default_rng(_SEED)
    drawn: list[NDArray[Any]] = []
    for spec in specs:
        shape: list[int] = []
        for axis, extent in enumerate(spec.shape):
            if isinstance(extent, int):
                shape.append(extent)
            elif axis == 0:
                shape.append(BATCH)
            elif axis in extents:
                shape.append(extents[axis])
            else:
                reason = f"its axis {axis} is free, and nothing says how long the module takes it"
                raise error(Code.USAGE, spec.name, reason, "export it with a fixed extent there")
        dtype = DType[spec.dtype]
        if dtype.name[0] in "FB" and dtype is not DType.BOOL:
            drawn.append(generator.standard_normal(shape).astype(dtype.numpy))
        else:
            drawn.append(generator.integers(0, max(rows, 2), shape).astype(dtype.numpy))
    return tuple(drawn)


def wanted(network: Network, blocks: Iterable[Block]) -> list[str]:
    """Return the names of all values that pairing looks at."""
    names: dict[str, None] = {}
    for block in blocks:
        found = [*block.inputs, block.weight, block.core]
        for step in block.chain:
            found += [*step.constants, step.after]
        if block.kind == foreign.JOINING:
            found.append(block.node.outputs[0])
        names.update(dict.fromkeys(name for name in found if name))
    return [name for name in names if name in network.dtypes]


def run(file: Foreign, names: Sequence[str], network: Network, inputs: Any) -> Values:
    """Return the named values of a graph for some inputs.

    Raises:
        SessionError: the runtime refuses the graph, or fails on these inputs.
    """
    import onnx

    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    given = {spec.name for spec in file.facts.inputs}
    there = {value.name for value in proto.graph.output}
    for name in names:
        if name not in there | given:
            proto.graph.output.append(_value(name, network.dtypes[name]))
    session = open_session(proto.SerializeToString(), external=file.outside)
    arrays = session.run(list(inputs))
    arrays |= {spec.name: array for spec, array in zip(file.facts.inputs, inputs, strict=True)}
    return Values(tuple(inputs), arrays)


def _value(name: str, dtype: int) -> onnx.ValueInfoProto:
    import onnx

    value = onnx.ValueInfoProto(name=name)
    value.type.tensor_type.elem_type = dtype
    return value


def distance(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """Return the largest difference over the largest value; of other layouts, after sorting.

    It is infinite where the two cannot be the same numbers.
    """
    if ours.size != theirs.size or (ours.dtype.kind == "f") != (theirs.dtype.kind == "f"):
        return float("inf")
    if not ours.size:
        return 0.0
    a, b = ours.astype(np.float64, copy=False), theirs.astype(np.float64, copy=False)
    if ours.shape != theirs.shape:
        a, b = _flat(a, b)
    off, scale = float(np.abs(a - b).max()), float(np.abs(b).max())
    if not np.isfinite(off):
        return float("inf")
    return off / scale if scale else (0.0 if off == 0 else float("inf"))


def _flat(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return two arrays of different shapes as rows in order, or where that differs, sorted."""
    one, other = a.reshape(-1), b.reshape(-1)
    if np.allclose(one, other, rtol=0, atol=NEAR * float(np.abs(other).max())):
        return one, other
    return np.sort(one), np.sort(other)
