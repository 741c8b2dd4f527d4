"""A model cut in two between steps of its own `forward`, where no one part holds all that trains.

What the steps are, and where they may be cut, `steps` says. A model that cannot be traced is not
cut.

Laws: a tail that is given what its head gives is the model, bit for bit, in training and in
evaluation. It is tried on a batch, and there is no cut where it does not hold. Of modules that are
looked into the steps are those of the moment, so that an attribute of theirs that changes ends the
training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from persistlib.architecture.behaviour import untouched
from persistlib.architecture.edits import INTERNALS
from persistlib.errors import Code
from persistlib.training import generators, nests, randomness
from persistlib.training.batches import call
from persistlib.training.cuts import Cut
from persistlib.training.fitting import MisfitError
from persistlib.training.memory import is_out_of_memory
from persistlib.training.steps import Tracer, arguments, last_place

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch.fx import GraphModule

    from persistlib.training.batch import Batch


class Tail(torch.nn.Module):
    """What a model does from a step on: in each mode the steps that it takes in that mode.

    Args:
        model: whose modules, and whose mode, are the tail's.
        judged: the steps in evaluation.
        trained: the steps in training.
        looked_into: modules whose own code the steps stand for.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        judged: GraphModule,
        trained: GraphModule,
        looked_into: dict[str, torch.nn.Module],
    ) -> None:
        super().__init__()
        # In a tuple they are no parts of this one.
        self._whole = (model, judged, trained)
        self._looked_into = (looked_into, _attributes(looked_into))

    def train(self, mode: bool = True) -> Tail:
        """Put the model in a mode."""
        self._whole[0].train(mode)
        return self

    def forward(self, features: torch.Tensor) -> Any:
        """Return what the model makes of features.

        Raises:
            MisfitError: an attribute is no longer what it was when the steps were found.
        """
        modules, known = self._looked_into
        now = _attributes(modules)
        if now != known:
            changed = [name for name in {**known, **now} if known.get(name) != now.get(name)]
            reason = f"{changed[0]} of the model changed while what is frozen was run once"
            raise MisfitError(Code.USAGE, reason, "train with cache=False")
        model, judged, trained = self._whole
        return trained(features) if model.training else judged(features)


def tail_of(model: torch.nn.Module, batch: Batch) -> Cut | None:
    """Return the latest cut before all that trains; None where there is none.

    Args:
        model: left as it was, and so are the random states.
        batch: to try it on.

    Raises:
        RuntimeError: memory ran out.
    """
    device = nests.tensors(batch.targets)[0].device
    state = randomness.capture(device)
    try:
        with untouched(model), torch.no_grad():
            return _found(model, batch, lambda: randomness.restore(state, device))
    except Exception as fault:
        # The model's own code is run with stand-ins for tensors, which it need not take.
        if is_out_of_memory(fault):
            raise
        return None
    finally:
        randomness.restore(state, device)


def _found(model: torch.nn.Module, batch: Batch, begin_anew: Callable[[], None]) -> Cut | None:
    tracer = Tracer(model)
    if any(map(generators.found_in, tracer.mixed.values())):
        return None  # what they draw may decide on the steps
    before = _attributes(tracer.mixed)
    trained = last_place(model, tracer, batch, lambda _: True, mode=True)
    if trained is None:
        return None
    judged = last_place(model, tracer, batch, trained.value.equal, mode=False)
    if judged is None or not judged.has_learnt:
        return None
    tail = Tail(model, judged.rest(), trained.rest(), tracer.mixed)
    for mode in (True, False):
        model.train(mode)
        begin_anew()
        wanted = _Outcome.of(model, lambda: call(model, batch.inputs))
        begin_anew()
        if not _Outcome.of(model, lambda: tail(trained.value.clone())).is_like(wanted):
            return None
    if _attributes(tracer.mixed) != before:
        return None
    begin = judged.beginning()

    def head(inputs: Any) -> torch.Tensor:
        found: torch.Tensor = begin(*arguments(model, inputs)[0])
        return found.clone()  # the tail may work in place

    parts = (judged.called() | trained.called()) - judged.called(begun=True)
    return Cut(trained.following, tail, tuple(sorted(parts)), head, trained.value)


class _Outcome(NamedTuple):
    """What a model gives, and in training how that depends on what trains.

    Steps do not say where the model's code is without gradients.
    """

    outputs: Any
    slopes: tuple[torch.Tensor | None, ...]

    @classmethod
    def of(cls, model: torch.nn.Module, run: Callable[[], Any]) -> _Outcome:
        with torch.set_grad_enabled(model.training):
            outputs = run()
        sloping = [item for item in nests.tensors(outputs) if item.requires_grad]
        if not sloping:
            return cls(outputs, ())
        draw = torch.Generator().manual_seed(0)
        ways = [torch.randn(item.shape, generator=draw).to(item) for item in sloping]
        trained = [item for item in model.parameters() if item.requires_grad]
        return cls(outputs, torch.autograd.grad(sloping, trained, ways, allow_unused=True))

    def is_like(self, other: _Outcome) -> bool:
        """Return whether outputs have the same bits, and slopes are the same but for rounding."""
        if len(self.slopes) != len(other.slopes) or not nests.equal(self.outputs, other.outputs):
            return False
        return all(
            one is wanted is None
            if one is None or wanted is None
            else torch.allclose(one, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
            for one, wanted in zip(self.slopes, other.slopes, strict=True)
        )


def _attributes(modules: Mapping[str, torch.nn.Module]) -> dict[str, Any]:
    """Return the attributes of modules' own, by dotted name, so that they can be compared later."""
    return {
        f"{path}.{name}".lstrip("."): _outline(value)
        for path, module in modules.items()
        for name, value in vars(module).items()
        if name not in INTERNALS
    }


class _Same(NamedTuple):
    """An object that equals itself alone."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _outline(value: Any) -> Any:
    """Return plain values as such, of what holds values each, and all else as itself alone."""
    if isinstance(value, (bool, int, float, complex, str, bytes, type(None))):
        return type(value), value
    if isinstance(value, dict):
        return dict, [(_outline(key), _outline(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [*map(_outline, value)]
    return _Same(value)
