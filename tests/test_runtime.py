"""Sessions: what is checked before a run, which provider computes, and that torch is not needed."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from graph_assembly import model, of, outside, value, weight
from persistlib.errors import Code, SessionError
from persistlib.manifest.schema import Interface
from persistlib.runtime import session as session_module
from persistlib.runtime.predictions import ranked
from persistlib.runtime.providers import CPU, Provider
from persistlib.runtime.session import Session, open_session
from refusing import refused

if TYPE_CHECKING:
    from pathlib import Path

ROW = np.array([[1, 2]], np.float32)


@pytest.fixture(scope="module")
def opened() -> Session:
    return open_session(of(model()))


def pair() -> bytes:
    """Return a graph of two inputs of one batch, and a whole number for which column to take."""
    nodes = [
        helper.make_node("Add", ["a", "b"], ["s"]),
        helper.make_node("Gather", ["s", "column"], ["picked"], axis=1),
    ]
    inputs = [value("a"), value("b"), value("column", TensorProto.INT64, ())]
    outputs = [value("s"), value("picked", shape=("n",))]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_the_same_arrays_by_name_in_order_or_alone_give_the_same(opened: Session) -> None:
    results = [opened.run(given)["y"] for given in ({"x": ROW}, [ROW], (ROW,), ROW)]
    assert all(np.array_equal(result, ROW + 1) for result in results)


def test_an_array_need_not_be_dense(opened: Session) -> None:
    wide = np.arange(12, dtype=np.float32).reshape(3, 4)[::2, ::2]
    assert np.array_equal(opened.run(wide)["y"], wide + 1)


@pytest.mark.parametrize(
    ("given", "name", "said"),
    [
        ({"X": ROW}, "X", "no input"),
        ({}, "x", "missing"),
        ([ROW, ROW], "inputs", "2 given"),
        (ROW.astype(np.float64), "x", "given float64"),
        (ROW[0], "x", r"expected shape (n, 2), given (2,)"),
        (np.zeros((1, 3), np.float32), "x", "given (1, 3)"),
        ("text", "x", "float32"),
        (None, "x", "given object"),
        ({"x": [[1, 2], [3]]}, "x", "no array"),
    ],
)
def test_an_input_of_the_wrong_name_dtype_or_shape_is_named(
    opened: Session, given: Any, name: str, said: str
) -> None:
    fault = refused(Code.SESSION_INPUT, lambda: opened.run(given))
    assert fault.location == name
    assert said in fault.reason


def test_inputs_of_one_batch_have_one_extent() -> None:
    session = open_session(pair())
    column = np.array(1, np.int64)
    assert session.run([ROW, ROW, column])["picked"].tolist() == [4]
    fault = refused(
        Code.SESSION_INPUT, lambda: session.run([ROW, np.zeros((2, 2), np.float32), column])
    )
    assert (fault.location, fault.reason) == ("b", "n is 2, but 1 in a")


def test_a_constant_of_a_size_that_no_machine_has_is_our_error() -> None:
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [1 << 40, 1 << 10])
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["huge"]),
        helper.make_node("Add", ["x", "huge"], ["y"]),
    ]
    with pytest.raises(SessionError):
        open_session(of(model(nodes, [shape]))).run(ROW)


def test_what_fails_while_running_is_our_error() -> None:
    session = open_session(pair())
    refused(Code.RUN_FAILED, lambda: session.run([ROW, ROW, np.array(7, np.int64)]))


@pytest.mark.parametrize(
    ("dtype", "array"),
    [
        (TensorProto.BFLOAT16, np.array([[1, 2.5]], ml_dtypes.bfloat16)),
        (TensorProto.FLOAT16, np.array([[1, 2.5]], np.float16)),
        (TensorProto.FLOAT8E4M3FN, np.array([[1, 2.5]], ml_dtypes.float8_e4m3fn)),
        (TensorProto.BOOL, np.array([[True, False]])),
        (TensorProto.INT64, np.array([[2**62, -1]], np.int64)),
    ],
)
def test_arrays_of_every_dtype_go_in_and_come_out(dtype: int, array: Any) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    data = of(model([node], dtype=dtype, opset=19, ir_version=9))
    result = open_session(data).run(array)["y"]
    assert result.dtype == array.dtype
    assert result.tobytes() == array.tobytes()


def test_external_data_comes_from_memory_and_never_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w.data").write_bytes(b"\xff" * 16)
    monkeypatch.chdir(tmp_path)
    data = of(model(tensors=[outside("w.data", offset="8", length="8")]))
    given = memoryview(bytes(8) + np.array([5, 6], np.float32).tobytes())
    assert open_session(data, external={"w.data": given}).run(ROW)["y"].tolist() == [[6, 8]]
    refused(Code.GRAPH_UNSAFE, lambda: open_session(data))


def test_bytes_that_look_like_another_format_are_read_as_onnx() -> None:
    proto = model()
    proto.producer_name = "ORTM"
    data = of(proto)
    assert data[4:8] == b"ORTM"
    assert open_session(data).run(ROW)["y"].tolist() == [[2, 3]]


def test_settings_in_the_file_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = model()
    proto.metadata_props.add(key="ort_config", value='{"session_options": {}}')
    refused(Code.GRAPH_UNSAFE, lambda: open_session(of(proto)))
    monkeypatch.setenv("ORT_LOAD_CONFIG_FROM_MODEL", "1")
    refused(Code.SESSION_FAILED, lambda: open_session(of(model())))


def test_opening_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    open_session(of(model(tensors=[weight(), weight("unused")])))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("opset", "ir_version"), [(999, 8), (17, 999)])
def test_a_graph_newer_than_the_runtime_says_so(opset: int, ir_version: int) -> None:
    data = of(model(opset=opset, ir_version=ir_version))
    assert "upgrade" in refused(Code.GRAPH_VERSION, lambda: open_session(data)).remedy


def test_what_the_runtime_refuses_is_our_error_without_its_source_paths() -> None:
    data = of(model([helper.make_node("NoSuchOperator", ["x"], ["y"])]))
    fault = refused(Code.OPERATOR_UNSUPPORTED, lambda: open_session(data))
    assert "no operator NoSuchOperator in ai.onnx opset 17" in fault.reason
    assert ".cc" not in fault.reason


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider"])
def test_a_provider_goes_by_its_short_and_its_full_name(name: str) -> None:
    session = open_session(of(model()), providers=[name], require=name)
    assert session.providers == ("cpu",)
    assert session.placement == {"cpu": 1}


def test_an_unknown_provider_is_told_apart_from_an_absent_one() -> None:
    data = of(model())
    fault = refused(Code.PROVIDER_UNKNOWN, lambda: open_session(data, providers=["cuda1"]))
    assert "'cuda'" in fault.remedy
    for wish in ({"providers": ["CUDA", "cpu"]}, {"require": "cuda"}):
        fault = refused(Code.PROVIDER_ABSENT, lambda wish=wish: open_session(data, **wish))  # type: ignore[misc]
        assert "onnxruntime-gpu" in fault.remedy


@pytest.mark.parametrize(
    "wish", [{"providers": []}, {"providers": ["cpu", "CPU"]}, {"threads": 0}, {"threads": 10**9}]
)
def test_a_wish_that_means_nothing_is_refused(wish: dict[str, Any]) -> None:
    refused(Code.USAGE, lambda: open_session(of(model()), **wish))


def test_the_cpu_never_takes_the_place_of_another_provider_in_silence() -> None:
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this build has no provider that takes no operator")
    data = of(model())
    refused(Code.PROVIDER_UNUSED, lambda: open_session(data, providers=["azure"]))
    wish = {"providers": ["azure", "cpu"], "require": "azure"}
    refused(Code.PROVIDER_UNUSED, lambda: open_session(data, **wish))  # type: ignore[arg-type]


def test_a_provider_that_the_session_left_out_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # As where the build has CUDA and the machine no driver: the runtime drops it with a warning.
    def resolved(*_: object) -> tuple[Provider, ...]:
        return (Provider("CUDAExecutionProvider"), Provider(CPU))

    monkeypatch.setattr(session_module, "resolve_all", resolved)
    with pytest.warns(UserWarning, match="CUDA"):
        fault = refused(Code.PROVIDER_ABSENT, lambda: open_session(of(model())))
    assert fault.location == "cuda"


def test_threads_reach_the_runtime() -> None:
    session = open_session(of(model()), threads=1)
    assert session._opened.get_session_options().intra_op_num_threads == 1


def classifier(interface: Interface | None) -> Session:
    """Return a session whose scores are the sums of an image's three channels."""
    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", shape=("batch", 3, 2, 2))],
        [value("y", shape=("batch", 3))],
        [axes],
    )
    data = of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    return open_session(data, interface=interface)


