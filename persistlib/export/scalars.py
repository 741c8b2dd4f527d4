"""Numbers of a module, kept as they are on the way to a graph.

Torch's translation writes a Python number as a float32 constant and casts that to what it meets, so
that `3.9 * x` multiplies a float64 `x` by 3.9000000953. And the optimiser takes what is nearly 0 or
1 for 0 or 1: it drops the `+ 1e-12` that keeps a division by a norm from giving NaN.
"""

from __future__ import annotations

import math
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from onnxscript import ir

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from torch.export import ExportedProgram

_CASTS = frozenset({"Cast", "CastLike"})
# Twice as wide as what the optimiser's rules take for the same (`onnxscript.rewriter` compares with
# `math.isclose` of relative 1e-5 and absolute 1e-8).
_RELATIVE, _ABSOLUTE = 2e-5, 2e-8
_NEUTRAL = (0.0, 1.0)


def keep_doubles(graph: ir.Graph, program: ExportedProgram) -> None:
    """Give constants that are only cast the value that the module has, in double precision.

    Law: after it, each Python float of the program that a cast brings to float64 is that float; for
    any narrower dtype the cast gives what it gave.

    Args:
        graph: as torch translated it, before any optimisation; changed in place.
        program: what it was translated from.
    """
    exact = _exact(program)
    for node in graph.all_nodes():
        if (value := _single(node)) is not None and value in exact and _is_only_cast(node):
            (found, *others) = exact[value]
            if not others:
                node.attributes.clear()
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.float64(found)))


@contextmanager
def near_misses_hidden(graph: ir.Graph) -> Generator[None]:
    """Keep numbers that are nearly 0 or 1 from the optimiser, for a while.

    Each is an input without a value meanwhile, and an initializer after.

    Args:
        graph: changed in place.
    """
    hidden = [(value, tensor) for value, tensor in _constants(graph) if _is_near_miss(tensor)]
    inputs = [_as_input(graph, value, tensor) for value, tensor in hidden]
    yield
    for value, (_, tensor) in zip(inputs, hidden, strict=True):
        graph.inputs.remove(value)
        if value.uses():
            value.const_value = tensor
            graph.register_initializer(value)


def _constants(graph: ir.Graph) -> list[tuple[ir.Value, ir.TensorProtocol]]:
    """Return the values of one element that are known, with what they are."""
    found = [(value, value.const_value) for value in graph.initializers.values()]
    found += [(node.outputs[0], _held(node)) for node in graph.all_nodes()]
    return [(v, tensor) for v, tensor in found if tensor is not None and tensor.size == 1]


def _is_near_miss(tensor: ir.TensorProtocol) -> bool:
    if not tensor.dtype.is_floating_point():
        return False
    number = float(tensor.numpy().item())
    return any(
        number != neutral and math.isclose(number, neutral, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
        for neutral in _NEUTRAL
    )


def _as_input(graph: ir.Graph, value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
    """Return the input that stands for a constant from now on."""
    node = value.producer()
    if node is None:
        assert value.name is not None
        del graph.initializers[value.name]
        value.const_value = None
        graph.inputs.append(value)
        return value
    kind = ir.TensorType(tensor.dtype)
    stand_in = ir.Value(name=value.name, type=kind, shape=ir.Shape(tensor.numpy().shape))
    value.replace_all_uses_with(stand_in)
    assert node.graph is not None
    node.graph.remove(node, safe=True)
    graph.inputs.append(stand_in)
    return stand_in


def _exact(program: ExportedProgram) -> dict[float, set[float]]:
    """Return the floats of a program that float32 has not, by what it has in their place."""
    found: dict[float, set[float]] = defaultdict(set)
    for node in program.graph.nodes:
        for number in _floats((node.args, node.kwargs)):
            with np.errstate(over="ignore"):
                single = float(np.float32(number))
            if single != number:
                found[single].add(number)
    return found


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _floats(item)
    elif isinstance(value, dict):
        yield from _floats(list(value.values()))


def _single(node: ir.Node) -> float | None:
    """Return the value of a constant of one float32."""
    tensor = _held(node)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size != 1:
        return None
    return float(tensor.numpy().item())


def _held(node: ir.Node) -> ir.TensorProtocol | None:
    """Return what a constant is, of those that torch's translation writes."""
    if node.op_type != "Constant":
        return None
    if (number := node.attributes.get("value_float")) is not None:
        return ir.tensor(np.float32(number.as_float()))
    attribute = node.attributes.get("value")
    return attribute.as_tensor() if attribute is not None else None


def _is_only_cast(node: ir.Node) -> bool:
    """Return whether the constant meets nothing but casts, and decides the type of none."""
    uses = node.outputs[0].uses()
    return all(use.node.op_type in _CASTS and use.idx == 0 for use in uses)
