"""A model and its external data: named together, published together, never one of the two."""

from __future__ import annotations

import errno
import itertools
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import persistlib
from persistlib import publish
from persistlib.errors import Code, DurabilityError, PersistlibError
from persistlib.export.onnx_export import DATA, MODEL, export
from persistlib.graphs import write_graph
from persistlib.place import Place

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CALLS: dict[str, tuple[Any, str]] = {
    "write": (publish.OutFile, "write"),
    "fsync": (os, "fsync"),
    "rename": (Place, "rename"),
}
# What is large enough to stand beside the model.
DEFAULTS: Any = export.__kwdefaults__
INPUT = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)


def files_of(seed: int, *, external: bool = True) -> Mapping[str, Any]:
    torch.manual_seed(seed)
    model = nn.Linear(40, 30)
    above = 0 if external else 1 << 30
    exported = export(model, (torch.randn(2, 40),), input_names=("x",), external_above=above)
    return {file.name: bytes(file.data) for file in exported.files}


@pytest.fixture(scope="module")
def old() -> Mapping[str, Any]:
    return files_of(0)


@pytest.fixture(scope="module")
def new() -> Mapping[str, Any]:
    return files_of(1)


def weights(path: Path) -> bytes:
    """Return the weight as the model at a path has it, its data read from beside it."""
    stored = {tensor.name: tensor for tensor in onnx.load(str(path)).graph.initializer}
    return onnx.numpy_helper.to_array(stored["weight"]).tobytes()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_data_is_named_after_the_model_which_refers_to_it(
    tmp_path: Path, new: Mapping[str, Any]
) -> None:
    assert list(new) == [MODEL, DATA]
    write_graph(new, tmp_path / "x.onnx", overwrite=False)
    assert names(tmp_path) == {"x.onnx", "x.onnx.data"}
    assert (tmp_path / "x.onnx.data").read_bytes() == new[DATA]
    onnx.checker.check_model(str(tmp_path / "x.onnx"))
    session = persistlib.load(tmp_path / "x.onnx", runtime="onnxruntime")
    found = session.run({"x": INPUT})["output"]
    torch.manual_seed(1)
    expected = nn.Linear(40, 30)(torch.from_numpy(INPUT)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_replaced_that_may_not_be(tmp_path: Path, new: Mapping[str, Any]) -> None:
    target = tmp_path / "x.onnx"
    (tmp_path / "x.onnx.data").write_bytes(b"mine")
    with pytest.raises(PersistlibError) as caught:
        write_graph(new, target, overwrite=False)
    assert caught.value.code == Code.TARGET_EXISTS.identifier
    assert names(tmp_path) == {"x.onnx.data"}
    write_graph(new, target, overwrite=True)
    assert (tmp_path / "x.onnx.data").read_bytes() == b"mine"
    assert weights(target) in new[DATA]


def test_a_new_version_takes_the_old_ones_data_with_it(
    tmp_path: Path, old: Mapping[str, Any], new: Mapping[str, Any]
) -> None:
    target = tmp_path / "x.onnx"
    write_graph(old, target, overwrite=True)
    for files in (new, old, new):
        write_graph(files, target, overwrite=True)
        assert weights(target) in files[DATA]
        assert len(names(tmp_path)) == 2
    write_graph(files_of(2, external=False), target, overwrite=True)
    assert names(tmp_path) == {"x.onnx"}


@pytest.fixture(scope="module")
def both(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    return old, new


@pytest.mark.parametrize("call", range(6))
@pytest.mark.parametrize(("what", "stands"), [*itertools.product(CALLS, [False, True])])
def test_after_a_fault_of_any_call_the_old_pair_stands_or_the_new_one_or_nothing(
    what: str, call: int, *, stands: bool, tmp_path: Path, both: tuple[Mapping[str, Any], ...]
) -> None:
    old, new = both
    target = tmp_path / "x.onnx"
    if stands:
        write_graph(old, target, overwrite=True)
    before = names(tmp_path)
    count = [0]
    owner, name = CALLS[what]
    real = getattr(owner, name)

    def failing(*args: Any) -> Any:
        count[0] += 1
        if count[0] == call + 1:
            raise OSError(errno.EIO, "the disk is gone")
        return real(*args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(owner, name, failing)
        try:
            write_graph(new, target, overwrite=True)
            is_new = True
        except DurabilityError:
            is_new = target.exists() and (not stands or weights(target) in new[DATA])
        except PersistlibError:
            is_new = False
    if is_new:
        assert weights(target) in new[DATA]
        assert len(names(tmp_path)) >= 2
    else:
        assert names(tmp_path) == before
        assert not stands or weights(target) in old[DATA]


def test_a_large_bundle_has_its_data_inside_and_gives_it_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setitem(DEFAULTS, "external_above", 4096)
    model = nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 3))
    manifest = persistlib.save(model, tmp_path / "b", example_inputs=torch.randn(2, 40), onnx=True)
    entries = {entry.path: entry for entry in manifest.graphs[0].files}
    assert list(entries) == [MODEL, DATA]
    assert persistlib.verify(tmp_path / "b").ok
    persistlib.convert(tmp_path / "b", tmp_path / "x.onnx")
    assert (tmp_path / "x.onnx.data").stat().st_size == entries[DATA].size
    persistlib.convert(tmp_path / "x.onnx", tmp_path / "back.safetensors", allow_loss=["all"])
    assert persistlib.diff(tmp_path / "b", tmp_path / "back.safetensors").same
    (tmp_path / "b" / DATA).write_bytes(b"\0" * entries[DATA].size)
    assert not persistlib.verify(tmp_path / "b").ok
    with pytest.raises(PersistlibError):
        persistlib.convert(tmp_path / "b", tmp_path / "y.onnx")
    assert not (tmp_path / "y.onnx.data").exists()


def test_a_failed_export_leaves_neither_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setitem(DEFAULTS, "external_above", 0)
    model = nn.Linear(4, 3)
    persistlib.save(model, tmp_path / "b", example_inputs=torch.randn(2, 4))
    before = names(tmp_path)
    with pytest.raises(PersistlibError):
        persistlib.convert(tmp_path / "b", tmp_path / "x.onnx", dynamic=["input:1=width"])
    assert names(tmp_path) == before
