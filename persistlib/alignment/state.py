"""The state_dict that is being recovered: which tensors are known, and who said so.

Law: a tensor is written once; a second operator that uses it must say the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from persistlib.alignment.tape import Replay
from persistlib.alignment.values import NEAR

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from persistlib.alignment.own import Skeleton
    from persistlib.alignment.solving import Write
    from persistlib.alignment.tape import Ref

EXACT, EQUIVALENT = "exact", "equivalent"


class State:
    """Tensors by name, each as far as it is known.

    Attributes:
        tensors: values by name, those that are not known as the builder made them.
        verdicts: "exact" or "equivalent" by name, of those that are known.
    """

    def __init__(self, skeleton: Skeleton, tensors: Mapping[str, torch.Tensor]) -> None:
        self.skeleton = skeleton
        self.tensors = dict(tensors)
        self.verdicts: dict[str, str] = {}
        self._known: dict[str, NDArray[Any]] = {}
        self._names = skeleton.tape.names

    def copied(self) -> State:
        """Return the same state; tensors are never changed in place, so they are shared."""
        other = State(self.skeleton, self.tensors)
        other.verdicts, other._known = dict(self.verdicts), dict(self._known)
        return other

    def value(self, ref: Ref, replaced: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Return a value that depends on no input, computed now.

        Args:
            ref: its place on the tape.
            replaced: tensors to compute with instead of the state's, by name.
        """
        given = {**self.tensors, **(replaced or {})}
        memo: dict[Ref, torch.Tensor] = {}

        def compute(place: Ref) -> torch.Tensor:
            if place in memo:
                return memo[place]
            if place in self._names:
                return given[self._names[place]]
            if place in self.skeleton.tape.literals:
                return self.skeleton.tape.literals[place]
            op = self.skeleton.makers[place]
            replay = Replay({source: compute(source) for source in op.inputs}, frozenset())
            replay.run(op)
            memo.update({out: replay.values[out] for out in op.outputs})
            return memo[place]

        return compute(ref)

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Return the shape of a value that depends on no input."""
        return tuple(self.value(ref).shape)

    def write(self, writes: Iterable[Write]) -> str | None:
        """Take in what an operator says; return why that cannot be, None where it can."""
        for ref, array, is_exact in writes:
            if ref in self._names and self.skeleton.unknown.get(ref):
                name, places = self._names[ref], None
            elif not self.skeleton.unknown.get(ref):
                continue  # the builder's own constant; the values decide whether it is right
            else:
                names = self.skeleton.unknown[ref]
                if len(names) != 1:
                    return f"{sorted(names)} are computed together"
                name = next(iter(names))
                found = self._places(ref, name)
                if found is None:
                    return f"{name!r} is computed, not only laid out otherwise"
                places = found
            if fault := self._put(
                name, places, array.reshape(-1), EXACT if is_exact else EQUIVALENT
            ):
                return fault
        return None

    def _places(self, ref: Ref, name: str) -> NDArray[Any] | None:
        """Return which number of a tensor each of a value's is; None where it is more than that."""
        tensor = self.tensors[name]
        counted = torch.arange(tensor.numel(), dtype=torch.float64).reshape(tensor.shape)
        drawn = torch.rand(tensor.shape, dtype=torch.float64)
        try:
            places = self.value(ref, {name: counted}).reshape(-1)
            values = self.value(ref, {name: drawn}).reshape(-1)
        except (RuntimeError, IndexError):
            return None
        numbers = places.round().long().clamp(0, max(tensor.numel() - 1, 0))
        if not torch.equal(values, drawn.reshape(-1)[numbers]):
            return None
        return numbers.numpy()

    def _put(
        self, name: str, places: NDArray[Any] | None, array: NDArray[Any], verdict: str
    ) -> str | None:
        """Write some numbers of a tensor, or all; return why that cannot be."""
        old = self.tensors[name]
        values = old.detach().reshape(-1).clone()
        given = torch.from_numpy(np.array(array)).to(values.dtype)
        index = slice(None) if places is None else torch.from_numpy(places)
        known = self._known.get(name)
        known = np.zeros(values.numel(), bool) if known is None else known.copy()
        again = known[index]
        if again.any():
            off = (values[index] - given).abs().numpy()[again]
            if float(off.max()) > NEAR * float(given.abs().max()):
                return f"{name!r} is said to be two different tensors"
        values[index] = given
        if not torch.equal(values[index], given):
            return f"one number of {name!r} is said to be two different ones"
        known[index] = True
        self.tensors[name], self._known[name] = values.reshape(old.shape), known
        before = self.verdicts.get(name, verdict)
        self.verdicts[name] = verdict if before == EXACT else before
        return None

    def unknown(self) -> list[str]:
        """Return the names of tensors of which some number is not known."""
        return [name for name in self.tensors if not self._is_whole(name)]

    def _is_whole(self, name: str) -> bool:
        known = self._known.get(name)
        return known is not None and bool(known.all())
