"""The wheel without extras, in an environment that has no torch, far from the source tree.

`make bare` builds the wheel, installs it, lets `prepare.py` save a bundle where torch is, and runs
these with `PERSISTLIB_BARE` naming the folder. An import blocker would prove less: what is not
installed cannot be found by accident.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import persistlib
from persistlib.errors import CompatibilityError, IntegrityError, MissingExtra

PREPARED = Path(os.environ["PERSISTLIB_BARE"])
BUNDLE = PREPARED / "bundle"
SCRIPT = Path(sysconfig.get_path("scripts")) / "persistlib"


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *map(str, words)], capture_output=True, text=True, timeout=120, check=False
    )


def answer(*words: object) -> dict[str, Any]:
    """Return the envelope of a verb that must succeed."""
    done = run(*words, "--json")
    assert done.returncode in (0, 3), done.stdout + done.stderr
    envelope: dict[str, Any] = json.loads(done.stdout)
    assert envelope["schema"] == "persistlib.cli/1"
    assert envelope["ok"] is True
    return envelope


def loaded(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has after running some code."""
    code += "\nimport sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("package", ["torch", "torchvision", "onnxscript", "sklearn", "accelerate"])
def test_no_extra_is_installed(package: str) -> None:
    assert importlib.util.find_spec(package) is None


def test_the_installed_package_is_the_one_under_test() -> None:
    assert persistlib.__file__ is not None
    assert Path(sys.prefix).resolve() in Path(persistlib.__file__).resolve().parents


def test_the_wheel_is_whole() -> None:
    package = Path(persistlib.__file__ or "").parent
    assert (package / "py.typed").is_file()
    assert list((package / "architecture").glob("*.xz"))
    assert not (package / "converters").is_symlink()
    assert importlib.import_module("persistlib.converters.safetensors_file")
    assert importlib.util.find_spec("converters") is None


def test_importing_loads_nothing_heavy() -> None:
    assert not loaded("import persistlib") & {"onnx", "onnxruntime", "numpy", "pydantic", "rich"}


def test_every_public_name_can_be_looked_up() -> None:
    for name in dir(persistlib):
        assert getattr(persistlib, name) is not None


def test_inspect_reads_the_manifest_and_loads_no_runtime() -> None:
    summary = persistlib.inspect(BUNDLE)
    assert summary.manifest.name == "bare"
    assert "onnxruntime" not in loaded(f"import persistlib; persistlib.inspect({str(BUNDLE)!r})")
    assert answer("inspect", BUNDLE)["data"]


def test_verify_compares_every_byte() -> None:
    assert persistlib.verify(BUNDLE).ok
    assert answer("verify", BUNDLE)["ok"]


