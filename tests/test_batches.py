"""Many samples, tensors of torch, and time: what a session does around one run."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from graph_assembly import model, of, value, weight
from persistlib.errors import Code
from persistlib.manifest.schema import Interface
from persistlib.runtime import torch_tensors
from persistlib.runtime.session import Session, open_session, seconds_of
from persistlib.runtime.watch import deadline
from refusing import refused

if TYPE_CHECKING:
    from collections.abc import Sequence

OPSETS = [helper.make_opsetid("", 17)]


def graph(nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> Session:
    made = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), [weight()])
    return open_session(of(helper.make_model(made, opset_imports=OPSETS, ir_version=8)))


def adding(rows: int | str = "n") -> Session:
    node = helper.make_node("Add", ["x", "w"], ["y"])
    return graph([node], [value("x", shape=(rows, 2))], [value("y", shape=(rows, 2))])


FREE, FIXED = adding(), adding(4)


@given(st.integers(0, 70), st.integers(1, 40))
@settings(max_examples=60)
def test_the_joined_outputs_of_pieces_are_those_of_the_whole(count: int, size: int) -> None:
    samples = np.arange(count * 2, dtype=np.float32).reshape(count, 2)
    found = FREE.run_batched(samples, batch_size=size)["y"]
    assert np.array_equal(found, samples + 1)
    parts = list(FREE.batches({"x": samples}, batch_size=size))
    assert [len(part["y"]) for part in parts] == [
        min(size, count - start) for start in range(0, max(count, 1), size)
    ]


@given(st.integers(1, 15))
def test_a_graph_of_a_fixed_number_is_filled_up_and_nothing_of_that_is_seen(count: int) -> None:
    samples = np.arange(count * 2, dtype=np.float32).reshape(count, 2)
    assert np.array_equal(FIXED.run_batched([samples])["y"], samples + 1)


def test_a_fixed_number_cannot_be_chosen_nor_be_filled_up_from_nothing() -> None:
    samples = np.zeros((5, 2), np.float32)
    refused(Code.USAGE, lambda: FIXED.run_batched(samples, batch_size=3))
    refused(Code.SESSION_INPUT, lambda: FIXED.run_batched(samples[:0]))
    assert len(FIXED.run_batched(samples, batch_size=4)["y"]) == 5
    for size in (0, -1, 1.5, True):
        refused(Code.USAGE, lambda size=size: FREE.run_batched(samples, batch_size=size))  # type: ignore[misc]


def test_inputs_without_samples_go_into_every_piece() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["s"]),
        helper.make_node("Add", ["s", "other"], ["y"]),
    ]
    session = graph(
        nodes,
        [value("scale", shape=()), value("x"), value("other", shape=("n", 2))],
        [value("y")],
    )
    x = np.random.default_rng(0).normal(size=(11, 2)).astype(np.float32)
    inputs = {"scale": np.array(3, np.float32), "x": x, "other": -x}
    assert np.allclose(session.run_batched(inputs, batch_size=4)["y"], 2 * x, atol=1e-6)
    inputs["other"] = x[:5]
    refused(Code.SESSION_INPUT, lambda: session.run_batched(inputs, batch_size=4))


def test_an_axis_of_another_name_is_no_axis_of_samples() -> None:
    node = helper.make_node("MatMul", ["x", "table"], ["y"])
    inputs = [value("x", shape=("n", 2)), value("table", shape=("m", 3))]
    session = graph([node], inputs, [value("y", shape=("n", 3))])
    x, table = np.ones((2, 2), np.float32), np.ones((2, 3), np.float32)
    assert session.run_batched([x, table], batch_size=1)["y"].tolist() == [[2] * 3] * 2


def test_an_output_without_a_row_for_each_sample_is_refused() -> None:
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=0)
    session = graph([node], [value("x")], [value("y", shape=(2,))])
    x = np.ones((4, 2), np.float32)
    assert session.run(x)["y"].tolist() == [1, 1]
    fault = refused(Code.SESSION_INPUT, lambda: session.run_batched(x, batch_size=2))
    assert fault.location == "y"


def test_a_graph_that_tells_no_shapes_takes_what_its_operators_take() -> None:
    node = helper.make_node("Add", ["x", "w"], ["y"])
    unsaid = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    session = graph([node], unsaid[:1], unsaid[1:])
    x = np.arange(14, dtype=np.float32).reshape(7, 2)
    assert np.array_equal(session.run(x)["y"], x + 1)
    assert np.array_equal(session.run(x[0])["y"], x[0] + 1)
    half = graph([node], [value("x", shape=("n", 2))], unsaid[1:])
    assert np.array_equal(half.run_batched(x, batch_size=3)["y"], x + 1)
    mean = helper.make_node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=0)
    whole = graph([mean], [value("x", shape=("n", 2))], unsaid[1:])
    refused(Code.SESSION_INPUT, lambda: whole.run_batched(x, batch_size=3))


def test_an_array_of_another_byte_order_is_the_same_array() -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert np.array_equal(FREE.run(x.astype(">f4"))["y"], x + 1)
    assert np.array_equal(FREE.run_batched(x.astype(">f4"), batch_size=2)["y"], x + 1)


def test_what_is_masked_has_no_value_and_is_not_taken_for_one() -> None:
    x = np.ma.masked_array(np.ones((2, 2), np.float32), [[False, True], [False, False]])
    fault = refused(Code.SESSION_INPUT, lambda: FREE.run(x))
    assert fault.reason == "a masked array, of which some entries have no value"
    assert FREE.run(x.filled(0))["y"].tolist() == [[2, 1], [2, 2]]
    assert FREE.run(np.ma.masked_array(x.data))["y"].tolist() == [[2, 2], [2, 2]]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (helper.make_tensor_type_proto(TensorProto.STRING, ["n"]), "string goes in or out"),
        (
            helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [])),
            "sequence goes in or out",
        ),
    ],
)
def test_what_is_no_tensor_of_numbers_is_called_by_its_kind(kind: Any, words: str) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    values = [helper.make_value_info(name, kind) for name in "xy"]
    fault = refused(Code.GRAPH_INVALID, lambda: graph([node], values[:1], values[1:]))
    assert words in fault.reason
    assert "zipmap=False" in fault.remedy


def test_a_graph_without_an_axis_has_no_samples() -> None:
    node = helper.make_node("Neg", ["x"], ["y"])
    session = graph([node], [value("x", shape=())], [value("y", shape=())])
    refused(Code.SESSION_INPUT, lambda: session.run_batched(np.array(1, np.float32)))


def test_pieces_are_cut_as_they_are_needed() -> None:
    samples = np.zeros((100, 2), np.float32)
    first = next(FREE.batches(samples, batch_size=10))
    assert first["y"].shape == (10, 2)


def test_images_of_a_graph_that_takes_three_at_once_are_filled_up() -> None:
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    made = helper.make_graph(
        [node], "g", [value("x", shape=(3, 3, 2, 2))], [value("y", shape=(3, 3))], [axes]
    )
    data = of(helper.make_model(made, opset_imports=OPSETS, ir_version=8))
    session = open_session(data, interface=Interface(preprocessing={"resize": 2}))
    images = [np.full((4, 4, 3), (i, 9 - i, 0), np.uint8) for i in range(8)]
    assert [p.index for p in session.predict(images)] == [1, 1, 1, 1, 1, 0, 0, 0]
    assert session.predict([]) == []
    assert session.warm_up() > 0


# warm-up


def test_warming_up_runs_on_zeros_or_on_what_is_given() -> None:
    assert FREE.warm_up() > 0
    assert FIXED.warm_up(runs=2) > 0
    assert FREE.warm_up(np.ones((7, 2), np.float32)) > 0
    refused(Code.SESSION_INPUT, lambda: FREE.warm_up(np.ones((7, 3), np.float32)))


# torch


@pytest.mark.parametrize(
    ("number", "dtype"),
    [
        (TensorProto.FLOAT, torch.float32),
        (TensorProto.DOUBLE, torch.float64),
        (TensorProto.FLOAT16, torch.float16),
        (TensorProto.BFLOAT16, torch.bfloat16),
        (TensorProto.FLOAT8E4M3FN, torch.float8_e4m3fn),
        (TensorProto.INT64, torch.int64),
        (TensorProto.UINT8, torch.uint8),
        (TensorProto.BOOL, torch.bool),
    ],
)
def test_tensors_of_torch_go_in_and_come_out(number: int, dtype: torch.dtype) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    session = open_session(of(model([node], dtype=number, opset=19, ir_version=9)))
    given = torch.tensor([[1.5, 0], [2, 3]]).to(dtype).t()  # not dense
    found = session.run(given, tensors="torch")["y"]
    assert found.dtype == dtype
    assert torch.equal(found.view(torch.uint8), given.contiguous().view(torch.uint8))
    assert session.run({"x": given})["y"].dtype == session.run(found)["y"].dtype


def test_a_tensor_that_trains_is_read_and_left_as_it_is() -> None:
    given = torch.ones(1, 2, requires_grad=True)
    assert FREE.run(given, tensors="torch")["y"].tolist() == [[2, 2]]
    assert given.requires_grad


def test_an_array_gives_tensors_and_a_tensor_arrays() -> None:
    row = np.ones((1, 2), np.float32)
    assert isinstance(FREE.run(row, tensors="torch")["y"], torch.Tensor)
    assert isinstance(FREE.run(torch.from_numpy(row))["y"], np.ndarray)
    assert FREE.run_batched(torch.ones(9, 2), batch_size=4)["y"].shape == (9, 2)


def test_a_tensor_of_another_dtype_is_told_how_to_change() -> None:
    fault = refused(Code.SESSION_INPUT, lambda: FREE.run(torch.ones(1, 2, dtype=torch.bfloat16)))
    assert "given bfloat16" in fault.reason
    assert ".to(torch.float32)" in fault.remedy
    sparse = torch.eye(2).to_sparse()
    refused(Code.SESSION_INPUT, lambda: FREE.run(sparse))
    refused(Code.USAGE, lambda: FREE.run(torch.ones(1, 2), tensors="jax"))  # type: ignore[call-overload]


def test_no_memory_is_copied_on_the_way_to_and_from_torch() -> None:
    tensor = torch.ones(3, 4)
    array = torch_tensors.to_array(tensor)
    assert array.ctypes.data == tensor.data_ptr()
    assert torch_tensors.to_tensor(array).data_ptr() == tensor.data_ptr()
    half = torch.ones(3, dtype=torch.bfloat16)
    bits = torch_tensors.to_array(half)
    assert (bits.dtype, bits.ctypes.data) == (ml_dtypes.bfloat16, half.data_ptr())


def test_tensors_that_stay_on_a_device_are_bound_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # There is no device here: the processor's memory takes its place on the very same way.
    monkeypatch.setattr(torch_tensors, "is_on_device", torch_tensors.is_tensor)
    given = torch.tensor([[1.0, 2.0]])
    found = FREE.run(given, tensors="torch")["y"]
    assert found.tolist() == [[2, 3]]
    assert FREE.run(given)["y"].tolist() == [[2, 3]]
    refused(Code.SESSION_INPUT, lambda: FREE.run(given.double()))
    refused(Code.SESSION_INPUT, lambda: FREE.run(given[0]))


def test_a_tensor_on_a_device_that_the_session_lacks_is_fetched() -> None:
    fault = refused(Code.SESSION_INPUT, lambda: FREE.run(torch.ones(1, 2, device="meta")))
    assert fault.location == "x"


# time


def test_what_is_done_in_time_is_never_told_to_stop() -> None:
    told: list[int] = []
    for _ in range(200):
        with deadline(0.05, lambda: told.append(1)) as watched:
            pass
        assert not watched.is_over
    time.sleep(0.1)
    assert not told


def test_each_of_many_is_told_when_its_own_time_is_over() -> None:
    def work(index: int) -> None:
        over = threading.Event()
        begin = time.monotonic()
        with deadline(0.02 * (index + 1), over.set):
            assert over.wait(30)
        spans[index] = time.monotonic() - begin

    spans: dict[int, float] = {}
    threads = [threading.Thread(target=work, args=(index,)) for index in reversed(range(8))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(spans[index] >= 0.02 * (index + 1) for index in range(8))


def test_no_time_is_no_limit() -> None:
    with deadline(None, lambda: pytest.fail("was told to stop")) as watched:
        pass
    assert not watched.is_over


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_forked_child_watches_by_itself() -> None:
    with deadline(60, lambda: None):
        child = os.fork()
        if child == 0:
            over = threading.Event()
            with deadline(0.01, over.set):
                os._exit(0 if over.wait(30) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "1", True])
def test_a_timeout_is_a_length_of_time(timeout: Any) -> None:
    refused(Code.USAGE, lambda: seconds_of(timeout))
    refused(Code.USAGE, lambda: FREE.run(np.ones((1, 2), np.float32), timeout=timeout))


def test_infinity_is_no_limit_and_a_run_after_an_end_is_whole() -> None:
    assert seconds_of(float("inf")) is seconds_of(None) is None
    row = np.ones((1, 2), np.float32)
    assert FREE.run(row, timeout=60)["y"].tolist() == [[2, 2]]
    assert FREE.run(row, timeout=float("inf"))["y"].tolist() == [[2, 2]]


# operators that cannot be computed


@pytest.mark.parametrize("inner", [False, True])
def test_an_operator_without_a_kernel_is_named_with_its_dtype(inner: bool) -> None:
    node = helper.make_node("MatMul", ["x", "x"], ["y"], "the_product")
    proto = model([node], dtype=TensorProto.BFLOAT16)
    fault = refused(Code.OPERATOR_UNSUPPORTED, lambda: open_session(of(proto)))
    assert fault.location == "the_product"
    assert "cpu has no kernel for ai.onnx:MatMul of BF16 (opset 17, since 13)" in fault.reason
    assert "--dtype" in fault.remedy
    if inner:
        proto.opset_import[0].version = 18
        assert (
            "opset 18" in refused(Code.OPERATOR_UNSUPPORTED, lambda: open_session(of(proto))).reason
        )


def test_an_operator_that_its_opset_lacks_is_named_with_what_to_do() -> None:
    node = helper.make_node("Gelu", ["x"], ["y"], "the_gelu")
    fault = refused(Code.OPERATOR_UNSUPPORTED, lambda: open_session(of(model([node]))))
    assert "no operator Gelu in ai.onnx opset 17" in fault.reason
    assert "--opset" in fault.remedy
    open_session(of(model([node], opset=20, ir_version=9)))


def test_an_operator_of_the_runtime_that_it_does_not_have_is_named() -> None:
    node = helper.make_node("NoSuchThing", ["x"], ["y"], domain="com.microsoft")
    fault = refused(Code.OPERATOR_UNSUPPORTED, lambda: open_session(of(model([node]))))
    assert "no operator NoSuchThing in com.microsoft opset 1" in fault.reason
