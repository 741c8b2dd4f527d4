"""Verdicts on graphs: what a release of ONNX Runtime takes, said before it is asked."""

from __future__ import annotations

import itertools
import json
import os
from importlib.resources import files
from typing import TYPE_CHECKING

import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from packaging.version import Version

import persistlib
import runtime_models
from persistlib.cli.main import cli
from persistlib.compat import live, releases
from persistlib.compat.graph_reading import KEPT, read_structure, structure_of
from persistlib.compat.names import canonical, name_of, type_of
from persistlib.compat.walk import causes
from persistlib.errors import FormatError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HERE = onnxruntime.__version__
MODELS = runtime_models.models()
TABLE_LIMIT = 300_000
known_here = pytest.mark.skipif(HERE not in releases.versions(), reason="not in the table yet")


def shipped() -> releases.Release:
    return releases.release(releases.nearest(HERE))


def running() -> releases.Release:
    """Return the running release as it tells of itself."""
    table = shipped()
    rows = {"kernels": live.kernels() or [], "schemas": live.schemas()}
    return releases.Release(HERE, table.ir, table.opsets, table.unknown, rows)


def differing(models: dict[str, onnx.ModelProto], release: releases.Release) -> list[str]:
    """Return the models for which the running release does other than the verdict says."""
    found = []
    for name, model in models.items():
        data = model.SerializeToString()
        refusal = live.takes(data)
        said = causes(structure_of(memoryview(data), name), release)
        if bool(said) != (refusal is not None):
            found.append(f"{name}: said {said[:1]}, really {refusal}")
    return found


def names_in_table() -> Iterator[str]:
    for version in (releases.versions()[0], releases.versions()[-1]):
        rows = releases.release(version).rows
        for row in rows["kernels"]:
            yield from (name for names in row[5].values() for name in names)
        for row in rows["schemas"]:
            yield from (name for names in row[5].values() for name in names)


def test_the_table_is_small_and_has_every_release_in_order() -> None:
    assert len(files("persistlib.compat").joinpath("runtimes.xz").read_bytes()) < TABLE_LIMIT
    versions = [Version(version) for version in releases.versions()]
    assert versions == sorted(set(versions))
    assert versions[0] == Version("1.15.0")
    assert len({(version.major, version.minor) for version in versions}) >= 15


def test_ceilings_never_fall_from_one_release_to_the_next() -> None:
    known = [releases.release(version) for version in releases.versions()]
    for older, newer in itertools.pairwise(known):
        assert older.ir <= newer.ir
        assert older.newest("") <= newer.newest("")
        assert newer.unknown <= older.unknown
    assert (known[0].ir, known[0].newest("")) == (9, 19)


def test_every_release_computes_what_networks_are_made_of() -> None:
    for version in releases.versions():
        release = releases.release(version)
        for op in ("Relu", "Conv", "Gemm", "MatMul", "Add", "Softmax", "LSTM", "Cast", "Loop"):
            assert release.kernels[("", op)], (version, op)


def test_the_type_of_a_types_name_has_that_name() -> None:
    names = set(names_in_table())
    assert len(names) > 100
    for name in names:
        assert name_of(type_of(name)) == canonical(name)


@known_here
def test_the_running_release_tells_of_itself_what_the_table_does() -> None:
    for kind, told in (("kernels", live.kernels()), ("schemas", live.schemas())):
        assert told
        mine = {json.dumps(row, sort_keys=True) for row in told}
        assert mine == {json.dumps(row, sort_keys=True) for row in shipped().rows[kind]}


@known_here
@pytest.mark.filterwarnings("ignore")
def test_the_running_release_does_with_every_model_what_the_table_says() -> None:
    assert len(MODELS) >= 60
    assert differing(MODELS, shipped()) == []


@pytest.mark.filterwarnings("ignore")
def test_the_running_release_does_with_every_model_what_its_own_kernels_say() -> None:
    assert differing(MODELS, running()) == []


