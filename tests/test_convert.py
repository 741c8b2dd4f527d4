"""A conversion keeps every bit, tells what it does not keep, and leaves no file when it fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model

import persistlib
import saved_models
from persistlib import conversion
from persistlib.checkpoint import tensor_rows
from persistlib.digests import digest
from persistlib.errors import Code, LossError, PersistlibError, UsageError
from portrait import bits, settle

if TYPE_CHECKING:
    from torch import nn

    from persistlib.checkpoint import CheckpointReader
    from persistlib.digests import TensorRow
    from persistlib.manifest.schema import Manifest

ENDINGS = {"safetensors": ".safetensors", "torch": ".pt"}


def tokens() -> torch.Tensor:
    return torch.arange(15).reshape(3, 5) % 11


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle with ties, in shards."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("tied") / "bundle"
    persistlib.save(saved_models.Tied(), path, example_inputs=tokens(), shard_bytes=500)
    return path


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle with every dtype."""
    path = tmp_path_factory.mktemp("kinds") / "bundle"
    persistlib.save(saved_models.Kinds(), path, example_inputs=torch.randn(3, 6))
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle without a graph, of a model that has one."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("small") / "bundle"
    inputs = torch.randn(3, 2, 6)
    persistlib.save(settle(saved_models.Small(), inputs), path, example_inputs=inputs)
    return path


def loaded(path: Path) -> nn.Module:
    model = persistlib.load(path, trust={"saved_models"})
    assert isinstance(model, torch.nn.Module)
    return model


def manifest_of(path: Path) -> Manifest:
    return persistlib.inspect(path).manifest


def values(state: Any) -> dict[str, tuple[str, tuple[int, ...], str]]:
    return {n: (str(t.dtype), tuple(t.shape), bits(t)) for n, t in state.items()}