def test_a_flipped_byte_is_refused_with_the_tensors_name(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(BUNDLE, broken)
    weights = broken / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    report = persistlib.verify(broken)
    assert not report.ok
    names = {tensor.name for tensor in persistlib.inspect(BUNDLE).manifest.weights.tensors}
    assert report.findings[0].location.rpartition(": ")[2] in names
    done = run("verify", broken)
    assert done.returncode == 1
    assert report.findings[0].code in done.stdout + done.stderr


def test_check_says_that_the_model_runs_here() -> None:
    report = persistlib.check(BUNDLE)
    assert report.ok, report.findings
    assert answer("check", BUNDLE)["data"]["verdict"] == report.verdict


def test_this_machine_is_described_for_another_and_judged_as_it_is(tmp_path: Path) -> None:
    told = answer("environment")["data"]
    assert "torch" not in told["packages"]
    assert told["packages"]["onnxruntime"]
    assert "CPUExecutionProvider" in told["providers"]
    machine = tmp_path / "machine.json"
    machine.write_text(json.dumps(told), encoding="utf-8")
    assert persistlib.check(BUNDLE, machine).verdict == persistlib.check(BUNDLE).verdict
    assert persistlib.check(BUNDLE / "model.safetensors").verdict == "ok"
    lock = tmp_path / "pylock.toml"
    lock.write_text(
        'lock-version = "1.0"\n[[packages]]\nname = "onnxruntime"\nversion = "1.15.1"\n'
    )
    refused = persistlib.check(BUNDLE, lock)
    assert refused.verdict == "refused"
    assert refused.findings[0].code == "PL207"


def test_a_model_is_withdrawn_and_taken_back(tmp_path: Path) -> None:
    shutil.copytree(BUNDLE, tmp_path / "bundle")
    bundle = tmp_path / "bundle"
    answer("status", bundle, "--withdraw", "labels swapped")
    assert run("check", bundle).returncode == 1
    with pytest.raises(CompatibilityError, match="labels swapped"):
        persistlib.load(bundle, runtime="onnxruntime")
    answer("status", bundle, "--activate")
    assert answer("status", bundle)["data"]["state"] == "active"
    assert (bundle / "manifest.json").read_bytes() == (BUNDLE / "manifest.json").read_bytes()


def test_upgrading_and_licences_need_no_extra(tmp_path: Path) -> None:
    shutil.copytree(BUNDLE, tmp_path / "runs" / "bundle")
    (told,) = answer("upgrade", tmp_path / "runs")["data"]["bundles"]
    assert told["before"] == told["after"]
    assert "PL226" in {
        f["code"] for f in answer("check", BUNDLE, "--forbid-license", "X")["findings"]
    }


def test_a_delta_is_verified_converted_made_whole_and_pruned(tmp_path: Path) -> None:
    for name in ("bundle", "delta"):
        shutil.copytree(PREPARED / name, tmp_path / name)
    delta = tmp_path / "delta"
    (base,) = (v["base"] for v in answer("log", tmp_path)["data"]["versions"] if v["stored"] == 1)
    assert base == "bundle"
    assert answer("verify", delta)["data"]["verdict"] == "intact"
    assert answer("prune", tmp_path, "--keep", "1")["data"]["removed"] == []
    converted = answer("convert", delta, tmp_path / "m.safetensors", "--allow-loss", "all")
    told = answer("materialize", delta)["data"]
    assert told["weights"] == converted["data"]["identity"]
    shutil.rmtree(tmp_path / "bundle")
    assert answer("verify", delta)["data"]["verdict"] == "intact"


@pytest.mark.parametrize("name", ["out.safetensors", "out.pt"])
def test_a_bundle_converts_and_comes_back_the_same(tmp_path: Path, name: str) -> None:
    answer("convert", BUNDLE, tmp_path / name, "--allow-loss", "all")
    answer("convert", tmp_path / name, tmp_path / "back.safetensors", "--allow-loss", "all")
    stored, back = load_file(BUNDLE / "model.safetensors"), load_file(tmp_path / "back.safetensors")
    assert stored.keys() == back.keys()
    for tensor, values in stored.items():
        assert values.tobytes() == back[tensor].tobytes()


def test_a_checkpoint_of_torch_is_read_without_it(tmp_path: Path) -> None:
    persistlib.convert(PREPARED / "checkpoint.pt", tmp_path / "out.safetensors", allow_loss=["all"])
    stored, read = load_file(BUNDLE / "model.safetensors"), load_file(tmp_path / "out.safetensors")
    assert {k: v.tobytes() for k, v in stored.items()} == {k: v.tobytes() for k, v in read.items()}


def test_every_tensor_format_leads_to_every_other(tmp_path: Path) -> None:
    before = persistlib.inspect(BUNDLE).manifest.weights.identity
    source = PREPARED / "checkpoint.pt"
    for step, ending in enumerate(("h5", "safetensors", "hdf5", "pt", "safetensors.index.json")):
        destination = tmp_path / f"{step}.{ending}"
        report = persistlib.convert(source, destination)
        assert (report.identity, report.source_identity) == (before, before)
        source = destination


def test_a_graph_gives_the_state_dict_back(tmp_path: Path) -> None:
    graph = BUNDLE / "model.onnx"
    answer("convert", graph, tmp_path / "back.h5", "--allow-loss", "graph", "metadata")
    answer("convert", tmp_path / "back.h5", tmp_path / "again.onnx", "--template", graph)
    assert answer("diff", tmp_path / "again.onnx", PREPARED / "checkpoint.pt")["data"]["same"]


def test_a_checkpoint_that_nobody_can_explain_gets_an_answer() -> None:
    data = answer("identify", PREPARED / "checkpoint.pt")["data"]
    assert data["builder"] == "torchvision.models:resnet18"
    assert [(edit["op"], edit["path"]) for edit in data["edits"]] == [("replace", "fc")]
    assert "torch" not in loaded(
        f"import persistlib; persistlib.identify({str(PREPARED / 'checkpoint.pt')!r})"
    )


def test_what_differs_is_told(tmp_path: Path) -> None:
    assert run("diff", BUNDLE, PREPARED / "checkpoint.pt").returncode == 0
    persistlib.convert(BUNDLE, tmp_path / "half.safetensors", dtype="f16")
    done = run("diff", BUNDLE, tmp_path / "half.safetensors")
    assert done.returncode == 1
    assert "F32 → F16" in done.stdout


def test_onnx_runtime_gives_the_outputs_that_torch_gave() -> None:
    manifest = persistlib.inspect(BUNDLE).manifest
    assert manifest.examples is not None
    stored = load_file(BUNDLE / manifest.examples.files[0].path)
    inputs = {k.partition(".")[2]: v for k, v in stored.items() if k.startswith("input.")}
    session = persistlib.load(BUNDLE, runtime="onnxruntime")
    outputs = session.run(inputs)
    for name, found in outputs.items():
        wanted = stored[f"output.{name}"]
        assert wanted.std() > 1e-3
        assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_behaviour_is_verified_in_the_runtime_that_is_here() -> None:
    report = persistlib.verify(BUNDLE, behaviour=True)
    assert report.ok, report.findings


def test_an_image_gets_a_class_name() -> None:
    (prediction,) = answer("run", BUNDLE, PREPARED / "image.png")["data"]["predictions"]
    assert prediction["label"] in {"ant", "bee", "cat", "dog"}
    assert 0 < prediction["probability"] <= 1


def test_what_needs_torch_says_how_to_get_it() -> None:
    with pytest.raises(MissingExtra) as caught:
        persistlib.load(BUNDLE, runtime="torch")
    assert caught.value.code == "PL902"
    assert "persistlib[torch]" in caught.value.remedy
    assert "\n" not in str(caught.value)
    nothing: Any = None
    with pytest.raises(MissingExtra):
        persistlib.build("torchvision.models:resnet18")
    with pytest.raises(MissingExtra):
        persistlib.save(nothing, "nowhere")
    with pytest.raises(MissingExtra):
        persistlib.freeze(nothing, "*")


def test_judging_needs_scikit_learn_and_says_so() -> None:
    with pytest.raises(MissingExtra) as caught:
        persistlib.evaluate(BUNDLE, "photos")
    assert caught.value.remedy == "pip install 'persistlib[evaluate]'"


def test_the_command_line_says_so_in_one_line() -> None:
    done = run("run", BUNDLE, PREPARED / "image.png", "--runtime", "torch")
    assert done.returncode == 1
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if "PL902" in line]
    assert "persistlib[torch]" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr, line


