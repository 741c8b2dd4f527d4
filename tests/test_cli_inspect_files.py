"""`persistlib inspect FILE` shows what a file of any format holds, and reads no weight."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner

import persistlib
from persistlib.cli.main import cli

if TYPE_CHECKING:
    from pathlib import Path


def told(*words: object) -> dict[str, Any]:
    result = CliRunner().invoke(cli, [*map(str, words), "--json"])
    assert result.exit_code == 0, result.output
    data: dict[str, Any] = json.loads(result.stdout)["data"]
    return data


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    weight = torch.randn(3, 2)
    state = {"a.weight": weight, "b.weight": weight, "a.bias": torch.zeros(3).half()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "one.pt")
    return tmp_path / "one.pt"


@pytest.mark.parametrize("ending", ["pt", "safetensors", "h5"])
def test_every_format_shows_the_same_tensors(checkpoint: Path, ending: str) -> None:
    path = checkpoint.with_name(f"two.{ending}")
    persistlib.convert(checkpoint, path, allow_loss=["value"])
    data = told("inspect", path)
    assert {(t["name"], t["dtype"], tuple(t["shape"])) for t in data["tensors"]} == {
        ("a.weight", "F32", (3, 2)),
        ("a.bias", "F16", (3,)),
    }
    assert data["aliases"] == {"b.weight": "a.weight"}


def test_what_is_no_tensor_is_named(checkpoint: Path) -> None:
    data = told("inspect", checkpoint)
    assert data["format"] == "torch"
    assert any(loss.startswith("value epoch") for loss in data["losses"])
    shown = CliRunner().invoke(cli, ["inspect", str(checkpoint), "--all"])
    assert "= a.weight" in shown.stdout
    assert "epoch" in shown.stdout


def test_a_damaged_value_does_not_matter_and_a_damaged_header_does(checkpoint: Path) -> None:
    path = checkpoint.with_name("two.safetensors")
    persistlib.convert(checkpoint, path, allow_loss=["value"])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert told("inspect", path)["tensors"]
    data[9] ^= 1
    path.write_bytes(data)
    result = CliRunner().invoke(cli, ["inspect", str(path)])
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
