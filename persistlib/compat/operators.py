"""Whether a node keeps its operator's schema, and whether a kernel computes it.

Everything here is about names of types ("tensor(float)"); an empty one is not known, and fits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from persistlib.compat.releases import UNLIMITED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import onnx

    from persistlib.compat.releases import Kernel, Parameter, Schema
    from persistlib.compat.releases import Release as Runtime

HALF, SINGLE = "tensor(float16)", "tensor(float)"
_UNNAMED = "???"  # an attribute's type for which the releases' own list has no word


class Signature(NamedTuple):
    """The names of the types that go into a node and come out; None where a place is empty."""

    inputs: Sequence[str | None]
    outputs: Sequence[str | None]

    def cast(self) -> Signature:
        """Return the signature with single precision for half."""

        def single(names: Sequence[str | None]) -> tuple[str | None, ...]:
            return tuple(SINGLE if name == HALF else name for name in names)

        return Signature(single(self.inputs), single(self.outputs))


def placed(
    parameters: Sequence[Parameter], names: Sequence[str | None]
) -> Iterator[tuple[Parameter, str]]:
    """Yield the types that stand, each with the parameter in whose place it stands."""
    for place, name in enumerate(names):
        if name is not None and parameters:
            yield parameters[min(place, len(parameters) - 1)], name


def schema_faults(node: onnx.NodeProto, schema: Schema, signature: Signature) -> Iterator[str]:
    """Yield what a runtime refuses in a node because its schema forbids it."""
    if schema.deprecated:
        yield "the operator may no longer be used"
    yield from _counts(schema, signature)
    yield from _attributes(node, schema)
    yield from _types(schema, signature)


def _counts(schema: Schema, signature: Signature) -> Iterator[str]:
    least, most, least_outputs = schema.counts
    sides = (
        ("inputs", signature.inputs, least, most, schema.inputs),
        ("outputs", signature.outputs, least_outputs, schema.most_outputs, schema.outputs),
    )
    for word, names, few, many, parameters in sides:
        if not few <= len(names) <= many:
            yield f"{len(names)} {word}, not {few} to {many}"
            continue
        for parameter, name in zip(parameters, names, strict=False):
            if name is None and parameter.option == "S":
                yield f"{word[:-1]} {parameter.name} must not be left out"


def _attributes(node: onnx.NodeProto, schema: Schema) -> Iterator[str]:
    given = {attribute.name: attribute for attribute in node.attribute}
    for name, attribute in given.items():
        if name not in schema.attributes:
            if not name.startswith("__"):
                yield f"the attribute {name} is unknown"
            continue
        kind = schema.attributes[name].rstrip("!")
        if attribute.type and kind not in (_kind(attribute), _UNNAMED):
            yield f"the attribute {name} is {_kind(attribute)}, not {kind}"
    for name, kind in schema.attributes.items():
        if kind.endswith("!") and name not in given:
            yield f"the attribute {name} is missing"


def _kind(attribute: onnx.AttributeProto) -> str:
    return str(type(attribute).AttributeType.Name(attribute.type))


def _types(schema: Schema, signature: Signature) -> Iterator[str]:
    """Yield where types break the schema; what comes out is not held against what it allows.

    Releases infer the type of an output and never look whether the schema has it: Cast(9) makes
    bfloat16, which came with Cast(13).
    """
    bound: dict[str, str] = {}
    sides = ((schema.inputs, signature.inputs), (schema.outputs, signature.outputs))
    for is_output, side in enumerate(sides):
        for parameter, name in placed(*side):
            allowed = schema.constraints.get(parameter.kind, frozenset((parameter.kind,)))
            if name and not is_output and name not in allowed:
                yield f"{parameter.name} is {name}, which the operator does not allow"
            elif name and parameter.alike and bound.setdefault(parameter.kind, name) != name:
                yield f"{parameter.kind} is both {bound[parameter.kind]} and {name}"


def kernel_for(kernels: Iterable[Kernel], schema: Schema, signature: Signature) -> Kernel | None:
    """Return a kernel that computes a node, or None."""
    return next((k for k in kernels if _covers(k, schema) and _fits(k, schema, signature)), None)


def _covers(kernel: Kernel, schema: Schema) -> bool:
    """Return whether a kernel is for a version; one without end is for its first version alone."""
    if kernel.end == UNLIMITED:
        return kernel.start == schema.since
    return kernel.start <= schema.since <= kernel.end


def _fits(kernel: Kernel, schema: Schema, signature: Signature) -> bool:
    sides = ((schema.inputs, signature.inputs), (schema.outputs, signature.outputs))
    for constraint, allowed in kernel.types.items():
        for parameters, names in sides:
            for parameter, name in placed(parameters, names):
                if constraint in (parameter.kind, parameter.name) and name and name not in allowed:
                    return False
    return True


def computed(runtime: Runtime, name: tuple[str, str], schema: Schema, signature: Signature) -> bool:
    """Return whether a runtime computes a node itself, perhaps after it has cast half precision.

    The default provider casts to single precision where a half comes in and no kernel takes it
    (https://github.com/microsoft/onnxruntime, core/optimizer/insert_cast_transformer.cc).
    """
    kernels = runtime.kernels.get(name, [])
    if kernel_for(kernels, schema, signature) is not None:
        return True
    if HALF not in signature.inputs:
        return False
    return kernel_for(kernels, schema, signature.cast()) is not None


def bound_outputs(
    schema: Schema, names: Sequence[str | None], attributes: Mapping[str, str], count: int
) -> list[str]:
    """Return the types of outputs as far as the schema's constraints alone tell them.

    Args:
        schema: of the operator.
        names: of the inputs' types.
        attributes: names of types that attributes say (`to`, `dtype`, a value's own).
        count: how many outputs the node has.
    """
    bound = {parameter.kind: name for parameter, name in placed(schema.inputs, names) if name}
    found: list[str] = []
    for place in range(count):
        parameter = schema.outputs[min(place, len(schema.outputs) - 1)]
        allowed = schema.constraints.get(parameter.kind, frozenset((parameter.kind,)))
        if parameter.kind in bound and parameter.alike:
            found.append(bound[parameter.kind])
        elif len(allowed) == 1:
            found.append(next(iter(allowed)))
        else:
            found.append(next(iter(attributes.values()), ""))
    return found
