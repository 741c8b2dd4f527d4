"""Graphs that another machine computes in bfloat16: well-typed, near their source, never proved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from torch import nn

import persistlib
from persistlib.cli.main import cli
from persistlib.compat import releases
from persistlib.errors import Code
from persistlib.graph_wishes import GraphWishes
from persistlib.quantization import kernels
from persistlib.quantization.deriving import Source, derive
from persistlib.quantization.kernels import CpuKernels, CudaKernels, kernels_of, split
from persistlib.runtime.session import open_session
from refusing import refused

if TYPE_CHECKING:
    from pathlib import Path

    from persistlib.conversion import ConversionReport

GPU = "onnxruntime-gpu==1.31.1"
EXAMPLE = {"x": torch.randn((2, 3, 12, 12), generator=torch.Generator().manual_seed(3))}


def network() -> nn.Module:
    """Return layers that CUDA computes in bfloat16, and two that it does not."""
    torch.manual_seed(7)
    layers = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(200, 6), nn.Softmax(1)),
    )
    for _ in range(8):
        layers(torch.randn(16, 3, 12, 12) * 2 + 1)
    return layers.eval()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pure") / "b"
    wishes: Any = {"opset": 22}
    persistlib.save(network(), path, example_inputs=EXAMPLE, onnx=wishes)
    return path


@pytest.fixture(scope="module")
def made(bundle: Path) -> tuple[Path, ConversionReport]:
    path = bundle.with_name("m.onnx")
    return path, persistlib.convert(bundle, path, dtype="bf16", pure=True, target=GPU)


def rows() -> list[tuple[str, int]]:
    tables = {**{name: row.versions for name, row in kernels._CUDA.items()}, **kernels._MOVES}
    return [(name, version) for name, versions in tables.items() for version in versions]


@pytest.mark.parametrize(("operator", "version"), rows())
def test_a_row_of_the_table_is_a_version_of_an_operator_that_takes_bfloat16(
    operator: str, version: int
) -> None:
    schema = onnx.defs.get_schema(operator, version, "")
    assert schema.since_version == version
    spelled = {name for row in schema.type_constraints for name in row.allowed_type_strs}
    assert "tensor(bfloat16)" in spelled or version < 13


def test_what_is_not_in_the_table_has_no_kernel() -> None:
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"])
    cuda = {release: CudaKernels(release) for release in ("1.23.2", "1.24.4")}
    assert [one.has(node, 22) for one in cuda.values()] == [False, True]
    assert not cuda["1.24.4"].has(node, 21)
    for name in ("MaxPool", "BatchNormalization", "Resize", "Clip"):
        assert not CudaKernels("9.9").has(onnx.helper.make_node(name, ["x"], ["y"]), 22)


@pytest.mark.parametrize("release", releases.versions())
def test_no_release_computes_in_bfloat16_on_the_cpu(release: str, bundle: Path) -> None:
    graph = onnx.load(bundle / "model.onnx").graph
    parted = split(graph.node, 22, CpuKernels(release))
    assert not parted.half
    assert set(parted.single) >= {"Conv", "Relu", "Softmax"}


def test_arithmetic_is_in_bfloat16_where_cuda_has_a_kernel_and_else_in_float32(
    made: tuple[Path, ConversionReport],
) -> None:
    path, report = made
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    known = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*known.value_info, *known.output)}
    computed = {node.op_type: types[node.output[0]] for node in proto.graph.node}
    half, single = TensorProto.BFLOAT16, TensorProto.FLOAT
    assert {computed[name] for name in ("Conv", "Relu", "Gemm", "Softmax")} == {half}
    assert {computed[name] for name in ("BatchNormalization", "MaxPool")} == {single}
    assert [(v.name, v.type.tensor_type.elem_type) for v in proto.graph.output] == [
        ("output", single)
    ]
    assert report.proof["proved"] is False
    assert "CUDA of onnxruntime-gpu 1.31.1" in str(report.proof["reason"])
    said = " ".join(report.notes)
    assert "Conv (1), Gemm (1), Relu (1), Softmax (1)" in said
    assert "BatchNormalization (1), MaxPool (1)" in said


def test_the_graph_computes_what_its_source_does_as_far_as_bfloat16_goes(
    bundle: Path, made: tuple[Path, ConversionReport]
) -> None:
    given = {"x": EXAMPLE["x"].numpy()}
    expected = open_session((bundle / "model.onnx").read_bytes()).run(given)["output"]
    (found,) = ReferenceEvaluator(str(made[0])).run(None, given)
    off = np.abs(found - expected).max() / np.ptp(expected)
    assert 0 < off < 5e-2


def test_its_weights_are_those_that_a_cast_gives(
    bundle: Path, made: tuple[Path, ConversionReport], tmp_path: Path
) -> None:
    given = persistlib.convert(made[0], tmp_path / "w.safetensors", allow_loss=["graph"])
    wanted = persistlib.convert(bundle, tmp_path / "c.safetensors", dtype="bf16")
    assert given.identity == wanted.identity


@pytest.mark.filterwarnings("ignore:PL212 ")  # nothing is known of the other kernels of 1.10
@pytest.mark.parametrize("release", ["1.10.0", "1.17.3", "1.32.0"])
def test_a_target_without_kernels_is_refused_by_release_and_operator(
    release: str, bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    how: Any = {"dtype": "bf16", "pure": True, "target": f"onnxruntime=={release}"}
    fault = refused(Code.RUNTIME_KERNEL, lambda: persistlib.convert(bundle, path, **how))
    assert f"the CPU of onnxruntime {release}" in fault.reason
    assert "Conv" in fault.reason
    assert not path.exists()


@pytest.mark.parametrize(
    "wishes",
    [
        GraphWishes(pure=True, dtype="f16", target=GPU),
        GraphWishes(pure=True, target=GPU),
        GraphWishes(pure=True, dtype="bf16"),
        GraphWishes(pure=True, dtype="bf16", target="torch==2.6"),
        GraphWishes(pure=True, dtype="bf16", target="onnxruntime-openvino==1.24.1"),
    ],
)
def test_a_wish_that_says_no_runtime_is_refused(wishes: GraphWishes) -> None:
    refused(Code.USAGE, lambda: kernels_of(wishes))


def test_in_a_bundle_it_is_told_as_never_proved(bundle: Path, tmp_path: Path) -> None:
    words = ["convert", str(bundle), str(tmp_path / "c"), "--dtype", "bf16", "--pure"]
    done = CliRunner().invoke(cli, [*words, "--target", GPU])
    assert done.exit_code == 3
    assert "NOT proved" in done.output
    report = persistlib.verify(tmp_path / "c", behaviour=True)
    assert report.ok
    assert any("never proved" in one.message for one in report.findings)
    fault = refused(
        Code.OPERATOR_UNSUPPORTED,
        lambda: persistlib.load(tmp_path / "c", runtime="onnxruntime", graph="bf16"),
    )
    assert "BF16" in fault.reason


def test_a_graph_with_nothing_that_could_be_in_bfloat16_is_refused() -> None:
    node = onnx.helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2])
    ends = [
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, extent, extent])
        for name, extent in (("x", 4), ("y", 3))
    ]
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)])
    proto.ir_version = 10
    source = Source(files={"model.onnx": proto.SerializeToString()}, precision="F32")
    fault = refused(
        Code.RUNTIME_KERNEL,
        lambda: derive(source, dtype="bf16", kernels=CudaKernels("1.31.1")),
    )
    assert "MaxPool" in fault.reason
