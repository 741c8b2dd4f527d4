"""Reading the installed torchvision into entries of the zoo's index.

Runs with whatever torchvision can be imported, the old ones of `fixtures/make_zoo.py` included.
"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import torch

from persistlib.architecture import zoo
from persistlib.architecture.isolation import isolated
from persistlib.architecture.skeleton import rebuild
from persistlib.architecture.structure import dtype_name
from persistlib.architecture.values import class_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

# Tried in this order; the first that the model runs on is kept. Smaller ones do not reach the last
# layers of any model, and larger ones only cost time.
_IMAGES = (64, 96, 128, 224, 256, 299, 384, 518)
_CLIPS = ((16, 112), (16, 224), (32, 224))
_PACKAGES = ("", ".detection", ".segmentation", ".video", ".quantization", ".optical_flow")
# Detection and flow models cut, sort and index by values, which the meta device has not.
_GIVEN = {"detection": ((3, 128, 128),), "optical_flow": ((1, 3, 128, 128),) * 2}


def scan(*, probing: bool = True) -> list[zoo.ZooEntry]:
    """Return an entry for every builder that the torchvision in use lists.

    Args:
        probing: whether to look for the smallest input, which takes most of the time.
    """
    import torchvision

    release = torchvision.__version__.split("+")[0]
    return [_entry(builder, release, probing=probing) for builder in builders()]


def builders() -> Iterator[str]:
    """Yield `package:function` for every model that torchvision lists."""
    import importlib

    from torchvision import models

    packages = [importlib.import_module(f"torchvision.models{name}") for name in _PACKAGES]
    for model in models.list_models():
        function: Any = models.get_model_builder(model)
        homes = [
            package.__name__
            for package in packages
            if getattr(package, function.__name__, None) is function
        ]
        yield f"{homes[0]}:{function.__name__}"


def extend_cache() -> None:
    """Write the installed torchvision's entries to the user's cache."""
    found = scan()
    data = zoo.pack(zoo.index_of(found, sorted({entry.first for entry in found})))
    path = zoo.cache_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    os.replace(temporary, path)
    sys.stdout.write(f"{len(found)} builders of torchvision {found[0].last}: {path}\n")


def _entry(builder: str, release: str, *, probing: bool) -> zoo.ZooEntry:
    model = rebuild(builder, {})
    state = model.state_dict(keep_vars=True)
    rows = frozenset((name, dtype_name(t), tuple(t.shape)) for name, t in state.items())
    inputs = probe(builder, model) if probing else ()
    return zoo.ZooEntry(builder, class_name(type(model)), rows, inputs, release, release)


def probe(builder: str, model: nn.Module) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of the smallest inputs that a model runs on in evaluation.

    The model is tried on the meta device, which computes shapes and nothing else.
    """
    package = builder.partition(":")[0].rpartition(".")[2]
    if package in _GIVEN:
        return _GIVEN[package]
    with isolated():
        model.to("meta").eval()
        return next(((shape,) for shape in _shapes(package) if _runs(model, shape)), ())


def _runs(model: nn.Module, shape: tuple[int, ...]) -> bool:
    try:
        with torch.no_grad():
            model(torch.empty(shape, device="meta"))
    except Exception:  # noqa: BLE001 - a model raises anything on inputs it cannot take
        return False
    return True


def _shapes(package: str) -> Iterator[tuple[int, ...]]:
    if package == "video":
        yield from ((1, 3, frames, size, size) for frames, size in _CLIPS)
    yield from ((1, 3, size, size) for size in _IMAGES)