@pytest.mark.filterwarnings("ignore")
def test_the_running_release_does_with_backend_models_what_the_verdict_says() -> None:
    some = dict(sorted(runtime_models.backend().items())[::12])
    assert len(some) > 150
    assert differing(some, running()) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_running_release_does_with_every_backend_model_what_the_verdict_says() -> None:
    assert differing(runtime_models.backend(), running()) == []


def test_a_kernel_without_an_end_is_for_its_first_version_alone() -> None:
    body = "g (float[2,3] x) => (float[2,3] y) { y = LpNormalization(x) }"
    # 1.24 reads set 22 and has the kernel of set 1 alone; the operator has a version 22.
    assert causes(runtime_models.model(body, 21), releases.release("1.24.4")) == []
    newer = runtime_models.model(body, 22)
    assert [cause.kind for cause in causes(newer, releases.release("1.24.4"))] == ["kernel"]
    assert causes(newer, releases.release("1.32.0")) == []


def test_models_tell_releases_apart() -> None:
    refused = {
        version: sum(bool(causes(m, releases.release(version))) for m in MODELS.values())
        for version in ("1.15.1", "1.18.1", "1.22.1", "1.32.0")
    }
    assert sorted(refused.values(), reverse=True) == list(refused.values())
    assert len(set(refused.values())) == len(refused)


@pytest.mark.parametrize("name", ["gelu-opset-20", "swish", "net-ir-13", "mish-of-double"])
def test_the_remedy_names_the_first_release_that_takes_the_model(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, MODELS[name])
    report = persistlib.check(path, "onnxruntime==1.15.1")
    assert report.verdict == "refused"
    first = report.findings[0].message.rpartition("; ")[2].removesuffix(" and later take the graph")
    older = [v for v in releases.versions() if Version(v) < Version(first)]
    assert not causes(MODELS[name], releases.release(first))
    assert causes(MODELS[name], releases.release(older[-1]))
    out = f"{path.parent}/model-onnxruntime-1.15.1.onnx"
    assert report.findings[0].remedy == (
        f"persistlib convert {path} {path.parent}/model && "
        f"persistlib convert {path.parent}/model {out} --target onnxruntime==1.15.1"
    )


def test_each_cause_is_a_finding_with_its_code_and_its_node(tmp_path: Path) -> None:
    wanted = {
        "net-opset-28": ("PL207", "graph"),
        "net-ir-14": ("PL207", "graph"),
        "contrib-unknown": ("PL209", "y (com.microsoft:Wish(1))"),
        "add-int8": ("PL210", "y (Add(14))"),
        "type-forbidden": ("PL211", "y (Relu(14))"),
        "shapes-at-odds": ("PL211", "y (MatMul(13))"),
    }
    for name, (code, location) in wanted.items():
        path = written(tmp_path, MODELS[name])
        found = persistlib.check(path, "onnxruntime==1.17.3").findings[0]
        assert (found.code, found.location) == (code, location), name
        assert "1.17.3" in found.message
        assert found.remedy


def test_nodes_refused_for_one_cause_are_one_finding(tmp_path: Path) -> None:
    body = "g (int8[2] x) => (int8[2] y) { a = Add(x, x) b = Add(a, a) y = Add(b, b) }"
    report = persistlib.check(
        written(tmp_path, runtime_models.model(body, 14)), "onnxruntime==1.17.3"
    )
    assert [finding.location for finding in report.findings] == ["a (Add(14)) (and 2 more)"]


def test_a_release_that_is_not_in_the_table_is_not_proved(tmp_path: Path) -> None:
    path = written(tmp_path, MODELS["net-opset-13"])
    report = persistlib.check(path, "onnxruntime==99.0")
    assert report.verdict == "degraded"
    assert report.findings[0].code == "PL212"
    assert "not proved" in report.findings[0].message
    with pytest.raises(UsageError):
        persistlib.check(path, "onnxruntime==newest")


def test_a_target_without_the_runtime_judges_no_node_of_a_graph(tmp_path: Path) -> None:
    path = written(tmp_path, MODELS["custom-domain"])
    assert [one.code for one in persistlib.check(path, "torch==2.6").findings] == ["PL214"]
    assert persistlib.check(path).verdict == "refused"


