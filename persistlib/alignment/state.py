"""The state_dict that is being recovered: which tensors are known, and who said so.

Law: a tensor is written once; a second operator that uses it must say the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from persistlib.alignment.tape import Replay
from persistlib.alignment.values import NEAR

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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
        self._known: dict[str, torch.Tensor] = {}
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
        for item in writes:
            names = self.skeleton.unknown.get(item.ref, frozenset())
            if not names:
                continue  # the builder's own constant; the values decide whether it is right
            if len(names) != 1:
                return f"{sorted(names)} are computed together"
            name = next(iter(names))
            fault = self._through(name, item) if self._is_seen(item.ref) else self._at(name, item)
            if fault:
                return fault
            verdict = EXACT if item.is_exact else EQUIVALENT
            before = self.verdicts.get(name, verdict)
            self.verdicts[name] = verdict if before == EXACT else before
        return None

    def _is_seen(self, ref: Ref) -> bool:
        """Return whether a value is a tensor's own memory, each number once."""
        place = ref
        while place not in self._names:
            op = self.skeleton.makers.get(place)
            if op is None or not op.is_view:
                return False
            place = op.inputs[0]
        strides = zip(self.value(ref).shape, self.value(ref).stride(), strict=True)
        return all(stride or extent <= 1 for extent, stride in strides)

    def _through(self, name: str, item: Write) -> str | None:
        """Write into a tensor through a view of it."""
        fresh = self.tensors[name].detach().clone(memory_format=torch.contiguous_format)
        known = self._mask(name)
        view, seen = self.value(item.ref, {name: fresh}), self.value(item.ref, {name: known})
        given = _tensor(item, view)
        if bool(seen.any()) and _differ(view[seen], given[seen]):
            return f"{name!r} is said to be two different tensors"
        view.copy_(given)
        seen.fill_(True)
        self.tensors[name], self._known[name] = fresh, known
        return None

    def _at(self, name: str, item: Write) -> str | None:
        """Write the numbers of a tensor that a value was picked from."""
        places = self._places(item.ref, name)
        if places is None:
            return f"{name!r} is computed, not only laid out otherwise"
        old, known = self.tensors[name], self._mask(name)
        fresh, flat = old.detach().reshape(-1).clone(), known.reshape(-1)
        given, again = _tensor(item, fresh[places]), flat[places]
        if bool(again.any()) and _differ(fresh[places][again], given[again]):
            return f"{name!r} is said to be two different tensors"
        fresh[places] = given
        if not torch.equal(fresh[places], given):
            return f"one number of {name!r} is said to be two different ones"
        flat[places] = True
        self.tensors[name], self._known[name] = fresh.reshape(old.shape), flat.reshape(old.shape)
        return None

    def _mask(self, name: str) -> torch.Tensor:
        """Return which numbers of a tensor are known, as a tensor of its own."""
        if name in self._known:
            return self._known[name].clone()
        return torch.zeros(self.tensors[name].shape, dtype=torch.bool)

    def _places(self, ref: Ref, name: str) -> torch.Tensor | None:
        """Return which number of a tensor each of a value's is; None where it is more than that."""
        shape = self.tensors[name].shape
        count = self.tensors[name].numel()
        counted = torch.arange(count, dtype=torch.float64).reshape(shape)
        generator = torch.Generator().manual_seed(0)
        drawn = torch.rand(count, dtype=torch.float64, generator=generator)
        try:
            places = self.value(ref, {name: counted}).reshape(-1)
            values = self.value(ref, {name: drawn.reshape(shape)}).reshape(-1)
        except (RuntimeError, IndexError):
            return None
        numbers = places.round().long().clamp(0, max(count - 1, 0))
        return numbers if torch.equal(values, drawn[numbers]) else None

    def unknown(self) -> list[str]:
        """Return the names of tensors of which some number is not known."""
        return [name for name in self.tensors if not self._is_whole(name)]

    def _is_whole(self, name: str) -> bool:
        known = self._known.get(name)
        return known is not None and bool(known.all())


def _tensor(item: Write, like: torch.Tensor) -> torch.Tensor:
    """Return what is to be written in the shape and dtype of what stands there."""
    return torch.from_numpy(np.array(item.array)).to(like.dtype).reshape(like.shape)


def _differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return float((one - other).abs().max()) > NEAR * float(other.abs().max())
