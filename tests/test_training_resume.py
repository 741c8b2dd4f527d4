"""A run that was killed goes on to the same bits; what is not as it was is said, by name."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

import persistlib
from leaving import LeftError, leave_after
from persistlib.canonical import parse
from persistlib.errors import Code, PersistlibError, PersistlibWarning
from persistlib.training import checkpoints, plots
from persistlib.training.events import BatchDone, EpochDone, WentOn
from persistlib.training.loop import Folder
from persistlib.training.optimizers import OPTIMIZERS
from persistlib.training.run_folder import opened
from persistlib.training.schedules import SCHEDULES
from training_trial import SETTINGS, Augmented, Server, digest, finetune, net

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from persistlib.training.events import Event

EVERY = {"checkpoint_every": 2}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What comes of a run that nothing disturbs, of two epochs and of all."""
    return server.ask(run=str(tmp_path_factory.mktemp("whole") / "run"))


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than the trainings here."""
    for name in ("curves", "confusion"):
        monkeypatch.setattr(plots, name, lambda *_: None)
    monkeypatch.setattr("persistlib.training.watching.Watch._events", lambda *_: None)


def broken(run: Path, batches: int, **how: Any) -> None:
    """Train until after some batches; what is in memory is lost."""
    with pytest.raises(LeftError):
        finetune(run, progress=leave_after(batches), **(EVERY | how))


# -- killed -----------------------------------------------------------------------------------


def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(
    server: Server, whole: str, tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    for die in (["batch", 4], ["step", 4], ["checkpoint", 30]):
        assert server.ask(run=run, die=die, how=EVERY) == "killed", die
    assert server.ask(run=run, how=EVERY) == whole
    assert server.ask(run=run, how={"workers": 2}) == whole  # a run that has ended is told again


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("seed", range(2))
def test_twenty_kills_at_any_moment_change_no_bit(
    server: Server, whole: str, tmp_path: Path, workers: int, seed: int
) -> None:
    """Of twenty kills five at least are in a checkpoint's writing, and five in a step."""
    rng = random.Random(seed)
    kinds = ["checkpoint"] * 5 + ["step"] * 5 + ["batch"] * 5 + ["outside"] * 5
    rng.shuffle(kinds)
    run, how = str(tmp_path / "run"), {"checkpoint_every": 1, "workers": workers}
    died: dict[str, int] = dict.fromkeys(kinds, 0)
    outcome = ""
    for kind in kinds:
        if kind == "outside":
            outcome = server.ask(run=run, how=how, kill_after=rng.uniform(0.05, 0.6))
        else:
            # Early enough to happen before the end; a checkpoint makes some 40 such calls.
            limit = {"checkpoint": 60, "step": 2, "batch": 2}[kind]
            outcome = server.ask(run=run, how=how, die=[kind, rng.randint(1, limit)])
        died[kind] += outcome == "killed"
    assert server.ask(run=run, how=how) == whole
    assert died["checkpoint"] >= 3, died
    assert died["step"] >= 3, died
    assert sum(died.values()) >= 18, died


def loaders() -> dict[str, Any]:
    """Batches of the caller's own, one shuffled by a generator of its own."""
    mixed = torch.Generator().manual_seed(5)
    return {
        "train": DataLoader(Augmented(40, 0), batch_size=6, shuffle=True, generator=mixed),
        "valid": DataLoader(TensorDataset(*fixed(15))),
    }


def shuffled() -> dict[str, Any]:
    return {"train": DataLoader(Augmented(40, 0), batch_size=6, shuffle=True)}


def sampled() -> dict[str, Any]:
    """Batches whose generators lie deeper, one of each kind."""
    data = TensorDataset(*fixed(40))
    order = RandomSampler(data, generator=torch.Generator().manual_seed(5))
    return {
        "train": DataLoader(data, batch_sampler=BatchSampler(order, 6, drop_last=False)),
        "valid": Drawn(15, [random.Random(5)]),
    }


