"""A graph made for a target is one that the target takes: said, made, and run there."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import venv
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import persistlib
from persistlib.cli.main import cli
from persistlib.errors import ExportError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

OLD = "onnxruntime==1.15.1"
SECONDS = 900

RUN = """
import sys
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
(output,) = session.run(None, {session.get_inputs()[0].name: np.load(sys.argv[2])})
np.save(sys.argv[3], output)
print(onnxruntime.__version__)
"""


def saved(folder: Path, *, onnx: bool) -> tuple[Path, NDArray[np.float32], NDArray[np.float32]]:
    """Return a bundle in a folder, inputs that are not its examples, and what it makes of them."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    model.train()
    with torch.no_grad():
        for _ in range(8):  # statistics of its own
            model(torch.randn(16, 3, 12, 12) * 2 + 1)
    model.eval()
    persistlib.save(model, folder, onnx=onnx, example_inputs=torch.randn(2, 3, 12, 12))
    inputs = torch.randn(5, 3, 12, 12)
    return folder, inputs.numpy(), model(inputs).detach().numpy()


def remedy_for(bundle: Path, target: str) -> str:
    """Return the remedy of what refuses a bundle."""
    done = CliRunner().invoke(cli, ["check", str(bundle), "--target", target, "--json"])
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert told["data"]["verdict"] == "refused"
    remedy: str = told["findings"][0]["remedy"]
    return remedy


def pasted(line: str) -> None:
    """Carry out a line as a shell would."""
    for command in line.split(" && "):
        program, *words = shlex.split(command)
        assert program == "persistlib"
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize("onnx", [False, True])
def test_the_remedy_makes_a_graph_that_the_target_takes(tmp_path: Path, onnx: bool) -> None:
    bundle, inputs, wanted = saved(tmp_path / "a bundle", onnx=onnx)
    pasted(remedy_for(bundle, OLD))
    made = tmp_path / "a bundle-onnxruntime-1.15.1.onnx"
    assert persistlib.check(made, OLD).verdict == "ok"
    session = persistlib.load(made, runtime="onnxruntime")
    (found, *_) = session.run(inputs).values()
    assert np.abs(found - wanted).max() < 1e-5 * np.ptp(wanted)


def test_a_bare_graph_has_a_remedy_too(tmp_path: Path) -> None:
    bundle, *_ = saved(tmp_path / "net", onnx=False)
    persistlib.convert(bundle, tmp_path / "new.onnx")
    assert persistlib.check(tmp_path / "new.onnx", OLD).verdict == "refused"
    pasted(remedy_for(tmp_path / "new.onnx", OLD))
    assert persistlib.check(tmp_path / "new-onnxruntime-1.15.1.onnx", OLD).verdict == "ok"


def test_a_graph_that_is_to_be_another_is_told_the_way(tmp_path: Path) -> None:
    bundle, *_ = saved(tmp_path / "net", onnx=False)
    persistlib.convert(bundle, tmp_path / "new.onnx")
    with pytest.raises(UsageError, match="written anew from a bundle") as caught:
        persistlib.convert(tmp_path / "new.onnx", tmp_path / "old.onnx", target=OLD)
    assert f"persistlib convert {tmp_path}/new.onnx {tmp_path}/new," in str(caught.value)


def test_a_graph_that_the_target_would_refuse_is_not_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Softplus(), nn.Linear(6, 3)).double()
    inputs = torch.randn(2, 4, dtype=torch.float64)
    persistlib.save(model, tmp_path / "net", example_inputs=inputs)
    with pytest.raises(ExportError, match=r"PL609 .*Softplus.*no kernel for tensor.double"):
        persistlib.convert(tmp_path / "net", tmp_path / "old.onnx", target=OLD)
    with pytest.raises(ExportError, match="PL609"):
        persistlib.save(model, tmp_path / "b", example_inputs=inputs, onnx={"target": OLD})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net"]
    newer = "onnxruntime==1.32.0"
    persistlib.convert(tmp_path / "net", tmp_path / "new.onnx", target=newer)
    assert persistlib.check(tmp_path / "new.onnx", newer).verdict == "ok"


@pytest.mark.parametrize("release", ["1.14.0", "1.99.0"])
def test_of_a_release_that_is_not_known_nothing_is_said_to_be_proved(
    tmp_path: Path, release: str
) -> None:
    bundle, *_ = saved(tmp_path / "net", onnx=False)
    out = tmp_path / "net.onnx"
    wish = f"onnxruntime=={release}"
    done = CliRunner().invoke(cli, ["convert", str(bundle), str(out), "--target", wish, "--json"])
    (told,) = json.loads(done.stdout)["findings"]
    assert (told["code"], told["severity"]) == ("PL212", "warning")
    assert f"not proved that {release} runs the graph" in told["message"]
    assert persistlib.check(out, wish).verdict == "degraded"


def test_a_graph_for_a_range_is_one_for_its_oldest_release(tmp_path: Path) -> None:
    bundle, *_ = saved(tmp_path / "net", onnx=False)
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("onnxruntime>=1.15,<1.21\n")
    persistlib.convert(bundle, tmp_path / "net.onnx", target=str(requirements))
    assert persistlib.check(tmp_path / "net.onnx", OLD).verdict == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("release", ["1.15.1", "1.18.1"])
def test_the_remedys_graph_runs_and_agrees_in_the_target_itself(
    tmp_path: Path, release: str
) -> None:
    bundle, inputs, wanted = saved(tmp_path / "net", onnx=True)
    target = f"onnxruntime=={release}"
    graph = tmp_path / f"net-onnxruntime-{release}.onnx"
    if persistlib.check(bundle, target).ok:
        persistlib.convert(bundle, graph)
    else:
        pasted(remedy_for(bundle, target))
    assert persistlib.check(graph, target).verdict == "ok"
    python = environment(tmp_path / "venv", target, "numpy<2")
    np.save(tmp_path / "x.npy", inputs)
    words = [str(graph), *(str(tmp_path / name) for name in ("x.npy", "y.npy"))]
    done = subprocess.run(
        [str(python), "-c", RUN, *words],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == release
    found = np.load(tmp_path / "y.npy")
    assert np.ptp(wanted) > 0.1
    assert np.abs(found - wanted).max() < 1e-5 * np.ptp(wanted)


def environment(folder: Path, *packages: str) -> Path:
    """Return the interpreter of a new environment; without a package index the test is skipped."""
    if sys.version_info >= (3, 12):
        pytest.skip("the oldest releases have no wheel for this Python")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages]
    done = subprocess.run(install, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        pytest.skip(f"pip install {' '.join(packages)} failed: {done.stderr[-200:]}")
    return python
