"""Every torchvision builder is saved without a word about its architecture, and comes back.

The classification builders must hold without exception, plain and with another last layer. Of the
others a table says what holds: `docs/zoo.md` when PERSISTLIB_ZOO_TABLE is set.
"""

from __future__ import annotations

import gc
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision import models

import persistlib
from persistlib.architecture import zoo
from persistlib.architecture.behaviour import Inputs, probe, same_outputs, same_results
from persistlib.errors import PersistlibError

if TYPE_CHECKING:
    from collections.abc import Iterator

CLASSIFICATION = models.list_models(module=torchvision.models)
OTHERS = sorted(set(models.list_models()) - set(CLASSIFICATION))
SMALL = ("resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5")
RUN_BELOW = 100_000_000  # parameters; of the giants the operators alone are compared
_ROWS: dict[str, str] = {}
_RESULT = "| {name} | {builder} | {edits} | {tensors} | {outcome} |"


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    yield
    where = os.environ.get("PERSISTLIB_ZOO_TABLE")
    if where and _ROWS:
        head = (
            "# torchvision's builders\n\n"
            f"Saved without being told the architecture, loaded, compared bit for bit; torchvision "
            f"{torchvision.__version__}. `make test-all` writes this page.\n\n"
            "| model | recipe | edits | tensors | outcome |\n|---|---|--:|--:|---|\n"
        )
        lines = "\n".join(_ROWS[name] for name in sorted(_ROWS))
        Path(where).write_text(f"{head}{lines}\n", encoding="utf-8")


def plain(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options: dict[str, Any] = {}
        if name in OTHERS and not name.startswith(("quantized", "raft", "r3d", "r2plus1d", "mc3")):
            options = {"weights_backbone": None}
        try:
            model: nn.Module = models.get_model(name, weights=None, **options)
        except TypeError:
            model = models.get_model(name, weights=None)
    return model.eval()


def replace_last_layer(model: nn.Module) -> None:
    layers = [(path, layer) for path, layer in model.named_modules() if _is_layer(layer)]
    path, layer = next(item for item in reversed(layers) if not item[0].startswith("aux"))
    parent, _, name = path.rpartition(".")
    if isinstance(layer, nn.Linear):
        new: nn.Module = nn.Linear(layer.in_features, 10)
    else:
        assert isinstance(layer, nn.Conv2d)
        new = nn.Conv2d(layer.in_channels, 10, kernel_size=1)
    setattr(model.get_submodule(parent), name, new)


def _is_layer(layer: nn.Module) -> bool:
    is_classifier = isinstance(layer, nn.Conv2d) and layer.out_channels == 1000
    return isinstance(layer, nn.Linear) or is_classifier


def round_trip(model: nn.Module, path: Path, key: str) -> None:
    """Save, load and compare a model; note the row of the table."""
    manifest = persistlib.save(model, path)
    again = persistlib.load(path)
    assert isinstance(again, nn.Module)
    ours, theirs = model.state_dict(), again.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    if shapes := zoo.inputs_of(manifest.architecture.builder):
        inputs = probe(model, shapes)
        if sum(parameter.numel() for parameter in model.parameters()) < RUN_BELOW:
            with torch.no_grad():
                assert same_results(model(*inputs.positional), again(*inputs.positional))
        assert same_outputs(model, again, Inputs.of(tuple(inputs.positional)))
    _ROWS[key] = _RESULT.format(
        name=key,
        builder=manifest.architecture.builder,
        edits=len(manifest.architecture.edits),
        tensors=len(manifest.weights.tensors),
        outcome="bit-equal",
    )
    found = manifest.architecture
    wanted = f"torchvision.models:{key.split(maxsplit=1)[0]}"
    assert found.builder == wanted, found
    assert len(found.edits) == (1 if "head" in key else 0), found


def classification(name: str, path: Path) -> None:
    model = plain(name)
    round_trip(model, path / "plain", name)
    replace_last_layer(model)
    round_trip(model, path / "head", f"{name} with another head")
    del model
    gc.collect()


@pytest.mark.parametrize("name", SMALL)
def test_small_classification_builders_come_back(name: str, tmp_path: Path) -> None:
    classification(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(CLASSIFICATION) - set(SMALL)))
def test_every_classification_builder_comes_back(name: str, tmp_path: Path) -> None:
    classification(name, tmp_path)
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()  # pytest keeps the folders of three runs; these are gigabytes


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_any_other_builder_comes_back_or_is_refused_by_code(name: str, tmp_path: Path) -> None:
    try:
        model = plain(name)
    except (ImportError, OSError, RuntimeError) as fault:
        pytest.skip(f"torchvision itself does not build it here: {str(fault)[:80]}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", persistlib.errors.PersistlibWarning)
            manifest = persistlib.save(model, tmp_path / "b")
            again = persistlib.load(tmp_path / "b")
    except PersistlibError as fault:
        outcome = f"refused: {fault.code} {fault.reason[:80]}".replace("|", "/")
        _ROWS[name] = _RESULT.format(name=name, builder="", edits="", tensors="", outcome=outcome)
        return
    finally:
        for file in tmp_path.rglob("*.safetensors"):
            file.unlink()
    assert isinstance(again, nn.Module)
    ours, theirs = model.state_dict(), again.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    _ROWS[name] = _RESULT.format(
        name=name,
        builder=manifest.architecture.builder,
        edits=len(manifest.architecture.edits),
        tensors=len(manifest.weights.tensors),
        outcome="bit-equal",
    )
