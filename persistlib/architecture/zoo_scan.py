"""Reading the installed torchvision into entries of the zoo's index.

Runs with whatever torchvision can be imported, the old ones of `fixtures/make_zoo.py` included.
"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from persistlib.architecture import zoo, zoo_forms
from persistlib.architecture.arguments import signature
from persistlib.architecture.express import express, infer
from persistlib.architecture.isolation import isolated
from persistlib.architecture.skeleton import rebuild
from persistlib.architecture.structure import dtype_name
from persistlib.architecture.trusted import resolve_builder
from persistlib.architecture.values import class_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Tried in this order; the first that the model runs on is kept. Smaller ones do not reach the last
# layers of any model, and larger ones only cost time.
_IMAGES = (64, 96, 128, 224, 256, 299, 384, 518)
_CLIPS = ((16, 112), (16, 224), (32, 224))
_PACKAGES = ("", ".detection", ".segmentation", ".video", ".quantization", ".optical_flow")
# Arguments with which the same builders give other tensors, as torchvision's own weights need.
_VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "fcn_resnet50": ({"aux_loss": True},),
    "fcn_resnet101": ({"aux_loss": True},),
    "deeplabv3_resnet50": ({"aux_loss": True},),
    "deeplabv3_resnet101": ({"aux_loss": True},),
    "deeplabv3_mobilenet_v3_large": ({"aux_loss": True},),
    "googlenet": ({"aux_logits": False},),
    "inception_v3": ({"aux_logits": False},),
    "vit_b_16": ({"image_size": 384},),
    "vit_l_16": ({"image_size": 512},),
    "vit_h_14": ({"image_size": 518},),
}
# A number of classes that no model has by default, and that of an image's channels.
_CLASSES, _CHANNELS = 7, 3
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
    index = zoo.index_of(found, sorted({entry.first for entry in found}))
    data = zoo.pack(zoo_forms.extended(index, forms(found)))
    path = zoo.cache_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    os.replace(temporary, path)
    sys.stdout.write(f"{len(found)} builders of torchvision {found[0].last}: {path}\n")


def _entry(builder: str, release: str, *, probing: bool) -> zoo.ZooEntry:
    model = rebuild(builder, {})
    inputs = probe(builder, model) if probing else ()
    return zoo.ZooEntry(builder, class_name(type(model)), _rows(model), inputs, release, release)


def forms(found: list[zoo.ZooEntry]) -> Iterator[zoo_forms.Form]:
    """Yield the forms of the builders that some entries are of, by the torchvision in use."""
    for entry in found:
        for arguments in ({}, *_VARIANTS.get(entry.builder.partition(":")[2], ())):
            model = rebuild(entry.builder, arguments)
            yield zoo_forms.Form(
                entry.builder,
                arguments,
                _rows(model) if arguments else entry.rows,
                tuple(_steps(entry.builder, arguments, model)),
                entry.last if arguments else entry.first,
                entry.last,
            )


def _steps(
    builder: str, arguments: Mapping[str, Any], model: nn.Module
) -> Iterator[zoo_forms.Step]:
    """Yield where a number of classes or of input channels shows in a model.

    What the root says of its classes is left out: no forward reads it, and a new head leaves it.
    """
    for path, part in model.named_modules():
        if type(part) in {nn.Conv2d, nn.Conv3d} and getattr(part, "in_channels", 0) == _CHANNELS:
            yield zoo_forms.Step(zoo_forms.CHANNELS, path, *infer(part), 1)
    if "optical_flow" in builder or not {"num_classes", "kwargs"} & {
        *signature(resolve_builder(builder))
    }:
        return
    other = rebuild(builder, {**arguments, "num_classes": _CLASSES})
    for edit in express(other, model, ()):
        if edit.op == "set":
            # What else inception's layers keep (stddev) is for drawing initial values.
            if edit.path and edit.value == _CLASSES:
                yield zoo_forms.Step(zoo_forms.COUNT, edit.path, str(edit.attribute), {}, 1)
            continue
        plain = infer(model.get_submodule(edit.path))
        new: Any = edit.arguments
        outputs = new["out_features" if "out_features" in new else "out_channels"]
        assert outputs % _CLASSES == 0, edit
        yield zoo_forms.Step(zoo_forms.CLASSES, edit.path, *plain, outputs // _CLASSES)


def _rows(model: nn.Module) -> frozenset[zoo.Row]:
    state = model.state_dict(keep_vars=True)
    return frozenset((name, dtype_name(t), tuple(t.shape)) for name, t in state.items())


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
