"""Bundles that store only what differs from a base: saved, opened, made whole, listed, pruned."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import persistlib
from command_line import told
from older_schemas import sealed
from persistlib.bundle import open_bundle
from persistlib.errors import (
    IntegrityError,
    ManifestError,
    PersistlibError,
    TargetError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HEAD = {"fc.weight", "fc.bias"}
PAIRS = {"inputs": [{"name": "input", "dtype": "F32", "shape": ["batch", 2]}]}


def trained(steps: int) -> nn.Module:
    """Return a net of which only the head has moved, otherwise after each number of steps."""
    torch.manual_seed(0)
    model = persistlib.build("torchvision.models:resnet18", num_classes=3, edits=())
    with torch.no_grad():
        for _ in range(steps):
            for name, item in model.named_parameters():
                if name in HEAD:
                    item.add_(torch.randn_like(item))
    return model.eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    persistlib.save(trained(0), run / "1")
    persistlib.save(trained(1), run / "2", base=run / "1")
    persistlib.save(trained(2), run / "3", base=run / "2")
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "run", copy_function=os.link)
    return tmp_path / "run"


def same(model: nn.Module, other: nn.Module) -> bool:
    mine, others = model.state_dict(), other.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(mine[n], others[n]) for n in mine)


def altered(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Give a bundle another manifest, whose own digest is right."""
    place = bundle / "manifest.json"
    raw = json.loads(place.read_bytes())
    change(raw)
    place.unlink()
    place.write_bytes(sealed(raw))


def test_a_delta_stores_what_differs_and_opens_as_what_was_saved(run: Path) -> None:
    for name, steps in (("2", 1), ("3", 2)):
        manifest = persistlib.inspect(run / name).manifest
        assert {t.name for t in manifest.weights.tensors if t.file is not None} == HEAD
        assert same(persistlib.load(run / name), trained(steps))
        assert same(persistlib.load(run / name, mmap=False, verify=False), trained(steps))
    assert set(persistlib.load(run / "3", only=["fc.*"])) == HEAD
    assert set(persistlib.load(run / "3", only=["conv1.*"])) == {"conv1.weight"}


def test_a_delta_of_a_delta_stands_on_the_whole_one(run: Path) -> None:
    bases = [persistlib.inspect(run / name).manifest.weights.base for name in "123"]
    assert [base and base.hint for base in bases] == [None, "1", "1"]


def test_what_a_delta_says_of_itself_is_what_the_whole_bundle_says(
    run: Path, tmp_path: Path
) -> None:
    whole = persistlib.save(trained(2), tmp_path / "whole")
    assert persistlib.inspect(run / "3").manifest.bundle_id == whole.bundle_id
    assert not persistlib.diff(run / "3", tmp_path / "whole").changed
    assert persistlib.identify(run / "3").builder == "torchvision.models:resnet18"
    report = persistlib.convert(run / "3", tmp_path / "m.safetensors")
    assert report.identity == whole.weights.identity
    assert persistlib.check(run / "3").ok


def test_nothing_is_referred_to_where_nothing_is_alike(tmp_path: Path) -> None:
    torch.manual_seed(0)
    persistlib.save(nn.Linear(2, 3), tmp_path / "1", interface=PAIRS)
    model = nn.Linear(2, 3)
    manifest = persistlib.save(model, tmp_path / "2", base=tmp_path / "1", interface=PAIRS)
    assert manifest.weights.base is None
    shutil.rmtree(tmp_path / "1")
    assert persistlib.verify(tmp_path / "2").ok