class Drawn:
    """Batches of an object of one's own, in an order that its own generator draws."""

    def __init__(self, count: int, generators: list[Any]) -> None:
        self.inputs, self.targets = fixed(count)
        self.generators = generators

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = [*range(len(self.targets))]
        for generator in self.generators:
            generator.shuffle(order)
        for begin in range(0, len(order), 6):
            part = order[begin : begin + 6]
            yield self.inputs[part], self.targets[part]


def drawn() -> dict[str, Any]:
    numpys = [np.random.default_rng(5), np.random.RandomState(5)]
    numpys.append(np.random.Generator(np.random.MT19937(5)))
    return {"train": Drawn(40, numpys), "valid": fixed(15)}


class Noisy(Dataset[Any]):
    """Samples with a generator of their own, which goes on from epoch to epoch."""

    def __init__(self) -> None:
        self.inputs, self.targets = fixed(40)
        self.generator = torch.Generator().manual_seed(5)

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        noise = torch.randn(self.inputs[index].shape, generator=self.generator)
        return self.inputs[index] + noise, self.targets[index]


def noisy() -> dict[str, Any]:
    return {"train": Noisy()}


def fixed(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = Augmented(count, 0)
    return data.inputs + torch.tensor(data.labels).view(-1, 1, 1, 1), torch.tensor(data.labels)


def arrays() -> dict[str, Any]:
    return {"train": fixed(40), "valid": fixed(15)}


def nothing_special() -> dict[str, Any]:
    return {}


VARIANTS: dict[str, tuple[dict[str, Any], Callable[[], dict[str, Any]]]] = {
    "bf16": ({"precision": "bf16"}, nothing_special),
    "f16": ({"precision": "f16"}, nothing_special),
    "accumulated": ({"accumulate": 2, "clip": 0.5}, nothing_special),
    "gradual": ({"strategy": "gradual"}, arrays),
    "slower": ({"strategy": {"kind": "full", "rate_decay": 0.5}}, nothing_special),
    "early": ({"patience": 1, "lr": 1e-6}, nothing_special),
    "last": ({"keep": "last", "class_weights": "balanced"}, nothing_special),
    "own": ({}, loaders),
    "shuffled": ({}, shuffled),
    "sampled": ({"schedule": "constant"}, sampled),
    "drawn": ({}, drawn),
    "noisy": ({}, noisy),
    "workers": ({"workers": 2}, nothing_special),
}


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # a fork beside threads, on 3.12
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("name", VARIANTS)
def test_every_way_to_train_goes_on_to_the_same_bits(tmp_path: Path, name: str) -> None:
    how, data = VARIANTS[name]
    uninterrupted = finetune(None, data=data(), **how)
    total = len(uninterrupted.history) * 7
    run, told = tmp_path / "run", list[Any]()
    broken(run, total // 3, data=data(), **how)
    with pytest.raises(LeftError):
        finetune(run, data=data(), resume=True, progress=leave_after(total // 3), **(EVERY | how))
    result = finetune(run, data=data(), resume=True, progress=told.append, **how)
    assert isinstance(told[0], WentOn)
    assert (told[0].epoch, told[0].batch) > (0, 3)
    assert digest(result) == digest(uninterrupted)


@pytest.mark.parametrize("name", ["own", "shuffled", "sampled", "drawn", "noisy"])
def test_generators_of_ones_own_go_on_from_the_end_of_an_epoch(tmp_path: Path, name: str) -> None:
    how, data = VARIANTS[name]
    uninterrupted = finetune(None, data=data(), **how)
    broken(tmp_path / "run", 7, data=data(), **how)
    told = list[Any]()
    result = finetune(tmp_path / "run", data=data(), resume=True, progress=told.append, **how)
    assert (told[0].epoch, told[0].batch) == (1, 0)
    assert digest(result) == digest(uninterrupted)


class Remembering(nn.Module):
    """What it computes depends on what it keeps in plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(36, 8), nn.Linear(8, 3)
        self.queue = torch.zeros(8)
        self.last: torch.Tensor | None = None
        self.counts = {"calls": 0, "held": [1.0]}
        self.is_cold = True

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = torch.tanh(self.layer(images.flatten(1)))
        if self.training:
            self.queue = 0.9 * self.queue + 0.1 * rows.detach().mean(0)
            self.last = rows.detach()[0]
            self.counts["calls"] += 1  # type: ignore[operator]
            self.counts["held"] = [0.95 * self.counts["held"][0]]  # type: ignore[index]
            self.is_cold = not self.is_cold
        last = 0.0 if self.last is None else self.last
        scale = self.counts["held"][0] + 0.1 * self.is_cold  # type: ignore[index]
        scores: torch.Tensor = self.head(rows - self.queue + 0.1 * last) * scale
        return scores


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("lr", [3.0, 0.01])  # the best epoch is the last one, or is not
@pytest.mark.parametrize("batches", [7, 10])
def test_what_a_module_keeps_in_plain_attributes_goes_on(
    tmp_path: Path, lr: float, batches: int
) -> None:
    how: dict[str, Any] = {"data": arrays(), "lr": lr, "epochs": 3}
    uninterrupted = finetune(None, model=Remembering(), **how)
    broken(tmp_path / "run", batches, model=Remembering(), **how)
    result = finetune(tmp_path / "run", resume=True, model=Remembering(), **how)
    assert digest(result) == digest(uninterrupted)
    found, known = result.model, uninterrupted.model
    assert isinstance(found, Remembering)
    assert isinstance(known, Remembering)
    assert found.queue.equal(known.queue)
    assert found.last is not None
    assert known.last is not None
    assert found.last.equal(known.last)
    assert (found.counts, found.is_cold) == (known.counts, known.is_cold)
    kept = uninterrupted.training.strategy["kept_epoch"]
    assert known.counts["calls"] == 7 * int(str(kept))
    assert (lr == 3.0) == (kept == 3)


@pytest.mark.usefixtures("no_pictures")
def test_what_has_no_place_in_the_model_any_more_is_said(tmp_path: Path) -> None:
    model = Remembering()
    model.spare = torch.zeros(2)
    broken(tmp_path / "run", 7, model=model, data=arrays())
    _, told = changed(tmp_path / "run", model=Remembering(), data=arrays())
    assert told == ["PL813 spare: was remembered, and the model has no such place: it was left out"]


def two_parts() -> nn.Sequential:
    torch.manual_seed(0)
    front = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    return nn.Sequential(
        front, nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
    )


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("make", "freeze", "path"),
    [(two_parts, ["*", "!1"], "1"), (net, ["*", "!6.*", "!8.*"], "3")],
)
def test_training_on_features_goes_on_to_the_same_bits(
    make: Callable[[], nn.Module], freeze: list[str], path: str, tmp_path: Path
) -> None:
    how: dict[str, Any] = {"data": arrays(), "freeze": freeze}
    uninterrupted = finetune(None, model=make(), **how)
    broken(tmp_path / "run", 13, model=make(), **how)
    result = finetune(tmp_path / "run", resume=True, model=make(), **how)
    assert result.training.strategy["cached_before"] == path
    assert digest(result) == digest(uninterrupted)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(36, 36), nn.BatchNorm1d(36)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.norm(self.linear(inputs))
        return hidden.relu()


def thawing() -> nn.Sequential:
    """A model of which less and less is a frozen front while it thaws."""
    torch.manual_seed(0)
    tail = nn.Sequential(Block(), nn.Linear(36, 3))
    return nn.Sequential(nn.Flatten(), Block(), nn.Sequential(Block(), tail))


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("batches", [7, 10, 14, 17, 21])
def test_a_run_broken_off_between_two_phases_thaws_what_is_next(
    tmp_path: Path, batches: int
) -> None:
    """What was run once for the phase before is not taken for the next."""
    how: dict[str, Any] = {"data": arrays(), "strategy": "gradual"}
    uninterrupted = finetune(None, model=thawing(), **how)
    broken(tmp_path / "run", batches, model=thawing(), **how)
    result = finetune(tmp_path / "run", resume=True, model=thawing(), **how)
    assert digest(result) == digest(uninterrupted)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_torch_goes_on_with_its_state(tmp_path: Path, name: str) -> None:
    layer = nn.Linear(36, 3, bias=False)
    model = nn.Sequential(nn.Flatten(), layer)
    how: dict[str, Any] = {"optimizer": name, "epochs": 2, "data": arrays()}
    torch.manual_seed(0)
    nn.init.normal_(layer.weight)
    first = {n: item.clone() for n, item in model.state_dict().items()}
    uninterrupted = digest(finetune(None, model=model, **how))
    moved = not layer.weight.equal(first["1.weight"])
    model.load_state_dict(first)
    broken(tmp_path / "run", 9, model=model, **how)
    model.load_state_dict({n: torch.zeros_like(item) for n, item in first.items()})
    assert digest(finetune(tmp_path / "run", model=model, resume=True, **how)) == uninterrupted
    assert moved


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_scheduler_goes_on_where_it_was(tmp_path: Path, name: str) -> None:
    how: dict[str, Any] = {"schedule": name, "optimizer": "sgd", "data": arrays(), "accumulate": 2}
    rates: list[float] = []

    def watch(event: Event) -> None:
        if isinstance(event, BatchDone):
            rates.append(event.lr)

    uninterrupted = digest(finetune(None, progress=watch, **how))
    assert len({*rates}) > 1 or name in {"constant", "constantlr", "reducelronplateau"}
    broken(tmp_path / "run", 12, **how)
    before, rates[:] = list(rates), []
    assert digest(finetune(tmp_path / "run", resume=True, progress=watch, **how)) == uninterrupted
    assert before[-len(rates) :] == rates
    assert 0 < len(rates) < len(before)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_after_the_step_at_hand(tmp_path: Path, number: int) -> None:
    batches = 0

    def interrupt(event: Event) -> None:
        nonlocal batches
        batches += isinstance(event, BatchDone)
        if batches == 10 and isinstance(event, BatchDone):
            os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            finetune(tmp_path / "run", progress=interrupt)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert os.listdir(tmp_path / "run" / "checkpoints")[-1:] != []
    result = finetune(tmp_path / "run", resume=True)
    assert result.resumed is not None
    assert result.resumed.endswith("000001-000000003")
    assert digest(result) == digest(finetune(None))


@pytest.mark.usefixtures("no_pictures")
def test_a_signal_ends_the_computing_of_features_too(tmp_path: Path) -> None:
    model, calls = two_parts(), 0
    front = model[0]

    def interrupt(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 8:
            os.kill(os.getpid(), signal.SIGINT)

    hook = front.register_forward_hook(interrupt)
    how: dict[str, Any] = {"freeze": ["*", "!1"], "data": arrays()}
    with pytest.raises(KeyboardInterrupt):
        finetune(tmp_path / "run", model=model, **how)
    assert calls == 8
    hook.remove()
    again = finetune(tmp_path / "run", model=two_parts(), resume=True, **how)
    assert again.resumed is None
    assert digest(again) == digest(finetune(None, model=two_parts(), **how))


@pytest.mark.usefixtures("no_pictures")
def test_the_same_model_goes_on_after_an_interruption_as_a_new_one_would(tmp_path: Path) -> None:
    """A phase that was at work is not taken for what the caller froze."""
    how: dict[str, Any] = {"data": arrays(), "strategy": "gradual"}
    uninterrupted = digest(finetune(None, model=thawing(), **how))
    model = thawing()
    broken(tmp_path / "run", 10, model=model, **how)
    assert all(item.requires_grad for item in model.parameters())
    result, said = changed(tmp_path / "run", model=model, **how)
    assert said == []
    assert digest(result) == uninterrupted
    model = thawing()
    model[1].requires_grad_(requires_grad=False)
    broken(tmp_path / "held", 10, model=model, **how)
    assert not any(item.requires_grad for item in model[1].parameters())
    _, said = changed(tmp_path / "held", model=thawing(), **how)
    assert any("frozen before" in text for text in said)


def test_a_run_outside_the_main_thread_keeps_no_signal(tmp_path: Path) -> None:
    outcomes: list[Any] = []
    thread = threading.Thread(
        target=lambda: outcomes.append(finetune(tmp_path / "run", epochs=1, data=arrays()))
    )
    thread.start()
    thread.join()
    assert len(outcomes[0].history) == 1


# -- damaged ----------------------------------------------------------------------------------


def newest(run: Path, kind: str = "checkpoints") -> Path:
    return max((run / kind).iterdir())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes(data)


def turn(path: Path) -> None:
    """Give a weight another shape of as many elements."""
    before, after = b'"shape":[3,8]', b'"shape":[8,3]'
    assert before in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(before, after))


def empty(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("kind", "name", "harm"),
    [
        *(("checkpoints", "state.json", harm) for harm in (cut, flip, os.unlink)),
        *(
            ("checkpoints", "state.safetensors", harm)
            for harm in (cut, flip, turn, empty, os.unlink)
        ),
        *(("best", "state.safetensors", harm) for harm in (flip, os.unlink)),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, harm: Callable[[Path], None], kind: str, name: str
) -> None:
    run = tmp_path / "run"
    how: dict[str, Any] = {"data": arrays(), "lr": 0.005}
    broken(run, 13 if kind == "checkpoints" else 14, **how)
    # The best weights, of epoch 2, are named by the newest checkpoint alone.
    assert kind == "checkpoints" or newest(run, kind).name == "000002"
    before = newest(run).name
    harm(newest(run, kind) / name)
    with pytest.warns(PersistlibWarning, match="PL811 .*the one before is taken"):
        result = finetune(run, resume=True, **how)
    assert result.resumed is not None
    assert result.resumed < str(run / "checkpoints" / before)
    assert digest(result) == digest(finetune(None, **how))


@pytest.mark.usefixtures("no_pictures")
def test_where_the_only_best_weights_are_damaged_the_run_goes_on_without(tmp_path: Path) -> None:
    run = tmp_path / "run"
    broken(run, 13, data=arrays())
    flip(newest(run, "best") / "state.safetensors")
    result, said = changed(run, data=arrays())
    assert any("best weights: are damaged" in text for text in said)
    assert result.resumed == str(run / "checkpoints" / "000001-000000005")
    assert result.history == finetune(None, data=arrays()).history


@pytest.mark.usefixtures("no_pictures")
def test_without_a_whole_checkpoint_nothing_is_gone_on_with(tmp_path: Path) -> None:
    run = tmp_path / "run"
    broken(run, 13, data=arrays())
    for folder in (run / "checkpoints").iterdir():
        flip(folder / "state.json")
    with pytest.raises(PersistlibError) as caught:
        finetune(run, resume=True, data=arrays())
    assert caught.value.code == "PL811"
    result = finetune(run, overwrite=True, data=arrays())
    assert digest(result) == digest(finetune(None, data=arrays()))


@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_had_no_checkpoint_yet_begins(tmp_path: Path) -> None:
    run = tmp_path / "run"
    broken(run, 1, data=arrays())
    result = finetune(run, resume=True, data=arrays())
    assert result.resumed is None
    assert digest(result) == digest(finetune(None, data=arrays()))


def strange(value: Any) -> Iterator[Any]:
    """Yield what may stand where a value of a checkpoint stood."""
    yield from (None, -1, 1 << 70, 1.5, "x", [], {}, [[]], {"x": None}, [value], {"x": value})


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("how", [{}, {"schedule": "onecyclelr", "precision": "f16"}])
def test_well_formed_bytes_of_strange_content_are_refused_or_said(
    tmp_path: Path, how: dict[str, Any]
) -> None:
    """Whoever writes a file can digest it too."""
    run, work = tmp_path / "run", tmp_path / "work"
    broken(run, 10, data=arrays(), checkpoint_every=3, **how)
    path = newest(run)
    whole = json.loads((path / "state.json").read_bytes())
    del whole["digest"]
    refused = 0
    for name, value in whole["facts"].items():
        for other in strange(value):
            shutil.copytree(run, work)
            for folder in (work / "checkpoints").iterdir():
                facts = {**whole["facts"], name: other}
                data = json.dumps({**whole, "facts": facts}, sort_keys=True, separators=(",", ":"))
                with contextlib.suppress(PersistlibError):  # no JSON of ours
                    record = parse(data.encode(), "here", code=Code.CHECKPOINT_DAMAGED)
                    (folder / "state.json").write_bytes(checkpoints.seal(record))
            try:
                changed(work, data=arrays(), progress=leave_after(0), **how)
            except PersistlibError:
                refused += 1
            except LeftError:
                pass  # it makes no difference
            shutil.rmtree(work)
    assert refused > 80


# -- changed ----------------------------------------------------------------------------------


def changed(run: Path, **how: Any) -> tuple[Any, list[str]]:
    """Go on with a run; return what came of it and what was said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = finetune(run, resume=True, **how)
    assert all(isinstance(item.message, PersistlibWarning) for item in caught)
    return result, [str(item.message) for item in caught]


@pytest.mark.usefixtures("no_pictures")
def test_data_that_changed_since_are_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    broken(run, 13, data=arrays())
    inputs, labels = fixed(40)
    inputs[7, 0, 2, 3] += 1e-6
    for data in ({"train": (inputs, labels)}, {"valid": fixed(14)}, {"train": Augmented(40, 1)}):
        with pytest.raises(PersistlibError) as caught:
            finetune(run, resume=True, data=arrays() | data)
        assert (caught.value.code, caught.value.location) == ("PL812", next(iter(data)))


@pytest.mark.usefixtures("no_pictures")
def test_frozen_weights_that_are_others_are_refused(tmp_path: Path) -> None:
    run, how = tmp_path / "run", {"freeze": ["*", "!8"], "data": arrays()}
    broken(run, 13, **how)
    with pytest.raises(PersistlibError) as caught:
        finetune(run, resume=True, model=net(1), **how)
    assert caught.value.code == "PL814"
    assert {found.location for found in caught.value.findings} >= {"0.weight", "6.weight"}
    assert digest(finetune(run, resume=True, **how)) == digest(finetune(None, **how))


class Twins(nn.Module):
    """Two layers of one shape, declared in either order."""

    def __init__(self, *, swapped: bool) -> None:
        super().__init__()
        self.flat = nn.Flatten()
        if swapped:
            self.right, self.left = nn.Linear(36, 36), nn.Linear(36, 36)
        else:
            self.left, self.right = nn.Linear(36, 36), nn.Linear(36, 36)
        self.out = nn.Linear(36, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.left(self.flat(inputs)).relu()
        scores: torch.Tensor = self.out(self.right(hidden))
        return scores


def twins(*, swapped: bool = False) -> Twins:
    torch.manual_seed(0)
    made = Twins(swapped=False)
    result = Twins(swapped=swapped)
    result.load_state_dict(made.state_dict())
    return result


@pytest.mark.usefixtures("no_pictures")
def test_layers_of_one_shape_declared_in_another_order_get_their_own_state(tmp_path: Path) -> None:
    """Torch's own state, by position, would give each the other's moments."""
    how: dict[str, Any] = {"data": arrays(), "seed": 1}
    uninterrupted = finetune(None, model=twins(), **how)
    broken(tmp_path / "run", 13, model=twins(), **how)
    result, said = changed(tmp_path / "run", model=twins(swapped=True), **how)
    assert said == []
    for name, value in uninterrupted.model.state_dict().items():
        assert value.equal(result.model.state_dict()[name]), name


@pytest.mark.usefixtures("no_pictures")
def test_another_freeze_takes_over_what_trains_still_and_says_what_not(tmp_path: Path) -> None:
    run = tmp_path / "run"
    broken(run, 13, data=arrays())
    kept = checkpoints.read(newest(run)).below("model")
    result, said = changed(run, freeze=["0", "1"], data=arrays())
    text = "\n".join(said)
    assert "PL813 strategy" in text
    assert "PL813 0.bias, 0.weight, 1.bias, 1.weight: no longer trains" in text
    # What is frozen now stays as the checkpoint has it, not as the model came.
    for name in ("0.weight", "1.running_mean", "1.weight"):
        assert result.model.state_dict()[name].equal(kept[name]), name
    assert not result.model.state_dict()["8.weight"].equal(kept["8.weight"])
    assert len(result.history) == 4


@pytest.mark.usefixtures("no_pictures")
def test_thawing_more_goes_on_with_the_head_and_begins_the_rest(tmp_path: Path) -> None:
    run, before = tmp_path / "run", net().state_dict()
    broken(run, 13, freeze=["*", "!8"], data=arrays())
    result, said = changed(run, data=arrays())
    assert any("strategy" in text for text in said)
    assert not any("optimizer state is gone" in text for text in said)
    assert not result.model.state_dict()["0.weight"].equal(before["0.weight"])


@pytest.mark.usefixtures("no_pictures")
def test_a_replaced_head_keeps_its_new_values_and_the_rest_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    broken(run, 13, data=arrays())
    kept = checkpoints.read(newest(run)).below("model")
    model, head = net(), nn.Linear(8, 5)
    model[8] = head
    new = head.weight.clone()
    seen: list[torch.Tensor] = []

    def watch(event: Event) -> None:
        if isinstance(event, WentOn):
            seen.extend(model.state_dict()[name].clone() for name in ("8.weight", "0.weight"))

    _, said = changed(run, model=model, data=arrays(), progress=watch)
    assert any("8.bias, 8.weight: has another shape" in text for text in said)
    assert any("optimizer state is gone" in text for text in said)
    assert any("best weights" in text for text in said)
    assert seen[0].equal(new)
    assert seen[1].equal(kept["0.weight"])


@pytest.mark.usefixtures("no_pictures")
def test_other_numbers_are_said_each(tmp_path: Path) -> None:
    run = tmp_path / "run"
    broken(run, 13, data=arrays())
    shutil.copytree(run, tmp_path / "again")
    result, said = changed(run, lr=0.5, batch_size=5, epochs=5, data=arrays())
    text = "\n".join(said)
    for fact in ("lr: was 0.02, is now 0.5", "batch_size: was 6, is now 5", "epoch 2: begins anew"):
        assert fact in text
    assert len(result.history) == 5
    _, said = changed(tmp_path / "again", optimizer="sgd", schedule="steplr", data=arrays())
    text = "\n".join(said)
    for fact in ("optimizer state: is another optimizer's", "schedule: begins anew"):
        assert fact in text


@pytest.mark.usefixtures("no_pictures")
def test_another_rate_decay_is_that_of_the_blocks_from_there_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    how: dict[str, Any] = {"data": arrays(), "schedule": "constant", "keep": "last"}
    broken(run, 13, strategy={"kind": "full", "rate_decay": 0.5}, **how)
    changed(run, strategy={"kind": "full", "rate_decay": 0.25}, **how)
    facts = checkpoints.read(newest(run)).facts
    rates = sorted(group["lr"] for group in facts["groups"])
    assert rates == pytest.approx([0.02 / 16, 0.02 / 4, 0.02])


@pytest.mark.usefixtures("no_pictures")
def test_the_best_so_far_survives(tmp_path: Path) -> None:
    """An epoch that is worse than one before the kill must not become the best."""
    run, how = tmp_path / "run", {"lr": 0.3, "optimizer": "sgd", "epochs": 6, "seed": 4}
    uninterrupted = finetune(None, data=arrays(), **how)
    best = uninterrupted.training.strategy["kept_epoch"]
    assert 1 <= best < 6
    broken(run, 7 * best + 3, data=arrays(), **how)
    result = finetune(run, resume=True, data=arrays(), **how)
    assert result.training.strategy["kept_epoch"] == best
    assert digest(result) == digest(uninterrupted)


# -- the folder -------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pictures")
def test_a_run_folder_is_neither_overwritten_nor_shared_unasked(tmp_path: Path) -> None:
    run = tmp_path / "run"
    broken(run, 13, data=arrays())
    with pytest.raises(PersistlibError) as caught:
        finetune(run, data=arrays())
    assert caught.value.code == "PL401"
    (run / "mine.txt").write_text("stays")
    finetune(run, overwrite=True, epochs=1, data=arrays())
    assert (run / "mine.txt").read_text() == "stays"
    assert sorted(item.name for item in (run / "checkpoints").iterdir()) == ["000001-000000000"]
    with opened(run, resume=True, overwrite=False), pytest.raises(PersistlibError) as caught:
        finetune(run, resume=True, data=arrays())
    assert caught.value.code == "PL407"
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    with pytest.raises(PersistlibError) as caught:
        finetune(tmp_path / "other", overwrite=True, data=arrays())
    assert caught.value.code == "PL402"


@pytest.mark.usefixtures("no_pictures")
def test_the_workers_that_a_kill_left_are_waited_for(tmp_path: Path) -> None:
    """They hold the lock that they were forked with, and end a little later."""
    run = tmp_path / "run"
    broken(run, 13, data=arrays())
    code = (
        "import fcntl, json, os, socket, sys, time\n"
        "lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "os.write(lock, json.dumps({'pid': os.getpid(), 'host': socket.gethostname()}).encode())\n"
        "if os.fork() == 0:\n    os.close(1); os.close(2); time.sleep(1.5)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(run / ".lock")], check=True, timeout=60)
    result, said = changed(run, data=arrays())
    assert [text.split()[0] for text in said] == ["PL409"]
    assert digest(result) == digest(finetune(None, data=arrays()))


@pytest.mark.usefixtures("no_pictures")
def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def poison(event: Event) -> None:
        if isinstance(event, EpochDone) and event.epoch == 2:
            model.state_dict()["8.weight"].fill_(torch.nan)

    model = net()
    with pytest.raises(PersistlibError) as caught:
        finetune(run, model=model, progress=poison, data=arrays())
    assert (caught.value.code, caught.value.location) == ("PL803", "epoch 3, batch 1")
    assert str(run / "checkpoints" / "000002-000000000") in caught.value.reason
    result = finetune(run, resume=True, data=arrays())
    assert digest(result) == digest(finetune(None, data=arrays()))


@pytest.mark.usefixtures("no_pictures")
def test_a_folder_of_its_own_may_be_named_by_resume_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    broken(run, 13, data=arrays())
    model = net()
    result = persistlib.finetune(model, **arrays(), resume=run, **SETTINGS)
    assert result.resumed is not None
    assert Folder().path is None
    with pytest.raises(PersistlibError) as caught:
        persistlib.finetune(net(), **arrays(), resume=True, **SETTINGS)
    assert (caught.value.code, caught.value.location) == ("PL901", "resume")
