"""A graph as a module: torch computes, the state_dict holds the values.

Law: a module made from a graph computes what the graph computes, whatever the batch size, and a
weight that the graph uses twice is one parameter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from persistlib.errors import Code, error
from persistlib.graph_modules.plan import Step, dtype_of, plan
from persistlib.graph_modules.sizes import require_loops
from persistlib.graph_modules.structure import PARAMETER, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Self

    from persistlib.graph_modules.plan import Plan
    from persistlib.graph_modules.registry import Call

BUILDER = "persistlib.graph_modules:GraphModule"
_PLAN, _KEPT, _PATHS = "_persistlib_plan", "_persistlib_constants", "_persistlib_paths"
# What torch and Python raise where values do not fit; the rest are faults of ours or a machine's.
_FAULTS = (RuntimeError, ValueError, IndexError, TypeError, KeyError, AssertionError)


class GraphModule(nn.Module):
    """An ONNX graph, trainable.

    Float weights are parameters; stored statistics, tables of whole numbers and numbers of the
    program are buffers. Dropout and BatchNorm follow `training`.
    """

    def __init__(self, config: str) -> None:
        """Build the module, its weights zero.

        Args:
            config: the graph as JSON (`persistlib.graph_modules.structure`).

        Raises:
            FormatError: it is not sound, or has an operator that torch has no form of.
        """
        super().__init__()
        self.config = config
        for weight in self._planned().weights:
            owner, leaf = _owner(self, weight.path)
            if leaf in owner._parameters or leaf in owner._buffers:  # noqa: SLF001 - a second value of one weight
                continue
            _require_free(owner, leaf, weight.path)
            values = torch.zeros(weight.shape, dtype=dtype_of(weight.dtype))
            if weight.role == PARAMETER:
                owner.register_parameter(leaf, nn.Parameter(values))
            else:
                owner.register_buffer(leaf, values)

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Return what the graph returns: its output, or a dict of them by name where it has more.

        Args:
            *inputs: one tensor for each input of the graph, in its order.

        Raises:
            SessionError: not as many inputs, or values that do not fit; it names the node.
        """
        made: Plan = vars(self)[_PLAN]
        steps, graph = made.graphs[0]
        if len(inputs) != len(graph.inputs):
            reason = f"{len(inputs)} inputs; the graph takes {', '.join(graph.inputs)}"
            raise error(Code.SESSION_INPUT, "forward", reason, "give one tensor for each")
        values: dict[str, Any] = dict(vars(self)[_KEPT])
        for name, path in vars(self)[_PATHS]:
            found: Any = self
            for part in path:
                found = getattr(found, part)
            values[name] = found
        values.update(zip(graph.inputs, inputs, strict=True))
        run = _Run(made, values, training=self.training)
        run.go(steps)
        outputs = {name: values[name] for name in graph.outputs}
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def _planned(self) -> Any:
        """Make what `forward` runs; return the structure."""
        structure = parse(self.config)
        made = plan(structure)
        vars(self)[_PLAN] = made
        vars(self)[_KEPT] = dict(made.constants)
        vars(self)[_PATHS] = [(w.value, tuple(w.path.split("."))) for w in structure.weights]
        return structure

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Move or cast the constants as the weights are moved or cast."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call] # torch types it not
        made: Plan = vars(self)[_PLAN]
        like = {t.dtype: fn(torch.zeros((), dtype=t.dtype)) for t in made.constants.values()}
        vars(self)[_KEPT] = {
            name: t.to(like[t.dtype].device, like[t.dtype].dtype)
            for name, t in made.constants.items()
        }
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in {_PLAN, _KEPT, _PATHS}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call] # as above
        self._planned()


# Where recipes look it up, whatever file defines it.
GraphModule.__module__ = BUILDER.partition(":")[0]


class _Run:
    """One forward pass."""

    def __init__(self, made: Plan, values: dict[str, Any], *, training: bool) -> None:
        self.training = training
        self._plan, self._values, self._turns = made, values, 0

    def body(self, graph: int, inputs: Sequence[Any]) -> list[Any]:
        """Return the outputs of a graph inside the graph."""
        steps, inner = self._plan.graphs[graph]
        if len(inputs) != len(inner.inputs):
            raise ValueError(f"{len(inputs)} values for {len(inner.inputs)} inputs of a body")
        self._values.update(zip(inner.inputs, inputs, strict=True))
        self.go(steps)
        return [self._values[name] for name in inner.outputs]

    def turn(self, call: Call) -> None:
        """Count one turn of any loop in this pass."""
        self._turns += 1
        require_loops(call, self._turns)

    def go(self, steps: Sequence[Step]) -> None:
        """Run nodes in order."""
        values = self._values
        for step in steps:
            inputs = [values[name] if name else None for name in step.inputs]
            made = self._computed(step, inputs)
            outputs = made if isinstance(made, tuple) else (made,)
            for name, value in zip(step.outputs, outputs, strict=False):
                values[name] = value
            for name in step.dead:
                values.pop(name, None)

    def _computed(self, step: Step, inputs: list[Any]) -> Any:
        row = step.operator
        given = (step.call, self, *inputs) if row.runs else (step.call, *inputs)
        if torch.compiler.is_compiling():
            return row.function(*given)
        try:
            return row.function(*given)
        except _FAULTS as fault:
            shapes = ", ".join(_shown(value) for value in inputs)
            reason = f"{type(fault).__name__}: {(str(fault) or 'no reason').splitlines()[0]}"
            raise error(
                Code.RUN_FAILED,
                step.call.location,
                f"{reason} (inputs {shapes})",
                "see whether the inputs' values fit the model",
            ) from fault


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return type(value).__name__


def _require_free(owner: nn.Module, part: str, path: str) -> None:
    """Raise where a part of a path is an attribute that every module has, or a weight.

    Raises:
        FormatError: it is.
    """
    if hasattr(owner, part):
        reason = f"{path}: a module has an attribute {part!r} already"
        raise error(Code.GRAPH_INVALID, "config", reason, "convert the graph again")


def _owner(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Return the module that holds a weight, made where it is not there, and the weight's name."""
    *parents, leaf = path.split(".")
    for part in parents:
        inner = root._modules.get(part)  # noqa: SLF001 - a part may be named as a method is
        if inner is None:
            inner = nn.Module()
            _require_free(root, part, path)
            root.add_module(part, inner)
        root = inner
    return root, leaf
