"""What one release of torch and torchvision does with the models of the matrix.

Runs where that release lies, with the checkout on PYTHONPATH. Prints a line of JSON for each model.

    framework_child.py save FOLDER                  what it saves there
    framework_child.py load FOLDER                  what it makes of what another release saved
    framework_child.py build FOLDER                 whether it has what the recipes name
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import framework_models as zoo
import numpy as np
import torch

import persistlib
from persistlib.architecture.fitting import fitted
from persistlib.bundle import reading
from persistlib.compat.recipes import Use, dtypes, uses
from persistlib.dtypes import DType


def save(folder: Path, name: str) -> dict[str, Any]:
    """Save a model and what it computes."""
    model = zoo.MODELS[name]
    module = zoo.made(model)
    persistlib.save(module, folder / name)
    np.savez(folder / f"{name}.npz", *zoo.outputs(model, module))
    return {}


def load(folder: Path, name: str) -> dict[str, Any]:
    """Load a model and compare what it computes with what it did: largest error to the spread."""
    model = zoo.MODELS[name]
    module = persistlib.load(folder / name, trust={"framework_models"})
    with np.load(folder / f"{name}.npz") as stored:
        expected = list(stored.values())
    worst = 0.0
    for one, other in zip(zoo.outputs(model, module), expected, strict=True):
        spread = float(other.max() - other.min())
        if not spread > 0 or not np.isfinite(other).all():
            raise ValueError("degenerate outputs prove nothing")
        worst = max(worst, float(np.abs(one - other).max()) / spread)
    return {"error": worst}


def build(folder: Path, name: str) -> dict[str, Any]:
    """Call every builder that a recipe names, as `load` would; no other part of persistlib."""
    manifest = reading(folder / name, lambda bundle: bundle.manifest)
    recipe = fitted(manifest.architecture, manifest.environment.packages)
    stored = [DType[record.dtype].value.torch for record in manifest.weights.tensors]
    for dtype in (*stored, *dtypes(recipe)):
        getattr(torch, dtype)
    for use in uses(recipe):
        if use.package in {"torch", "torchvision"}:
            _called(use)
    return {}


def _called(use: Use) -> None:
    from torch import nn

    from persistlib.architecture.encoding import decode

    module, _, qualified = use.name.partition(":")
    found = importlib.import_module(module)
    for part in qualified.split("."):
        found = getattr(found, part)
    if use.keywords is None:
        return
    keywords = decode(use.keywords)
    fetches = {"weights", "weights_backbone"} & set(inspect.signature(found).parameters)
    keywords = {**dict.fromkeys(fetches if use.package == "torchvision" else ()), **keywords}
    if "module" in use.implied:
        found(nn.Linear(3, 3), "weight", **keywords)
    else:
        found(**keywords)


def main() -> None:
    warnings.simplefilter("ignore")
    verb, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name in (
        zoo.MODELS if verb == "save" else sorted(path.stem for path in folder.glob("*.npz"))
    ):
        try:
            outcome = globals()[verb](folder, name)
        except Exception as fault:  # noqa: BLE001 - whatever it raises is its answer
            outcome = {"raised": f"{type(fault).__name__}: {fault}"[:300]}
        print(json.dumps({"name": name, **outcome}), flush=True)


if __name__ == "__main__":
    main()
