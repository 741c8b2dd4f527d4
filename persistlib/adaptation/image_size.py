"""Images of another size: the model built anew for them, and its position tables resized.

A model that takes any size is left as it is. One whose builder takes the size (ViT's `image_size`,
MaxViT's `input_size`) is built with the new one; tensors whose shape stays keep their bits, and
tables of positions are interpolated as torchvision does it for its vision transformers (bicubic, on
the square grid of positions, rows before the grid such as a class token's kept). Any other tensor
whose shape would change is an error that names it.

Law: for the size that it has, a model is left as it was, bit for bit.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from persistlib.adaptation.record import Change
from persistlib.adaptation.trial import FailedError, Trial
from persistlib.architecture import module_state
from persistlib.architecture.arguments import signature, trace
from persistlib.architecture.behaviour import SIZES
from persistlib.architecture.candidates import from_recipe
from persistlib.architecture.encoding import encode
from persistlib.architecture.freezing import kept_in_eval
from persistlib.architecture.parametrized import plain_class
from persistlib.architecture.recipe import Recipe
from persistlib.architecture.trusted import resolve_builder
from persistlib.errors import ArchitectureError, Code, error

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from persistlib.adaptation.trial import Image
    from persistlib.architecture.module_state import StateTensor
    from persistlib.errors import PersistlibError
    from persistlib.preprocessing import Size

_POSITIONS = "pos"  # what the names of tables of positions have in common
_TORCHVISIONS = "encoder.pos_embedding"
_MOST_BEFORE = 2  # rows before the grid: a class token, and a token for distillation


class Resized(NamedTuple):
    """A model for images of another size.

    Attributes:
        model: the same one, or one built anew.
        recipe: what builds it.
        changes: what was done.
    """

    model: nn.Module
    recipe: Recipe
    changes: tuple[Change, ...]


def resize(
    model: nn.Module,
    recipe: Recipe,
    trial: Trial,
    image: Image,
    size: Size,
    *,
    trust: Collection[str],
) -> Resized:
    """Return a model that takes images of another size.

    Args:
        model: with values; where it is built anew its tensors are shared with the new one.
        recipe: what builds it.
        trial: of the model.
        image: which input is the image.
        size: in pixels.
        trust: packages that may be imported beyond the allow-list.

    Raises:
        ArchitectureError: the model does not take that size, or a tensor cannot follow.
    """
    before = tuple(trial.inputs[image.place].shape[-2:])
    told = "x".join(map(str, before)), "x".join(map(str, size))
    if before == tuple(size):
        return Resized(model, recipe, ())
    is_square = len({*before}) == len({*size}) == 1
    for argument, value in _arguments(model, recipe, size, trust):
        given = Recipe(recipe.builder, {**recipe.arguments, argument: value}, recipe.edits)
        made, changes = _rebuilt(model, recipe, given, trust, is_square=is_square)
        _require_runs(made, trial, image, size)
        plain = Change("image_size", "", *told, f"built with {argument}")
        return Resized(made, given, (plain, *changes))
    _require_runs(model, trial, image, size)
    return Resized(model, recipe, (Change("image_size", "", *told, "the model takes any size"),))


def resize_positions(table: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return a table of positions for another grid.

    Args:
        table: of shape (1, rows, width), or (rows, width) for relative positions, on a square grid.
        shape: of the result, of the same width.

    Raises:
        ValueError: rows, old or new, are no square grid after as many rows before it.
    """
    if tuple(table.shape) == tuple(shape):
        return table
    from torchvision.models.vision_transformer import interpolate_embeddings

    rows = table.detach().reshape(-1, table.shape[-1]).float()
    kept = _before_grid(rows.shape[0], shape[-2])
    # torchvision's function keeps one row before the grid, whatever is in it.
    grid = torch.cat([rows[:1], rows[kept:]])[None]
    edge = math.isqrt(shape[-2] - kept)
    state = interpolate_embeddings(edge, 1, OrderedDict({_TORCHVISIONS: grid}))
    made = torch.cat([rows[:kept], state[_TORCHVISIONS][0, 1:]])
    return made.reshape(tuple(shape)).to(table.dtype)


def _before_grid(old: int, new: int) -> int:
    """Return how many rows stand before the grid.

    There is one answer at most: no square above 0 is one or two less than another.
    """
    for rows in range(min(_MOST_BEFORE, old - 1, new - 1) + 1):
        edges = math.isqrt(old - rows), math.isqrt(new - rows)
        if (edges[0] ** 2, edges[1] ** 2) == (old - rows, new - rows):
            return rows
    raise ValueError(f"{old} and {new} rows are no square grids")


def _arguments(
    model: nn.Module, recipe: Recipe, size: Size, trust: Collection[str]
) -> Iterator[tuple[str, Any]]:
    """Yield the builder's argument for the size, as it may be written."""
    names = {
        *recipe.arguments,
        *signature(resolve_builder(recipe.builder, trust)),
        *signature(plain_class(model)),
    }
    for name in SIZES:
        if name in names:
            yield from ((name, value) for value in _spelled(model, recipe, name, size))
            return


