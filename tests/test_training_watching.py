"""What a run folder shows: history, events, pictures; and what the command line makes of a run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import persistlib
from command_line import told
from leaving import LeftError, leave_after
from persistlib.errors import PersistlibWarning
from persistlib.training import plots, watching
from persistlib.training.run_folder import command
from test_training_resume import arrays
from training_trial import SETTINGS, finetune, net

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("torchvision")
tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
pytest.importorskip("matplotlib")

LABELS = ("cat", "dog$", "猫 & a name that is long")
EDGE = 32


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was broken off and gone on with."""
    path = tmp_path_factory.mktemp("watched") / "run"
    how: dict[str, Any] = {**SETTINGS, **arrays(), "interface": {"labels": LABELS}}
    with pytest.raises(LeftError):
        persistlib.finetune(net(), run=path, progress=leave_after(17), **how)
    persistlib.finetune(net(), run=path, resume=True, **how)
    return path


def history(run: Path) -> Any:
    return json.loads((run / "history.json").read_text())


def test_the_history_is_the_runs_with_its_confusion(run: Path) -> None:
    told_of = history(run)
    result = finetune(None, data=arrays())
    assert told_of["history"] == [dict(row) for row in result.history]
    assert [list(row) for row in told_of["history"]] == [list(row) for row in result.history]
    inputs, labels = arrays()["valid"]
    with torch.no_grad():
        answers = result.model(inputs).argmax(1)
    expected = [[int(((labels == t) & (answers == a)).sum()) for a in range(3)] for t in range(3)]
    assert told_of["confusion"] == expected
    assert told_of["labels"] == list(LABELS)


def test_tensorboard_reads_each_epoch_once_though_the_run_was_broken(run: Path) -> None:
    files = sorted((run / "tensorboard").iterdir())
    assert len(files) == 2
    events = tensorboard.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for name in ("train/loss", "train/accuracy", "valid/loss", "valid/accuracy"):
        points = events.Scalars(name)
        assert [point.step for point in points] == [7, 14, 21, 28]
        rows = history(run)["history"]
        values = [row[name.replace("/", "_")] for row in rows]
        assert [point.value for point in points] == pytest.approx(values, rel=1e-6)
    assert events.Scalars("batch/lr")[0].value == pytest.approx(0.02, rel=0.1)


def test_events_get_a_name_behind_those_of_the_same_second(tmp_path: Path) -> None:
    now = int(time.time())
    for second in (now - 60, now, now + 3600):  # a clock that was ahead is not waited for
        (tmp_path / f"events.out.tfevents.{second}.host.1.9").write_bytes(b"")
    watching._await_a_later_name(str(tmp_path))
    assert now < int(time.time()) < now + 3600


def test_the_pictures_show_what_the_history_says(run: Path, tmp_path: Path) -> None:
    for name in ("curves.png", "confusion.png"):
        with Image.open(run / name) as picture:
            colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        assert len(np.unique(colours, axis=0)) > 10
    plots.curves(history(run)["history"], tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (run / "curves.png").read_bytes()
    plots.curves(history(run)["history"][:2], tmp_path / "other.png")
    assert (tmp_path / "other.png").read_bytes() != (run / "curves.png").read_bytes()
    for size in (1, 30, 60):
        counts = np.diag(np.arange(size) + 1).tolist()
        plots.confusion(counts, [f"class {n}" for n in range(size)], tmp_path / f"{size}.png")
        with Image.open(tmp_path / f"{size}.png") as picture:
            assert picture.width > 300


def test_regression_and_runs_without_held_out_samples_have_no_confusion(tmp_path: Path) -> None:
    inputs, labels = arrays()["train"]
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 1))
    targets = labels.float()[:, None]
    persistlib.finetune(
        model,
        (inputs, targets),
        (inputs, targets),
        loss=nn.functional.mse_loss,
        run=tmp_path / "a",
        **SETTINGS,
    )
    persistlib.finetune(net(), (inputs, labels), run=tmp_path / "b", **SETTINGS)
    for name in "ab":
        assert "confusion" not in history(tmp_path / name)
        assert not (tmp_path / name / "confusion.png").exists()
        assert (tmp_path / name / "curves.png").exists()


def test_without_its_packages_a_run_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (plots, watching):
        monkeypatch.setattr(module, "is_importable", lambda _: False)
    with pytest.warns(PersistlibWarning, match="PL902") as caught:
        result = finetune(tmp_path / "run", data=arrays())
    assert len(result.history) == 4
    text = "\n".join(str(item.message) for item in caught)
    assert "tensorboard" in text
    assert "matplotlib" in text
    assert history(tmp_path / "run")["confusion"]
    assert not (tmp_path / "run" / "curves.png").exists()


# -- the command line -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog", "owl")):
        (root / name).mkdir()
        for number in range(8):
            pixels = rng.integers(0, 90, (20, 20, 3), np.uint8)
            pixels[:, :, label] += 120
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def words(images: Path, out: Path, *more: object) -> tuple[str, ...]:
    given = ("--data", images, "--resize", EDGE, "--batch-size", 6, "--out", out, *more)
    return ("finetune", "squeezenet1_1", *map(str, given))


