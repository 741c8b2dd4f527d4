"""The named architecture, built so that it fits what the file says of itself.

Where the builder takes `num_classes` the file's last matrix says how many; where the first
convolution takes another number of channels than the file's input has, it is replaced by one that
does. Both stand in the recipe, as whoever trained the model would have written it.
"""

from __future__ import annotations

import ast
import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from persistlib.alignment.foreign import CONVOLUTION, PRODUCT
from persistlib.architecture import recipe
from persistlib.architecture.isolation import isolated
from persistlib.architecture.recipe import Recipe
from persistlib.architecture.trusted import ZOO, resolve_builder, whole_name
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from persistlib.alignment.graph_side import GraphSide
    from persistlib.manifest.schema import Architecture

_CLASSES = "num_classes"
_TEXT = 10_000  # characters of a call; a recipe is longer, and a mapping
_IMAGE = 4  # axes of a batch of images


def parse(given: str | Mapping[str, Any] | Architecture) -> Recipe:
    """Return the recipe that `NAME`, `NAME(argument=value)` or a mapping says.

    A name without a module is torchvision's.

    Raises:
        ArchitectureError: it says none.
    """
    if not isinstance(given, str):
        return Recipe.of(given)
    name, is_call, rest = given.partition("(")
    name = whole_name(name.strip())
    if not is_call:
        return Recipe.of(name)
    try:
        call = ast.parse(f"f({rest}", mode="eval").body if len(given) < _TEXT else None
        arguments = _arguments(call)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as fault:
        reason = f"{given[:60]!r} is no call: {fault}"
        remedy = "write package.module:name or package.module:name(num_classes=10)"
        raise error(Code.BAD_RECIPE, "architecture", reason, remedy) from fault
    return Recipe.of({"builder": name, "arguments": arguments})


def _arguments(call: ast.expr | None) -> dict[str, Any]:
    if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
        raise ValueError("only arguments by name, with plain values")
    return {str(item.arg): ast.literal_eval(item.value) for item in call.keywords}


def build(made: Recipe, graph: GraphSide, trust: Collection[str]) -> nn.Module:
    """Return the module in evaluation, with the file's number of classes and channels.

    Raises:
        ArchitectureError: the builder is unknown or untrusted, or it raised.
    """
    arguments = dict(made.arguments)
    classes = _classes(graph)
    if _CLASSES not in arguments and classes is not None and _takes_classes(made.builder, trust):
        arguments[_CLASSES] = classes
    edits = list(made.edits)
    module = _built(made.builder, arguments, edits, trust)
    channels = _channels(graph)
    if not made.edits and channels is not None:
        edit = _first(module, channels)
        if edit is not None:
            module = _built(made.builder, arguments, [edit], trust)
    return module


def _built(
    builder: str, arguments: Mapping[str, Any], edits: Any, trust: Collection[str]
) -> nn.Module:
    with isolated():
        return recipe.build(builder, edits=edits, trust=trust, **arguments).eval()


def _takes_classes(builder: str, trust: Collection[str]) -> bool:
    """Return whether a builder takes the number of classes, by name or among any keywords."""
    function = resolve_builder(builder, trust)
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    is_zoo = builder.startswith(ZOO)
    return _CLASSES in parameters or (
        is_zoo and any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    )


def _classes(graph: GraphSide) -> int | None:
    """Return how many numbers the file's last operator gives a sample."""
    weighted = [block for block in graph.blocks if block.kind in {CONVOLUTION, PRODUCT}]
    if not weighted:
        return None
    last = weighted[-1]
    weight = graph.weight(last)
    if weight is None:
        return None
    return int(weight.shape[0] if last.kind == CONVOLUTION else weight.shape[-1])


def _channels(graph: GraphSide) -> int | None:
    """Return how many channels the file's images have."""
    arrays = [graph.arrays[name] for name in graph.network.inputs if name in graph.arrays]
    is_image = len(arrays) == 1 and arrays[0].ndim == _IMAGE
    return int(arrays[0].shape[1]) if is_image else None


def _first(module: nn.Module, channels: int) -> dict[str, Any] | None:
    """Return the edit that gives the first convolution a number of channels, if it has another."""
    found = ((path, m) for path, m in module.named_modules() if isinstance(m, nn.Conv2d))
    path, layer = next(found, ("", None))
    if layer is None or not path or layer.groups != 1 or layer.in_channels == channels:
        return None
    arguments: dict[str, Any] = {
        "in_channels": channels,
        "out_channels": layer.out_channels,
        "kernel_size": list(layer.kernel_size),
        "stride": list(layer.stride),
        "padding": layer.padding if isinstance(layer.padding, str) else list(layer.padding),
        "dilation": list(layer.dilation),
        "bias": layer.bias is not None,
        "padding_mode": layer.padding_mode,
    }
    return {"op": "replace", "path": path, "builder": "torch.nn:Conv2d", "arguments": arguments}


def inputs_of(arrays: Any) -> tuple[torch.Tensor, ...]:
    """Return arrays as tensors of their own."""
    return tuple(torch.from_numpy(array.copy()) for array in arrays)
