"""Real builds of ONNX Runtime, each in an environment made from scratch: what they say is true.

Without network and package index, or where PyPI has no wheel for this machine, these are skipped.
Nothing is fetched but wheels: some 500 MB.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from onnx import helper

import persistlib
from graph_assembly import model, of, weight

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SECONDS = 1800  # for pip on a slow line

RUN = """
import json, sys
import numpy as np
import persistlib
from persistlib.errors import PersistlibError

answers = []
for source, wishes in json.loads(sys.argv[1]):
    try:
        session = persistlib.load(source, runtime="onnxruntime", **wishes)
        given = np.load(sys.argv[2] if source != sys.argv[3] else sys.argv[4])
        (found, *_) = session.run_batched(given, batch_size=2).values()
        answers.append({
            "providers": session.providers, "placement": session.placement,
            "outputs": found.tolist(),
        })
    except PersistlibError as fault:
        answers.append({"code": fault.code, "reason": fault.reason, "remedy": fault.remedy})
print(json.dumps(answers))
"""


def base_packages() -> list[str]:
    """Return what persistlib needs, the runtime left out."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        needed: list[str] = tomllib.load(file)["project"]["dependencies"]
    return [name for name in needed if not name.startswith("onnxruntime")]


def pip(python: Path, *words: str) -> None:
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *words],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason"]
        pytest.skip(f"pip install {words[-1]} failed: {lines[-1][:200]}")


def environment(folder: Path, package: str) -> Path:
    """Return the interpreter of a new environment with a build of ONNX Runtime."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip(python, *base_packages(), package)
    return python


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("gpu") / "venv", "onnxruntime-gpu")


@pytest.fixture(scope="module")
def both(gpu: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("both") / "venv"
    shutil.copytree(gpu.parents[1], folder, symlinks=True)
    python = folder / "bin" / "python"
    pip(python, "onnxruntime")
    return python


@pytest.fixture(scope="module")
def openvino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("openvino") / "venv", "onnxruntime-openvino")


class Given:
    """A bundle, its graph alone, a graph of which a provider lacks an operator, and inputs."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1),
            torch.nn.BatchNorm2d(8),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(2),
            torch.nn.Flatten(),
            torch.nn.Linear(32, 5),
        )
        for _ in range(4):  # statistics of real passes
            net(torch.randn(8, 3, 16, 16) * 3 + 1)
        net.eval()
        images = torch.randn(5, 3, 16, 16) * 2
        self.bundle, self.file, self.mixed = (folder / n for n in ("b", "m.onnx", "mixed.onnx"))
        persistlib.save(net, self.bundle, example_inputs=images[:2], onnx=True)
        persistlib.convert(self.bundle, self.file)
        nodes = [
            helper.make_node("Add", ["x", "w"], ["h"]),
            helper.make_node(
                "Scaler", ["h"], ["y"], domain="ai.onnx.ml", scale=[2.0], offset=[0.0]
            ),
        ]
        proto = model(nodes, [weight()])
        proto.opset_import.add(domain="ai.onnx.ml", version=3)
        self.mixed.write_bytes(of(proto))
        self.images, self.rows = folder / "images.npy", folder / "rows.npy"
        np.save(self.images, images.numpy())
        np.save(self.rows, np.ones((3, 2), np.float32))
        self.expected = net(images).detach().numpy()
        assert self.expected.std() > 1e-2

    def answers(self, python: Path, wishes: Sequence[tuple[Path, dict[str, Any]]]) -> list[Any]:
        """Return what sessions with these wishes are and give, in an environment."""
        task = json.dumps([[str(path), wish] for path, wish in wishes])
        words = (task, self.images, self.mixed, self.rows)
        done = run(python, "-c", RUN, *map(str, words))
        assert done.returncode == 0, done.stderr
        answers: list[Any] = json.loads(done.stdout.splitlines()[-1])
        return answers

    def is_met(self, outputs: Any) -> bool:
        scale = np.abs(self.expected).max()
        return bool(np.abs(np.array(outputs) - self.expected).max() <= 1e-4 * scale)


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Given:
    return Given(tmp_path_factory.mktemp("given"))


def run(python: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, *words],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def machine(python: Path) -> tuple[dict[str, Any], int]:
    done = run(python, "-m", "persistlib", "providers", "--json")
    envelope: dict[str, Any] = json.loads(done.stdout)
    return envelope, done.returncode


CUDA: list[dict[str, Any]] = [
    {"require": "cuda"},
    {"providers": ["cuda"]},
    {"providers": ["cuda", "cpu"]},
    {"providers": [["cuda", {"device_id": 0}], "cpu"], "require": "cuda", "min_share": 0.95},
]


def has_driver() -> bool:
    return os.path.exists("/proc/driver/nvidia/version")


