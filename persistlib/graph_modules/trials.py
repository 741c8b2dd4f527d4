"""Inputs that a graph of unknown origin takes, found by trying.

A file says dtypes and shapes of its inputs and not what they mean: which whole numbers are indices
of what, which free extents must agree, what a picture's size is. So likely ones are tried, the
plainest first, until the runtime takes them.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import torch

from persistlib.dtypes import DType
from persistlib.errors import SessionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from persistlib.manifest.schema import TensorSpec
    from persistlib.runtime.session import Session

# Of free axes that are no batch: of tokens, of spectra, of pictures, of sound.
_EXTENTS = (8, 64, 224, 512, 4000, 16)
# Lone whole numbers that select something: rates of sound, a length, a step.
_NUMBERS = (1, 16000, 0, 8)
_MOST = 1 << 23  # elements of all inputs
_TRIALS = 96
# Whole numbers lie below two (truths, indices of little), a byte, and a vocabulary; truths all hold
# (what may be seen), fall either way, or none holds (what is left out).
_NORMAL, _UNIFORM, _SMALL = "normal", "uniform", "small"
_BELOW = {_NORMAL: 2, _UNIFORM: 100, _SMALL: 1000}
KINDS = tuple(_BELOW)


class Drawing(NamedTuple):
    """One way to draw inputs.

    Attributes:
        kind: of the numbers, one of `KINDS`.
        batch: extent of the free axes that are the batch.
        extent: of the other free axes.
        number: what lone whole numbers are.
    """

    kind: str
    batch: int
    extent: int
    number: int


def drawings(specs: Sequence[TensorSpec]) -> Iterator[Drawing]:
    """Yield ways to draw inputs, the plainest first."""
    has_free = any(isinstance(n, str) for spec in specs for n in spec.shape)
    has_number = any(_is_number(spec) for spec in specs)
    ways = itertools.product(
        (2, 1) if has_free else (1,),
        _NUMBERS if has_number else _NUMBERS[:1],
        _EXTENTS if has_free else _EXTENTS[:1],
        KINDS,
    )
    for batch, number, extent, kind in itertools.islice(ways, _TRIALS):
        way = Drawing(kind, batch, extent, number)
        if sum(tensor.numel() for tensor in draw(specs, way, 0, on_meta=True)) <= _MOST:
            yield way


def is_accepted(session: Session, specs: Sequence[TensorSpec], way: Drawing) -> bool:
    """Return whether the runtime takes inputs drawn in one way."""
    try:
        session.run([tensor.numpy() for tensor in draw(specs, way, 0)])
    except SessionError:
        return False
    return True


def draw(
    specs: Sequence[TensorSpec], way: Drawing, seed: int, *, on_meta: bool = False
) -> tuple[torch.Tensor, ...]:
    """Return one tensor for each input; free axes of one name have one extent."""
    generator = torch.Generator().manual_seed(seed)
    extents: dict[str, int] = {}
    drawn: list[torch.Tensor] = []
    for spec in specs:
        shape: list[int] = []
        for axis, extent in enumerate(spec.shape):
            if isinstance(extent, str):
                size = way.batch if _is_batch(spec, axis) else way.extent
                extent = extents.setdefault(extent, size)  # noqa: PLW2901 - a free one gets its size
            shape.append(extent)
        if on_meta:
            drawn.append(torch.empty(shape, device="meta"))
        else:
            drawn.append(_values(spec, shape, way, generator))
    return tuple(drawn)


def _values(
    spec: TensorSpec, shape: list[int], way: Drawing, generator: torch.Generator
) -> torch.Tensor:
    dtype = DType[spec.dtype].torch
    if _is_number(spec):
        return torch.tensor(way.number, dtype=dtype)
    if dtype.is_floating_point:
        drawn = torch.empty(shape, dtype=torch.float64)
        if way.kind == _UNIFORM:
            return drawn.uniform_(generator=generator).to(dtype)
        drawn = drawn.normal_(generator=generator)
        return (drawn if way.kind == _NORMAL else drawn / 10).to(dtype)
    if dtype is torch.bool and way.kind != _UNIFORM:
        return torch.full(shape, way.kind == _NORMAL)
    return torch.randint(0, _BELOW[way.kind], shape, generator=generator).to(dtype)


def _is_number(spec: TensorSpec) -> bool:
    return not spec.shape and DType[spec.dtype].name[0] in "IU"


def _is_batch(spec: TensorSpec, axis: int) -> bool:
    """Return whether a free axis is likely the batch: so called, or the first, or of a state."""
    if "batch" in str(spec.shape[axis]).lower():
        return True
    if any("batch" in str(n).lower() for n in spec.shape):
        return False
    is_lone = sum(isinstance(n, str) for n in spec.shape) == 1
    return axis == 0 or (is_lone and axis == 1 and len(spec.shape) == 3)
