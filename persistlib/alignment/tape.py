"""What a module runs, as a list of operators that can be run again step by step.

Law: `Replay` of a tape over the tensors that it was recorded with gives the bits of the forward
pass. Operators that change a tensor in place do so again, so views of it change as they did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from persistlib.architecture.isolation import isolated

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import nn


class Ref(NamedTuple):
    """The place of a value on the tape."""

    number: int


@dataclass(frozen=True, slots=True)
class Op:
    """One operator.

    Attributes:
        index: its place on the tape.
        function: torch's overload.
        args: positional arguments, tensors as `Ref`.
        kwargs: the others, likewise.
        inputs: the tensors among both.
        outputs: the tensors that it gives; one that it changes in place counts as another.
    """

    index: int
    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]

    @property
    def is_view(self) -> bool:
        """Whether what it gives lies in the memory of what it takes."""
        returns = self.function._schema.returns  # noqa: SLF001 - has no public form
        return any(item.alias_info and not item.alias_info.is_write for item in returns)

    @property
    def changes(self) -> Ref | None:
        """The tensor that it changes in place."""
        first = self.args[0] if self.args else None
        arguments = self.function._schema.arguments  # noqa: SLF001 - as above
        is_write = bool(arguments) and bool(arguments[0].alias_info)
        is_write = is_write and arguments[0].alias_info.is_write
        return first if is_write and isinstance(first, Ref) else None

    @property
    def name(self) -> str:
        """The operator's name without its namespace and overload."""
        found: str = self.function.overloadpacket.__name__
        return found


@dataclass(frozen=True)
class Tape:
    """A recorded forward pass.

    Attributes:
        ops: in order.
        inputs: the forward arguments.
        state: tensors of the module by their first name.
        literals: tensors that the module made or kept elsewhere.
        outputs: the tensors that the module returned.
    """

    ops: tuple[Op, ...]
    inputs: tuple[Ref, ...]
    state: Mapping[str, Ref]
    literals: Mapping[Ref, torch.Tensor]
    outputs: tuple[Ref, ...]

    @property
    def shared(self) -> frozenset[Ref]:
        """Values that lie in the memory of others, or others in theirs."""
        views = [op for op in self.ops if op.is_view]
        return frozenset(ref for op in views for ref in (*op.inputs[:1], *op.outputs))

    @property
    def names(self) -> dict[Ref, str]:
        """The name of each tensor of the state, by place."""
        return {ref: name for name, ref in self.state.items()}


def record(module: nn.Module, inputs: Sequence[torch.Tensor]) -> Tape:
    """Return what a module in evaluation runs on inputs of these shapes.

    Raises:
        Exception: whatever the module raises.
    """
    recorder = _Recorder()
    named = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    state: dict[str, Ref] = {}
    for name, tensor in named:
        ref = recorder.know(tensor)
        if ref not in state.values():
            state[name] = ref
    given = [tensor.clone() for tensor in inputs]
    refs = tuple(recorder.know(tensor) for tensor in given)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it hides the weights in one operator
    try:
        with isolated(), torch.no_grad(), recorder:
            result = module(*given)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    leaves = [leaf for leaf in _pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    outputs = tuple(recorder.know(leaf) for leaf in leaves)
    return Tape(tuple(recorder.ops), refs, state, recorder.literals, outputs)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Notes every operator that runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.ops: list[Op] = []
        self.literals: dict[Ref, torch.Tensor] = {}
        self._refs: dict[int, Ref] = {}
        self._count = 0
        # What has a place is kept, or its id would be another's soon.
        self._kept: list[torch.Tensor] = []

    def know(self, tensor: torch.Tensor, *, again: bool = False) -> Ref:
        """Return a tensor's place, a new one where it has none or has changed."""
        if again or id(tensor) not in self._refs:
            self._refs[id(tensor)] = Ref(self._count)
            self._kept.append(tensor)
            self._count += 1
        return self._refs[id(tensor)]

    def _seen(self, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if id(leaf) not in self._refs:
            self.literals[self.know(leaf)] = leaf.clone()
        return self._refs[id(leaf)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        said = _pytree.tree_map(self._seen, (tuple(args), dict(kwargs or {})))
        result = func(*args, **(kwargs or {}))
        inputs = tuple(leaf for leaf in _leaves(said) if isinstance(leaf, Ref))
        outputs = tuple(
            self.know(leaf, again=True)
            for leaf in _pytree.tree_leaves(result)
            if isinstance(leaf, torch.Tensor)
        )
        self.ops.append(Op(len(self.ops), func, said[0], said[1], inputs, outputs))
        return result


def _leaves(value: Any) -> list[Any]:
    """Return what stands in nested lists, tuples and mappings; a `Ref` is one thing."""
    if isinstance(value, Ref):
        return [value]
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _leaves(item)]
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    return [value]


class Replay:
    """A tape being run again.

    What an operator changes in place is copied first where nothing else lies in its memory, so
    that copies of a replay may share values.

    Attributes:
        values: what is known so far, by place.
        shared: values that lie in the memory of others.
    """

    def __init__(self, known: Mapping[Ref, torch.Tensor], shared: frozenset[Ref]) -> None:
        self.values: dict[Ref, torch.Tensor] = dict(known)
        self.shared = shared

    def run(self, op: Op) -> torch.Tensor:
        """Run one operator and return its first result."""
        changed = op.changes
        if changed is not None and changed not in self.shared:
            self.values[changed] = self.values[changed].clone()
        args, kwargs = self._filled(op.args), self._filled(dict(op.kwargs))
        with torch.no_grad():
            result = op.function(*args, **kwargs)
        leaves = [x for x in _pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.values.update(zip(op.outputs, leaves, strict=True))
        return leaves[0]

    def _filled(self, value: Any) -> Any:
        if isinstance(value, Ref):
            return self.values[value]
        if isinstance(value, (list, tuple)):
            return type(value)(self._filled(item) for item in value)
        if isinstance(value, dict):
            return {key: self._filled(item) for key, item in value.items()}
        return value

    def forget(self, refs: Iterable[Ref]) -> None:
        """Drop values that nothing needs any more."""
        for ref in refs:
            self.values.pop(ref, None)

    def copied(self) -> Replay:
        """Return the same state."""
        return Replay(self.values, self.shared)
