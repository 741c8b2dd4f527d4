"""The steps of a model's `forward`, as torch.fx finds them, and where they may be cut in two.

A module that trains throughout, or not at all, is one step; what has parts of both kinds is looked
into. A cut lies after a step of which nothing later needs anything earlier, before the first step
that trains, draws a random number or may move statistics.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import fx

from persistlib.architecture.freezing import is_kept_in_eval
from persistlib.training import nests, randomness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from persistlib.training.batch import Batch

_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Tracer(fx.Tracer):
    """Looks into modules of which some parts train and others do not."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.mixed = {path: module for path, module in model.named_modules() if _is_mixed(module)}
        self._known = {id(module) for module in self.mixed.values()}

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is one step."""
        return id(m) not in self._known or super().is_leaf_module(m, module_qualified_name)


def _is_mixed(module: torch.nn.Module) -> bool:
    """Return whether a module has tensors that training may change, and others."""
    own = [part for part in module.modules() if _owns(part)]
    return len({_moves(part) for part in own}) > 1


def _owns(module: torch.nn.Module) -> bool:
    return bool([*module.parameters(recurse=False), *module.buffers(recurse=False)])


def _moves(module: torch.nn.Module) -> bool:
    """Return whether training may change a tensor of a module's own."""
    if any(item.requires_grad for item in module.parameters(recurse=False)):
        return True
    has_buffers = next(module.buffers(recurse=False), None) is not None
    return has_buffers and not is_kept_in_eval(module)


class Place(NamedTuple):
    """Where the steps of a mode are cut.

    Attributes:
        model: whose steps they are.
        steps: all of them.
        after: how many stand before the cut.
        value: what the last of these gave.
        following: the path of the step that ended the search.
    """

    model: torch.nn.Module
    steps: tuple[fx.Node, ...]
    after: int
    value: torch.Tensor
    following: str

    @property
    def has_learnt(self) -> bool:
        """Whether a module with parameters stands before the cut."""
        return any(
            next(self.model.get_submodule(path).parameters(), None) is not None
            for path in self.called(begun=True)
        )

    def called(self, *, begun: bool = False) -> set[str]:
        """Return the paths of modules that are run after the cut, or before it."""
        steps = self.steps[: self.after] if begun else self.steps[self.after :]
        return {str(step.target) for step in steps if step.op == "call_module"}

    def beginning(self) -> fx.GraphModule:
        """Return the steps before the cut."""
        graph, known = fx.Graph(), dict[fx.Node, fx.Node]()
        for step in self.steps[: self.after]:
            known[step] = graph.node_copy(step, known.__getitem__)
        graph.output(known[self.steps[self.after - 1]])
        return fx.GraphModule(self.model, graph)

    def rest(self) -> fx.GraphModule:
        """Return the steps after the cut, which begin with its value."""
        graph, known = fx.Graph(), dict[fx.Node, fx.Node]()
        known[self.steps[self.after - 1]] = graph.placeholder("features")
        for number, step in enumerate(self.steps):
            if number >= self.after or step.op == "get_attr":
                known[step] = graph.node_copy(step, known.__getitem__)
        return fx.GraphModule(self.model, graph)


def last_place(
    model: torch.nn.Module,
    tracer: Tracer,
    batch: Batch,
    fits: Callable[[torch.Tensor], bool],
    *,
    mode: bool,
) -> Place | None:
    """Return the last place for a cut, in a mode, whose value has a row a sample and fits.

    There is none where a random number decides on the steps themselves.
    """
    model.train(mode)
    values, absent = arguments(model, batch.inputs)
    device = nests.tensors(batch.targets)[0].device
    before = randomness.capture(device).tensors
    steps = tuple(tracer.trace(model, absent).nodes)
    if not nests.equal(randomness.capture(device).tensors, before):
        return None
    run = fx.Interpreter(model, garbage_collect_values=False, graph=steps[0].graph)
    run.args_iter = iter(values)
    count, uses = nests.count(batch.targets), _last_uses(steps)
    last: tuple[int, torch.Tensor] | None = None
    for number, (step, is_place) in enumerate(zip(steps, _places(steps, uses), strict=True), 1):
        if _is_moving(model, step) or not _runs_still(run, step, device):
            return None if last is None else Place(model, steps, *last, following=_path(step))
        value = run.env[step]
        has_rows = isinstance(value, torch.Tensor) and value.ndim and len(value) == count
        if is_place and has_rows and fits(value):
            last = number, value.clone()
        run.env = {known: run.env[known] for known in run.env if uses[known] >= number}
    return None


def _last_uses(steps: Sequence[fx.Node]) -> dict[fx.Node, int]:
    """Return the place of the last step that needs each step; -1 where none does."""
    places = {step: place for place, step in enumerate(steps)}
    return {step: max((places[user] for user in step.users), default=-1) for step in steps}


def _places(steps: Sequence[fx.Node], uses: Mapping[fx.Node, int]) -> Iterator[bool]:
    """Yield of each step whether nothing later needs anything before it.

    A tensor of the model's own is there again later.
    """
    furthest = -1
    for place, step in enumerate(steps):
        yield furthest <= place < uses[step]
        if step.op != "get_attr":
            furthest = max(furthest, uses[step])


def _is_moving(model: torch.nn.Module, step: fx.Node) -> bool:
    """Return whether a step reads what training may change, or is the last."""
    if step.op == "call_module":
        return any(map(_moves, model.get_submodule(str(step.target)).modules()))
    if step.op == "get_attr":
        return _moves(model.get_submodule(str(step.target).rpartition(".")[0]))
    return step.op == "output"


def _runs_still(run: fx.Interpreter, step: fx.Node, device: torch.device) -> bool:
    """Run a step; return whether it drew no random number."""
    before = randomness.capture(device).tensors
    run.env[step] = run.run_node(step)
    return nests.equal(randomness.capture(device).tensors, before)


def _path(step: fx.Node) -> str:
    return str(step.target) if step.op in {"call_module", "get_attr"} else step.name


def arguments(model: torch.nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return all that `forward` is called with, in its order, and what of it was not given.

    Raises:
        TypeError: it does not take these inputs.
        ValueError: it takes any number of arguments.
    """
    signature = inspect.signature(model.forward)
    several = inputs if isinstance(inputs, (list, tuple)) else (inputs,)
    is_named = isinstance(inputs, Mapping)
    bound = signature.bind(**inputs) if is_named else signature.bind(*several)
    given = set(bound.arguments)
    bound.apply_defaults()
    if any(item.kind in _ANY for item in signature.parameters.values()):
        raise ValueError("any number of arguments")
    absent = {name: value for name, value in bound.arguments.items() if name not in given}
    return tuple(bound.arguments.values()), absent