@pytest.mark.parametrize("bundle", ["tied", "kinds", "small"])
def test_a_state_dict_opens_in_torch_alone(
    bundle: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(bundle)
    report = persistlib.convert(path, tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    wanted = loaded(path).state_dict()
    assert list(state) == list(wanted)
    assert values(state) == values(wanted)
    assert (report.format, report.tensors, report.losses) == ("torch", len(wanted), ())
    assert report.identity == manifest_of(path).weights.identity
    shared = {n: m for n in state for m in state if state[n].data_ptr() == state[m].data_ptr() != 0}
    for alias, name in manifest_of(path).weights.aliases.items():
        assert state[alias].untyped_storage().data_ptr() == state[name].untyped_storage().data_ptr()
    assert shared
    loaded(path).load_state_dict(state)


@pytest.mark.parametrize("bundle", ["tied", "kinds", "small"])
def test_a_safetensors_file_opens_in_safetensors_alone(
    bundle: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(bundle)
    report = persistlib.convert(path, tmp_path / "model.safetensors")
    state = load_file(tmp_path / "model.safetensors")
    aliases = manifest_of(path).weights.aliases
    wanted = loaded(path).state_dict()
    assert values(state) == values({n: t for n, t in wanted.items() if n not in aliases})
    model = loaded(path)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    assert not any(load_model(model, tmp_path / "model.safetensors"))
    assert values(model.state_dict()) == values(wanted)
    assert report.tensors == len(wanted)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", **aliases}


@pytest.mark.parametrize("first", ENDINGS)
@pytest.mark.parametrize("second", ENDINGS)
@pytest.mark.parametrize("bundle", ["tied", "kinds"])
def test_files_convert_into_one_another_and_back(
    bundle: str, first: str, second: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(bundle)
    one = tmp_path / f"one{ENDINGS[first]}"
    two = tmp_path / f"two{ENDINGS[second]}"
    back = tmp_path / f"back{ENDINGS[first]}"
    reports = [
        persistlib.convert(path, one),
        persistlib.convert(one, two),
        persistlib.convert(two, back),
    ]
    assert {report.identity for report in reports} == {manifest_of(path).weights.identity}
    assert len({report.tensors for report in reports}) == 1
    if (first, second) != ("torch", "safetensors"):  # which keeps an order of its own
        assert back.read_bytes() == one.read_bytes()


def test_what_torch_saved_comes_through(tmp_path: Path) -> None:
    model = saved_models.Tied()
    torch.save(model.state_dict(), tmp_path / "theirs.pt")
    persistlib.convert(tmp_path / "theirs.pt", tmp_path / "ours.safetensors")
    fresh = saved_models.Tied()
    assert not any(load_model(fresh, tmp_path / "ours.safetensors"))
    assert values(fresh.state_dict()) == values(model.state_dict())


def test_a_training_checkpoint_tells_what_is_lost(tmp_path: Path) -> None:
    model = saved_models.Derived()
    checkpoint = {"model": model.state_dict(), "epoch": 3, "best": 0.5}
    torch.save(checkpoint, tmp_path / "training.pt")
    destination = tmp_path / "weights.safetensors"
    with pytest.raises(LossError) as caught:
        persistlib.convert(tmp_path / "training.pt", destination)
    assert not destination.exists()
    word = caught.value.remedy.removeprefix("--allow-loss ")
    report = persistlib.convert(tmp_path / "training.pt", destination, allow_loss={word, "value"})
    assert len(report.losses) >= 2
    assert values(load_file(destination)) == values(model.state_dict())


@pytest.mark.parametrize("format_name", ENDINGS)
def test_only_the_selected_tensors_are_written(
    tied: Path, tmp_path: Path, format_name: str
) -> None:
    wanted = loaded(tied).state_dict()
    for number, patterns in enumerate((["head"], ["rnn.bias*"], ["*", "!embedding"])):
        destination = tmp_path / f"part{number}{ENDINGS[format_name]}"
        report = persistlib.convert(tied, destination, only=patterns)
        state = (
            load_file(destination)
            if format_name == "safetensors"
            else torch.load(destination, weights_only=True)
        )
        assert report.tensors == len(state)
        assert values(state) == values({name: wanted[name] for name in state})
        assert "embedding.weight" not in state
    with pytest.raises(PersistlibError, match="PL804"):
        persistlib.convert(tied, tmp_path / "none.pt", only=["heat"])
    assert not (tmp_path / "none.pt").exists()


def test_a_file_that_stands_there_is_replaced_only_when_asked(tied: Path, tmp_path: Path) -> None:
    destination = tmp_path / "model.pt"
    destination.write_bytes(b"mine")
    with pytest.raises(PersistlibError) as caught:
        persistlib.convert(tied, destination)
    assert caught.value.code == Code.TARGET_EXISTS.identifier
    assert destination.read_bytes() == b"mine"
    persistlib.convert(tied, destination, overwrite=True)
    assert len(torch.load(destination, weights_only=True)) == 6
    assert os.listdir(tmp_path) == ["model.pt"]


def test_what_does_not_read_back_the_same_is_removed(
    tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(checkpoint: CheckpointReader) -> tuple[TensorRow, ...]:
        first, *rest = tensor_rows(checkpoint)
        return (first._replace(blake3=digest(b"other")), *rest)

    monkeypatch.setattr(conversion, "tensor_rows", spoiled)
    with pytest.raises(PersistlibError) as caught:
        persistlib.convert(tied, tmp_path / "model.pt")
    assert caught.value.code == Code.READBACK.identifier
    assert not os.listdir(tmp_path)


def test_a_spoiled_bundle_gives_no_file(kinds: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(kinds, tmp_path / "bundle")
    file = tmp_path / "bundle" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    for ending in (*ENDINGS.values(), ".onnx"):
        with pytest.raises(PersistlibError) as caught:
            persistlib.convert(tmp_path / "bundle", tmp_path / f"x{ending}", trust=["saved_models"])
        assert "model.safetensors" in caught.value.location
    assert os.listdir(tmp_path) == ["bundle"]


def test_formats_that_are_not_known_are_refused(tied: Path, tmp_path: Path) -> None:
    unknown: dict[str, Any] = {"x.zip": {}, "x": {}, "x.pt": {"to": "tensorflow"}}
    for destination, told in unknown.items():
        with pytest.raises(PersistlibError):
            persistlib.convert(tied, tmp_path / destination, **told)
    persistlib.convert(tied, tmp_path / "x.zip", to="safetensors")
    assert len(load_file(tmp_path / "x.zip")) == 5
    with pytest.raises(UsageError):
        persistlib.convert(tmp_path / "x.zip", tmp_path / "x.onnx")


def test_a_bundle_becomes_a_graph_that_computes_the_same(small: Path, tmp_path: Path) -> None:
    import onnxruntime

    report = persistlib.convert(small, tmp_path / "model.onnx", trust=["saved_models"])
    assert report.identity == manifest_of(small).weights.identity
    assert report.proof
    assert not list(small.glob("*.onnx"))
    inputs = torch.randn(7, 2, 6)
    with torch.no_grad():
        wanted = loaded(small)(inputs).numpy()
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (given,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    assert np.abs(given - wanted).max() <= 1e-4 * np.abs(wanted).max()


CHILD = """
import sys
for name in ("torch", "torchvision", "onnxscript"):
    sys.modules[name] = None
import persistlib
bundle, folder = sys.argv[1:]
assert persistlib.verify(bundle).ok
assert persistlib.inspect(bundle).parameters > 0
persistlib.check(bundle)
one = persistlib.convert(bundle, folder + "/a.safetensors")
two = persistlib.convert(bundle, folder + "/a.pt")
three = persistlib.convert(folder + "/a.pt", folder + "/b.safetensors", only=["*"])
assert one.identity == two.identity == three.identity
for call in (
    lambda: persistlib.convert(bundle, folder + "/a.onnx"),
    lambda: persistlib.load(bundle),
    lambda: persistlib.save(None, folder + "/c"),
):
    try:
        call()
    except persistlib.errors.MissingExtra as fault:
        assert "pip install" in fault.remedy
    else:
        raise SystemExit("no refusal")
assert "onnx" not in sys.modules
"""


@pytest.mark.parametrize("bundle", ["tied", "kinds"])
def test_conversions_need_no_torch(
    bundle: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(bundle)
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHILD, path, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert child.returncode == 0, child.stderr
    assert sorted(os.listdir(tmp_path)) == ["a.pt", "a.safetensors", "b.safetensors"]
    wanted = loaded(path).state_dict()
    assert values(torch.load(tmp_path / "a.pt", weights_only=True)) == values(wanted)
