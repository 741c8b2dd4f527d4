"""Every verb on real bundles: what it prints, what it says to programs, and how it exits."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

import persistlib
from command_line import invoke, told
from persistlib.errors import Code, error
from persistlib.export import proof

if TYPE_CHECKING:
    from pathlib import Path

LABELS = ("cat", "dog", "owl")
EDGE = 32


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundles `plain` and `graph`, of one model."""
    folder = tmp_path_factory.mktemp("bundles")
    torch.manual_seed(0)
    model = persistlib.build("torchvision.models:squeezenet1_1", num_classes=3).eval()
    persistlib.freeze(model, ["*", "!classifier.*"])
    for name, onnx in (("plain", False), ("graph", True)):
        persistlib.save(
            model,
            folder / name,
            name=name,
            onnx=onnx,
            example_inputs=torch.randn(2, 3, EDGE, EDGE),
            interface={
                "labels": LABELS,
                "preprocessing": {"kind": "image", "channels": 3, "resize": [EDGE, EDGE]},
            },
        )
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one folder of four images a class."""
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for index, label in enumerate(LABELS):
        (folder / label).mkdir()
        for number in range(4):
            pixels = draw.integers(80 * index, 80 * index + 80, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


def flipped(bundle: Path, target: Path, name: str = "model.safetensors") -> Path:
    """A copy of a bundle with the last byte of a file changed."""
    shutil.copytree(bundle, target)
    data = bytearray((target / name).read_bytes())
    data[-1] ^= 1
    (target / name).write_bytes(data)
    return target


def test_inspect_fits_on_a_screen_and_names_what_trains(bundles: Path) -> None:
    result = invoke("inspect", bundles / "graph")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) <= 40
    assert all(len(line) <= 100 for line in lines)
    assert lines[0].startswith("graph  squeezenet1_1 · 3 classes")
    for text in ("cat, dog, owl", "1,539 of 724,035 parameters (classifier.1)", "model.onnx"):
        assert text in result.stdout
    assert f"next: persistlib verify {bundles / 'graph'}" in result.stderr


def test_inspect_lists_every_tensor_when_asked(bundles: Path) -> None:
    listed = invoke("inspect", bundles / "plain", "--all").stdout
    manifest = persistlib.inspect(bundles / "plain").manifest
    assert all(f"  {record.name} " in listed for record in manifest.weights.tensors)


def test_inspect_gives_programs_the_whole_manifest(bundles: Path) -> None:
    envelope, code = told("inspect", bundles / "plain")
    stored = json.loads((bundles / "plain" / "manifest.json").read_text(encoding="utf-8"))
    assert (code, envelope["data"]["manifest"]) == (0, stored)
    assert envelope["data"]["parameters"] == 724_035
    assert invoke("inspect", bundles / "plain", "-q").stdout.strip() == stored["bundle_id"]


def test_inspect_imports_neither_frameworks_nor_pydantic(bundles: Path) -> None:
    code = (
        "import sys\nfrom persistlib.cli.main import cli\n"
        f"try: cli.main(['inspect', {str(bundles / 'graph')!r}])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'pydantic', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stderr.decode().splitlines()[-1] == "[]"


def test_verify_says_intact_or_which_tensor_is_not(bundles: Path, tmp_path: Path) -> None:
    whole = invoke("verify", bundles / "graph", "--behaviour")
    assert whole.exit_code == 0
    assert whole.stdout.startswith("✓ intact: 4 files")
    bad = flipped(bundles / "plain", tmp_path / "bad")
    damaged = invoke("verify", bad)
    assert damaged.exit_code == 1
    assert damaged.stdout.startswith("✗ NOT intact: 1 of 3 files")
    envelope, code = told("verify", bad)
    assert code == 1
    assert [f["name"] for f in envelope["data"]["files"] if not f["ok"]] == ["model.safetensors"]
    assert [f["code"] for f in envelope["findings"]] == ["PL117"]
    assert envelope["findings"][0]["location"].endswith(": features.9.squeeze.weight")


def test_check_answers_for_here_and_for_elsewhere(bundles: Path) -> None:
    here, code = told("check", bundles / "plain")
    assert (here["data"]["verdict"], code) == ("ok", 0)
    elsewhere, code = told("check", bundles / "plain", "--target", "torch==1.13", "python==3.11")
    assert (elsewhere["data"]["verdict"], code) == ("refused", 1)
    nonsense, code = told("check", bundles / "plain", "--target", "torch>=")
    assert (nonsense["findings"][0]["code"], code) == ("PL906", 2)


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_run_names_the_classes_alike_on_every_runtime(
    bundles: Path, images: Path, runtime: str
) -> None:
    pictures = sorted(images.glob("*/0.png"))
    envelope, code = told("run", bundles / "graph", *pictures, "--runtime", runtime)
    assert code == 0
    session = persistlib.load(bundles / "graph", runtime="onnxruntime")
    expected = session.predict([str(picture) for picture in pictures])
    given = envelope["data"]["predictions"]
    assert [row["image"] for row in given] == [str(picture) for picture in pictures]
    for row, wanted in zip(given, expected, strict=True):
        assert row["label"] == wanted.label
        assert row["probability"] == pytest.approx(wanted.probability, rel=1e-4)
        assert sum(share["probability"] for share in row["top"]) == pytest.approx(1)


def test_run_takes_the_runtime_that_the_bundle_has(bundles: Path, images: Path) -> None:
    picture = images / "cat" / "0.png"
    assert told("run", bundles / "graph", picture)[0]["data"]["runtime"] == "onnxruntime"
    assert told("run", bundles / "plain", picture)[0]["data"]["runtime"] == "torch"
    refused, code = told("run", bundles / "plain", picture, "--runtime", "onnxruntime")
    assert (refused["findings"][0]["code"], code) == ("PL607", 1)
    quiet = invoke("run", bundles / "graph", picture, "-q")
    assert quiet.stdout.strip() in LABELS


def test_run_refuses_what_it_cannot_do(bundles: Path, images: Path, tmp_path: Path) -> None:
    picture = images / "cat" / "0.png"
    (tmp_path / "no.png").write_bytes(b"no image")
    bad = flipped(bundles / "graph", tmp_path / "bad", "model.onnx")
    for words, expected in (
        ((bundles / "graph", tmp_path / "no.png"), "PL707"),
        ((bundles / "graph", tmp_path / "absent.png"), "PL707"),
        ((bundles / "graph", picture, "--require", "cuda"), "PL704"),
        ((bundles / "graph", picture, "--providers", "cpu,nonsense"), "PL703"),
        ((bad, picture), "PL114"),
        ((tmp_path / "absent", picture), "PL412"),
        ((tmp_path, picture), "PL411"),
    ):
        envelope, code = told("run", *words)
        assert (envelope["findings"][0]["code"], code) == (expected, 1), words


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".onnx"])
def test_convert_writes_every_format_and_never_over_another_file_unasked(
    bundles: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"model{suffix}"
    envelope, code = told("convert", bundles / "graph", out)
    data = envelope["data"]
    assert (code, data["losses"], data["size"]) == (0, [], out.stat().st_size)
    assert data["identity"] == persistlib.inspect(bundles / "graph").manifest.weights.identity
    refused = invoke("convert", bundles / "graph", out)
    assert refused.exit_code == 1
    assert "PL401" in refused.stderr
    assert "--overwrite" in refused.stderr
    again = invoke("convert", bundles / "graph", out, "--overwrite", "-q")
    assert (again.exit_code, again.stdout) == (0, f"{out}\n")
    shown = invoke("convert", bundles / "graph", out, "--overwrite")
    (offered,) = [line for line in shown.stderr.splitlines() if line.startswith("next: ")]
    taken = invoke(*shlex.split(offered)[2:])
    assert taken.exit_code == 0, taken.output
    assert str(out) in offered


def test_convert_takes_a_part_and_a_format_by_name(bundles: Path, tmp_path: Path) -> None:
    out = tmp_path / "part"
    words = ("--to", "safetensors", "--only", "classifier.*", "!*.bias")
    envelope, code = told("convert", bundles / "plain", out, *words)
    assert (code, envelope["data"]["tensors"], envelope["data"]["format"]) == (0, 1, "safetensors")


@pytest.mark.parametrize(
    ("words", "expected", "exit_code"),
    [
        (("{b}", "{t}/x.zip"), "PL501", 1),
        (("{b}", "{t}/x", "--to", "hdf6"), "PL901", 2),
        (("{t}/absent", "{t}/x.pt"), "PL412", 1),
        (("{b}", "{t}/x.pt", "--only", "nothing.*"), "PL804", 1),
    ],
)
def test_convert_refuses_with_a_code(
    bundles: Path, tmp_path: Path, words: tuple[str, ...], expected: str, exit_code: int
) -> None:
    places = {"b": bundles / "plain", "t": tmp_path}
    envelope, code = told("convert", *(word.format(**places) for word in words))
    assert (envelope["findings"][0]["code"], code) == (expected, exit_code)
    assert os.listdir(tmp_path) == []


def test_finetune_states_its_plan_trains_and_saves(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    words = ("--data", images, "--resize", EDGE, "--epochs", 2, "--out", out, "--seed", 3)
    result = invoke("finetune", "squeezenet1_1", *words, "--freeze", "*", "!classifier.*")
    assert result.exit_code == 0, result.stderr
    plan, epochs = result.stderr.split("epoch 1/2")
    for text in ("12 images", "cat, dog, owl", "9 to train on, 3 held out", "frozen"):
        assert text in plan
    assert "epoch 2/2" in epochs
    assert f"next: persistlib inspect {out}" in epochs
    assert result.stdout.startswith(f"✓ saved {out}")
    manifest = persistlib.inspect(out).manifest
    assert (manifest.name, manifest.interface.labels) == ("mine", LABELS)
    assert manifest.training is not None
    assert manifest.training.seed == 3
    envelope, code = told("run", out, images / "owl" / "0.png")
    assert (code, envelope["data"]["predictions"][0]["label"] in LABELS) == (0, True)
    again, code = told("finetune", "squeezenet1_1", *words)
    assert (again["findings"][0]["code"], code) == ("PL401", 1)
    replaced, code = told("finetune", "squeezenet1_1", *words, "--overwrite")
    assert code == 0
    assert len(replaced["data"]["history"]) == 2
    assert replaced["data"]["plan"]["head"]["classes"] == 3


def test_finetune_begins_from_a_bundle_and_goes_on_with_that(
    images: Path, bundles: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    words = ("--data", images, "--epochs", 1, "--out", out)
    envelope, code = told("finetune", bundles / "plain", *words)
    assert (code, envelope["data"]["plan"]["builder"]) == (0, "torchvision.models:squeezenet1_1")
    parent = persistlib.inspect(bundles / "plain").manifest
    made = persistlib.inspect(out).manifest
    assert [entry.id for entry in made.lineage] == [parent.bundle_id]
    assert made.interface.preprocessing is not None
    assert made.interface.preprocessing["resize"] == [EDGE, EDGE]
    complete, code = told("finetune", "--resume", f"{out}.run")
    (found,) = complete["findings"]
    assert (found["code"], code) == ("PL401", 1)
    assert "the run is complete, 1 of 1 epochs" in found["message"]
    assert f"--resume {out}.run --epochs 2 --overwrite" in found["remedy"]
    again, code = told("finetune", "--resume", f"{out}.run", "--epochs", 2, "--overwrite")
    assert (code, len(again["data"]["history"])) == (0, 2)


def test_finetune_keeps_what_it_trained_where_its_graph_cannot_be_proved(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prove(*_: Any, **__: Any) -> Any:
        raise error(Code.EXPORT_DEGENERATE, "output", "all outputs are alike", "train it first")

    monkeypatch.setattr(proof, "prove", prove)
    out = tmp_path / "mine"
    words = ("--data", images, "--resize", EDGE, "--epochs", 1, "--out", out, "--onnx")
    envelope, code = told("finetune", "squeezenet1_1", *words)
    assert code == 3
    (found,) = envelope["findings"]
    assert (found["code"], found["severity"]) == ("PL603", "warning")
    assert "without its ONNX graph" in found["message"]
    assert f"persistlib convert {out} MODEL.onnx" in found["remedy"]
    assert persistlib.verify(out).ok
    assert persistlib.inspect(out).manifest.graphs == ()
    shown = invoke("finetune", "squeezenet1_1", *words, "--overwrite")
    assert shown.exit_code == 3
    assert "graph     none: the warning says why" in shown.stdout
    monkeypatch.undo()
    made, code = told("convert", out, tmp_path / "mine.onnx")
    assert (code, made["data"]["format"]) == (0, "onnx")


@pytest.mark.parametrize(
    ("words", "expected", "exit_code"),
    [
        (("resnet81", "--data", "{i}", "--out", "{t}/x"), "PL304", 1),
        (("os:system", "--data", "{i}", "--out", "{t}/x"), "PL303", 1),
        (("squeezenet1_1", "--data", "{t}/absent", "--out", "{t}/x"), "PL801", 1),
        (("squeezenet1_1", "--data", "sklearn:iris", "--out", "{t}/x"), "PL801", 1),
        (("squeezenet1_1", "--data", "{i}", "--out", "{t}/x", "--lr", "-1"), "PL901", 2),
        (("squeezenet1_1", "--data", "{i}", "--out", "{t}/x", "--freeze", "*"), "PL901", 2),
        (("squeezenet1_1", "--data", "{i}", "--out", "{i}/cat/0.png"), "PL403", 1),
        (("squeezenet1_1", "--data", "{i}"), "PL901", 2),
        (("{b}", "--weights", "DEFAULT", "--data", "{i}", "--out", "{t}/x"), "PL901", 2),
        (("squeezenet1_1", "--weights", "{b}", "--data", "{i}", "--out", "{t}/x"), "PL901", 2),
        (("{t}/absent", "--data", "{i}", "--out", "{t}/x"), "PL412", 1),
    ],
)
def test_finetune_refuses_before_it_trains(
    *,
    images: Path,
    bundles: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    expected: str,
    exit_code: int,
) -> None:
    places = {"i": images, "t": tmp_path, "b": bundles / "plain"}
    envelope, code = told("finetune", *(word.format(**places) for word in words))
    assert (envelope["findings"][0]["code"], code) == (expected, exit_code)
    assert os.listdir(tmp_path) == []