def test_the_same_weights_again_store_no_tensor(tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    persistlib.save(model, tmp_path / "1", interface=PAIRS)
    persistlib.save(model, tmp_path / "2", base=tmp_path / "1", interface=PAIRS)
    assert not (tmp_path / "2" / "model.safetensors").exists()
    assert same(persistlib.load(tmp_path / "2"), model)
    assert same(persistlib.load(tmp_path / "2", strict="report"), model)


def test_a_base_elsewhere_is_named_when_loading(run: Path, tmp_path: Path) -> None:
    manifest = persistlib.save(trained(1), tmp_path / "far", base=run / "1")
    assert manifest.weights.base is not None
    assert manifest.weights.base.hint is None
    with pytest.raises(IntegrityError, match="does not say where") as caught:
        persistlib.load(tmp_path / "far")
    assert caught.value.code == "PL120"
    assert same(persistlib.load(tmp_path / "far", base=run / "1"), trained(1))
    assert persistlib.verify(tmp_path / "far", base=run / "1").ok
    assert persistlib.check(tmp_path / "far").verdict == "refused"


def test_a_base_may_have_another_name_and_other_files_where_its_weights_are_the_same(
    run: Path, tmp_path: Path
) -> None:
    (run / "1").rename(run / "first")
    persistlib.save(trained(0), tmp_path / "shards", shard_bytes=10_000_000)
    assert same(persistlib.load(run / "3", base=run / "first"), trained(2))
    assert same(persistlib.load(run / "3", base=tmp_path / "shards"), trained(2))


@pytest.mark.parametrize("verify", [True, False])
def test_a_wrong_or_missing_base_is_refused_by_its_identity(run: Path, verify: bool) -> None:
    with pytest.raises(IntegrityError, match="blake3") as caught:
        persistlib.load(run / "3", base=run / "2", verify=verify)
    assert caught.value.code == "PL121"
    (run / "1").rename(run / "gone")
    with pytest.raises(IntegrityError, match="nothing stands there") as caught:
        persistlib.load(run / "3", verify=verify)
    assert caught.value.code == "PL120"
    assert not persistlib.verify(run / "3").ok
    assert persistlib.check(run / "3").verdict == "refused"
    persistlib.save(trained(2), run / "1")
    with pytest.raises(IntegrityError) as caught:
        persistlib.load(run / "3", verify=verify)
    assert caught.value.code == "PL121"


def test_a_changed_byte_of_the_base_is_found_by_load_and_verify(run: Path) -> None:
    place = run / "1" / "model.safetensors"
    data = bytearray(place.read_bytes())
    data[len(data) // 2] ^= 1
    place.unlink()
    place.write_bytes(data)
    with pytest.raises(IntegrityError) as caught:
        persistlib.load(run / "3")
    assert caught.value.code == "PL117"
    report = persistlib.verify(run / "3")
    assert [found.code for found in report.findings] == ["PL117"]
    assert str(run / "1") in report.findings[0].location
    with pytest.raises(IntegrityError):
        persistlib.materialize(run / "3")
    assert told("verify", run / "3")[1] == 1


# -- what a hostile manifest may say ----------------------------------------------------------


@pytest.mark.parametrize(
    "hint", ["/etc", "..", ".", "../run/1", "a/b", "a\\b", "C:x", ".1", "", "con"]
)
def test_a_hint_that_is_no_plain_name_is_refused_before_anything_is_opened(
    run: Path, hint: str
) -> None:
    altered(run / "3", lambda raw: raw["weights"]["base"].update(hint=hint))
    with pytest.raises(ManifestError):
        persistlib.load(run / "3")
    with pytest.raises(ManifestError):
        persistlib.inspect(run / "3")


def test_a_hint_that_is_a_link_is_not_followed(run: Path, tmp_path: Path) -> None:
    (run / "1").rename(tmp_path / "elsewhere")
    (run / "1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="link") as caught:
        persistlib.load(run / "3")
    assert caught.value.code == "PL121"
    assert same(persistlib.load(run / "3", base=run / "1"), trained(2))


def test_a_base_that_stands_on_another_is_refused(run: Path) -> None:
    second = persistlib.inspect(run / "2").manifest.weights.identity
    altered(run / "3", lambda raw: raw["weights"]["base"].update(hint="2", identity=second))
    with pytest.raises(IntegrityError, match="a delta itself") as caught:
        persistlib.load(run / "3")
    assert caught.value.code == "PL121"


def test_a_circle_is_refused(run: Path) -> None:
    own = persistlib.inspect(run / "3").manifest.weights.identity
    altered(run / "3", lambda raw: raw["weights"]["base"].update(hint="3", identity=own))
    with pytest.raises(IntegrityError, match="a delta itself"):
        persistlib.load(run / "3")


def test_a_base_that_lacks_a_tensor_is_refused_by_the_tensors_name(tmp_path: Path) -> None:
    persistlib.save(nn.Linear(2, 3), tmp_path / "1", interface=PAIRS)
    model = nn.Sequential(nn.Linear(2, 3))
    persistlib.save(model, tmp_path / "2", interface=PAIRS)
    other = persistlib.inspect(tmp_path / "1").manifest.weights.identity

    def lean(raw: dict[str, Any]) -> None:
        raw["weights"]["base"] = {"identity": other, "hint": "1"}
        for record in raw["weights"]["tensors"]:
            record["file"] = None

    altered(tmp_path / "2", lean)
    with pytest.raises(IntegrityError, match=r"it has no tensor 0\.") as caught:
        persistlib.load(tmp_path / "2")
    assert caught.value.code == "PL121"


def test_no_tensor_is_without_a_place_and_no_base_without_a_tensor(run: Path) -> None:
    altered(run / "3", lambda raw: raw["weights"].update(base=None))
    with pytest.raises(ManifestError, match="there is no base"):
        persistlib.inspect(run / "3")
    base = {"identity": "blake3:" + "0" * 64, "hint": "1"}
    altered(run / "1", lambda raw: raw["weights"].update(base=base))
    with pytest.raises(ManifestError, match="every tensor is stored here"):
        persistlib.inspect(run / "1")


@pytest.mark.parametrize("kind", ["file", "pipe", "empty"])
def test_a_hint_to_what_is_no_bundle_is_refused(run: Path, kind: str) -> None:
    (run / "1").rename(run / "gone")
    if kind == "file":
        (run / "1").write_text("x")
    elif kind == "pipe":
        os.mkfifo(run / "1")
    else:
        (run / "1").mkdir()
    with pytest.raises(PersistlibError):
        persistlib.load(run / "3")
    assert not persistlib.verify(run / "3").ok


# -- saving over, and making whole ------------------------------------------------------------


def test_a_bundle_cannot_stand_on_itself(run: Path) -> None:
    for base in ("1", "2"):
        with pytest.raises(UsageError, match="cannot stand on itself"):
            persistlib.save(trained(2), run / "1", base=run / base, overwrite=True)


def test_what_others_stand_on_is_not_replaced(run: Path) -> None:
    with pytest.raises(TargetError, match="stands on it") as caught:
        persistlib.save(trained(2), run / "1", overwrite=True)
    assert caught.value.code == "PL415"
    with pytest.raises(TargetError, match="stands on it"):
        persistlib.materialize(run / "3", run / "1", overwrite=True)
    assert all(persistlib.verify(run / name).ok for name in "123")
    persistlib.save(trained(1), run / "3", base=run / "2", overwrite=True)
    assert same(persistlib.load(run / "3"), trained(1))


def test_made_whole_a_delta_is_what_saving_without_a_base_gives(run: Path, tmp_path: Path) -> None:
    saved = persistlib.save(trained(2), tmp_path / "whole")
    manifest = persistlib.materialize(run / "3", tmp_path / "made")
    assert manifest.bundle_id == saved.bundle_id
    assert manifest.weights == saved.weights
    for name in ("model.safetensors",):
        assert (tmp_path / "made" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    shutil.rmtree(run)
    assert persistlib.verify(tmp_path / "made").ok
    assert same(persistlib.load(tmp_path / "made"), trained(2))


def test_making_whole_in_place_needs_the_base_no_longer(run: Path) -> None:
    envelope, code = told("materialize", run / "3")
    assert code == 0
    assert envelope["data"]["tensors"] == len(trained(0).state_dict())
    shutil.rmtree(run / "1")
    assert same(persistlib.load(run / "3"), trained(2))
    before = (run / "3" / "manifest.json").read_bytes()
    persistlib.materialize(run / "3")
    assert (run / "3" / "manifest.json").read_bytes() == before


def test_making_whole_keeps_examples_and_what_no_state_dict_has(tmp_path: Path) -> None:
    from saved_models import Noisy

    torch.manual_seed(0)
    model, trust = Noisy(), ("saved_models",)
    inputs = torch.ones(2, 5)
    persistlib.save(model, tmp_path / "1", example_inputs=inputs)
    with torch.no_grad():
        model.linear.bias.add_(1)
    delta = persistlib.save(model, tmp_path / "2", base=tmp_path / "1", example_inputs=inputs)
    assert delta.weights.base is not None
    persistlib.materialize(tmp_path / "2")
    assert persistlib.verify(tmp_path / "2", behaviour=True, trust=trust).ok
    again = persistlib.load(tmp_path / "2", trust=trust)
    assert torch.equal(again(inputs), model(inputs))


def test_a_graph_beside_a_delta_makes_it_whole_and_replaces_nothing_that_is_needed(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), torch.randn(5, 4)
    persistlib.save(model, tmp_path / "1", example_inputs=inputs)
    with torch.no_grad():
        model.get_parameter("1.bias").add_(1)
    over: dict[str, Any] = {"base": tmp_path / "1", "onnx": True, "example_inputs": inputs}
    delta = persistlib.save(model, tmp_path / "2", **over)
    assert delta.weights.base is not None
    with pytest.raises(TargetError, match="stands on it"):
        persistlib.convert(tmp_path / "2", tmp_path / "1", quantize="dynamic", overwrite=True)
    persistlib.convert(tmp_path / "2", tmp_path / "3", quantize="dynamic")
    made = persistlib.inspect(tmp_path / "3").manifest
    assert made.bundle_id == delta.bundle_id
    assert made.weights.base is None
    assert persistlib.verify(tmp_path / "3", behaviour=True).ok


# -- versions ---------------------------------------------------------------------------------


def test_log_tells_sizes_and_who_stands_on_whom(run: Path) -> None:
    found = persistlib.log(run)
    assert [(v.name, v.base, v.needed_by) for v in found.versions] == [
        ("1", None, ("2", "3")),
        ("2", "1", ()),
        ("3", "1", ()),
    ]
    assert [v.stored for v in found.versions] == [122, 2, 2]
    envelope, code = told("log", run)
    assert code == 0
    assert [v["size"] for v in envelope["data"]["versions"]] == [v.size for v in found.versions]


def test_prune_keeps_what_the_rest_stands_on(run: Path) -> None:
    plan = persistlib.prune(run, keep=1, dry_run=True)
    assert [v.name for v in plan.removed] == ["2"]
    assert plan.needed == ("1",)
    assert sorted(path.name for path in run.iterdir()) == ["1", "2", "3"]
    envelope, code = told("prune", run, "--keep", 1)
    assert code == 0
    assert envelope["data"]["freed"] == plan.freed
    assert sorted(path.name for path in run.iterdir()) == ["1", "3"]
    assert persistlib.verify(run / "3").ok


def test_a_runs_versions_come_by_their_epochs_whatever_the_clock_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for epoch in range(1, 12):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(1_700_000_000 - 3600 * epoch))
        persistlib.save(nn.Linear(2, 3), tmp_path / f"{epoch:06}", interface=PAIRS)
    names = [version.name for version in persistlib.log(tmp_path).versions]
    assert names == [f"{epoch:06}" for epoch in range(1, 12)]
    persistlib.prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000010", "000011"]


def test_prune_keeps_the_best(tmp_path: Path) -> None:
    for epoch, accuracy in enumerate((0.1, 0.9, 0.5), 1):
        training = {"metrics": {"accuracy": accuracy, "loss": 1.0}}
        place = tmp_path / f"{epoch}"
        persistlib.save(nn.Linear(2, 3), place, training=training, interface=PAIRS)
    best = persistlib.log(tmp_path).best
    assert best is not None
    assert best.name == "2"
    persistlib.prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]


def test_prune_removes_nothing_where_a_manifest_cannot_be_read(run: Path) -> None:
    (run / "3" / "manifest.json").unlink()
    (run / "3" / "manifest.json").write_text("{")
    with pytest.raises(ManifestError):
        persistlib.prune(run)
    assert sorted(path.name for path in run.iterdir()) == ["1", "2", "3"]
    assert told("log", run)[1] == 1


def test_prune_removes_nothing_that_is_being_read(run: Path) -> None:
    with open_bundle(run / "2"), pytest.raises(TargetError, match="somebody reads it"):
        persistlib.prune(run)
    assert persistlib.verify(run / "2").ok
    persistlib.prune(run)
    assert not (run / "2").exists()


@pytest.mark.parametrize("keep", [0, -1, True])
def test_prune_keeps_at_least_one(run: Path, keep: int) -> None:
    with pytest.raises(UsageError):
        persistlib.prune(run, keep=keep)


def test_log_of_no_versions_says_so(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no bundle in it"):
        persistlib.log(tmp_path)
    with pytest.raises(TargetError):
        persistlib.log(tmp_path / "nowhere")
