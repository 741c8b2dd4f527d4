"""torchvision's whole zoo, plainly built and with a new head, is identified and rebuilt."""

from __future__ import annotations

import gc
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torchvision import models

from persistlib.architecture import zoo
from persistlib.architecture.compare import differences
from persistlib.architecture.describe import describe
from persistlib.architecture.skeleton import rebuild, skeleton
from persistlib.architecture.structure import dtype_name
from persistlib.architecture.values import class_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CLASSIFICATION = models.list_models(module=models)
OTHERS = sorted(set(models.list_models()) - set(CLASSIFICATION))
ROWS: list[tuple[str, str, str, float]] = []


@pytest.fixture(scope="module", autouse=True)
def _table(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print what was found of each model, past pytest's capture."""
    yield
    capture: Any = request.config.pluginmanager.getplugin("capturemanager")
    head = "\n| builder | identified as | edits | findings | seconds |\n|---|---|--:|---|--:|\n"
    lines = [f"| {b} | {found} | {what} | {took:.1f} |\n" for b, found, what, took in ROWS]
    if ROWS:
        with capture.global_and_fixture_disabled():
            sys.stdout.write(head + "".join(lines))


def make(name: str) -> Any:
    builder: Any = models.get_model_builder(name)
    keywords = {"weights_backbone": None} if name in OTHERS else {}
    try:
        return builder(weights=None, **keywords)
    except (TypeError, ValueError):
        return builder(weights=None)


def with_new_head(model: nn.Module) -> None:
    """Give the last linear layer, or the last convolution, seven outputs."""
    path, last = [
        (path, part)
        for path, part in model.named_modules()
        if isinstance(part, (nn.Linear, nn.Conv2d))
    ][-1]
    parent, _, name = path.rpartition(".")
    new: nn.Module = (
        nn.Linear(last.in_features, 7)
        if isinstance(last, nn.Linear)
        else nn.Conv2d(last.in_channels, 7, last.kernel_size)  # type: ignore[arg-type]
    )
    setattr(model.get_submodule(parent), name, new)


def described(label: str, model: nn.Module) -> Any:
    began = time.perf_counter()
    found = describe(model)
    seconds = time.perf_counter() - began
    recipe = found.architecture
    assert differences(model, skeleton(recipe)) == []
    findings = ", ".join(finding.code for finding in found.findings) or "none"
    ROWS.append((label, f"{recipe.builder} | {len(recipe.edits)}", findings, seconds))
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::persistlib.errors.PersistlibWarning")
@pytest.mark.parametrize("name", CLASSIFICATION)
def test_a_classification_model_is_identified_plain_and_with_a_new_head(name: str) -> None:
    model = make(name)
    found = described(name, model)
    assert found.architecture.builder == f"torchvision.models:{name}"
    assert (found.architecture.arguments, found.architecture.edits) == ({}, ())
    assert found.findings == ()
    with_new_head(model)
    found = described(f"{name}, new head", model)
    assert found.architecture.builder == f"torchvision.models:{name}"
    assert [edit.op for edit in found.architecture.edits] == ["replace"]
    assert found.findings == ()
    del model, found
    gc.collect()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::persistlib.errors.PersistlibWarning")
@pytest.mark.parametrize("name", OTHERS)
def test_a_model_of_another_task_is_identified(name: str) -> None:
    found = described(name, make(name))
    assert found.architecture.builder.endswith(f":{models.get_model_builder(name).__name__}")
    assert (found.architecture.arguments, found.architecture.edits) == ({}, ())


def rows_of(model: nn.Module) -> list[zoo.Row]:
    return [
        (name, dtype_name(tensor), tuple(tensor.shape))
        for name, tensor in model.state_dict(keep_vars=True).items()
    ]


def test_the_shipped_index_holds_every_builder_of_the_installed_release_and_is_small() -> None:
    from persistlib.architecture.zoo_scan import builders

    assert {entry.builder for entry in zoo.entries()} >= set(builders())
    assert len(zoo.shipped()) < 200_000
    assert zoo.pack(zoo.unpack(zoo.shipped())) == zoo.shipped()


def test_an_index_reads_back_what_was_packed() -> None:
    index = zoo.unpack(zoo.shipped())
    entries = zoo.read_entries(index)
    again = zoo.index_of(entries, index["releases"])
    assert zoo.read_entries(zoo.unpack(zoo.pack(again))) == entries


def test_bare_tensors_are_ranked_without_a_class() -> None:
    model = rebuild("torchvision.models:resnet50", {})
    rows = [row for row in rows_of(model) if not row[0].startswith("fc.")]
    best = zoo.candidates(None, rows)[0]
    assert best.entry.builder.endswith(":resnet50")
    assert (best.missing, best.extra) == (2, 0)
    assert zoo.candidates(None, [("alien", "F32", (1,))]) == []


def test_ranking_by_class_leaves_out_twins_of_another_class() -> None:
    model = rebuild("torchvision.models.quantization:resnet18", {})
    ranked = zoo.candidates(class_name(type(model)), rows_of(model))
    assert ranked[0].entry.builder == "torchvision.models.quantization:resnet18"
    assert all("quantization" in candidate.entry.root for candidate in ranked)


def test_probe_inputs_are_found_by_any_name_of_a_builder() -> None:
    assert zoo.inputs_of("torchvision.models:resnet18") == ((1, 3, 64, 64),)
    assert zoo.inputs_of("torchvision.models.resnet:resnet18") == ((1, 3, 64, 64),)
    assert zoo.inputs_of("own_models:Net") == ()


def test_a_newer_cache_is_read_and_a_damaged_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = zoo.cache_path()
    path.parent.mkdir()
    shipped = zoo.read_entries(zoo.unpack(zoo.shipped()))
    newer = shipped[0]._replace(builder="torchvision.models:newest", first="9.0.0", last="9.0.0")
    older = newer._replace(builder="torchvision.models:older", first="0.1.0", last="0.1.0")
    for entry, expected in ((newer, True), (older, False)):
        path.write_bytes(zoo.pack(zoo.index_of([entry], [entry.last])))
        zoo.entries.cache_clear()
        assert (entry in zoo.entries()) is expected
    path.write_bytes(b"\xfd7zXZ\x00garbage")
    zoo.entries.cache_clear()
    assert zoo.entries() == shipped
    zoo.entries.cache_clear()


def test_a_user_extends_the_cache_from_the_installed_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from persistlib.architecture import zoo_scan

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(zoo_scan, "builders", lambda: iter(["torchvision.models:alexnet"]))
    zoo_scan.extend_cache()
    (entry,) = zoo.read_entries(zoo.unpack(zoo.cache_path().read_bytes()))
    assert entry.builder == "torchvision.models:alexnet"
    assert ("classifier.6.weight", "F32", (1000, 4096)) in entry.rows
    assert len(entry.inputs) == 1
    assert "1 builders" in capsys.readouterr().out
    assert torch.get_default_dtype() == torch.float32
