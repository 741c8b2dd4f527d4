"""What a fine-tuning begins from: what a builder builds, its weights, or a bundle.

Law: of weights all is taken but the last layer and auxiliary heads, which do not stay; whatever
classes those were made for makes no difference.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from persistlib import preparing
from persistlib.architecture import freezing, pretrained, recipe
from persistlib.architecture.trusted import whole_name
from persistlib.errors import Code, TrainingError, UsageError, error
from persistlib.preprocessing import ImagePreprocessing, Size, parse
from persistlib.training import randomness
from persistlib.training.head import drop_auxiliary_heads, find_head
from persistlib.training.presets import EDGE, preprocessings

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import nn

    from persistlib.checkpoint import CheckpointReader
    from persistlib.errors import PersistlibError
    from persistlib.manifest.schema import Manifest
    from persistlib.preparing import Preparation
    from persistlib.training.head import Head


class Saved(NamedTuple):
    """A bundle to begin from: its module, loaded, and its manifest."""

    model: nn.Module
    manifest: Manifest


class Beginning(NamedTuple):
    """A model that is ready for its new last layer.

    Attributes:
        builder: `package.module:callable`.
        model: with the values that it begins from, in evaluation mode.
        dropped: paths of auxiliary heads that were removed.
        preprocessing: how images become inputs.
        head: the last layer.
        left_out: classes of the weights' own last layer, where it was of another width.
        labels: the classes that a bundle's last layer was trained for.
    """

    builder: str
    model: nn.Module
    dropped: tuple[str, ...]
    preprocessing: ImagePreprocessing
    head: Head
    left_out: int | None = None
    labels: tuple[str, ...] | None = None


def is_bundle(name: str) -> bool:
    """Return whether what was named is a path, and no builder: a bare name of both is a builder.

    Raises:
        UsageError: it is a file, which holds weights or a graph, and is no model to train.
    """
    if os.path.isfile(name):
        raise _no_model(name)
    if not os.path.isdir(name):
        return os.sep in name and ":" not in name
    import torchvision

    return not hasattr(torchvision.models, name)


def named_builder(name: str) -> str:
    """Return a builder by its whole name; a bare one is torchvision's.

    Raises:
        TargetError: it is the name of a file that is not there.
    """
    if ":" in name:
        return name
    if not name.isidentifier():
        reason = "nothing stands there, and no builder has such a name"
        remedy = "check the path, or name a builder such as resnet18"
        raise error(Code.SOURCE_MISSING, name, reason, remedy)
    return whole_name(name)


def _no_model(path: str) -> PersistlibError:
    """Return the error for a file in the place of a model, with the way to begin from it."""
    if path.lower().endswith(".onnx"):
        make = shlex.join(("persistlib", "convert", path, "DIR"))
        return error(Code.USAGE, path, "a graph", f"{make} makes a bundle of it: name that")
    tell = shlex.join(("persistlib", "identify", path))
    remedy = f"name a builder and --weights {shlex.quote(path)}; {tell} says which builder"
    return error(Code.USAGE, path, "a file of weights, which do not say their model", remedy)


def of_builder(
    builder: str,
    weights: object,
    *,
    resize: int | None,
    seed: int,
    trust: Collection[str],
    arguments: Mapping[str, Any],
) -> Beginning:
    """Return what a builder builds, with weights.

    Args:
        builder: `package.module:callable`, or the bare name of one of torchvision's.
        weights: as `persistlib.build`; the last layer in a file may be of any width.
        resize: edge of the square images; None takes what torchvision's weights were made for.
        seed: of fresh values.
        trust: packages that may be imported beyond torch and torchvision.
        arguments: the builder's own.

    Raises:
        TrainingError: the weights do not fit, or the last layer cannot be told.
        ArchitectureError: the builder is unknown, untrusted, or failed.
        UsageError: the weights are a folder, or the model refuses images of that size.
    """
    builder = named_builder(builder)
    model, path = built(builder, weights, seed=seed, trust=trust, arguments=arguments)
    dropped = drop_auxiliary_heads(model)
    preprocessing, head = _fitting(model, preprocessings(builder, model, weights, resize))
    left_out = None
    if path is not None:
        with pretrained.open_checkpoint(path) as reader:
            take(model, reader, path, apart=(head.path, *dropped))
            left_out = _other_width(reader, head)
    return Beginning(builder, model, dropped, preprocessing, head, left_out)


def built(
    builder: str,
    weights: object,
    *,
    seed: int,
    trust: Collection[str],
    arguments: Mapping[str, Any],
) -> tuple[nn.Module, str | None]:
    """Return what a builder builds, and the file whose weights it is still to be given.

    Fresh values are drawn from the seed: a run that goes on begins with the same model.

    Raises:
        ArchitectureError: the builder is unknown, untrusted, or failed.
        UsageError: the weights are a folder.
    """
    if isinstance(weights, (str, os.PathLike)) and os.path.isdir(weights):
        folder = os.fspath(weights)
        remedy = f"name it in place of the builder: persistlib finetune {folder} ..."
        raise error(Code.USAGE, f"weights={folder}", "a folder; a bundle says its model", remedy)
    path = recipe.checkpoint_path(weights)
    with randomness.own(seed, torch.device("cpu")):
        named = weights if path is None else None
        return recipe.build(builder, weights=named, trust=trust, **arguments), path


def take(model: nn.Module, reader: CheckpointReader, path: str, *, apart: tuple[str, ...]) -> None:
    """Give a model the values of a weights file, but for some layers.

    Raises:
        TrainingError: the rest does not fit.
    """
    found = pretrained.load(model, reader, path, apart=apart)
    if isinstance(found, pretrained.Unfit):
        raise TrainingError(found.findings)
    recipe.descend(model, found)


def of_bundle(saved: Saved, *, resize: int | None) -> Beginning:
    """Return the model of a bundle, of which nothing is frozen any more.

    Args:
        saved: the bundle.
        resize: edge of the square images; None takes what the bundle says.

    Raises:
        TrainingError: the last layer cannot be told.
        ManifestError: the bundle prepares its inputs in a way that is not known here.
        UsageError: the model refuses images of that size.
    """
    model, manifest = saved
    builder, known = manifest.architecture.builder, manifest.interface.preprocessing
    freezing.unfreeze(model, "*")
    recipe.remember(model, recipe.Recipe.of(manifest.architecture))
    dropped = drop_auxiliary_heads(model)
    if known:
        record = parse(known)
        if resize:
            record = replace(record, resize=resize, crop=Size(resize, resize))
        candidates: tuple[ImagePreprocessing, ...] = (record,)
    else:
        candidates = preprocessings(builder, model, None, resize)
    preprocessing, head = _fitting(model, candidates)
    labels = manifest.interface.labels
    return Beginning(builder, model, dropped, preprocessing, head, None, labels)


def example(record: Preparation) -> torch.Tensor:
    """Return a batch of one image, or row, that is prepared that way."""
    if isinstance(record, ImagePreprocessing) and record.size is None:
        record = replace(record, crop=Size(EDGE, EDGE))
    return torch.zeros(1, *preparing.sample_shape(record))


def _fitting(
    model: nn.Module, candidates: tuple[ImagePreprocessing, ...]
) -> tuple[ImagePreprocessing, Head]:
    """Return the first preprocessing whose images the model takes, and the model's last layer.

    Raises:
        PersistlibError: as `find_head`, for the last candidate.
    """
    *others, last = candidates
    for candidate in others:
        with contextlib.suppress(UsageError):
            return candidate, find_head(model, example(candidate))
    return last, find_head(model, example(last))


def _other_width(reader: CheckpointReader, head: Head) -> int | None:
    """Return how many classes a weights file's own last layer has, where it is of another width."""
    stored = reader.tensors.get(f"{head.path}.weight")
    is_other = stored is not None and stored.shape[:1] not in {(), (head.width,)}
    return stored.shape[0] if stored is not None and is_other else None