def test_the_build_for_gpus_without_a_driver_says_what_is_missing(gpu: Path, things: Given) -> None:
    if has_driver():
        pytest.skip("this machine has a driver")
    for fault in things.answers(gpu, [(things.bundle, wish) for wish in CUDA]):
        assert fault["code"] == "PL710", fault
        assert "libcuda.so.1" in fault["reason"]
        assert "NVIDIA driver" in fault["remedy"]
    envelope, code = machine(gpu)
    rows = {row["name"]: row for row in envelope["data"]["providers"]}
    assert code == 3
    assert [b["distribution"] for b in envelope["data"]["builds"]] == ["onnxruntime-gpu"]
    assert (rows["cuda"]["available"], rows["cuda"]["created"]) == (True, False)
    assert "libcuda.so.1" in rows["cuda"]["missing"]
    assert rows["cpu"]["used"]


def test_the_build_for_gpus_computes_on_the_cpu_when_that_is_asked_for(
    gpu: Path, things: Given
) -> None:
    answers = things.answers(gpu, [(things.bundle, {}), (things.file, {"require": "cpu"})])
    for answer in answers:
        assert answer["providers"] == ["cpu"]
        assert things.is_met(answer["outputs"])


def test_builds_installed_over_each_other_are_told_as_that(both: Path, things: Given) -> None:
    for fault in things.answers(both, [(things.bundle, wish) for wish in CUDA]):
        assert fault["code"] == "PL709", fault
        assert "installed over each other" in fault["reason"]
        assert fault["remedy"].startswith("pip uninstall -y onnxruntime onnxruntime-gpu && ")
    envelope, code = machine(both)
    assert code == 3
    assert "PL709" in {found["code"] for found in envelope["findings"]}
    assert sorted(b["whole"] for b in envelope["data"]["builds"]) == [False, True]


def test_the_build_for_cpus_and_an_unknown_provider_are_told_otherwise(things: Given) -> None:
    wishes = [(things.bundle, wish) for wish in (*CUDA, {"providers": ["cudaa", "cpu"]})]
    *absent, unknown = things.answers(Path(sys.executable), wishes)
    for fault in absent:
        assert fault["code"] == "PL704"
        assert "onnxruntime-gpu" in fault["remedy"]
    assert unknown["code"] == "PL703"
    assert "cuda" in unknown["remedy"]


def test_a_second_provider_is_selected_given_every_operator_and_computes_the_same(
    openvino: Path, things: Given
) -> None:
    wishes: list[dict[str, Any]] = [
        {"require": "openvino"},
        {"providers": ["openvino", "cpu"], "require": "openvino", "min_share": 1.0},
        {"providers": ["openvino"], "require": "openvino"},
        {"providers": [["openvino", {"device_type": "CPU", "num_of_threads": 1}], "cpu"]},
    ]
    pairs = [(path, wish) for path in (things.bundle, things.file) for wish in wishes]
    for answer in things.answers(openvino, pairs):
        assert set(answer["placement"]) == {"openvino"}, answer
        assert answer["providers"][0] == "openvino"
        assert things.is_met(answer["outputs"])
    envelope, code = machine(openvino)
    assert (code, envelope["findings"]) == (0, [])
    used = {row["name"] for row in envelope["data"]["providers"] if row["used"]}
    assert used == {"openvino", "cpu"}


def test_what_a_second_provider_lacks_falls_to_the_cpu_where_that_is_allowed(
    openvino: Path, things: Given
) -> None:
    allowed, share, alone = things.answers(
        openvino,
        [
            (things.mixed, {"providers": ["openvino", "cpu"], "require": "openvino"}),
            (things.mixed, {"require": "openvino", "min_share": 0.95}),
            (things.mixed, {"providers": ["openvino"]}),
        ],
    )
    assert allowed["placement"] == {"openvino": 1, "cpu": 1}
    assert allowed["outputs"] == [[4, 4]] * 3
    assert share["code"] == alone["code"] == "PL705"
    assert "1 of 2 operators" in share["reason"]
    assert "1 Scaler" in alone["reason"]
    assert "cpu" in alone["remedy"]


def test_options_and_devices_that_a_provider_does_not_have_are_its_fault(
    openvino: Path, things: Given
) -> None:
    option, device = things.answers(
        openvino,
        [
            (things.file, {"providers": [["openvino", {"nonsense": 1}], "cpu"]}),
            (things.file, {"providers": [["openvino", {"device_type": "NPU"}], "cpu"]}),
        ],
    )
    assert option["code"] == "PL705"
    assert "nonsense" in option["reason"]
    assert device["code"] in ("PL705", "PL710")
    assert "NPU" in device["reason"]


def test_the_report_says_what_ran_where(openvino: Path, things: Given) -> None:
    words = ["-m", "persistlib", "run", str(things.bundle), "--input", str(things.images)]
    wishes = ["--providers", "openvino,cpu", "--require", "openvino", "--report", "--json"]
    done = run(openvino, *words, *wishes)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["data"]["report"]
    assert report["asked"] == ["openvino", "cpu"]
    assert set(report["assigned"]) == {"openvino"}
    assert report["spent"]["openvino"]["seconds"] > 0
