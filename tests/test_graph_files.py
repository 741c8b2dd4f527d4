"""ONNX files that stand in no bundle: opened by name, verified as far as they say, never fooled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

import persistlib
from graph_assembly import function, model, of, outside, value
from persistlib.cli.main import cli
from persistlib.digests import digest
from persistlib.errors import Code, PersistlibError
from persistlib.runtime.graph_files import read_graph_file
from persistlib.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROW = np.array([[1, 2]], np.float32)
SECONDS = 10.0  # of a machine that others use as well; alone each takes a few milliseconds


def refused(code: Code, call: Callable[[], object]) -> PersistlibError:
    start = time.perf_counter()
    with pytest.raises(PersistlibError) as caught:
        call()
    assert time.perf_counter() - start < SECONDS
    assert caught.value.code == code.identifier
    assert caught.value.remedy
    return caught.value


def load(path: Path, **how: Any) -> Session:
    session = persistlib.load(path, runtime="onnxruntime", **how)
    assert isinstance(session, Session)
    return session


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Return a model whose weight, 5 and 6, lies in a file beside it."""
    path = tmp_path / "m.onnx"
    path.write_bytes(of(model(tensors=[outside("w.data", offset="8", length="8")])))
    (tmp_path / "w.data").write_bytes(bytes(8) + np.array([5, 6], np.float32).tobytes())
    return path


def endless() -> bytes:
    """Return a graph with a loop of 2**62 rounds."""
    inner = [
        helper.make_node("Identity", ["c"], ["c2"]),
        helper.make_node("Identity", ["v"], ["v2"]),
    ]
    body = helper.make_graph(
        inner,
        "b",
        [value("i", TensorProto.INT64, ()), value("c", TensorProto.BOOL, ()), value("v")],
        [value("c2", TensorProto.BOOL, ()), value("v2")],
    )
    rounds = helper.make_tensor("rounds", TensorProto.INT64, [], [2**62])
    go_on = helper.make_tensor("go_on", TensorProto.BOOL, [], [True])
    node = helper.make_node("Loop", ["rounds", "go_on", "x"], ["y"], body=body)
    return of(model([node], [rounds, go_on]))


@pytest.mark.parametrize("mmap", [True, False])
def test_a_file_and_what_lies_beside_it_become_a_session(split: Path, mmap: bool) -> None:
    assert load(split, mmap=mmap).run(ROW)["y"].tolist() == [[6, 8]]


def test_a_file_is_opened_from_any_folder_and_through_a_link(
    split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load(split).run(ROW)["y"].tolist() == [[6, 8]]
    whole = tmp_path / "whole.onnx"
    whole.write_bytes(of(model()))
    (elsewhere / "link.onnx").symlink_to(whole)
    assert load(elsewhere / "link.onnx").run(ROW)["y"].tolist() == [[2, 3]]


def absent(data: Path) -> None:
    data.unlink()


def short(data: Path) -> None:
    data.write_bytes(bytes(12))


def link(data: Path) -> None:
    data.rename(data.with_name("real"))
    data.symlink_to("real")


def hard_link(data: Path) -> None:
    os.link(data, data.with_name("second"))


def folder(data: Path) -> None:
    data.unlink()
    data.mkdir()


def pipe(data: Path) -> None:
    data.unlink()
    os.mkfifo(data)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (absent, Code.SOURCE_MISSING),
        (short, Code.GRAPH_INVALID),
        (link, Code.GRAPH_UNSAFE),
        (hard_link, Code.GRAPH_UNSAFE),
        (folder, Code.GRAPH_UNSAFE),
        (pipe, Code.GRAPH_UNSAFE),
    ],
)
def test_data_that_is_not_a_plain_file_of_the_right_size_is_refused(
    split: Path, change: Callable[[Path], None], code: Code
) -> None:
    change(split.with_name("w.data"))
    fault = refused(code, lambda: load(split))
    assert "w.data" in str(fault)
    result = CliRunner().invoke(cli, ["run", str(split), "--input", "x.npy", "--json"])
    assert result.exit_code in (1, 2)


