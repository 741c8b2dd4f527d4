"""What a graph is allowed to be, before any runtime sees its bytes.

Nothing outside the given buffers is ever named, no operator runs foreign code, and nothing expands
to more than a bounded multiple of the file. (A 2 kB file of functions that call each other twice
keeps a runtime busy for minutes.)

What this leaves to others: whether operators, types and shapes fit each other is the runtime's to
say; whether the file is the right one is the manifest's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from persistlib.dtypes import by_name
from persistlib.errors import Code, PersistlibError, error
from persistlib.graph_notes import SESSION_OPTIONS
from persistlib.graph_tensors import dtype_name, place_of
from persistlib.manifest.schema import TensorSpec
from persistlib.runtime.functions import require_bounded
from persistlib.runtime.refusals import LOCATION
from persistlib.wire import measure

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import onnx

_STANDARD = frozenset({"", "ai.onnx", "ai.onnx.ml"})
_ALLOWED = _STANDARD | {"com.microsoft"}
# EPContext holds a provider's own binary, or its path; PyOp names a Python function.
_FOREIGN = frozenset({"EPContext", "PyOp"})
# It sets session options from the file when an environment variable says so.
_FORBIDDEN_METADATA = frozenset({SESSION_OPTIONS})
_REMEDY = "do not use this file; export the model again"
_NUMBERS = "export it with numbers for names, and without ZipMap (skl2onnx: options zipmap=False)"


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What a graph says about itself.

    Attributes:
        ir_version: of the file format.
        opsets: domain to version; the default domain is "".
        inputs: without initializers; a free extent has its name, or one made of input and axis.
        outputs: likewise.
        external: the names of external data files, sorted.
        has_loops: whether values alone say how often a part of it is computed.
        shapeless: names of inputs and outputs of which not even the rank is said; each stands among
            the others with no axes.
    """

    ir_version: int
    opsets: Mapping[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    external: tuple[str, ...]
    has_loops: bool = False
    shapeless: frozenset[str] = frozenset()


def check_graph(
    model: bytes | memoryview,
    *,
    external: Mapping[str, memoryview] | None = None,
    location: object = LOCATION,
) -> GraphFacts:
    """Return what the graph says about itself, once it is known to be harmless.

    Args:
        model: the bytes of the file.
        external: the external data by name, when it is at hand: every place in it is checked.
        location: what to name in an error.

    Raises:
        FormatError: not a graph, ambiguous, larger than well meant, or referring to what is never
            used: files elsewhere, memory, foreign code.
    """
    import onnx

    measure(memoryview(model), onnx.ModelProto.DESCRIPTOR, location)
    proto = _parse(bytes(model), location)
    check = _Check(proto, external, location)
    check.model()
    require_bounded(proto, location)
    known = {tensor.name for tensor in proto.graph.initializer}
    return GraphFacts(
        ir_version=proto.ir_version,
        opsets={opset.domain: opset.version for opset in proto.opset_import},
        inputs=_specs((v for v in proto.graph.input if v.name not in known), location),
        outputs=_specs(proto.graph.output, location),
        external=tuple(sorted(check.external)),
        has_loops=check.has_loops,
        shapeless=frozenset(
            value.name
            for value in (*proto.graph.input, *proto.graph.output)
            if not value.type.tensor_type.HasField("shape")
        ),
    )


def _parse(data: bytes, location: object) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto: onnx.ModelProto = onnx.ModelProto.FromString(data)
    except (DecodeError, ValueError, RecursionError) as fault:
        raise error(Code.GRAPH_INVALID, location, f"no ONNX file: {fault}", _REMEDY) from fault
    return proto


class _Check:
    """One walk over a parsed model."""

    def __init__(
        self,
        proto: onnx.ModelProto,
        external: Mapping[str, memoryview] | None,
        location: object,
    ) -> None:
        self.proto = proto
        self.given = external
        self.location = location
        self.external: set[str] = set()
        self.has_loops = False
        self.functions = {(f.domain, f.name) for f in proto.functions}

    def model(self) -> None:
        """Raise for the first thing in the model that is not allowed."""
        proto = self.proto
        if not proto.HasField("graph") or proto.ir_version < 1 or not proto.opset_import:
            raise self._invalid("no graph, no IR version or no operator sets")
        if proto.training_info:
            raise self._invalid("holds training graphs, which are never used")
        keys = [item.key for item in proto.metadata_props]
        if len(set(keys)) != len(keys) or _FORBIDDEN_METADATA & set(keys):
            raise self._unsafe("metadata with a key twice, or with session options")
        self._opsets(proto.opset_import)
        self._functions()
        self._graph(proto.graph)

    def _opsets(self, opsets: Iterable[onnx.OperatorSetIdProto]) -> None:
        domains = ["" if o.domain == "ai.onnx" else o.domain for o in opsets]
        if len(set(domains)) != len(domains):
            raise self._invalid("an operator set is imported twice")

    def _functions(self) -> None:
        own = [(f.domain, f.name, f.overload) for f in self.proto.functions]
        if len(set(own)) != len(own):
            raise self._invalid("a function is defined twice")
        for function in self.proto.functions:
            if function.domain in _STANDARD:
                raise self._unsafe(f"redefines {function.domain or 'ai.onnx'}:{function.name}")
            self._opsets(function.opset_import)
            for attribute in function.attribute_proto:
                self._attribute(attribute)
            self._nodes(function.node)

    def _graph(self, graph: onnx.GraphProto) -> None:
        tensors = [t.name for t in graph.initializer]
        tensors += [t.values.name for t in graph.sparse_initializer]
        inputs = [value.name for value in graph.input]
        outputs = [value.name for value in graph.output]
        made = [name for node in graph.node for name in node.output if name]
        for names in (tensors, inputs, outputs, [*made, *set(inputs + tensors)]):
            if len(set(names)) != len(names):
                raise self._invalid("a value's name stands twice")
        for tensor in graph.initializer:
            self._tensor(tensor)
        for sparse in graph.sparse_initializer:
            self._tensor(sparse.values)
            self._tensor(sparse.indices)
        self._nodes(graph.node)

    def _nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        for node in nodes:
            if node.op_type in _FOREIGN:
                raise self._unsafe(f"the operator {node.op_type} runs foreign code", node.name)
            if node.domain not in _ALLOWED and (node.domain, node.op_type) not in self.functions:
                raise self._unknown(node)
            self.has_loops |= node.op_type == "Loop"
            for attribute in node.attribute:
                self._attribute(attribute)

    def _attribute(self, attribute: onnx.AttributeProto) -> None:
        for tensor in (attribute.t, *attribute.tensors):
            self._tensor(tensor)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            self._tensor(sparse.values)
            self._tensor(sparse.indices)
        graphs = [attribute.g] if attribute.HasField("g") else []
        for graph in (*graphs, *attribute.graphs):
            self._graph(graph)

    def _tensor(self, tensor: onnx.TensorProto) -> None:
        is_external = tensor.data_location == tensor.EXTERNAL
        if any(extent < 0 for extent in tensor.dims):
            raise self._invalid("a negative extent", tensor.name)
        typed = [
            field.name
            for field, _ in tensor.ListFields()
            if field.name == "raw_data" or field.name.endswith("_data")
        ]
        wanted = {"external_data"} if is_external else set(typed[:1]) - {"external_data"}
        if set(typed) != wanted:
            raise self._invalid("values in more than one place, or in none", tensor.name)
        dtype = dtype_name(tensor.data_type)
        row = by_name("onnx", dtype)
        size = None if row is None else row.nbytes(tuple(tensor.dims))
        if is_external:
            self._external(tensor, size)
        elif typed == ["raw_data"] and size not in (None, len(tensor.raw_data)):
            reason = f"{len(tensor.raw_data)} bytes for {size}"
            raise self._invalid(reason, tensor.name)

    def _external(self, tensor: onnx.TensorProto, size: int | None) -> None:
        pairs = ((item.key, item.value) for item in tensor.external_data)
        place = place_of(pairs, self._place(tensor.name))
        if None not in (size, place.length) and place.length != size:
            raise self._invalid(f"{place.length} external bytes for {size}", tensor.name)
        self.external.add(place.name)
        if self.given is None:
            return
        if place.name not in self.given:
            reason = f"external data in {place.name!r}, which is not given"
            raise self._unsafe(reason, tensor.name)
        end = place.offset + (place.length if place.length is not None else size or 0)
        if end > self.given[place.name].nbytes:
            has = self.given[place.name].nbytes
            reason = f"external data ends at byte {end} of {place.name!r}, which has {has}"
            raise self._invalid(reason, tensor.name)

    def _invalid(self, reason: str, name: str = "") -> PersistlibError:
        return error(Code.GRAPH_INVALID, self._place(name), reason, _REMEDY)

    def _unsafe(self, reason: str, name: str = "") -> PersistlibError:
        return error(Code.GRAPH_UNSAFE, self._place(name), reason, _REMEDY)

    def _unknown(self, node: onnx.NodeProto) -> PersistlibError:
        opsets = {opset.domain: opset.version for opset in self.proto.opset_import}
        opset = opsets.get(node.domain, "not imported")
        reason = f"the operator {node.domain}:{node.op_type} (opset {opset}) is not known"
        remedy = (
            "export it with operators of ai.onnx alone; libraries of operators are never loaded"
        )
        return error(Code.GRAPH_UNSAFE, self._place(node.name), reason, remedy)

    def _place(self, name: str) -> str:
        return f"{self.location}: {name}" if name else str(self.location)


def _specs(values: Iterable[onnx.ValueInfoProto], location: object) -> tuple[TensorSpec, ...]:
    return tuple(_spec(value, location) for value in values)


def _spec(value: onnx.ValueInfoProto, location: object) -> TensorSpec:
    kind = value.type.tensor_type
    dtype = by_name("onnx", dtype_name(kind.elem_type))
    if not value.type.HasField("tensor_type") or dtype is None:
        where = f"{location}: {value.name}"
        held = value.type.WhichOneof("value") or "nothing"
        told = dtype_name(kind.elem_type) if held == "tensor_type" else held.removesuffix("_type")
        reason = f"{told.lower()} goes in or out there; persistlib runs tensors of numbers alone"
        raise error(Code.GRAPH_INVALID, where, reason, _NUMBERS)
    return TensorSpec(name=value.name, dtype=dtype.name, shape=tuple(_extents(value)))


def _extents(value: onnx.ValueInfoProto) -> Iterator[int | str]:
    for axis, extent in enumerate(value.type.tensor_type.shape.dim):
        if extent.HasField("dim_value") and extent.dim_value >= 0:
            yield extent.dim_value
        else:
            yield extent.dim_param or f"{value.name}_{axis}"
