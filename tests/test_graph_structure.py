"""What a graph may be: every attack of the threat page refused, quickly, with its own code."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import onnx
import pytest
from onnx import TensorProto, helper

from graph_assembly import branches, field, function, model, of, outside, value, varint, weight
from persistlib.errors import Code, FormatError
from persistlib.runtime.structure import check_graph
from persistlib.wire import DEPTH_LIMIT, FIELDS_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 10.0  # of a machine that others use as well; alone the slowest takes less than two


def refused(data: bytes, code: Code, external: dict[str, memoryview] | None = None) -> FormatError:
    start = time.perf_counter()
    with pytest.raises(FormatError) as caught:
        check_graph(data, external=external)
    assert time.perf_counter() - start < SECONDS
    assert caught.value.code == code.identifier
    assert caught.value.remedy
    return caught.value


def test_a_graph_says_its_versions_its_inputs_and_outputs_and_its_files() -> None:
    proto = model(tensors=[outside("w.data", offset="8", length="8")])
    facts = check_graph(of(proto), external={"w.data": memoryview(bytes(16))})
    assert (facts.ir_version, facts.opsets[""]) == (8, 17)
    assert [(s.name, s.dtype, s.shape) for s in facts.inputs] == [("x", "F32", ("n", 2))]
    assert [(s.name, s.dtype, s.shape) for s in facts.outputs] == [("y", "F32", ("n", 2))]
    assert facts.external == ("w.data",)


def test_an_initializer_that_is_an_input_as_well_is_no_input_to_give() -> None:
    proto = model()
    proto.graph.input.append(value("w", shape=(2,)))
    assert [spec.name for spec in check_graph(of(proto)).inputs] == ["x"]


def test_an_extent_without_a_name_gets_one() -> None:
    proto = model()
    proto.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    assert check_graph(of(proto)).inputs[0].shape == ("x_0", 2)


def test_functions_of_the_model_and_operators_of_the_runtime_are_allowed() -> None:
    nodes = [
        helper.make_node("outer", ["x"], ["h"], domain="own"),
        helper.make_node("Gelu", ["h"], ["y"], domain="com.microsoft"),
    ]
    functions = [function("outer", ["inner", "inner"]), function("inner", ["Identity"])]
    assert check_graph(of(model(nodes, functions=functions))).opsets["own"] == 1


@pytest.mark.parametrize(
    "location",
    [
        "../x", "/etc/passwd", "a/b", "a\\b", "C:x", "", ".", "..", ".hidden", "con", "nul.bin",
        "x ", "x.", "a\nb", "*/_ORT_MEM_ADDR_/*", "_ORT_MEM_ADDR_*", "x" * 256, "e\u0301",
        "*/_ORT_NATIVE_ENDIAN_MEM_ADDR_/*", "\u202ex",
    ],
)  # fmt: skip
def test_external_data_lies_in_one_plain_file_name(location: str) -> None:
    refused(of(model(tensors=[outside(location)])), Code.GRAPH_UNSAFE)


def test_external_data_lies_in_a_file_that_was_given() -> None:
    proto = model(tensors=[outside("model.onnx")])
    refused(of(proto), Code.GRAPH_UNSAFE, {"w.data": memoryview(bytes(8))})


@pytest.mark.parametrize(
    ("places", "code"),
    [
        ({"offset": "-8"}, Code.GRAPH_UNSAFE),
        ({"offset": "0x10"}, Code.GRAPH_UNSAFE),
        ({"offset": " 1"}, Code.GRAPH_UNSAFE),
        ({"offset": "\u0661"}, Code.GRAPH_UNSAFE),
        ({"offset": "9" * 5000}, Code.GRAPH_UNSAFE),
        ({"length": ""}, Code.GRAPH_UNSAFE),
        ({"basepath": "/"}, Code.GRAPH_UNSAFE),
        ({"__class__": "x"}, Code.GRAPH_UNSAFE),
        ({"offset": "9", "length": "8"}, Code.GRAPH_INVALID),
        ({"offset": "9"}, Code.GRAPH_INVALID),
        ({"offset": str(2**63 - 1)}, Code.GRAPH_INVALID),
        ({"length": "4"}, Code.GRAPH_INVALID),
        ({"length": "16"}, Code.GRAPH_INVALID),
    ],
)
def test_external_data_lies_inside_its_file(places: dict[str, str], code: Code) -> None:
    tensor = outside("w.data", **places)
    refused(of(model(tensors=[tensor])), code, {"w.data": memoryview(bytes(16))})


def test_a_place_is_said_once() -> None:
    tensor = outside("w.data")
    tensor.external_data.add(key="location", value="other.data")
    refused(of(model(tensors=[tensor])), Code.GRAPH_UNSAFE)


def in_sparse(tensor: TensorProto) -> onnx.ModelProto:
    proto = model()
    sparse = proto.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(tensor)
    sparse.values.name = "s"
    return proto


def in_attribute(tensor: TensorProto) -> onnx.ModelProto:
    return model([helper.make_node("Constant", [], ["y"], value=tensor)])


def in_tensors(tensor: TensorProto) -> onnx.ModelProto:
    proto = model()
    attribute = proto.graph.node[0].attribute.add(name="many", type=onnx.AttributeProto.TENSORS)
    attribute.tensors.add().CopyFrom(tensor)
    return proto


def in_branch(tensor: TensorProto) -> onnx.ModelProto:
    proto = model()
    inner = onnx.GraphProto(name="i", initializer=[tensor])
    proto.graph.node.extend(branches(inner, 3).node)
    return proto


def in_function(tensor: TensorProto) -> onnx.ModelProto:
    return model(functions=[function("f", ["Identity"], attribute=tensor)])


def in_default(tensor: TensorProto) -> onnx.ModelProto:
    body = function("f", ["Identity"])
    body.attribute_proto.append(helper.make_attribute("t", tensor))
    return model(functions=[body])


@pytest.mark.parametrize(
    "place", [in_sparse, in_attribute, in_tensors, in_branch, in_function, in_default]
)
def test_no_place_for_a_tensor_is_overlooked(
    place: Callable[[TensorProto], onnx.ModelProto],
) -> None:
    refused(of(place(outside("../x"))), Code.GRAPH_UNSAFE)


@pytest.mark.parametrize(
    ("operator", "domain"),
    [
        ("EPContext", "com.microsoft"),
        ("PyOp", "pyopmulti_1"),
        ("PyOp", ""),
        ("Relu", "com.example"),
        ("f", "own"),
    ],
)
def test_no_operator_runs_foreign_code(operator: str, domain: str) -> None:
    node = helper.make_node(operator, ["x"], ["y"], domain=domain)
    refused(of(model([node])), Code.GRAPH_UNSAFE)
    inner = onnx.GraphProto(name="i", node=[node])
    refused(of(model(branches(inner, 1).node)), Code.GRAPH_UNSAFE)


@pytest.mark.parametrize("domain", ["", "ai.onnx", "ai.onnx.ml"])
def test_no_function_takes_the_place_of_a_standard_operator(domain: str) -> None:
    refused(of(model(functions=[function("Add", ["Identity"], domain)])), Code.GRAPH_UNSAFE)


def test_functions_that_double_at_each_call_are_counted_and_not_expanded() -> None:
    doubling = [function(f"f{i}", [f"f{i + 1}"] * 2) for i in range(30)]
    functions = [*doubling, function("f30", ["Identity"])]
    node = helper.make_node("f0", ["x"], ["y"], domain="own")
    data = of(model([node], functions=functions))
    assert len(data) < 4096
    refused(data, Code.FORMAT_LIMIT)
    refused(of(model(functions=functions)), Code.FORMAT_LIMIT)


@pytest.mark.parametrize("length", [1, 2, 40])
def test_no_function_calls_itself(length: int) -> None:
    ring = [function(f"f{i}", [f"f{(i + 1) % length}"]) for i in range(length)]
    assert "calls itself" in refused(of(model(functions=ring)), Code.FORMAT_LIMIT).reason


def test_calls_do_not_stand_too_deep_inside_each_other() -> None:
    chain = [function(f"f{i}", [f"f{i + 1}"]) for i in range(2000)]
    functions = [*chain, function("f2000", ["Identity"])]
    assert "deeper" in refused(of(model(functions=functions)), Code.FORMAT_LIMIT).reason


def test_calls_inside_branches_are_counted() -> None:
    call = helper.make_node("f0", ["x"], ["z"], domain="own")
    inner = branches(onnx.GraphProto(name="i", node=[call]), 2)
    first = function("f0", ["Identity"])
    first.node.extend(inner.node)
    refused(of(model(functions=[first])), Code.FORMAT_LIMIT)


def around(graph: bytes) -> bytes:
    """Return a model's bytes around a graph's."""
    return b"\x08\x08" + field(8, b"\x10\x11") + field(7, graph)


def test_millions_of_empty_nodes_are_refused_before_they_are_built() -> None:
    refused(around(b"\x0a\x00" * (5 * FIELDS_LIMIT)), Code.FORMAT_LIMIT)


@pytest.mark.parametrize("depth", [DEPTH_LIMIT, 5000])
def test_graphs_do_not_stand_too_deep_inside_each_other(depth: int) -> None:
    content = b""
    for _ in range(depth):  # a graph holds a node, it an attribute, that a graph
        content = field(1, field(5, field(6, content)))
    refused(around(content), Code.FORMAT_LIMIT)


def test_types_do_not_stand_too_deep_inside_each_other() -> None:
    content = b""
    for _ in range(3000):
        content = field(4, field(1, content))
    refused(around(field(11, field(2, content))), Code.FORMAT_LIMIT)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"garbage", b"\xff" * 100, b"\x08", b"\x08\x08", b"\x3a\xff\xff\xff\xff\x0f",
        b"\x0b\x0c", b"\x07", of(model())[:-1], of(model()) * 2, of(model()) + field(7, b""),
        of(model()) + field(99, b"x"), b"\x08\x08\x08\x09", b"\x38\x01", b"\0" * 100,
        varint(7 << 3 | 2) + b"\xff" * 9 + b"\x01", b"\x80" * 40, b"\x12\x02\xff\xff",
    ],
)  # fmt: skip
def test_what_is_no_model_or_says_a_thing_twice_is_refused(data: bytes) -> None:
    refused(data, Code.GRAPH_INVALID)


def twice_initialised(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(weight())


def twice_sparse(proto: onnx.ModelProto) -> None:
    proto.graph.sparse_initializer.add(dims=[2]).values.CopyFrom(weight())


def twice_made(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(proto.graph.node[0])


def made_over_an_input(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].output[0] = "x"


def input_twice(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(proto.graph.input[0])


def values_twice(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].float_data.extend([1.0, 2.0])


def values_here_and_elsewhere(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].external_data.add(key="location", value="w.data")


def too_few_bytes(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].raw_data = b"\0"


def negative_extent(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].dims[0] = -2


def no_version(proto: onnx.ModelProto) -> None:
    proto.ir_version = 0


def no_opset(proto: onnx.ModelProto) -> None:
    del proto.opset_import[:]


def opset_twice(proto: onnx.ModelProto) -> None:
    proto.opset_import.add(domain="ai.onnx", version=18)


def training_graph(proto: onnx.ModelProto) -> None:
    proto.training_info.add().algorithm.name = "a"


def function_twice(proto: onnx.ModelProto) -> None:
    proto.functions.extend([function("f", ["Identity"])] * 2)


def no_tensor(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].type.sequence_type.elem_type.tensor_type.elem_type = 1


def no_dtype(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.elem_type = 12345


@pytest.mark.parametrize(
    "change",
    [
        twice_initialised, twice_sparse, twice_made, made_over_an_input, input_twice, values_twice,
        values_here_and_elsewhere, too_few_bytes, negative_extent, no_version, no_opset,
        opset_twice, training_graph, function_twice, no_tensor, no_dtype,
    ],
)  # fmt: skip
def test_what_two_readers_could_read_differently_is_refused(
    change: Callable[[onnx.ModelProto], None],
) -> None:
    proto = model()
    change(proto)
    refused(of(proto), Code.GRAPH_INVALID)


@pytest.mark.parametrize("keys", [["ort_config"], ["a", "a"]])
def test_metadata_sets_nothing_and_says_nothing_twice(keys: list[str]) -> None:
    proto = model()
    for key in keys:
        proto.metadata_props.add(key=key, value="{}")
    refused(of(proto), Code.GRAPH_UNSAFE)