@pytest.mark.parametrize(
    "place", ["../w.data", "/etc/passwd", "a/../../b", "a\\b", "*/_ORT_MEM_ADDR_/*"]
)
def test_no_path_leaves_the_folder(tmp_path: Path, place: str) -> None:
    path = tmp_path / "in" / "m.onnx"
    path.parent.mkdir()
    (tmp_path / "w.data").write_bytes(bytes(8))
    path.write_bytes(of(model(tensors=[outside(place, offset="0", length="8")])))
    refused(Code.GRAPH_UNSAFE, lambda: load(path))


def test_a_model_is_not_its_own_data(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(of(model(tensors=[outside("m.onnx", offset="0", length="8")])))
    refused(Code.GRAPH_UNSAFE, lambda: load(path))


def test_data_that_differs_from_its_checksum_is_refused(tmp_path: Path) -> None:
    data = np.array([5, 6], np.float32).tobytes()
    (tmp_path / "w.data").write_bytes(data)
    said = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    path = tmp_path / "m.onnx"
    path.write_bytes(of(model(tensors=[outside("w.data", length="8", checksum=said)])))
    assert load(path).run(ROW)["y"].tolist() == [[6, 8]]
    (tmp_path / "w.data").write_bytes(data[:-1] + b"\1")
    refused(Code.FILE_DIGEST, lambda: load(path))
    assert load(path, verify=False).run(ROW)["y"][0, 0] == 6


def test_functions_that_double_at_each_call_never_reach_the_runtime(tmp_path: Path) -> None:
    doubling = [function(f"f{i}", [f"f{i + 1}"] * 2) for i in range(30)]
    node = helper.make_node("f0", ["x"], ["y"], domain="own")
    path = tmp_path / "m.onnx"
    path.write_bytes(of(model([node], functions=[*doubling, function("f30", ["Identity"])])))
    refused(Code.FORMAT_LIMIT, lambda: load(path))
    result = CliRunner().invoke(cli, ["run", str(path), "--input", "x.npy", "--json"])
    assert result.exit_code == 1


def test_an_endless_loop_ends_when_its_time_is_over(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(endless())
    session = load(path)
    assert session.timeout == 60
    fault = refused(Code.RUN_TIMEOUT, lambda: session.run(ROW, timeout=0.2))
    assert "0.2 s" in fault.reason
    refused(Code.RUN_TIMEOUT, lambda: load(path, timeout=0.3).run(ROW))
    np.save(tmp_path / "x.npy", ROW)
    words = ["run", str(path), "--input", str(tmp_path / "x.npy"), "--timeout", "0.3", "--json"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 1
    assert json.loads(result.stdout)["findings"][0]["code"] == "PL712"


def test_a_graph_without_loops_has_more_time(split: Path) -> None:
    assert load(split).timeout == 600
    assert load(split, timeout=float("inf")).timeout == 600
    assert load(split, timeout=5).timeout == 5


def test_an_operator_of_another_domain_is_named_with_its_opset(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    proto = model([helper.make_node("Fancy", ["x"], ["y"], "the_node", domain="com.example")])
    proto.opset_import.add(domain="com.example", version=3)
    path.write_bytes(of(proto))
    fault = refused(Code.GRAPH_UNSAFE, lambda: load(path))
    assert "com.example:Fancy (opset 3)" in fault.reason
    assert "the_node" in fault.location


@pytest.mark.parametrize("name", ["w.safetensors", "w.npy", "w.onnx", "w"])
def test_what_is_no_graph_says_what_it_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert "safetensors" in refused(Code.USAGE, lambda: load(path)).reason
    refused(Code.NOT_A_BUNDLE, lambda: persistlib.load(path))


def test_nothing_and_garbage_are_refused(tmp_path: Path) -> None:
    refused(Code.SOURCE_MISSING, lambda: load(tmp_path / "absent.onnx"))
    (tmp_path / "m.onnx").write_bytes(b"garbage")
    refused(Code.FORMAT_UNKNOWN, lambda: load(tmp_path / "m.onnx"))
    os.mkfifo(tmp_path / "pipe.onnx")
    refused(Code.SOURCE_READ, lambda: load(tmp_path / "pipe.onnx"))


def test_a_module_of_a_graph_file_is_not_promised(split: Path) -> None:
    fault = refused(Code.NOT_A_BUNDLE, lambda: persistlib.load(split))
    assert 'runtime="onnxruntime"' in fault.remedy


# what persistlib notes


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a graph that notes its labels, its preprocessing and the identity of its weights."""
    import torch

    folder = tmp_path_factory.mktemp("noted")
    torch.manual_seed(0)
    module = persistlib.build("torch.nn:Conv2d", in_channels=3, out_channels=3, kernel_size=4)
    persistlib.save(
        torch.nn.Sequential(module, torch.nn.Flatten()).eval(),
        folder / "bundle",
        example_inputs=torch.randn(2, 3, 4, 4),
        interface={"preprocessing": {"resize": 4}, "labels": ["r", "g", "b"]},
        onnx=True,
    )
    persistlib.convert(folder / "bundle", folder / "m.onnx")
    return folder / "m.onnx"


def test_a_file_with_notes_names_classes_as_its_bundle_does(noted: Path) -> None:
    images = [np.random.default_rng(i).integers(0, 255, (9, 9, 3), np.uint8) for i in range(3)]
    bundle = persistlib.load(noted.with_name("bundle"), runtime="onnxruntime")
    assert isinstance(bundle, Session)
    found, wanted = load(noted).predict(images), bundle.predict(images)
    assert [p.top for p in found] == [p.top for p in wanted]
    assert {p.label for p in found} <= {"r", "g", "b"}


def test_weights_that_are_not_those_that_were_noted_are_refused(
    noted: Path, tmp_path: Path
) -> None:
    proto = onnx.load(noted)
    (weight,) = [t for t in proto.graph.initializer if t.name == "0.weight"]
    data = bytearray(weight.raw_data)
    data[0] ^= 1
    weight.raw_data = bytes(data)
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(proto.SerializeToString())
    refused(Code.FILE_DIGEST, lambda: load(bad))
    load(bad, verify=False)


def test_noted_weights_beside_the_file_are_compared_too(noted: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(
        onnx.load(noted), path, save_as_external_data=True, location="w.data", size_threshold=0
    )
    assert read_graph_file(path).external.keys() == {"w.data"}
    load(path)
    data = bytearray((tmp_path / "w.data").read_bytes())
    data[-1] ^= 1
    (tmp_path / "w.data").write_bytes(data)
    refused(Code.FILE_DIGEST, lambda: load(path))


# bundles


@pytest.mark.parametrize("change", ["flip", "cut", "gone", "link", "hard link"])
def test_a_graph_of_a_bundle_is_the_one_that_was_saved(
    noted: Path, tmp_path: Path, change: str
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(noted.with_name("bundle"), bundle)
    graph = bundle / "model.onnx"
    before = digest(graph.read_bytes())
    codes = {"flip": "PL114", "cut": "PL112", "gone": "PL110"}
    if change == "flip":
        data = bytearray(graph.read_bytes())
        data[len(data) // 2] ^= 1
        graph.write_bytes(data)
    elif change == "cut":
        graph.write_bytes(graph.read_bytes()[:-1])
    elif change == "gone":
        graph.unlink()
    elif change == "link":
        graph.rename(tmp_path / "real")
        graph.symlink_to(tmp_path / "real")
    else:
        os.link(graph, tmp_path / "second")
    if change in codes:
        with pytest.raises(PersistlibError) as caught:
            load(bundle)
        assert caught.value.code == codes[change]
    else:  # its bytes are compared in memory, so the way to them does not matter
        assert digest(graph.read_bytes()) == before
        load(bundle)
