"""`convert`, `diff` and `formats`: what they print, what they say to programs, how they exit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import persistlib
from command_line import invoke, told
from persistlib.dtypes import DType
from persistlib.formats import FORMATS, LOSSES, PROMISES

if TYPE_CHECKING:
    from pathlib import Path


def refused(*words: object) -> tuple[str, int]:
    envelope, code = told(*words)
    return envelope["findings"][0]["code"], code


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """A training checkpoint, its names as DistributedDataParallel has them."""
    draw = np.random.default_rng(0)
    state = {
        f"module.layer{i}.{kind}": torch.tensor(draw.normal(size=shape), dtype=torch.float32)
        for i in range(9)
        for kind, shape in (("weight", (4, 3)), ("bias", (4,)))
    }
    steps = {f"step{i}": i for i in range(300)}
    path = tmp_path / "training.pt"
    torch.save({"model": state, "epoch": 7, **steps}, path)
    return path


# -- convert -----------------------------------------------------------------------------------


def test_convert_tells_what_became_of_a_training_checkpoint(training: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    words = ("convert", training, out, "--rename", "module.*=*", "--allow-loss", "value")
    result = invoke(*words, "--dtype", "bf16")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert len(lines) < 20
    assert lines[0].startswith("✓ ")
    assert "out.safetensors" in lines[0]
    text_of = " ".join(result.stdout.split())  # a long path is wrapped
    for text in (
        f"from {training}: PyTorch state_dict",
        "tensors 18, 18 renamed",
        "identity blake3:",
        "was blake3:",
        "value step[0-299], which is no tensor (300)",
        "value epoch",
        "cast F32 → BF16: 18 tensors",
        "largest error 0.00",
        "largest relative error 0.00",
    ):
        assert text in text_of
    assert f"next: persistlib diff {training} {out}" in result.stderr


def test_convert_lists_all_when_asked(training: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    words = ("convert", training, out, "--rename", "module.*=*", "--allow-loss", "all", "--all")
    listed = invoke(*words, "--dtype", "f16").stdout
    assert listed.count("value step") == 300
    assert "was called" in listed
    for number in range(9):
        assert f"  layer{number}.weight  module.layer{number}.weight  F16 [4, 3]" in listed


def test_convert_gives_programs_a_row_a_tensor(training: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.hdf5"
    words = ("--only", "module.layer1", "--allow-loss", "value", "--dtype", "F16")
    envelope, code = told("convert", training, out, *words)
    data = envelope["data"]
    assert (code, data["source_format"], data["format"]) == (0, "torch", "hdf5")
    assert data["source_identity"] is None
    assert data["size"] == out.stat().st_size
    assert set(data["kept"]) <= set(PROMISES)
    assert len(data["losses"]) == 301
    assert len(data["notes"]) > 0
    row = next(row for row in data["rows"] if row["name"] == "module.layer1.bias")
    assert (row["source"], row["dtype"], row["shape"]) == ("module.layer1.bias", "F16", [4])
    assert row["before"] != row["after"]
    assert row["cast"]["before"] == "F32"
    assert 0 < row["cast"]["relative"] < 2**-10
    whole, _ = told("convert", out, tmp_path / "again.pt")
    assert whole["data"]["source_identity"] == whole["data"]["identity"] == data["identity"]
    assert all(row["cast"] is None for row in whole["data"]["rows"])


def test_convert_writes_shards_and_counts_them(training: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards" / "model.safetensors.index.json"
    out.parent.mkdir()
    words = ("--shard-bytes", 200, "--allow-loss", "value")
    envelope, code = told("convert", training, out, *words)
    assert code == 0
    files = list(out.parent.iterdir())
    assert len(files) > 3
    assert envelope["data"]["size"] == sum(file.stat().st_size for file in files)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--dtype", "i8"), ("PL901", 2)),
        (("--dtype", "fp16"), ("PL901", 2)),
        (("--rename", "module.*"), ("PL901", 2)),
        (("--rename", "nothing=x"), ("PL804", 1)),
        (("--rename", "*=x"), ("PL504", 1)),
        (("--only", "layer1"), ("PL804", 1)),
        (("--key", "absent"), None),
        (("--layout", "torch"), ("PL901", 2)),
        (("--template", "x.onnx"), ("PL901", 2)),
        (("--compression", "gzip"), ("PL901", 2)),
        (("--shard-bytes", "0"), ("PL901", 2)),
        (("--allow-loss", "valeu"), ("PL901", 2)),
        (("--to", "tensors"), ("PL901", 2)),
        (("--to", "keras"), ("PL901", 2)),
        ((), ("PL520", 1)),
    ],
)
def test_convert_refuses_with_a_code_and_leaves_nothing(
    training: Path, tmp_path: Path, words: tuple[str, ...], expected: tuple[str, int] | None
) -> None:
    allowed = () if not words or "--allow-loss" in words else ("--allow-loss", "value")
    code = refused("convert", training, tmp_path / "out.safetensors", *words, *allowed)
    assert code == expected if expected else code[1] != 0
    assert [path.name for path in tmp_path.iterdir()] == ["training.pt"]


def test_convert_names_the_nearest_loss(training: Path, tmp_path: Path) -> None:
    result = invoke("convert", training, tmp_path / "x.pt", "--allow-loss", "valeu")
    assert "Did you mean 'value'?" in result.stderr
    result = invoke("convert", training, tmp_path / "x.pt", "--allow-loss", "xyz")
    assert all(word in result.stderr for word in (*LOSSES, "all"))


# -- diff --------------------------------------------------------------------------------------


def test_diff_says_same_and_exits_with_0(training: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    persistlib.convert(training, out, allow_loss={"value"})
    same = invoke("diff", training, out)
    assert same.exit_code == 0
    assert same.stdout.startswith("✓ same: 18 tensors, every bit")
    assert same.stdout.count("blake3:") == 2
    assert invoke("diff", training, out, "-q").stdout == "same\n"
    envelope, code = told("diff", training, out)
    data = envelope["data"]
    assert (code, data["same"], data["identical"], data["changed"]) == (0, True, 18, [])
    assert len(set(data["identity"])) == 1
    assert (data["before"]["format"], data["after"]["format"]) == ("torch", "safetensors")


def test_diff_shows_the_largest_change_first_and_exits_with_1(
    training: Path, tmp_path: Path
) -> None:
    state = torch.load(training, weights_only=True)["model"]
    for index in range(5):
        state[f"module.layer{index}.weight"] *= 1 + index / 10
    state["module.layer8.bias"][2] = float("nan")
    state["module.layer7.bias"] = state["module.layer7.bias"].to(torch.float64)
    state["module.layer6.bias"] = torch.ones(5)
    del state["module.layer5.bias"]
    torch.save(state | {"head": torch.ones(2)}, tmp_path / "new.pt")
    result = invoke("diff", training, tmp_path / "new.pt")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == "≠ different: 7 of 17 tensors changed, 1 added, 1 removed"
    assert all(len(line) <= 100 for line in lines)
    names = [line.split()[0] for line in lines if line.startswith("  module.")]
    assert names == [
        "module.layer6.bias",
        "module.layer8.bias",
        *(f"module.layer{index}.weight" for index in (4, 3, 2, 1)),
        "module.layer7.bias",
    ]
    for text in ("[4] → [5]", "1 of 4, 1 NaN", "equal values", "added      1: head", "0.4"):
        assert text in result.stdout
    envelope, code = told("diff", training, tmp_path / "new.pt")
    data = envelope["data"]
    assert (code, data["same"], envelope["findings"]) == (1, False, [])
    assert data["added"] == [{"name": "head", "dtype": "F32", "shape": [2]}]
    assert [row["name"] for row in data["removed"]] == ["module.layer5.bias"]
    rows = {row["name"]: row for row in data["changed"]}
    assert rows["module.layer4.weight"]["change"] == pytest.approx(0.4, rel=1e-5)
    assert rows["module.layer4.weight"]["kind"] == "values"
    assert rows["module.layer8.bias"]["nan"] == 1
    assert rows["module.layer7.bias"]["after"] == {"dtype": "F64", "shape": [4]}
    assert "change" not in rows["module.layer6.bias"]
    assert invoke("diff", training, tmp_path / "new.pt", "-q").stdout == "different\n"


def test_diff_folds_what_is_long_unless_all_is_asked_for(tmp_path: Path) -> None:
    before = {f"a{i}.w": torch.full((3,), float(i + 1)) for i in range(40)}
    after = {name: tensor * 2 for name, tensor in before.items()}
    torch.save(before | {f"b{i}.w": torch.ones(1) for i in range(40)}, tmp_path / "a.pt")
    torch.save(after, tmp_path / "b.pt")
    short = invoke("diff", tmp_path / "a.pt", tmp_path / "b.pt").stdout
    assert len(short.splitlines()) < 25
    assert "40: b[0-39].w" in short
    assert "… 28 more (--all)" in short
    full = invoke("diff", tmp_path / "a.pt", tmp_path / "b.pt", "--all").stdout
    assert all(f"  a{i}.w " in full for i in range(40))
    assert all(f"b{i}.w" in full for i in range(40))


def test_diff_hints_at_the_prefix_that_keeps_all_names_apart(
    training: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain.safetensors"
    persistlib.convert(training, plain, rename=["module.*=*"], allow_loss={"value"})
    apart = invoke("diff", plain, training)
    assert apart.exit_code == 1
    assert "--rename 'module.*=*'" in apart.stderr
    assert "--rename '*=module.*'" in invoke("diff", training, plain).stderr
    assert invoke("diff", plain, training, "--rename", "module.*=*").exit_code == 0
    assert invoke("diff", training, plain, "--rename", "*=module.*").exit_code == 0
    part = invoke("diff", plain, training, "--rename", "module.*=*", "--only", "layer1")
    assert part.stdout.startswith("✓ same: 2 tensors")


def test_diff_tells_of_ties_without_calling_the_weights_different(tmp_path: Path) -> None:
    shared = torch.ones(3)
    torch.save({"a": shared, "b": shared}, tmp_path / "tied.pt")
    torch.save({"a": shared, "b": shared.clone()}, tmp_path / "apart.pt")
    result = invoke("diff", tmp_path / "tied.pt", tmp_path / "apart.pt")
    assert result.exit_code == 0
    assert "ties differ" in result.stdout
    assert "a = b, in A alone" in result.stdout


def test_names_from_files_drive_no_terminal(tmp_path: Path) -> None:
    torch.save({"a\x1b[31m\nb": torch.ones(2)}, tmp_path / "a.pt")
    torch.save({"a\x1b[31m\nb": torch.zeros(2)}, tmp_path / "b.pt")
    shown = invoke("diff", tmp_path / "a.pt", tmp_path / "b.pt").stdout
    assert "\x1b" not in shown
    assert r"a\x1b[31m\nb" in shown


def test_diff_refuses_with_a_code(training: Path, tmp_path: Path) -> None:
    (tmp_path / "no.pt").write_bytes(b"no weights at all, whatever the name says")
    for words, expected in (
        ((training, tmp_path / "absent"), ("PL412", 1)),
        ((training, tmp_path / "no.pt"), ("PL501", 1)),
        ((training, tmp_path), ("PL411", 1)),
        ((training, training, "--only", "nothing"), ("PL804", 1)),
        ((training, training, "--rename", "nothing"), ("PL901", 2)),
        ((training, training, "--layout", "torch"), ("PL901", 2)),
        ((training,), ("PL901", 2)),
    ):
        assert refused("diff", *words) == expected, words


# -- formats -----------------------------------------------------------------------------------


def test_formats_lists_what_the_promise_table_says() -> None:
    envelope, code = told("formats")
    rows = {row["name"]: row for row in envelope["data"]["formats"]}
    assert (code, list(rows)) == (0, list(FORMATS))
    for name, row in rows.items():
        assert set(row["keeps"]) == FORMATS[name].keeps
        assert row["dtypes"] == [dtype.name for dtype in DType if FORMATS[name].holds(dtype)]
        assert tuple(row["endings"]) == FORMATS[name].suffixes
        assert row["written"] == FORMATS[name].is_written
    assert envelope["data"]["losses"] == LOSSES
    assert invoke("formats", "-q").stdout.split() == list(FORMATS)


def test_formats_fits_on_a_screen_and_names_every_option_that_convert_has() -> None:
    shown = invoke("formats").stdout
    lines = shown.splitlines()
    assert len(lines) <= 40
    assert all(len(line) <= 100 for line in lines)
    for row in FORMATS.values():
        assert all(text in shown for text in (row.name, row.title, *row.suffixes))
    offered = invoke("convert", "--help").stdout
    for row in told("formats")[0]["data"]["formats"]:
        assert all(flag in offered for flag in row["options"])