def test_a_broken_bundle_never_becomes_a_session(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(BUNDLE, broken)
    graph = broken / "model.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with pytest.raises(IntegrityError):
        persistlib.load(broken, runtime="onnxruntime")


def test_a_graph_alone_runs_as_its_bundle_does(tmp_path: Path) -> None:
    graph = tmp_path / "alone.onnx"
    shutil.copy(BUNDLE / "model.onnx", graph)
    (image,) = answer("run", BUNDLE, PREPARED / "image.png")["data"]["predictions"]
    (alone,) = answer("run", graph, PREPARED / "image.png")["data"]["predictions"]
    assert alone == image
    stored = load_file(BUNDLE / "examples.safetensors")
    ((name, given),) = [(k, v) for k, v in stored.items() if k.startswith("input.")]
    (wanted,) = (v for k, v in stored.items() if k.startswith("output."))
    np.save(tmp_path / "x.npy", given)
    word = f"{name.partition('.')[2]}={tmp_path / 'x.npy'}"
    report = answer("run", graph, "--input", word, "--out", tmp_path / "o.npz", "--report")
    assert list(report["data"]["report"]["assigned"]) == ["cpu"]
    with np.load(tmp_path / "o.npz") as outputs:
        (found,) = outputs.values()
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()
    assert "torch" not in loaded(
        f"import persistlib; persistlib.load({str(graph)!r}, runtime='onnxruntime')"
    )


def test_the_machines_providers_are_shown() -> None:
    rows = {row["name"]: row for row in answer("providers")["data"]["providers"]}
    assert rows["cpu"]["used"]
    assert not rows["cuda"]["available"]
    done = run("run", BUNDLE, PREPARED / "image.png", "--require", "cuda")
    assert done.returncode == 1
    assert "onnxruntime-gpu" in done.stderr


def test_a_loop_without_end_ends(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    def value(name: str, dtype: int, shape: list[int]) -> Any:
        return helper.make_tensor_value_info(name, dtype, shape)

    inner = [
        helper.make_node("Identity", ["c"], ["c2"]),
        helper.make_node("Identity", ["v"], ["v2"]),
    ]
    body = helper.make_graph(
        inner,
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("c", TensorProto.BOOL, []),
            value("v", TensorProto.FLOAT, [2]),
        ],
        [value("c2", TensorProto.BOOL, []), value("v2", TensorProto.FLOAT, [2])],
    )
    tensors = [
        helper.make_tensor("rounds", TensorProto.INT64, [], [2**62]),
        helper.make_tensor("go_on", TensorProto.BOOL, [], [True]),
    ]
    node = helper.make_node("Loop", ["rounds", "go_on", "x"], ["y"], body=body)
    floats = (value("x", TensorProto.FLOAT, [2]), value("y", TensorProto.FLOAT, [2]))
    graph = helper.make_graph([node], "endless", [floats[0]], [floats[1]], tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    np.save(tmp_path / "x.npy", np.ones(2, np.float32))
    words = ("run", tmp_path / "m.onnx", "--input", tmp_path / "x.npy", "--timeout", "0.5")
    done = run(*words)
    assert done.returncode == 1
    assert "PL712" in done.stderr
