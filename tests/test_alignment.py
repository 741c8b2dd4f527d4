"""Files of other exporters come back into the architectures that they were exported from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

import persistlib
from foreign_exports import DYNAMO, EXPORTERS, FOLDED, MODELS, PRESERVED
from persistlib.alignment.building import parse
from persistlib.alignment.bundle import Aligned, align, convert_aligned
from persistlib.alignment.reading import read
from persistlib.architecture.recipe import Recipe
from persistlib.errors import ArchitectureError, Code, FormatError, PersistlibError

QUICK = ("squeezenet", "densenet", "transformer")
SLOW = tuple(name for name in MODELS if name not in {*QUICK, "small_resnet", "separate", "packed"})
TRUST = {"own_networks"}
TESTS = Path(__file__).parent


def written(folder: Path, *pairs: str) -> None:
    """Export models in a process of its own."""
    child = subprocess.run(
        [sys.executable, str(TESTS / "foreign_exports.py"), str(folder), *pairs],
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)},
    )
    assert child.returncode == 0, child.stderr[-2000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the small files."""
    made = tmp_path_factory.mktemp("exports")
    pairs = [f"{model}.{exporter}" for model in QUICK for exporter in EXPORTERS]
    others = [f"small_resnet.{FOLDED}", f"separate.{FOLDED}", f"packed.{FOLDED}"]
    written(made, *pairs, *others)
    return made


def aligned(path: Path, model: str, **arguments: object) -> Aligned:
    """Return a file of one model as that model, told nothing but its builder's arguments."""
    builder, own, _ = MODELS[model]
    given = {**own, **arguments}
    return align(read(path), Recipe.of({"builder": builder, "arguments": given}), TRUST)


