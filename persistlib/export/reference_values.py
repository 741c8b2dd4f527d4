"""The values inside a module, by the names that its graph gives them.

The exporter names a value of the graph as torch's own program names the node that it comes from,
so running that program node by node gives, for the same inputs, what each such value should be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from persistlib.dtypes import of_torch
from persistlib.export.calling import device_of, evaluation
from persistlib.export.capture import PREFIX
from persistlib.export.state import array_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray
    from torch.export import ExportedProgram

_WRAPPER = PREFIX.rstrip(".")


class ModuleValues:
    """What a module computes at each node of the program that it was exported as.

    Attributes:
        modules: by the name of a value, the path of the submodule that it comes from.
        outputs: the names of the values that are the module's outputs, in order.
    """

    def __init__(
        self, model: torch.nn.Module, program: ExportedProgram, inputs: Sequence[torch.Tensor]
    ) -> None:
        """See a module through its program.

        Args:
            model: whose values are meant; left as it is.
            program: what it was exported as.
            inputs: of the module.
        """
        self._model, self._program, self._inputs = model, program, inputs
        self.modules = {node.name: _path(node.meta) for node in program.graph.nodes}
        signature: Any = program.graph_signature
        self.outputs: tuple[str, ...] = tuple(map(str, signature.user_outputs))

    def known(self, name: str) -> bool:
        """Return whether the program has a value of this name."""
        return name in self.modules or name.rpartition("__")[0] in self.modules

    def module(self, name: str) -> str:
        """Return the path of the submodule that a value comes from; empty where none is known."""
        return self.modules.get(name) or self.modules.get(name.rpartition("__")[0], "")

    def __call__(self, names: Collection[str]) -> dict[str, NDArray[Any]]:
        """Return those of the named values that are tensors of a dtype that a graph can have.

        Raises:
            Exception: whatever the module raises.
        """
        kept: dict[str, NDArray[Any]] = {}
        with evaluation(self._model):
            _Keeping(self._program, frozenset(names), kept).run(*self._arguments())
        return kept

    def _arguments(self) -> list[Any]:
        """Return what the program takes: the state, taken from the module, then the inputs."""
        program = self._program
        state = {f"{PREFIX}{n}": t for n, t in _tensors(self._model).items()}
        device = device_of(self._model)
        inputs = iter(tensor.to(device) for tensor in self._inputs)
        given: list[Any] = []
        for spec in program.graph_signature.input_specs:
            if spec.kind is torch.export.graph_signature.InputKind.USER_INPUT:
                given.append(next(inputs))
                continue
            name = str(spec.target)
            held = state.get(name, program.state_dict.get(name, program.constants.get(name)))
            # What the program writes into is written into a copy.
            given.append(held.clone() if isinstance(held, torch.Tensor) else held)
        return given


class _Keeping(torch.fx.Interpreter):
    """Runs a program and keeps the values that were asked for."""

    def __init__(
        self, program: ExportedProgram, names: frozenset[str], kept: dict[str, NDArray[Any]]
    ) -> None:
        super().__init__(program.graph_module)
        self._names, self._kept = names, kept

    def run_node(self, n: torch.fx.Node) -> Any:
        """Return the node's value."""
        value = super().run_node(n)
        parts = value if isinstance(value, (tuple, list)) else ()
        named = {n.name: value} | {f"{n.name}__{i}": part for i, part in enumerate(parts)}
        for name in self._names & named.keys():
            tensor = named[name]
            if isinstance(tensor, torch.Tensor) and of_torch(str(tensor.dtype)) is not None:
                real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
                self._kept[name] = array_of(real, name).copy()
        return value


def _tensors(model: torch.nn.Module) -> Mapping[str, torch.Tensor]:
    named = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    return {name: tensor.detach() for name, tensor in named}


def _path(meta: Mapping[str, Any]) -> str:
    """Return the path of the innermost submodule that a node of the program comes from."""
    stack: Mapping[str, tuple[str, Any]] = meta.get("nn_module_stack") or {}
    innermost = [path for path, _ in stack.values()][-1:]
    return "".join(innermost).removeprefix(_WRAPPER).lstrip(".")
