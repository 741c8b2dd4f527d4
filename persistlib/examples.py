"""Example inputs and outputs: naming them, running the model on them, comparing them again.

A model is run in evaluation, without gradients, and the caller's random state, training flags and
gradient mode are as before afterwards.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from persistlib.architecture.behaviour import untouched
from persistlib.architecture.isolation import isolated
from persistlib.architecture.module_state import dtype_of
from persistlib.dtypes import DType
from persistlib.errors import Code, error
from persistlib.manifest.schema import Interface, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from torch import nn

BATCH = "batch"
DRAWN_BATCH = 2  # BatchNorm in training takes no single sample
# Numbers in all drawn inputs: an interface may be a stranger's, and a network makes many of each.
_MOST_DRAWN = 1 << 25
_DRAWN_EXTENT = 8  # of free extents other than the batch, in inputs drawn from an interface


class Examples(NamedTuple):
    """Inputs by forward argument, and what the model makes of them."""

    inputs: Mapping[str, torch.Tensor]
    outputs: Mapping[str, torch.Tensor]


def name_inputs(model: nn.Module, example_inputs: Any) -> dict[str, torch.Tensor]:
    """Return example inputs by the name of the forward argument that takes each.

    Args:
        model: whose forward takes them.
        example_inputs: a tensor, a sequence of tensors in order, or a mapping by name.

    Raises:
        UsageError: they are no tensors, more than forward takes, or one before another is absent.
    """
    if isinstance(example_inputs, torch.Tensor):
        example_inputs = (example_inputs,)
    if isinstance(example_inputs, dict):
        named = _in_order(model, example_inputs)
    else:
        names = _argument_names(model, len(example_inputs))
        named = dict(zip(names, example_inputs, strict=True))
    for name, value in named.items():
        if not isinstance(value, torch.Tensor):
            raise error(
                Code.USAGE,
                f"example_inputs.{name}",
                f"is a {type(value).__name__}",
                "give tensors",
            )
    return named


def _in_order(model: nn.Module, named: Mapping[str, Any]) -> dict[str, Any]:
    """Return named inputs in the order of forward's arguments, where these have such names.

    Raises:
        UsageError: one that comes before another is not given: they are passed by place.
    """
    names = [*inspect.signature(model.forward).parameters]
    if not {*named} <= {*names}:
        return dict(named)
    given = [name for name in names if name in named]
    if absent := [name for name in names[: len(given)] if name not in named]:
        reason = f"forward takes {absent[0]} before {given[-1]}"
        raise error(Code.USAGE, f"example_inputs.{absent[0]}", reason, "give it too")
    return {name: named[name] for name in given}


def _argument_names(model: nn.Module, count: int) -> list[str]:
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = inspect.Parameter
    names = [
        p.name for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    ][:count]
    if any(p.kind is kinds.VAR_POSITIONAL for p in parameters):
        names += [f"input_{n}" for n in range(len(names), count)]
    if len(names) < count:
        raise error(
            Code.USAGE,
            "example_inputs",
            f"{count} tensors, but forward takes {len(names)}",
            "give one tensor for each argument of forward",
        )
    return names


def draw_inputs(interface: Interface) -> dict[str, torch.Tensor]:
    """Return random inputs that fit an interface, from a seed of their own.

    Raises:
        UsageError: they would be larger than anybody but the caller may ask for.
    """
    shapes = [drawn_shape(spec) for spec in interface.inputs]
    numbers = 0
    for spec, shape in zip(interface.inputs, shapes, strict=True):
        numbers += math.prod(shape)
        if numbers > _MOST_DRAWN:
            extents = " x ".join(map(str, spec.shape))
            reason = f"inputs of {extents} are more than are drawn for a trial"
            raise error(Code.USAGE, f"interface.inputs.{spec.name}", reason, "give example inputs")
    generator = torch.Generator().manual_seed(0)
    drawn: dict[str, torch.Tensor] = {}
    for spec, shape in zip(interface.inputs, shapes, strict=True):
        dtype = DType[spec.dtype].torch
        if dtype.is_floating_point or dtype.is_complex:
            drawn[spec.name] = torch.randn(shape, generator=generator).to(dtype)
        else:
            drawn[spec.name] = torch.randint(0, 2, shape, generator=generator).to(dtype)
    return drawn


def drawn_shape(spec: TensorSpec) -> tuple[int, ...]:
    """Return the shape of an input that is drawn: free extents get one of ours."""
    return tuple(
        extent if isinstance(extent, int) else _DRAWN_EXTENT if axis else DRAWN_BATCH
        for axis, extent in enumerate(spec.shape)
    )


def run(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the named outputs of a model in evaluation; nothing of the model or caller changes.

    Raises:
        UsageError: the model cannot be run on these inputs.
    """
    device = next(iter(model.parameters()), next(iter(model.buffers()), torch.empty(0))).device
    # Copies, since a module may write into what it is given.
    values = [value.to(device, copy=True) for value in inputs.values()]
    try:
        with untouched(model), isolated(), torch.no_grad():
            for module in model.modules():
                module.training = False
            result = model(*values)
    except Exception as fault:
        raise error(
            Code.USAGE,
            "example_inputs",
            f"the model raised {type(fault).__name__}: {str(fault).splitlines()[0:1]}",
            "give inputs that the model takes",
        ) from fault
    return named_outputs(result)


