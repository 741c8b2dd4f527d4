"""Schemas of manifests that never were: older ones for the upgrades that no release has needed yet.

Version 0.9 kept the weights under another name and the builder in two parts; version 0.8 had its
labels outside the interface and no list of documents. Each has the step that leaves it, as a
release would have it, and the way back, which only tests have.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from persistlib.canonical import encode
from persistlib.digests import PREFIX, digest
from persistlib.manifest.upgrades import Step

if TYPE_CHECKING:
    from pathlib import Path

Raw = dict[str, Any]


def step_09(raw: Raw) -> Raw:
    raw["weights"] = raw.pop("tensors_and_files")
    architecture = raw["architecture"]
    architecture["builder"] = f"{architecture.pop('module')}:{architecture.pop('callable')}"
    return raw


def step_08(raw: Raw) -> Raw:
    raw["interface"]["labels"] = raw.pop("classes")
    raw["documents"] = ["README.md"]
    return raw


STEPS = {"0.9": Step("1.0", step_09), "0.8": Step("0.9", step_08)}


def sealed(raw: Raw) -> bytes:
    """Return the bytes of a raw manifest with a digest that fits."""
    content = {key: value for key, value in raw.items() if key != "digest"}
    return encode(content | {"digest": PREFIX + digest(encode(content))})


def older(data: bytes, version: str = "0.9") -> bytes:
    """Return a manifest of this release as a release of schema 0.9 or 0.8 would have written it."""
    raw: Raw = json.loads(data)
    raw["tensors_and_files"] = raw.pop("weights")
    architecture = raw["architecture"]
    architecture["module"], architecture["callable"] = architecture.pop("builder").split(":")
    if version == "0.8":
        raw["classes"] = raw["interface"].pop("labels")
        assert raw.pop("documents") in ([], ["README.md"])
    return sealed(raw | {"manifest_version": version})


def make_older(bundle: Path, version: str = "0.9") -> bytes:
    """Give a bundle an older manifest and return its bytes."""
    data = older((bundle / "manifest.json").read_bytes(), version)
    (bundle / "manifest.json").write_bytes(data)
    return data