def _spelled(model: nn.Module, recipe: Recipe, name: str, size: Size) -> Iterator[Any]:
    old = recipe.arguments.get(name)
    if old is None:
        old = encode(trace(model, name, None))
    parameter = signature(plain_class(model)).get(name)
    is_pair = isinstance(old, (dict, list)) or "tuple" in str(getattr(parameter, "annotation", ""))
    if is_pair:
        yield encode(tuple(size))
    elif size.height == size.width:
        yield size.height
    else:
        raise _refused(f"{name} is one number, so images are square", size)


def _rebuilt(
    model: nn.Module, old: Recipe, new: Recipe, trust: Collection[str], *, is_square: bool
) -> tuple[nn.Module, tuple[Change, ...]]:
    """Return the model built by another recipe, with the old one's values."""
    try:
        made = from_recipe(new, trust)
    except ArchitectureError as fault:
        raise error(
            Code.ADAPTATION, "adapt.image_size", fault.reason, "give a size that the builder takes"
        ) from fault
    changes: list[Change] = []
    wanted = {item.name: item for item in module_state.state_tensors(made)}
    tensors: dict[str, StateTensor] = {}
    for item in module_state.state_tensors(model):
        target = wanted.get(item.name)
        if target is None or target.tensor.shape == item.tensor.shape:
            tensors[item.name] = item
            continue
        tensor, detail = _following(item, target, is_square=is_square)
        tensors[item.name] = item._replace(tensor=tensor)
        shapes = "x".join(map(str, item.tensor.shape)), "x".join(map(str, tensor.shape))
        changes.append(Change("positions", item.name, *shapes, detail))
    carried = _carried(model, made, from_recipe(old, trust))
    toggles, kept = module_state.training_toggles(model), kept_in_eval(model)
    module_state.assign(made, tensors)
    module_state.set_unsaved(made, carried)
    module_state.restore_training(made, toggles, kept)
    return made, tuple(changes)


def _following(
    item: StateTensor, target: StateTensor, *, is_square: bool
) -> tuple[torch.Tensor, str]:
    """Return a tensor in the shape that the new model has for it, and how that was made."""
    if not item.is_parameter and not item.tensor.is_floating_point():
        if target.tensor.is_meta:
            raise _unresizable(item, target, "its values are not computed")
        return target.tensor, "indexes, built for the new size"
    if _POSITIONS not in item.name.lower():
        raise _unresizable(item, target, "it is no table of positions")
    if not is_square:
        raise _unresizable(item, target, "only square grids are resized")
    if item.tensor.shape[-1] != target.tensor.shape[-1] or item.tensor.ndim not in {2, 3}:
        raise _unresizable(item, target, "only the number of positions may change")
    try:
        made = resize_positions(item.tensor, target.tensor.shape)
    except ValueError as fault:
        raise _unresizable(item, target, str(fault)) from fault
    return made.requires_grad_(item.tensor.requires_grad), "bicubic interpolation"


def _carried(model: nn.Module, made: nn.Module, rebuilt: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors outside the state_dict that building does not make.

    Raises:
        ArchitectureError: one of them has another shape in the new model.
    """
    unsaved = dict(module_state.unsaved_tensors(model))
    if not unsaved:
        return {}
    values = {item.name: item for item in module_state.state_tensors(model)}
    module_state.assign(rebuilt, values)
    built: Mapping[str, torch.Tensor] = dict(module_state.unsaved_tensors(rebuilt))
    places = dict(module_state.unsaved_tensors(made))
    carried: dict[str, torch.Tensor] = {}
    for name, tensor in unsaved.items():
        if name in built and module_state.same_bits(tensor, built[name]):
            continue
        if name not in places or places[name].shape != tensor.shape:
            reason = f"{name} holds values of its own, and has another shape in the new model"
            raise error(Code.ADAPTATION, "adapt.image_size", reason, "build the model yourself")
        carried[name] = tensor
    return carried


def _require_runs(model: nn.Module, trial: Trial, image: Image, size: Size) -> None:
    shape = trial.inputs[image.place].shape
    inputs = trial.resized(image, (*shape[1:-2], *size))
    try:
        after = Trial(model, inputs, has_values=trial.has_values).outputs
    except FailedError as fault:
        raise _refused(f"the model does not take it: {fault}", size) from fault
    if len(after) != len(trial.outputs):
        raise _refused("the model gives other outputs", size)


def _refused(reason: str, size: Size) -> PersistlibError:
    edges = "x".join(map(str, size))
    return error(
        Code.ADAPTATION,
        "adapt.image_size",
        f"{edges}: {reason}",
        "give another size, or resize images in preprocessing",
    )


def _unresizable(item: StateTensor, target: StateTensor, reason: str) -> PersistlibError:
    shapes = f"{list(item.tensor.shape)} would become {list(target.tensor.shape)}"
    return error(
        Code.ADAPTATION,
        "adapt.image_size",
        f"{item.name} of {shapes}: {reason}",
        'pass strict="report" to persistlib.build with the new size, which loads all that fits',
    )
