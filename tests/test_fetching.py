"""Weights that a builder fetches: each way in which it fails is told by its cause."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError

import pytest
import torch
from torch import nn
from torchvision import models

import persistlib
from persistlib.errors import ArchitectureError, Code

if TYPE_CHECKING:
    from pathlib import Path

BUILDER = "torchvision.models:squeezenet1_1"
ADDRESS = models.SqueezeNet1_1_Weights.DEFAULT.url


@pytest.fixture(autouse=True)
def nothing_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def refused(builder: str, weights: Any, **arguments: Any) -> Any:
    with pytest.raises(ArchitectureError) as caught:
        persistlib.build(builder, weights=weights, **arguments)
    return caught.value.findings[0]


OUT_OF_REACH: dict[str, tuple[BaseException, str]] = {
    "no name server": (URLError(OSError(-2, "Name or service not known")), "not known"),
    "no route": (OSError(101, "Network is unreachable"), "Network is unreachable"),
    "a proxy's certificate": (URLError(ssl.SSLError(1, "self-signed certificate")), "self-signed"),
    "too slow": (TimeoutError("The read operation timed out"), "timed out"),
    "not given out": (HTTPError(ADDRESS, 403, "Forbidden", None, None), "403: Forbidden"),  # type: ignore[arg-type]
    "no room": (OSError(28, "No space left on device", "/hub/w.pth"), "left on device: /hub/w.pth"),
    "another file": (RuntimeError('invalid hash value (expected "7", got "8")'), "invalid hash"),
}


@pytest.mark.parametrize("case", OUT_OF_REACH)
@pytest.mark.parametrize("weights", ["DEFAULT", models.SqueezeNet1_1_Weights.IMAGENET1K_V1])
def test_what_is_out_of_reach_is_told_with_its_address(
    case: str, weights: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fault, cause = OUT_OF_REACH[case]

    def fails(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(torch.hub, "download_url_to_file", fails)
    found = refused(BUILDER, weights)
    assert found.code == Code.WEIGHTS_UNREACHABLE.identifier
    assert ADDRESS in found.message
    assert cause in found.message
    assert "<urlopen" not in found.message
    assert "name the file in place of" in found.remedy
    assert "weights that" not in found.remedy
    assert capfd.readouterr() == ("", "")  # torch.hub's own lines


def test_weights_that_a_builder_lacks_are_told_with_those_that_it_has() -> None:
    found = refused(BUILDER, "IMAGENET1K_V9")
    assert found.code == Code.BUILDER_FAILED.identifier
    assert found.message == "has no weights 'IMAGENET1K_V9'"
    assert found.remedy.startswith("did you mean IMAGENET1K_V1?")
    far = refused(BUILDER, "zzz")
    assert "did you mean" not in far.remedy
    assert "IMAGENET1K_V1" in far.remedy


def test_what_is_neither_is_told_as_the_builder_raised_it() -> None:
    other = models.ResNet18_Weights.DEFAULT
    assert refused(BUILDER, other).code == Code.BUILDER_FAILED.identifier
    assert "TypeError" in refused("torch.nn:Linear", "DEFAULT").message


def test_what_is_fetched_is_the_model_and_says_nothing_into_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    wanted = models.squeezenet1_1()
    assert isinstance(wanted, nn.Module)

    def gives(_: str, path: str, *__: object, **___: object) -> None:
        torch.save(wanted.state_dict(), path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", gives)
    model = persistlib.build(BUILDER, weights="DEFAULT")
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), wanted.parameters(), strict=True)
    )
    assert capfd.readouterr() == ("", "")
