"""Names in an exported graph: the state under its own, everything else out of its way.

Law: after `settle_names` no two values of the graph share a name, every state tensor has its own,
and the file tells nothing about the machine that made it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx

from persistlib.export.capture import PREFIX
from persistlib.runtime.walking import graphs_within

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

# What the exporter notes beside the graph: stack traces with absolute paths, and shapes of inner
# values that ONNX Runtime infers by itself.
_NOTES = ("doc_string", "metadata_props", "value_info")


def strip_notes(message: Any) -> None:
    """Remove the exporter's notes from a message and all that it holds."""
    for field, value in message.ListFields():
        if field.name in _NOTES:
            message.ClearField(field.name)
        elif field.message_type is not None and not isinstance(message, onnx.TensorProto):
            parts = (value,) if hasattr(value, "ListFields") else value
            for part in parts:
                strip_notes(part)


def settle_names(
    graph: onnx.GraphProto,
    state: Collection[str],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> None:
    """Rename every value of a graph whose inputs are its arguments, then the prefixed state.

    Args:
        graph: changed in place.
        state: names that no other value may have.
        inputs: what to name the first inputs; one that the state has taken gets a suffix.
        outputs: what to name the outputs, likewise.
    """
    _part_outputs(graph)
    taken = set(state)
    names = {
        value.name: value.name.removeprefix(PREFIX) for value in list(graph.input)[len(inputs) :]
    }
    for value, wanted in zip(graph.input, inputs, strict=False):
        names[value.name] = _free(wanted, taken, "_input")
    for value, wanted in zip(graph.output, outputs, strict=True):
        names[value.name] = _free(wanted, taken, "_output")
    for name in _values(graph):
        if name not in names:
            names[name] = _free(name.removeprefix(PREFIX), taken, "_inner")
    _rename(graph, names)


def _free(wanted: str, taken: set[str], suffix: str) -> str:
    name, count = wanted, 0
    while name in taken:
        count += 1
        name = f"{wanted}{suffix}" + (f"_{count}" if count > 1 else "")
    taken.add(name)
    return name


def _part_outputs(graph: onnx.GraphProto) -> None:
    """Give each output a value of its own: it may be an input, a constant, or another output."""
    seen = {value.name for value in (*graph.input, *graph.initializer)}
    for index, output in enumerate(graph.output):
        if output.name in seen:
            fresh = f"{output.name}{PREFIX}{index}"
            graph.node.append(onnx.helper.make_node("Identity", [output.name], [fresh]))
            output.name = fresh
        seen.add(output.name)


def _values(graph: onnx.GraphProto) -> Iterator[str]:
    for part in graphs_within(graph):
        yield from (value.name for value in (*part.input, *part.initializer))
        yield from (tensor.values.name for tensor in part.sparse_initializer)
        for node in part.node:
            yield from (name for name in node.output if name)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for part in graphs_within(graph):
        for value in (*part.input, *part.output, *part.initializer):
            value.name = names[value.name]
        for tensor in part.sparse_initializer:
            tensor.values.name = names[tensor.values.name]
        for node in part.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
