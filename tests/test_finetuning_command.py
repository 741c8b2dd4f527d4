"""What a new user meets on `finetune`'s command line: refusals in time, and words that work."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import persistlib
from command_line import invoke, told
from test_training_tables import write_csv

pytest.importorskip("torchvision")
COLUMNS = ("alpha", "beta", "gämma", "delta")
OWN = "table_models:Rows"
BARE = {"inputs": [{"name": "input", "dtype": "F32", "shape": ["n", 4]}]}


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """A table whose last column is a sum of the others."""
    rows = np.random.default_rng(0).standard_normal((60, 4)).round(3)
    prices = rows.sum(1, keepdims=True).round(4)
    return write_csv(
        tmp_path / "numbers.csv", [*COLUMNS, "price"], np.hstack([rows, prices]).tolist()
    )


def begun(data: object, out: Path, *more: object) -> tuple[object, ...]:
    how = ("--trust", "table_models", "--epochs", 1, "--out", out)
    return ("finetune", OWN, "--data", data, *how, *more)


# -- what a run is gone on with --------------------------------------------------------------------


def test_a_refused_resume_leaves_the_run_as_it_was(numbers: Path, tmp_path: Path) -> None:
    _, code = told(*begun(numbers, tmp_path / "out"))
    assert code == 0
    note = tmp_path / "out.run" / "run.json"
    before = note.read_bytes()
    other = tmp_path / "other.csv"
    other.write_text(numbers.read_text().replace("0.", "1."))
    resume = ("finetune", "--resume", tmp_path / "out.run", "--trust", "table_models")
    longer = ("--epochs", 2, "--overwrite")
    refused, code = told(*resume, *longer, "--data", other)
    assert (refused["findings"][0]["code"], code) == ("PL812", 1)
    assert "without --data" in refused["findings"][0]["remedy"]
    assert note.read_bytes() == before
    done, code = told(*resume, *longer)
    assert (code, len(done["data"]["history"])) == (0, 2)
    assert note.read_bytes() != before


def test_a_run_goes_on_from_any_folder_to_the_same_bundle(
    numbers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = numbers.relative_to(tmp_path)
    _, code = told(*begun(relative, tmp_path / "out"))
    assert code == 0
    first = persistlib.inspect(tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "out")
    resume = ("finetune", "--resume", "../out.run", "--trust", "table_models")
    again, code = told(*resume)
    assert (code, again["data"]["bundle_id"]) == (0, first.manifest.bundle_id)
    for file in (tmp_path / "out").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()
    moved = numbers.rename(tmp_path / "moved.csv")
    refused, code = told(*resume, "--overwrite")
    found = refused["findings"][0]
    assert (found["code"], found["location"], code) == ("PL412", str(numbers), 1)
    assert "run.json" in found["message"]
    assert "give --data again" in found["remedy"]
    _, code = told(*resume, "--data", moved, "--overwrite")
    assert code == 0


# -- the next steps --------------------------------------------------------------------------------


def test_every_next_step_works_as_it_is_told(numbers: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = invoke(*begun(numbers, out, "--keep", "all"))
    assert result.exit_code == 0, result.output
    steps = [line.strip() for line in result.output.splitlines() if " persistlib " in f" {line}"]
    commands = [shlex.split(line[line.index("persistlib ") :])[1:] for line in steps]
    assert {words[0] for words in commands} >= {"inspect", "verify", "evaluate"}
    for words in commands:
        done = invoke(*words)
        assert done.exit_code == 0, (words, done.output)


def test_behaviour_is_proposed_where_examples_stand_and_missed_where_not(
    numbers: Path, tmp_path: Path
) -> None:
    told(*begun(numbers, tmp_path / "out"))
    assert "--behaviour --trust" not in invoke("verify", tmp_path / "out").output
    trusting = invoke("verify", tmp_path / "out", "--trust", "table_models")
    assert "--behaviour --trust table_models" in trusting.output
    persistlib.save(torch.nn.Linear(4, 1), tmp_path / "bare", interface=BARE)
    plain = invoke("verify", tmp_path / "bare")
    assert (plain.exit_code, "--behaviour" in plain.output) == (0, False)
    missed, code = told("verify", tmp_path / "bare", "--behaviour")
    assert (missed["findings"][0]["code"], missed["data"]["verdict"], code) == (
        "PL118",
        "intact",
        3,
    )


def test_what_only_images_have_a_use_for_is_refused_of_a_table(
    numbers: Path, tmp_path: Path
) -> None:
    asked = begun(numbers, tmp_path / "out", "--resize", 32, "--augment", "flip")
    refused, code = told(*asked)
    assert ([item["location"] for item in refused["findings"]], code) == (["resize", "augment"], 2)
    assert "trained" not in invoke(*asked).output


def test_behaviour_without_torch_never_claims_what_was_not_computed(
    numbers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(*begun(numbers, tmp_path / "plain"))
    told(*begun(numbers, tmp_path / "both", "--onnx"))
    monkeypatch.setattr("persistlib.behaviour.is_importable", lambda _: False)
    asked = ("--behaviour", "--trust", "table_models")
    for name, severity, expected in (("plain", "warning", 3), ("both", "note", 0)):
        found, code = told("verify", tmp_path / name, *asked)
        finding = found["findings"][0]
        assert (finding["code"], finding["location"], finding["severity"], code) == (
            "PL118",
            "torch",
            severity,
            expected,
        )
        said = invoke("verify", tmp_path / name, *asked).output
        assert ("computed again" in said) is (expected == 0)
        assert "pip install 'persistlib[torch]'" in said


@pytest.mark.parametrize(
    ("name", "code", "remedy"),
    [
        ("old weights.pth", "PL901", "persistlib identify '{path}' says which builder"),
        ("theirs.onnx", "PL901", "persistlib convert {path} DIR makes a bundle of it"),
        ("gone.pth", "PL412", "check the path, or name a builder"),
    ],
)
def test_a_file_in_the_place_of_a_model_is_told_the_way(
    name: str, code: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (name, *([tmp_path / name] if code == "PL901" else [])):
        if code == "PL901":
            (tmp_path / name).write_bytes(b"weights")
        found, _ = told("finetune", path, "--data", "sklearn:digits", "--out", "out")
        assert found["findings"][0]["code"] == code
        assert remedy.format(path=path) in found["findings"][0]["remedy"]
        assert "trust" not in found["findings"][0]["remedy"]


def test_a_complete_run_is_told_how_to_train_longer_and_by_its_bundle_too(
    numbers: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    told(*begun(numbers, out))
    shown, code = told("finetune", "--resume", f"{out}.run", "--trust", "table_models")
    remedy = shown["findings"][0]["remedy"]
    assert (shown["findings"][0]["code"], code) == ("PL401", 1)
    longer = shlex.split(remedy[remedy.index("persistlib ") :])[1:]
    assert told(*longer)[1] == 0
    missed, code = told("finetune", "--resume", out)
    assert (missed["findings"][0]["remedy"], code) == (f"go on with that: --resume {out}.run", 1)


def test_a_run_of_numbers_tells_what_it_left_and_nothing_that_it_did_not(
    numbers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # no path is so long that a line is broken
    shown = invoke(*begun(numbers, Path("out")))
    runs = [line for line in shown.output.splitlines() if line.startswith("  run     ")]
    assert " 1 epoch, " in runs[0]
    assert "history" in runs[1]
    assert "confusion" not in runs[1]
    assert not (tmp_path / "out.run" / "confusion.png").exists()
    assert "frozen nothing" in " ".join(shown.output.split())