def test_a_killed_command_line_goes_on_to_the_same_bundle(images: Path, tmp_path: Path) -> None:
    how = ("--epochs", 3, "--strategy", "gradual", "--rate-decay", 0.5, "--lr", 0.001)
    whole, code = told(*words(images, tmp_path / "whole", *how, "--name", "mine"))
    assert (code, whole["data"]["resumed"]) == (0, None)
    out, run = tmp_path / "killed", tmp_path / "killed.run"
    more = ("--name", "mine", "--checkpoint-every", 1)
    arguments = words(images, out, *how, *more)
    child = subprocess.Popen([sys.executable, "-m", "persistlib", *arguments])
    deadline = time.monotonic() + 120
    while not [*(run / "checkpoints").glob("0*")]:
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not out.exists()
    resumed, code = told("finetune", "--resume", str(run))
    assert code == 0
    assert resumed["data"]["resumed"].startswith(str(run / "checkpoints"))
    assert resumed["data"]["bundle_id"] == whole["data"]["bundle_id"]
    assert resumed["data"]["history"] == whole["data"]["history"]
    assert (out / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
    assert {found["code"] for found in resumed["findings"]} <= {"PL409"}  # its lock


def test_what_a_run_was_begun_with_may_be_given_again_otherwise(
    images: Path, tmp_path: Path
) -> None:
    run = tmp_path / "short.run"
    _, code = told(*words(images, tmp_path / "short", "--epochs", 1, "--balanced"))
    assert code == 0
    begun = command(run)
    assert (begun["builder"], begun["epochs"], begun["balanced"]) == ("squeezenet1_1", 1, True)
    assert not {"out", "run", "overwrite", "trust", "resume"} & begun.keys()
    refused, code = told("finetune", "--resume", str(run))
    assert (refused["findings"][0]["code"], code) == ("PL401", 1)
    longer, code = told("finetune", "--resume", str(run), "--epochs", "2", "--overwrite")
    assert (code, len(longer["data"]["history"])) == (0, 2)
    assert {found["location"] for found in longer["findings"]} == {"epochs"}
    moved = tmp_path / "elsewhere"
    shutil.copytree(run, moved)
    refused, code = told("finetune", "--resume", str(moved))
    assert (refused["findings"][0]["message"], code) == ("Missing option '--out'.", 2)
    refused, code = told(*words(images, tmp_path / "other", "--run", run))
    assert (refused["findings"][0]["code"], code) == ("PL401", 1)
    assert f"--resume {run}" in refused["findings"][0]["remedy"]


@pytest.mark.parametrize(
    ("arguments", "expected", "exit_code"),
    [
        (("--resume", "{t}/nowhere"), "PL412", 1),
        (("--resume", "{t}"), "PL412", 1),
        (("--data", "{i}"), "PL901", 2),
        (("squeezenet1_1", "--data", "{i}"), "PL901", 2),
        (("squeezenet1_1", "--out", "{t}/x"), "PL901", 2),
        (("squeezenet1_1", "--data", "{i}", "--out", "{t}/x", "--strategy", "tail"), "PL901", 2),
        (("squeezenet1_1", "--data", "{i}", "--out", "{t}/x", "--optimizer", "no"), "PL901", 2),
        (("squeezenet1_1", "--data", "{i}", "--out", "{t}/x", "--precision", "i8"), "PL901", 2),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_anything_is_written(
    images: Path, tmp_path: Path, arguments: tuple[str, ...], expected: str, exit_code: int
) -> None:
    places = {"i": images, "t": tmp_path}
    envelope, code = told("finetune", *(word.format(**places) for word in arguments))
    assert (envelope["findings"][0]["code"], code) == (expected, exit_code)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("change", ["digest", "builder", "bytes", "schema"])
def test_a_note_of_a_run_that_was_changed_is_refused(
    images: Path, tmp_path: Path, change: str
) -> None:
    _, code = told(*words(images, tmp_path / "a", "--epochs", 1))
    assert code == 0
    note = tmp_path / "a.run" / "run.json"
    text = note.read_text()
    record = json.loads(text)
    if change == "digest":
        record["digest"] = "blake3:" + "0" * 64
    elif change == "builder":
        record["command"]["builder"] = "os:system"
    elif change == "schema":
        record["schema"] = "persistlib.run/2"
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"))
    note.write_text(text[:-20] if change == "bytes" else canonical + "\n")
    refused, code = told("finetune", "--resume", str(tmp_path / "a.run"), "--overwrite")
    assert (refused["findings"][0]["code"], code) == ("PL811", 1)


def test_a_trial_of_learning_rates_draws_and_trains_nothing(images: Path, tmp_path: Path) -> None:
    found, code = told(
        *("finetune", "squeezenet1_1", "--data", str(images), "--resize", str(EDGE)),
        *("--batch-size", "6", "--find-lr", str(tmp_path / "rates.png")),
    )
    assert code == 0
    assert 1e-6 < found["data"]["suggestion"] < 10
    assert os.listdir(tmp_path) == ["rates.png"]
