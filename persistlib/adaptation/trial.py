"""A model run without values, to see what a change of it does to the shapes of its outputs.

Law: a trial leaves the model, its tensors and the caller's random states as they were. The model's
structure is copied and its tensors are not: the copy lies on the meta device, where torch computes
shapes alone. A model that needs values to run is copied whole.
"""

from __future__ import annotations

import contextlib
import copy
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from persistlib.architecture import zoo
from persistlib.architecture.behaviour import fitted
from persistlib.architecture.isolation import isolated
from persistlib.architecture.module_state import state_tensors, unsaved_tensors
from persistlib.dtypes import DType
from persistlib.errors import Code, error
from persistlib.examples import DRAWN_BATCH, drawn_shape, named_outputs

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from persistlib.architecture.recipe import Recipe
    from persistlib.manifest.schema import Interface

Shapes = dict[str, tuple[int, ...]]
_MOST_NUMBERS = 1 << 28  # that an input holds; a manifest may be a stranger's


class FailedError(Exception):
    """The model does not run."""


class Image(NamedTuple):
    """Which input is an image or the like.

    Attributes:
        place: among the inputs.
        channels: extent of its axis 1.
    """

    place: int
    channels: int


class Trial:
    """A model and inputs that it can be tried with.

    Attributes:
        model: the copy, to be changed and run at will.
        inputs: what goes in; of batch 2 where that is free.
        outputs: shapes by name, in evaluation.
        has_values: whether it had to be copied whole.
    """

    def __init__(
        self, model: nn.Module, inputs: Sequence[torch.Tensor], *, has_values: bool = False
    ) -> None:
        """Copy the model and run it.

        Args:
            model: the model.
            inputs: of their shapes and dtypes alone; what runs on values is given zeros.
            has_values: whether it is copied whole.

        Raises:
            FailedError: it does not run on these inputs.
        """
        self.has_values = has_values
        device = "cpu" if has_values else "meta"
        try:
            self.model = copy.deepcopy(model).cpu() if has_values else _without_values(model)
            self.inputs = [torch.zeros_like(value, device=device) for value in inputs]
        except Exception as fault:
            raise FailedError(f"it cannot be copied: {type(fault).__name__}: {fault}") from fault
        self.outputs = self.run()

    def run(
        self, inputs: Sequence[torch.Tensor] | None = None, *, training: bool = False
    ) -> Shapes:
        """Return the shapes of the outputs by name.

        Raises:
            FailedError: the model raised.
        """
        for module in self.model.modules():
            module.training = training
        try:
            with isolated(), torch.no_grad():
                result = self.model(*(self.inputs if inputs is None else inputs))
        except Exception as fault:
            text = (str(fault).strip().splitlines() or [""])[0]
            raise FailedError(f"{type(fault).__name__}: {text}") from fault
        return {name: tuple(tensor.shape) for name, tensor in named_outputs(result).items()}

    def main(self) -> str:
        """Return the name of the output that answers: the first, or the one called logits.

        Raises:
            FailedError: there is no tensor among the outputs.
        """
        if not self.outputs:
            raise FailedError("its outputs are no tensors")
        return "logits" if "logits" in self.outputs else next(iter(self.outputs))

    def image(self) -> Image | None:
        """Return the first input with channels and extents; None where there is none."""
        for index, value in enumerate(self.inputs):
            if value.is_floating_point() and value.ndim >= 3:
                return Image(index, value.shape[1])
        return None

    def resized(self, image: Image, shape: Sequence[int]) -> list[torch.Tensor]:
        """Return the inputs with an image of another shape, batch excepted."""
        inputs = list(self.inputs)
        before = inputs[image.place]
        _require_bounded((before.shape[0], *shape))
        inputs[image.place] = before.new_zeros(before.shape[0], *shape)
        return inputs

    @contextlib.contextmanager
    def swapped(self, modules: Mapping[str, nn.Module]) -> Generator[None]:
        """Put other modules in their places while the block runs; a shared one at each place."""
        old = {path: self.model.get_submodule(path) for path in modules}
        places = [
            (path, new)
            for first, new in modules.items()
            for path in paths_of(self.model, old[first])
        ]
        before = {path: self.model.get_submodule(path) for path, _ in places}
        for path, new in places:
            put(self.model, path, new)
        try:
            yield
        finally:
            for path, module in before.items():
                put(self.model, path, module)


def paths_of(model: nn.Module, wanted: nn.Module) -> tuple[str, ...]:
    """Return every path of a module, of which a shared one has several."""
    known = model.named_modules(remove_duplicate=False)
    return tuple(path for path, module in known if module is wanted)


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of another."""
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    owner._modules[name] = module  # noqa: SLF001 - setattr would run the model's own code


def trial_of(model: nn.Module, recipe: Recipe | None, interface: Interface) -> Trial:
    """Return a trial of a model with inputs as its interface or the zoo says them.

    Raises:
        ArchitectureError: neither says what goes in, or the model does not run.
    """
    place = type(model).__qualname__
    inputs = _inputs(model, recipe, interface)
    if not inputs:
        raise error(
            Code.ADAPTATION,
            place,
            "nothing says what goes into the model, so no layer can be told by trying",
            'give them: adapt={"example_inputs": TENSOR, ...}, or save with example_inputs=',
        )
    try:
        return _tried(model, inputs)
    except FailedError as fault:
        raise error(
            Code.ADAPTATION,
            place,
            f"the model does not run: {fault}",
            'give inputs that it runs on: adapt={"example_inputs": TENSOR, ...}',
        ) from fault


def _tried(model: nn.Module, inputs: Sequence[torch.Tensor]) -> Trial:
    try:
        return Trial(model, inputs)
    except FailedError:
        return Trial(model, inputs, has_values=True)


def _inputs(
    model: nn.Module, recipe: Recipe | None, interface: Interface
) -> tuple[torch.Tensor, ...]:
    if interface.inputs:
        return tuple(
            _shaped(drawn_shape(spec), DType[spec.dtype].torch) for spec in interface.inputs
        )
    if recipe is None or not (shapes := zoo.inputs_of(recipe.builder)):
        return ()
    extents = [*fitted(model, shapes, recipe.arguments)]
    if any(len(shape) == 3 for shape in extents):  # lists of images
        raise error(
            Code.ADAPTATION,
            recipe.builder,
            "its outputs are no scores of classes: such a head is not replaced here",
            f'persistlib.build("{recipe.builder}", num_classes=N, weights=FILE, strict="report")'
            " takes all tensors that fit",
        )
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return tuple(_shaped([DRAWN_BATCH, *shape[1:]], dtype) for shape in extents)


def _shaped(extents: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    _require_bounded(extents)
    return torch.empty(tuple(extents), dtype=dtype, device="meta")


def _require_bounded(extents: Sequence[int]) -> None:
    if math.prod(extents) > _MOST_NUMBERS:
        shape = " x ".join(map(str, extents))
        reason = f"an input of {shape} is larger than a model is tried with"
        raise error(Code.ADAPTATION, "the model's inputs", reason, "give smaller ones")


def _without_values(model: nn.Module) -> nn.Module:
    """Return a copy of a module whose tensors have shapes and no values."""
    memo: dict[int, Any] = {}
    tensors = [item.tensor for item in state_tensors(model)]
    for tensor in (*tensors, *(tensor for _, tensor in unsaved_tensors(model))):
        empty = torch.empty_like(tensor, device="meta", requires_grad=False)
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if is_parameter else empty
    return copy.deepcopy(model, memo)