def test_no_value_of_a_weight_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, weighty(64 << 20))
    read: list[int] = []
    whole = os.preadv

    def counted(fd: int, buffers: list[memoryview], offset: int) -> int:
        count = whole(fd, buffers, offset)
        read.append(count)
        return count

    monkeypatch.setattr(os, "preadv", counted)
    assert persistlib.check(path, "onnxruntime==1.17.3").verdict == "ok"
    assert 0 < sum(read) < 1 << 20


def test_only_large_tensors_are_left_without_values(tmp_path: Path) -> None:
    model = read_structure(written(tmp_path, weighty(2 * KEPT)))
    large, small = model.graph.initializer
    assert (large.data_location, large.raw_data, list(large.dims)) == (
        onnx.TensorProto.EXTERNAL,
        b"",
        [2 * KEPT // 4],
    )
    assert list(small.float_data) == [1.0]
    assert len(model.graph.node) == 1


def test_what_is_no_graph_is_refused_by_name(tmp_path: Path) -> None:
    whole = MODELS["net-opset-13"].SerializeToString()
    for number, data in enumerate((whole[: len(whole) // 2], whole + b"\xff", b"\x08\x07")):
        with pytest.raises(FormatError):
            structure_of(memoryview(data), f"file {number}")
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(data)
        assert persistlib.check(path).verdict == "refused"


def test_functions_that_would_expand_without_end_cost_what_they_hold() -> None:
    depth = 50
    calls = "\n".join(
        f'<domain: "own", opset_import: ["": 17, "own": 1]> F{i} (a) => (b) '
        f"{{ c = own.F{i + 1}(a) d = own.F{i + 1}(c) b = Add(c, d) }}"
        for i in range(depth)
    )
    last = f'<domain: "own", opset_import: ["": 17]> F{depth} (a) => (b) {{ b = Relu(a) }}'
    body = "g (float[2] x) => (float[2] y) { y = own.F0(x) }\n" + calls + "\n" + last
    model = runtime_models.model(body, 17, 8, ', "own": 1')
    assert causes(model, releases.release("1.17.3")) == []


def test_functions_that_call_themselves_are_refused() -> None:
    body = """g (float[2] x) => (float[2] y) { y = own.A(x) }
    <domain: "own", opset_import: ["": 17, "own": 1]> A (a) => (b) { b = own.B(a) }
    <domain: "own", opset_import: ["": 17, "own": 1]> B (a) => (b) { b = own.A(a) }"""
    with pytest.raises(FormatError, match="calls itself"):
        causes(runtime_models.model(body, 17, 8, ', "own": 1'), releases.release("1.17.3"))


def test_the_command_takes_a_bare_file(tmp_path: Path) -> None:
    path = str(written(tmp_path, MODELS["gelu-opset-20"]))
    refused = CliRunner().invoke(cli, ["check", path, "--target", "onnxruntime==1.15.1", "--json"])
    assert refused.exit_code == 1
    told = json.loads(refused.stdout)
    assert told["data"]["verdict"] == "refused"
    assert told["findings"][0]["code"] == "PL207"
    taken = CliRunner().invoke(cli, ["check", path, "--target", "onnxruntime==1.18.1", "--json"])
    assert taken.exit_code == 0


def weighty(size: int) -> onnx.ModelProto:
    """Return a model with a weight of so many bytes, and a small one."""
    count = size // 4
    large = onnx.TensorProto(
        name="w", data_type=onnx.TensorProto.FLOAT, dims=[count], raw_data=bytes(size)
    )
    small = onnx.helper.make_tensor("s", onnx.TensorProto.FLOAT, [1], [1.0])
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [count]) for n in "xy")
    node = onnx.helper.make_node("Sum", ["x", "w", "s"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [x], [y], [large, small])
    opsets = [onnx.helper.make_opsetid("", 13)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def written(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path