def test_images_become_class_names_and_probabilities() -> None:
    interface = Interface(preprocessing={"kind": "image", "resize": 2}, labels=("r", "g", "b"))
    images = [np.zeros((4, 4, 3), np.uint8) for _ in range(70)]
    images[69][..., 1] = 255
    predictions = classifier(interface).predict(images, top=2)
    best = predictions[69]
    assert len(predictions) == len(images)
    assert (best.index, best.label, len(best.top)) == (1, "g", 2)
    assert best.probability == pytest.approx(np.exp(4) / (np.exp(4) + 2))
    assert best.top[0] == ("g", best.probability)


def test_images_without_preprocessing_or_with_other_labels_are_refused() -> None:
    images = [np.zeros((2, 2, 3), np.uint8)]
    for interface in (None, Interface(), Interface(preprocessing={"resize": 2}, labels=("one",))):
        session = classifier(interface)
        refused(Code.PREPROCESSING, lambda session=session: session.predict(images))  # type: ignore[misc]


def test_scores_are_a_row_for_each_image() -> None:
    refused(Code.PREPROCESSING, lambda: ranked(np.zeros((1, 2, 2)), None))
    refused(Code.RUN_FAILED, lambda: ranked(np.array([[np.nan, 0]]), None))
    assert ranked(np.array([[1e30, 0]]), None)[0].top[0] == ("0", 1.0)


def test_a_session_runs_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(of(model()))
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from persistlib.runtime.session import open_session\n"
        "session = open_session(open('m.onnx', 'rb').read())\n"
        "print(session.run(np.ones((1, 2), np.float32))['y'].tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[[2.0, 2.0]]\n", "")