def require_equal(module: torch.nn.Module, path: Path, size: int = 3) -> None:
    """Compare a module with ONNX Runtime on a file, on inputs of another seed and batch."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    shape = [size, *given.shape[1:]]
    x = np.random.default_rng(99).standard_normal(shape).astype(np.float32)
    expected = np.asarray(session.run(None, {given.name: x})[0])
    with torch.no_grad():
        ours = module(torch.from_numpy(x)).numpy()
    assert np.ptp(expected) > 0
    assert np.abs(ours - expected).max() <= 1e-4 * np.ptp(expected)


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("model", QUICK)
def test_a_file_comes_back_into_its_architecture_with_the_same_function(
    folder: Path, model: str, exporter: str
) -> None:
    path = folder / f"{model}.{exporter}.onnx"
    found = aligned(path, model)
    require_equal(found.module, path)
    state, trained = found.module.state_dict(), torch.load(folder / f"{model}.pt")
    for name in found.exact:
        assert torch.equal(state[name], trained[name]), name
    assert not found.absent
    if exporter == PRESERVED or model != "densenet":
        assert not found.equivalent, "nothing was folded, so every bit is there"
    else:
        assert found.equivalent
    learned = {n for n, t in trained.items() if t.is_floating_point()}
    assert {*found.exact, *found.equivalent} == learned


def test_a_batch_norm_that_was_folded_becomes_one_that_adds_and_multiplies_by_one(
    folder: Path,
) -> None:
    found = aligned(folder / f"densenet.{FOLDED}.onnx", "densenet")
    norm = found.module.get_submodule("features.norm0")
    assert isinstance(norm, torch.nn.BatchNorm2d)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight / torch.sqrt(norm.running_var + torch.tensor(norm.eps))
    assert torch.allclose(scale, torch.ones_like(scale), rtol=1e-6, atol=0)
    assert not torch.any(norm.running_mean)
    assert "features.norm0.bias" in found.equivalent
    assert "features.conv0.weight" in found.equivalent, "it is multiplied by BatchNorm's factor"


def test_classes_and_channels_are_taken_from_the_file(folder: Path, tmp_path: Path) -> None:
    path = folder / f"small_resnet.{FOLDED}.onnx"
    report = convert_aligned(path, tmp_path / "b", architecture="resnet18")
    module = persistlib.load(tmp_path / "b")
    assert module.get_parameter("fc.bias").shape == (10,)
    require_equal(module, path)
    assert report.format == "bundle"
    assert report.proof["proved"]
    assert report.proof["batch_sizes"] == [1, 3]
    assert any("equivalent" in note for note in report.notes)
    assert persistlib.verify(tmp_path / "b", behaviour=True).ok


def test_the_interface_has_the_names_and_axes_of_the_file(folder: Path, tmp_path: Path) -> None:
    model = onnx.load(folder / f"small_resnet.{FOLDED}.onnx")
    for value, name in ((model.graph.input[0], "picture"), (model.graph.output[0], "scores")):
        old, value.name = value.name, name
        value.type.tensor_type.shape.dim[0].dim_param = "n"
        for node in model.graph.node:
            node.input[:] = [name if entry == old else entry for entry in node.input]
            node.output[:] = [name if entry == old else entry for entry in node.output]
    onnx.save(model, tmp_path / "named.onnx")
    convert_aligned(tmp_path / "named.onnx", tmp_path / "b", architecture="resnet18")
    interface = persistlib.inspect(tmp_path / "b").manifest.interface
    shown = {spec.name: spec.shape[0] for spec in (*interface.inputs, *interface.outputs)}
    assert shown == {"picture": "n", "scores": "n"}
    persistlib.convert(tmp_path / "b", tmp_path / "again.onnx")
    again = onnx.load(tmp_path / "again.onnx").graph
    assert [value.name for value in (*again.input, *again.output)] == ["picture", "scores"]
    persistlib.convert(tmp_path / "again.onnx", tmp_path / "back")
    assert persistlib.verify(tmp_path / "back", behaviour=True).ok
    assert persistlib.inspect(tmp_path / "back").manifest.interface == interface


def test_one_channel_of_input_becomes_an_edit(folder: Path, tmp_path: Path) -> None:
    model = onnx.load(folder / f"small_resnet.{FOLDED}.onnx")
    weights = {t.name: t for t in model.graph.initializer}
    first = next(n for n in model.graph.node if n.op_type == "Conv").input[1]
    array = numpy_helper.to_array(weights[first]).sum(1, keepdims=True)
    weights[first].CopyFrom(numpy_helper.from_array(array, first))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    path = tmp_path / "grey.onnx"
    onnx.save(model, path)
    convert_aligned(path, tmp_path / "b", architecture="torchvision.models:resnet18()")
    module = persistlib.load(tmp_path / "b")
    assert module.get_parameter("conv1.weight").shape[1] == 1
    require_equal(module, path)


@pytest.mark.parametrize(("file", "architecture"), [("separate", "Packed"), ("packed", "Separate")])
def test_attention_in_one_matrix_or_three_is_the_same_attention(
    folder: Path, file: str, architecture: str
) -> None:
    path = folder / f"{file}.{FOLDED}.onnx"
    found = align(read(path), parse(f"own_networks:{architecture}"), TRUST)
    require_equal(found.module, path)
    assert not found.absent


def test_another_architecture_is_refused_at_the_first_operator_that_differs(folder: Path) -> None:
    path = folder / f"small_resnet.{FOLDED}.onnx"
    with pytest.raises(ArchitectureError, match=r"layer1\.0\.conv1") as caught:
        align(read(path), parse("torchvision.models:resnet50(num_classes=10)"), ())
    assert caught.value.code == Code.GRAPH_UNPAIRED.identifier
    assert "conv1" in caught.value.reason
    assert "64x64x3x3" in caught.value.reason, "what the file has there is shown"


def test_a_deeper_model_of_the_same_kind_is_refused(folder: Path) -> None:
    path = folder / f"small_resnet.{FOLDED}.onnx"
    with pytest.raises(PersistlibError) as caught:
        align(read(path), parse("torchvision.models:resnet34(num_classes=10)"), ())
    assert caught.value.code == Code.GRAPH_UNPAIRED.identifier
    assert "layer1.2" in caught.value.reason


def test_a_name_that_survived_proves_nothing(folder: Path, tmp_path: Path) -> None:
    model = onnx.load(folder / f"squeezenet.{PRESERVED}.onnx")
    # Two tensors of one shape trade names, and nothing else: every use follows.
    one, other = "features.3.expand1x1.weight", "features.4.expand1x1.weight"
    names = {one: other, other: one}
    shapes = [list(t.dims) for t in model.graph.initializer if t.name in names]
    assert shapes[0] == shapes[1]
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    path = tmp_path / "traded.onnx"
    onnx.save(model, path)
    found = aligned(path, "squeezenet")
    trained = torch.load(folder / "squeezenet.pt")
    assert torch.equal(found.module.state_dict()[one], trained[one])


@pytest.mark.parametrize("text", ["f(1)", "f(**x)", "f(x=g())", "f(x=", "f(x=1", "f(x=1)+1"])
def test_a_call_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(PersistlibError):
        parse(f"torchvision.models:{text}")


def test_a_builder_of_an_untrusted_package_is_refused(folder: Path) -> None:
    with pytest.raises(PersistlibError) as caught:
        align(read(folder / f"packed.{FOLDED}.onnx"), parse("own_networks:Packed"), ())
    assert caught.value.code == Code.UNTRUSTED.identifier


def test_what_is_no_graph_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"\x08\x08\x12\x00 no graph")
    with pytest.raises(FormatError):
        convert_aligned(path, tmp_path / "b", architecture="torchvision.models:resnet18")
    assert not (tmp_path / "b").exists()


def test_a_graph_with_a_loop_is_refused(tmp_path: Path) -> None:
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [
            onnx.helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
            onnx.helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []),
        ],
        [onnx.helper.make_tensor_value_info("d", onnx.TensorProto.BOOL, [])],
    )
    node = onnx.helper.make_node("Loop", ["n", "t"], [], body=body)
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 2])
    same = onnx.helper.make_node("Identity", ["x"], ["y"])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 2])
    stored = [
        numpy_helper.from_array(np.array(2**62, np.int64), "n"),
        numpy_helper.from_array(np.array(True), "t"),
    ]
    graph = onnx.helper.make_graph([node, same], "g", [value], [out], stored)
    path = tmp_path / "loop.onnx"
    onnx.save(onnx.helper.make_model(graph, ir_version=8), path)
    with pytest.raises(PersistlibError, match="Loop"):
        align(read(path), parse("torchvision.models:resnet18"), ())


@pytest.mark.slow
@pytest.mark.parametrize("exporter", [FOLDED, PRESERVED, DYNAMO])
@pytest.mark.parametrize("model", SLOW)
def test_every_model_comes_back_from_every_exporter(
    tmp_path: Path, model: str, exporter: str
) -> None:
    written(tmp_path, f"{model}.{exporter}")
    path = tmp_path / f"{model}.{exporter}.onnx"
    found = aligned(path, model)
    require_equal(found.module, path)
    trained = torch.load(tmp_path / f"{model}.pt")
    state = found.module.state_dict()
    assert all(torch.equal(state[name], trained[name]) for name in found.exact)
