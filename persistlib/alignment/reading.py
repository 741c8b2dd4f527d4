"""A stranger's ONNX file, read whole: its structure walked, its functions put in place."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from persistlib.checkpoint import identity
from persistlib.errors import Code, error
from persistlib.formats import FORMATS
from persistlib.graph_tensors import EXTERNAL_TENSOR, ExternalPlace, aligned, pairs_of
from persistlib.runtime.structure import check_graph
from persistlib.sources import open_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

    from persistlib.files import StrPath
    from persistlib.runtime.structure import GraphFacts

# What may run for ever, or run operators that cannot be paired with a module's.
_REFUSED = frozenset({"Loop", "Scan"})


class Foreign(NamedTuple):
    """A file as it is used.

    Attributes:
        location: its path.
        data: its bytes.
        external: its data files by name.
        facts: what the graph says of itself.
        proto: the graph, its functions expanded, its large weights in `outside`.
        outside: `external`, and the large weights.
        identity: the weights identity of its initializers.
        notes: what its reader remarked.
        container: its versions and producer in words.
    """

    location: str
    data: bytes
    external: dict[str, memoryview]
    facts: GraphFacts
    proto: onnx.ModelProto
    outside: dict[str, memoryview]
    identity: str
    notes: tuple[str, ...]
    container: str


def read(source: StrPath) -> Foreign:
    """Return an ONNX file, every byte of it from the descriptors that were examined.

    Raises:
        FormatError: it is no ONNX file, or refers to what is never read.
        TargetError: it cannot be read.
        UsageError: it has a loop.
    """
    import onnx
    from onnx import inliner

    location = os.fspath(source)
    with open_file(source) as reader:
        if reader.format != FORMATS["onnx"].name:
            raise error(Code.USAGE, location, "no ONNX file", "give one with architecture=")
        model = reader.model  # type: ignore[attr-defined]  # an ONNX reader's own
        data = model.data[0 : model.data.size]
        external: dict[str, memoryview] = {}
        for tensor in model.everywhere.values():
            if tensor.place is not None and tensor.place.name not in external:
                found = model.folder.bytes_of(tensor.place, f"{location}: {tensor.name}")
                external[tensor.place.name] = memoryview(found[0 : found.size])
        made = identity(reader)
        notes, container = reader.notes, reader.container
    facts = check_graph(data, external=external, location=location)
    proto = onnx.ModelProto.FromString(data)
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    for node in proto.graph.node:
        if node.op_type in _REFUSED:
            reason = f"has a {node.op_type}, which no module's operators are paired with"
            raise error(Code.USAGE, f"{location}: {node.name}", reason, "leave architecture= out")
    outside = external | _moved_out(proto, external)
    return Foreign(location, data, external, facts, proto, outside, made, notes, container)


def _moved_out(proto: onnx.ModelProto, taken: Mapping[str, memoryview]) -> dict[str, memoryview]:
    """Move large weights out of a graph, so that working on it does not copy them."""
    name = next(f"w{n}.data" for n in range(len(taken) + 1) if f"w{n}.data" not in taken)
    large = [t for t in proto.graph.initializer if len(t.raw_data) >= EXTERNAL_TENSOR]
    if not large:
        return {}
    buffer = bytearray()
    for tensor in large:
        start = aligned(len(buffer))
        buffer.extend(bytes(start - len(buffer)) + tensor.raw_data)
        for key, text in pairs_of(ExternalPlace(name, start, len(tensor.raw_data))):
            tensor.external_data.add(key=key, value=text)
        tensor.ClearField("raw_data")
        tensor.data_location = tensor.EXTERNAL
    return {name: memoryview(buffer)}
