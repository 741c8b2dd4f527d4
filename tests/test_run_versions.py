"""Every epoch of a run kept as a bundle: what it costs, that it opens, and that runs go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import persistlib
from leaving import LeftError, leave_after
from persistlib.errors import UsageError
from persistlib.training import plots
from persistlib.training.events import EpochDone

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from persistlib.training.events import Event
    from persistlib.training.loop import FinetuneResult

EPOCHS = 4


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than the trainings here."""
    for name in ("curves", "confusion"):
        monkeypatch.setattr(plots, name, lambda *_: None)
    monkeypatch.setattr("persistlib.training.watching.Watch._events", lambda *_: None)


def net() -> nn.Module:
    torch.manual_seed(0)
    return persistlib.build("torchvision.models:resnet18", num_classes=3)


def samples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = generator.normal(size=(count, 3, 32, 32)) + labels[:, None, None, None]
    return images.astype(np.float32), labels


def finetune(run: Path | None, model: nn.Module | None = None, **how: Any) -> FinetuneResult:
    usual: dict[str, Any] = {"epochs": EPOCHS, "lr": 0.01, "freeze": ["*", "!fc.*"], "keep": "all"}
    data = samples(12, 1), samples(6, 2)
    return persistlib.finetune(model or net(), *data, run=run, **(usual | how))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: item.clone() for name, item in model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_every_epoch_is_kept_for_what_changed_and_nothing_else_changes(tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    model = net()

    def look(event: Event) -> None:
        if isinstance(event, EpochDone):
            seen.append(state(model))

    result = finetune(tmp_path / "run", model, progress=look)
    found = persistlib.log(tmp_path / "run").versions
    assert [v.name for v in found] == [f"{epoch:06}" for epoch in range(1, EPOCHS + 1)]
    assert [v.base for v in found] == [None, *["000001"] * (EPOCHS - 1)]
    assert [v.stored for v in found] == [122, *[2] * (EPOCHS - 1)]
    assert sum(v.size for v in found) < 1.01 * found[0].size
    for version, then, row in zip(found, seen, result.history, strict=True):
        assert persistlib.verify(version.path).ok
        assert equal(state(persistlib.load(version.path)), then)
        assert version.metrics["loss"] == row["valid_loss"]
        assert version.manifest.interface.inputs[0].shape == ("batch", 3, 32, 32)
    best = finetune(tmp_path / "other", keep="best")
    assert equal(state(result.model), state(best.model))
    assert result.history == best.history


def test_a_run_that_was_broken_off_goes_on_to_the_same_versions(tmp_path: Path) -> None:
    finetune(tmp_path / "whole")

    with pytest.raises(LeftError):
        finetune(tmp_path / "run", progress=leave_after(1, EpochDone))
    # As if the process had gone between a version and its checkpoint.
    newest = max((tmp_path / "run" / "checkpoints").glob("0*"))
    newest.rename(tmp_path / "lost")
    finetune(tmp_path / "run", resume=True)
    for kind in ("whole", "run"):
        assert all(persistlib.verify(v.path).ok for v in persistlib.log(tmp_path / kind).versions)
    whole, run = (persistlib.log(tmp_path / kind).versions for kind in ("whole", "run"))
    assert [v.manifest.bundle_id for v in run] == [v.manifest.bundle_id for v in whole]
    assert [v.base for v in run] == [v.base for v in whole]


def test_all_versions_stand_where_all_trains(tmp_path: Path) -> None:
    finetune(tmp_path / "run", freeze=(), epochs=2)
    found = persistlib.log(tmp_path / "run").versions
    assert all(persistlib.verify(version.path).ok for version in found)
    assert all(version.stored > 100 for version in found)


def test_an_old_runs_versions_go_with_it(tmp_path: Path) -> None:
    finetune(tmp_path / "run", epochs=2)
    finetune(tmp_path / "run", epochs=1, overwrite=True)
    assert [version.name for version in persistlib.log(tmp_path / "run").versions] == ["000001"]


def test_versions_need_a_folder() -> None:
    with pytest.raises(UsageError, match="nothing says where versions go"):
        finetune(None)


@pytest.mark.slow
def test_fifty_versions_of_a_head_cost_hardly_more_than_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = persistlib.build("torchvision.models:resnet50", num_classes=10)
    finetune(tmp_path / "run", model, epochs=50)
    found = persistlib.log(tmp_path / "run").versions
    assert len(found) == 50
    on_disk = [file.stat().st_size for file in (tmp_path / "run" / "versions").rglob("*")]
    whole = persistlib.save(model, tmp_path / "whole").weights.files[0].size
    assert sum(on_disk) <= 1.15 * whole
    assert persistlib.verify(found[36].path).ok
