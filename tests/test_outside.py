"""What a graph keeps in other files reaches the runtime whole, of any size, dtype and place."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graph_assembly import function, model, of, value
from persistlib.errors import Code
from persistlib.runtime import outside
from persistlib.runtime.session import open_session
from refusing import refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

LONG = 10_000  # elements: more than a tensor has that goes into the graph itself
ROW = np.ones((1, LONG), np.float32)
DATA = "w.data"
RELEASES = [outside.TAKES_FILES, "what an older release does not have"]


class Beside:
    """A file beside a graph, filled tensor by tensor."""

    def __init__(self, before: int = 0) -> None:
        self.content = bytearray(before)

    def tensor(self, name: str, array: NDArray[Any], dtype: int | None = None) -> onnx.TensorProto:
        """Return a tensor that lies in the file; of `dtype` where the array holds packed bytes."""
        kind = helper.np_dtype_to_tensor_dtype(array.dtype) if dtype is None else dtype
        extents = array.shape if dtype is None else (2 * array.size,)
        made = TensorProto(name=name, dims=extents, data_type=kind)
        made.data_location = TensorProto.EXTERNAL
        places = {"location": DATA, "offset": len(self.content), "length": array.nbytes}
        for key, place in places.items():
            made.external_data.add(key=key, value=str(place))
        self.content += array.tobytes()
        return made

    @property
    def external(self) -> dict[str, memoryview]:
        return {DATA: memoryview(self.content)}


def wide(
    nodes: Sequence[onnx.NodeProto],
    tensors: Sequence[onnx.TensorProto],
    functions: Sequence[onnx.FunctionProto] = (),
) -> bytes:
    """Return a graph from x (n, LONG) to y, of two axes."""
    proto = model(nodes, tensors, opset=21, ir_version=10, functions=functions)
    proto.graph.input[0].CopyFrom(value("x", shape=("n", LONG)))
    proto.graph.output[0].CopyFrom(value("y", shape=("n", "m")))
    return of(proto)


def numbers(*extents: int) -> NDArray[np.float32]:
    return np.random.default_rng(5).standard_normal(prod(extents), np.float32).reshape(extents)


@pytest.mark.parametrize(
    "dtype",
    [
        *(np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2),
        *(np.int64, np.int32, np.int8, np.uint8, np.bool_),
    ],
)
@pytest.mark.parametrize("before", [0, 1])
def test_a_weight_of_any_dtype_and_place_is_handed_over_by_name(dtype: Any, before: int) -> None:
    beside = Beside(before)
    weight = (np.arange(LONG) % 16).astype(dtype)
    nodes = [
        helper.make_node("Cast", ["w"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    data = wide(nodes, [beside.tensor("w", weight)])
    given = outside.handed(data, beside.external)
    assert set(given.values) == {"w"}
    assert not given.files
    found = open_session(data, external=beside.external).run(ROW)["y"]
    assert np.array_equal(found, ROW + weight.astype(np.float32))


@pytest.mark.parametrize("release", RELEASES)
def test_what_is_no_value_by_name_is_handed_over_all_the_same(
    release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outside, "TAKES_FILES", release)
    beside = Beside()
    inner, constant, own, fine = (numbers(LONG) * scale for scale in range(1, 5))
    packed = beside.tensor("p", np.full(LONG // 2, 0x21, np.uint8), TensorProto.UINT4)
    branch = helper.make_graph(
        [helper.make_node("Add", ["f", "inner"], ["b"])],
        "branch",
        [],
        [value("b", shape=("n", LONG))],
        [beside.tensor("inner", inner)],
    )
    nodes = [
        helper.make_node("own", ["x"], ["o"], domain="own"),
        helper.make_node("Add", ["o", "fine"], ["f"]),
        helper.make_node("If", ["yes"], ["i"], then_branch=branch, else_branch=branch),
        helper.make_node("Constant", [], ["c"], value=beside.tensor("c", constant)),
        helper.make_node("DequantizeLinear", ["p", "one"], ["q"]),
        helper.make_node("Sum", ["i", "c", "q"], ["y"]),
    ]
    tensors = [
        packed,
        beside.tensor("fine", fine),
        helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
        helper.make_tensor("one", TensorProto.FLOAT, [], [1]),
    ]
    body = function("own", ["Identity"], attribute=beside.tensor("v", own))
    body.node.append(helper.make_node("Add", ["v0", "c"], ["sum"]))
    body.output[0] = "sum"
    data = wide(nodes, tensors, [body])
    given = outside.handed(data, beside.external)
    assert set(given.values) == {"fine"}
    assert set(given.files) == ({DATA} if release == RELEASES[0] else set())
    found = open_session(data, external=beside.external).run(ROW)["y"]
    expected = ROW + own + fine + inner + constant + np.tile([1, 2], LONG // 2)
    assert np.allclose(found, expected, atol=1e-5)


def test_a_graph_that_cannot_hold_what_it_must_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    beside = Beside()
    nodes = [
        helper.make_node("Constant", [], ["c"], value=beside.tensor("c", numbers(LONG))),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    data = wide(nodes, [])
    monkeypatch.setattr(outside, "_LARGEST", 4 * LONG)
    refused(Code.SESSION_FAILED, lambda: open_session(data, external=beside.external))


def test_a_second_name_that_nothing_reads_is_let_go() -> None:
    beside = Beside()
    first = beside.tensor("first", numbers(LONG))
    second, third = (onnx.TensorProto.FromString(first.SerializeToString()) for _ in range(2))
    second.name, third.name = "second", "third"
    branch = helper.make_graph(
        [helper.make_node("Add", ["a", "third"], ["b"])],
        "branch",
        [],
        [value("b", shape=("n", LONG))],
    )
    nodes = [
        helper.make_node("Add", ["x", "first"], ["a"]),
        helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch),
    ]
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    data = wide(nodes, [first, second, third, yes])
    assert set(outside.handed(data, beside.external).values) == {"first", "third"}
    found = open_session(data, external=beside.external).run(ROW)["y"]
    assert np.array_equal(found, ROW + numbers(LONG) + numbers(LONG))


def test_a_weight_may_be_an_input_and_an_output_too() -> None:
    beside = Beside()
    proto = onnx.ModelProto.FromString(wide([], [beside.tensor("w", numbers(LONG))]))
    proto.graph.input.append(value("w", shape=(LONG,)))
    proto.graph.output.append(value("w", shape=(LONG,)))
    session = open_session(of(proto), external=beside.external)
    assert [spec.name for spec in session.inputs] == ["x"]
    found = session.run(ROW)
    assert np.array_equal(found["w"], numbers(LONG))
    assert np.array_equal(found["y"], ROW + numbers(LONG))


@pytest.mark.parametrize(
    ("operator", "extents"), [("MatMul", (LONG, 64)), ("Gather", (LONG,)), ("Conv", (60, 1, 30))]
)
def test_an_open_session_reads_no_memory_that_it_was_handed(
    operator: str, extents: tuple[int, ...]
) -> None:
    beside = Beside()
    nodes = {
        "MatMul": [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "Gather": [
            helper.make_node("CumSum", ["x", "one"], ["places"]),
            helper.make_node("Cast", ["places"], ["index"], to=TensorProto.INT64),
            helper.make_node("Gather", ["w", "index"], ["y"]),
        ],
        "Conv": [
            helper.make_node("Unsqueeze", ["x", "one"], ["u"]),
            helper.make_node("Conv", ["u", "w"], ["v"]),
            helper.make_node("Flatten", ["v"], ["y"]),
        ],
    }
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    data = wide(nodes[operator], [beside.tensor("w", numbers(*extents)), one])
    assert set(outside.handed(data, beside.external).values) == {"w"}
    given = ROW.copy()
    given[0, 0] = -1
    session = open_session(data, external=beside.external)
    before = session.run(given)["y"]
    beside.content[:] = bytes(len(beside.content))
    assert np.array_equal(session.run(given)["y"], before)
    assert np.ptp(before) > 1
