"""The weighted operators of a module's tape, each with the steps that stand behind it.

The same division as `foreign` makes of a graph, with places on the tape for values.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from persistlib.alignment import steps
from persistlib.alignment.foreign import CONVOLUTION, CORES, JOINING, LOOKUP, PRODUCT, SLOPE, VALUE
from persistlib.alignment.tape import Op, Ref

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from persistlib.alignment.tape import Tape

_STEPS: Mapping[str, str] = {
    "add": steps.ADD,
    "add_": steps.ADD,
    "sub": steps.SUBTRACT,
    "sub_": steps.SUBTRACT,
    "mul": steps.MULTIPLY,
    "mul_": steps.MULTIPLY,
    "div": steps.DIVIDE,
    "div_": steps.DIVIDE,
}
_COMMUTES = frozenset({steps.ADD, steps.MULTIPLY})
_BATCH_NORMS = frozenset(
    {
        *("native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"),
        *("_native_batch_norm_legit_no_training", "miopen_batch_norm", "_batch_norm_no_update"),
    }
)
# Where the weight and the bias stand among the arguments.
NORMS: Mapping[str, tuple[int, int]] = {
    "native_layer_norm": (2, 3),
    "native_group_norm": (1, 2),
    "_fused_rms_norm": (2, -1),
}
# Kind, and where the input and the weight stand among the arguments.
_PLACES: Mapping[str, tuple[str, int, int]] = {
    "mm": (PRODUCT, 0, 1),
    "bmm": (PRODUCT, 0, 1),
    "embedding": (LOOKUP, 1, 0),
    "_prelu_kernel": (SLOPE, 0, 1),
}
_LAYOUT = frozenset(
    {
        *("view", "_unsafe_view", "reshape", "permute", "transpose", "t", "alias", "detach"),
        *("clone", "unsqueeze", "squeeze", "flatten", "contiguous", "as_strided_"),
    }
)
_TRAINING = 5  # the position of BatchNorm's flag
_EPSILON = {"_native_batch_norm_legit_no_training": 6, "_batch_norm_no_update": 6}


@dataclass(frozen=True, slots=True)
class OwnStep:
    """A step of a tape.

    Attributes:
        kind: a word of `steps`.
        numbers: where they stand; None for one that the module lacks.
        op: the operator.
        epsilon: of BatchNorm.
    """

    kind: str
    numbers: tuple[Ref | None, ...]
    op: Op
    epsilon: float = 0.0


class _Core(NamedTuple):
    """What a block begins with: its kind, inputs, weight and first steps."""

    kind: str
    inputs: tuple[Ref, ...]
    weight: Ref | None
    chain: tuple[OwnStep, ...]


@dataclass(frozen=True, slots=True)
class OwnBlock:
    """A weighted operator of a module.

    Attributes:
        index: its place among all.
        kind: a word of `foreign`.
        op: the operator.
        inputs: the values that go in.
        weight: where its weight stands; None where it has none.
        chain: the steps.
        ops: the operators to run, the last one's result is the block's.
        above: the cores that its inputs depend on, a bit each by index.
        is_norm: whether its value is first normalised by the operator itself.
    """

    index: int
    kind: str
    op: Op
    inputs: tuple[Ref, ...]
    weight: Ref | None
    chain: tuple[OwnStep, ...]
    ops: tuple[Op, ...]
    above: int
    is_norm: bool = False

    @property
    def result(self) -> Ref:
        """The value that the block gives."""
        return self.ops[-1].outputs[0]


class Skeleton:
    """A tape divided.

    Attributes:
        tape: the tape.
        blocks: in order, by the operator that they begin with.
        unknown: the tensors of the state that a fixed value depends on, by place; only those that
            an ONNX file may hold otherwise than the builder makes them.
        fixed: values that depend on no input.
        makers: the operator that makes a value.
        shapes: of the tensors that are not known, by name.
        takers: the operators that use a value.
        strange: operators that take weights in a way that has no counterpart.
    """

    def __init__(self, tape: Tape, tensors: Mapping[str, torch.Tensor]) -> None:
        """Divide a tape.

        Args:
            tape: a forward pass.
            tensors: those of its state that a file may hold otherwise than the builder made them.
        """
        self.tape = tape
        learned = frozenset(tensors)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        names = tape.names
        self.unknown: dict[Ref, frozenset[str]] = {
            ref: frozenset({names[ref]} & learned) for ref in names
        }
        self.fixed = {*names, *tape.literals}
        self.makers: dict[Ref, Op] = {}
        self.takers: dict[Ref, list[Op]] = defaultdict(list)
        for op in tape.ops:
            self._know(op)
        self.strange: dict[int, Op] = {}
        self.blocks = {block.op.index: block for block in self._blocks()}

    def _know(self, op: Op) -> None:
        is_fixed = all(ref in self.fixed for ref in op.inputs)
        depends = frozenset[str]().union(*(self.unknown.get(r, frozenset()) for r in op.inputs))
        for ref in op.inputs:
            self.takers[ref].append(op)
        for ref in op.outputs:
            self.makers[ref] = op
            if is_fixed:
                self.fixed.add(ref)
                self.unknown[ref] = depends

    def is_weight(self, value: Any) -> bool:
        """Return whether a value is made of tensors that are not known yet."""
        return isinstance(value, Ref) and value in self.fixed and bool(self.unknown.get(value))

    def _blocks(self) -> Iterator[OwnBlock]:
        above: dict[Ref, int] = {}
        taken: set[int] = set()
        count = 0
        for op in self.tape.ops:
            mine = 0
            for ref in op.inputs:
                mine |= above.get(ref, 0)
            if op.index not in taken and any(self.is_weight(ref) for ref in op.inputs):
                block = self._block(op, count, mine)
                if block is not None:
                    yield block
                    taken |= {other.index for other in block.ops}
                    mine |= 1 << count if block.kind in CORES else 0
                    count += 1
            for ref in op.outputs:
                above[ref] = mine

    def _block(self, op: Op, index: int, above: int) -> OwnBlock | None:
        if all(ref in self.fixed for ref in op.outputs):
            return None
        found = self._core(op)
        if found is None:
            self.strange[op.index] = op
            return None
        kind, inputs, weight, own = found
        rest = [] if kind == JOINING else list(self._chain(op.outputs[0]))
        while rest and rest[-1][1] is None:
            rest.pop()
        chain = (*own, *(step for _, step in rest if step is not None))
        ops = (op, *(other for other, _ in rest))
        is_norm = op.name in NORMS
        return OwnBlock(index, kind, op, inputs, weight, chain, ops, above, is_norm)

    def _core(self, op: Op) -> _Core | None:
        if op.name in {"convolution", "addmm", "addmm_"}:
            return self._with_bias(op)
        places = _PLACES.get(op.name)
        if places is not None:
            kind, x, weight = places
            is_plain = self.is_weight(op.args[weight]) and op.args[x] not in self.fixed
            return _Core(kind, (op.args[x],), op.args[weight], ()) if is_plain else None
        if op.name == "cat":
            return _Core(JOINING, tuple(op.args[0]), None, ())
        if op.name in NORMS:
            return _Core(VALUE, (op.args[0],), None, self._affine(op))
        step = self._step(op)
        return None if step is None else _Core(VALUE, (step[0],), None, (step[1],))

    def _with_bias(self, op: Op) -> _Core | None:
        is_sum = op.name != "convolution"
        x, weight, bias = (op.args[1], op.args[2], op.args[0]) if is_sum else op.args[:3]
        if x in self.fixed or not self.is_weight(weight) or _is_scaled(op):
            return None
        if bias is not None and bias not in self.fixed:
            return None
        own = () if bias is None else (OwnStep(steps.ADD, (bias,), op),)
        return _Core(PRODUCT if is_sum else CONVOLUTION, (x,), weight, own)

    def _affine(self, op: Op) -> tuple[OwnStep, ...]:
        """Return weight and bias of a norm as steps."""
        kinds = zip((steps.MULTIPLY, steps.ADD), NORMS[op.name], strict=True)
        return tuple(
            OwnStep(kind, (op.args[place],), op)
            for kind, place in kinds
            if place >= 0 and op.args[place] is not None
        )

    def _chain(self, value: Ref) -> Iterator[tuple[Op, OwnStep | None]]:
        """Yield the operators behind a value, those that only lay it out otherwise without step."""
        while len(takers := self.takers[value]) == 1 and value not in self.tape.outputs:
            op = takers[0]
            found = self._step(op)
            if op.name in _LAYOUT:
                yield op, None
            elif found is not None and found[0] == value:
                yield op, found[1]
            else:
                return
            value = op.outputs[0]

    def _step(self, op: Op) -> tuple[Ref, OwnStep] | None:
        """Return an operator as a step, and the value that it is applied to."""
        if op.name in _BATCH_NORMS:
            x, *numbers = op.args[:5]
            place = _EPSILON.get(op.name, 7)
            is_running = place == 6 or not op.args[_TRAINING]
            if not is_running or None in numbers[2:] or not isinstance(x, Ref) or x in self.fixed:
                return None
            return x, OwnStep(steps.NORMALISE, tuple(numbers), op, float(op.args[place]))
        kind = _STEPS.get(op.name)
        if kind is None or len(op.args) < 2 or op.kwargs.get("alpha", 1) != 1:
            return None
        x, other = op.args[:2]
        if kind in _COMMUTES and self.is_weight(x):
            x, other = other, x
        if not self.is_weight(other) or not isinstance(x, Ref) or x in self.fixed:
            return None
        return x, OwnStep(kind, (other,), op)


def _is_scaled(op: Op) -> bool:
    return any(op.kwargs.get(name, 1) != 1 for name in ("alpha", "beta"))