def named_outputs(value: Any) -> dict[str, torch.Tensor]:
    """Return the tensors in what a model returned, by key, field or position; others are left out.

    A lone tensor is `output`.

    Raises:
        UsageError: two of them have one name.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in _tensors(value, ""):
        if name in found:
            reason, remedy = "two outputs of the model have this name", "give them different keys"
            raise error(Code.USAGE, name, reason, remedy)
        found[name] = tensor
    return found


def _tensors(value: Any, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield prefix or "output", value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from _tensors(value._asdict(), prefix)  # type: ignore[attr-defined]
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{prefix or 'output'}_{index}")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        yield from _tensors(fields, prefix)


def describe_interface(interface: Interface, examples: Examples) -> Interface:
    """Return the interface with inputs and outputs that it lacks taken from examples."""
    sizes = {value.shape[0] for value in examples.inputs.values() if value.ndim}
    batch = next(iter(sizes)) if len(sizes) == 1 else None

    def specs(tensors: Mapping[str, torch.Tensor]) -> tuple[TensorSpec, ...]:
        return tuple(_spec(name, tensor, batch) for name, tensor in tensors.items())

    return interface.model_copy(
        update={
            "inputs": interface.inputs or specs(examples.inputs),
            "outputs": interface.outputs or specs(examples.outputs),
        }
    )


def output_names(interface: Interface, computed: Collection[str]) -> tuple[str, ...]:
    """Return what the outputs of a model are called: as the interface says, where it names each.

    Args:
        interface: of the model.
        computed: what `run` calls them, in their order.
    """
    names = tuple(spec.name for spec in interface.outputs)
    is_said = len(names) == len(computed) and set(names) != set(computed)
    return names if is_said else tuple(computed)


def named_as(interface: Interface, examples: Examples) -> Examples:
    """Return examples whose outputs are called as the interface says."""
    names = output_names(interface, examples.outputs)
    return examples._replace(outputs=dict(zip(names, examples.outputs.values(), strict=True)))


def of_graph(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], examples: Examples
) -> tuple[Interface, Examples]:
    """Return the interface of a graph's module, and its examples, under the graph's own names.

    Args:
        inputs: what the graph says goes in, in the module's order.
        outputs: what it says comes out; of unknown rank they have no extents.
        examples: of the module.
    """
    named = Examples(*map(_called, (inputs, outputs), examples))
    seen = describe_interface(Interface(), named)
    interface = Interface(inputs=_said(inputs, seen.inputs), outputs=_said(outputs, seen.outputs))
    return interface, named


def _called(
    specs: Sequence[TensorSpec], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    return {s.name: t for s, t in zip(specs, tensors.values(), strict=True)}


def _said(specs: Sequence[TensorSpec], seen: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    pairs = zip(specs, seen, strict=True)
    return tuple(spec if len(spec.shape) == len(own.shape) else own for spec, own in pairs)


def _spec(name: str, tensor: torch.Tensor, batch: int | None) -> TensorSpec:
    shape: tuple[int | str, ...] = tuple(tensor.shape)
    if shape and shape[0] == batch:
        shape = (BATCH, *shape[1:])
    return TensorSpec(name=name, dtype=dtype_of(tensor).name, shape=shape)
