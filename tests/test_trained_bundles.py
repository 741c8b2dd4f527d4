"""What a training ends in: refused before the first epoch, and left where it stands already."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import persistlib
from persistlib import trained_bundles
from persistlib.errors import PersistlibError, PersistlibWarning
from persistlib.training.loop import Folder
from table_models import Rows

if TYPE_CHECKING:
    from pathlib import Path

    from persistlib.training.events import Event


class Told:
    """Counts what a training tells."""

    def __init__(self) -> None:
        self.events = 0

    def __call__(self, _: Event) -> None:
        self.events += 1


def samples(seed: int = 0) -> Any:
    rows = torch.randn(24, 4, generator=torch.Generator().manual_seed(seed))
    return rows, (rows.sum(1) > 0).long()


def train(model: nn.Module, **how: Any) -> Any:
    settings: dict[str, Any] = {"epochs": 2, "lr": 0.05, "batch_size": 8}
    return persistlib.finetune(model, samples(), samples(1), **settings | how)


def fresh() -> Rows:
    torch.manual_seed(0)
    return Rows(2)


def test_a_class_that_cannot_be_imported_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(Rows):
        """As a script that runs defines it."""

    Own.__module__, Own.__qualname__ = "__main__", "Own"
    monkeypatch.setattr(sys.modules["__main__"], "Own", Own, raising=False)
    told, model = Told(), Own(2)
    before = {name: item.clone() for name, item in model.state_dict().items()}
    with pytest.raises(PersistlibError) as caught:
        train(model, out=tmp_path / "out", run=tmp_path / "run", progress=told)
    assert caught.value.code == "PL303"
    assert told.events == 0
    assert all(torch.equal(before[name], item) for name, item in model.state_dict().items())
    assert [*tmp_path.iterdir()] == []
    assert len(train(model, progress=told).history) == 2  # nothing is saved: nothing to refuse


@pytest.mark.parametrize("what", ["file", "bundle"])
def test_a_place_that_is_taken_is_refused_before_training(tmp_path: Path, what: str) -> None:
    out, told = tmp_path / "out", Told()
    if what == "file":
        out.write_text("mine")
    else:
        persistlib.save(Rows(2), out, example_inputs=torch.zeros(1, 4))
    with pytest.raises(PersistlibError) as caught:
        train(fresh(), out=out, run=tmp_path / "run", resume=True, progress=told)
    assert caught.value.code in {"PL401", "PL403"}
    assert (told.events, (tmp_path / "run").exists()) == (0, False)


def test_what_is_checked_before_draws_nothing_and_changes_no_bit(tmp_path: Path) -> None:
    model, state = fresh(), torch.get_rng_state()
    saved = train(model, out=tmp_path / "out")
    assert torch.equal(state, torch.get_rng_state())
    plain = train(fresh())
    assert saved.history == plain.history
    assert all(
        torch.equal(item, plain.model.state_dict()[name])
        for name, item in model.state_dict().items()
    )


def test_a_complete_run_gives_its_result_again_and_leaves_the_bundle(tmp_path: Path) -> None:
    where: dict[str, Any] = {"run": tmp_path / "run", "out": tmp_path / "out", "resume": True}
    first = train(fresh(), **where)
    manifest = tmp_path / "out" / "manifest.json"
    stamp = (manifest.read_bytes(), manifest.stat().st_ino, manifest.stat().st_mtime_ns)
    again = train(fresh(), **where)
    assert (again.history, again.metrics) == (first.history, first.metrics)
    assert (manifest.read_bytes(), manifest.stat().st_ino, manifest.stat().st_mtime_ns) == stamp
    told = Told()
    with pytest.raises(PersistlibError) as caught:
        train(fresh(), **where, epochs=4, progress=told)
    assert (caught.value.code, told.events) == ("PL401", 0)
    with pytest.warns(PersistlibWarning, match="epochs: was 2"):
        longer = train(fresh(), **where, epochs=4, overwrite=True)
    assert len(longer.history) == 4
    assert manifest.read_bytes() != stamp[0]


def test_a_run_that_ended_early_gives_its_result_again(tmp_path: Path) -> None:
    where: dict[str, Any] = {"run": tmp_path / "run", "out": tmp_path / "out", "resume": True}
    how: dict[str, Any] = {"patience": 1, "epochs": 12, "lr": 5.0, "schedule": "constant"}
    first = train(fresh(), **where, **how)
    assert first.training.strategy["stopped_early"]
    assert len(first.history) < 12
    again = train(fresh(), **where, **how)
    assert again.history == first.history


def test_the_bundle_of_other_weights_is_not_taken_for_that_of_the_run(tmp_path: Path) -> None:
    where: dict[str, Any] = {"run": tmp_path / "run", "out": tmp_path / "out", "resume": True}
    train(fresh(), **where)
    train(fresh(), out=tmp_path / "out", overwrite=True, lr=0.01)
    with pytest.raises(PersistlibError) as caught:
        train(fresh(), **where)
    assert caught.value.code == "PL401"


def test_layers_that_the_first_batch_shapes_are_not_judged_too_early(tmp_path: Path) -> None:
    lazy = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 2))
    trained_bundles.require(lazy, tmp_path / "out", Folder(), epochs=1, overwrite=False)
    assert isinstance(lazy[0], nn.LazyLinear)


def test_an_argument_that_is_not_known_is_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(PersistlibError) as caught:
        train(fresh(), optimiser="sgd", zzz=1)
    found = {item.location: item for item in caught.value.findings}
    assert {item.code for item in found.values()} == {"PL901"}
    assert found["optimiser"].remedy == "did you mean optimizer?"
    assert "label_smoothing" in found["zzz"].remedy


class Heads(nn.Module):
    """Tells a kind and a size."""

    def __init__(self) -> None:
        super().__init__()
        self.kind, self.size = nn.Linear(4, 2), nn.Linear(4, 1)

    def forward(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"kind": self.kind(rows), "size": self.size(rows)}


def test_an_output_with_targets_and_no_task_is_refused() -> None:
    rows, kinds = samples()
    given = (rows, {"kind": kinds, "size": rows[:, :1]})
    how: dict[str, Any] = {"epochs": 1, "lr": 0.05}
    with pytest.raises(PersistlibError) as caught:
        persistlib.finetune(Heads(), given, given, task={"kind": "classification"}, **how)
    assert [item.location for item in caught.value.findings] == ["task.size"]
    persistlib.finetune(
        Heads(), (rows, {"kind": kinds}), task={"kind": "classification"}, **how
    )  # without its targets an output may stay as it is
    both = {"kind": "classification", "size": "regression"}
    persistlib.finetune(Heads(), given, given, task=both, **how)
