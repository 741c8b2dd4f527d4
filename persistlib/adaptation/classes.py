"""Other classes: the last layers of a model replaced, rows of labels that stay kept.

A layer is a last layer if, given one output more, it gives the model's output one more, on one
axis, and nothing else of the outputs changes. That is tried, so names and order mean nothing; only
between a layer that answers and one that helps in training (googlenet, inception, segmentation) a
part of the path that begins with "aux" decides.

Laws. With the labels that it has, a model is left as it was, bit for bit. A label that stays keeps
the bits of its rows. The values of a new row depend on the seed, the layer's path and the label
alone (its number, where there are no labels): so other labels in another order give the same rows
in that order. They are drawn as torch draws a new layer of that size: each from the uniform
distribution between -1/sqrt(n) and 1/sqrt(n), n being the numbers that go into one output.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from persistlib.adaptation.record import Change
from persistlib.adaptation.trial import FailedError, paths_of, put
from persistlib.digests import digest
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from persistlib.adaptation.trial import Shapes, Trial
    from persistlib.adaptation.wishes import Classes
    from persistlib.errors import PersistlibError

# Edges of images that are tried in training, where smaller ones fail.
_EDGES = (224, 320)
_MOST_TOGETHER = 6
_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Plain attributes that say how many classes there are.
_COUNTS = ("num_classes", "n_classes", "nb_classes", "classes", "num_labels", "n_labels")


class Head(NamedTuple):
    """A last layer.

    Attributes:
        path: of the layer.
        output: name of the output that it gives.
        axis: of that output, along which the classes lie.
        size: how many classes there are.
    """

    path: str
    output: str
    axis: int
    size: int


class _Way(NamedTuple):
    """One way to run a model, and the shapes that it gives so.

    Attributes:
        inputs: what goes in.
        training: the mode.
        outputs: shapes by name.
    """

    inputs: Sequence[torch.Tensor]
    training: bool
    outputs: Shapes


def find_heads(trial: Trial, chosen: Sequence[str] = ()) -> tuple[Head, ...]:
    """Return the last layers of a model, the one that answers first.

    Several layers answer together where the output's width follows them only if all change.

    Args:
        trial: the model, to be tried.
        chosen: paths of the layers that are meant; without, they are found.

    Raises:
        ArchitectureError: there is none; a chosen one is none; or several could be meant.
    """
    ways = (_Way(trial.inputs, training=False, outputs=trial.outputs), *_in_training(trial))
    known = _layers(trial.model)
    layers = [path for path in known if not chosen or path in chosen]
    found = [head for path in layers for head in _followed(trial, [path], ways)]
    if chosen:
        if not found and all(path in known for path in chosen):
            found = [*_followed(trial, chosen, ways)]
        if strange := [path for path in chosen if path not in {head.path for head in found}]:
            raise _no_head(trial, f"{strange[0]} is no last layer", found)
        return tuple(found)
    main = _main(trial)
    answer = [head for head in found if head.output == main][:1] or _together(trial, main, ways)
    if not answer:
        raise _no_head(trial, "no linear layer or convolution gives the outputs their width", ())
    others = [head for head in found if head not in answer and head.size == answer[0].size]
    if any(not _is_auxiliary(head.path) for head in others):
        raise error(
            Code.ADAPTATION_CHOICE,
            "adapt.classes",
            f"{', '.join(h.path for h in (*answer, *others))} each give {answer[0].size} numbers",
            f'name those that are meant: {{"classes": {{"{answer[0].path}": N}}}}',
        )
    return (*answer, *others)


def untried(trial: Trial, heads: Sequence[Head]) -> tuple[str, ...]:
    """Return auxiliary layers of as many classes that no way to run the model went through."""
    known = {head.path for head in heads}
    size = heads[0].size
    layers = _layers(trial.model).items()
    return tuple(
        path
        for path, layer in layers
        if path not in known and _is_auxiliary(path) and _outputs(layer) == size
    )


def _main(trial: Trial) -> str:
    try:
        return trial.main()
    except FailedError as fault:
        raise _no_head(trial, str(fault), ()) from fault


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return {path: module for path, module in model.named_modules() if type(module) in _KINDS}


def _in_training(trial: Trial) -> Iterator[_Way]:
    """Yield how the model runs in training, where it does; small images do not reach every head."""
    image = trial.image()
    tried = [trial.inputs]
    if image is not None and len(shape := trial.inputs[image.place].shape) == 4:
        edges = (edge for edge in _EDGES if edge > min(shape[2:]))
        tried += [trial.resized(image, (shape[1], edge, edge)) for edge in edges]
    for inputs in tried:
        try:
            yield _Way(inputs, training=True, outputs=trial.run(inputs, training=True))
        except FailedError:
            continue
        return


def _together(trial: Trial, main: str, ways: Sequence[_Way]) -> list[Head]:
    """Return the fewest layers of one width that the answer's width follows together."""
    groups: dict[int, list[str]] = {}
    for path, layer in _layers(trial.model).items():
        if _outputs(layer) in trial.outputs[main]:
            groups.setdefault(_outputs(layer), []).append(path)
    for paths in groups.values():
        last = paths[-_MOST_TOGETHER:]
        for count in range(2, len(last) + 1):
            for some in itertools.combinations(last, count):
                found = [h for h in _followed(trial, some, ways[:1]) if h.output == main]
                if found:
                    return found
    return []


def _followed(trial: Trial, paths: Sequence[str], ways: Sequence[_Way]) -> Iterator[Head]:
    """Yield the layers at some paths if an output follows their width and nothing else changes."""
    layers: dict[str, Any] = {path: trial.model.get_submodule(path) for path in paths}
    sizes = {_outputs(layer) for layer in layers.values()}
    size = sizes.pop()
    if sizes:
        return
    counted = [pair for path in paths for pair in class_counts(trial.model, path, size)]
    for inputs, training, before in ways:
        if not any(size in shape for shape in before.values()):
            continue
        try:
            wider = {p: _like(old, size + 1, old.weight.device) for p, old in layers.items()}
            with trial.swapped(wider), _counting(counted, size + 1):
                after = trial.run(inputs, training=training)
        except (FailedError, ValueError):
            continue
        changed = [name for name in before if after.get(name) != before[name]]
        if len(changed) != 1 or before.keys() != after.keys():
            continue
        if axes := [*_grown(before[changed[0]], after[changed[0]], size)]:
            yield from (Head(path, changed[0], axes[0], size) for path in paths)
            return


def _grown(before: tuple[int, ...], after: tuple[int, ...], size: int) -> Iterator[int]:
    """Yield the one axis that went from `size` to one more, where the others did not change."""
    if len(before) != len(after):
        return
    axes = [axis for axis, pair in enumerate(zip(before, after, strict=True)) if len({*pair}) > 1]
    if len(axes) == 1 and (before[axes[0]], after[axes[0]]) == (size, size + 1):
        yield axes[0]


def replace_head(
    model: nn.Module, head: Head, classes: Classes, *, labels: Sequence[str] | None, seed: int
) -> Change:
    """Give a model's last layer other classes, in place; return what was done.

    Args:
        model: whose layer it is.
        head: the layer.
        classes: the new ones.
        labels: the old ones, where they are known.
        seed: of new rows.

    Raises:
        ArchitectureError: the layer's tensors are those of another, too.
    """
    layer: Any = model.get_submodule(head.path)
    names = classes.labels or tuple(map(str, range(classes.number)))
    old = [*(labels or ())] if classes.labels else []
    known = {label: old.index(label) for label in old}
    if classes.labels is not None and classes.labels == tuple(old):
        return _change(head, classes, kept=classes.number, seed=seed)
    _require_untied(model, head.path)
    new: Any = _like(layer, classes.number, "meta")
    rows = [known.get(name) for name in names]
    for name in ("weight", "bias") if layer.bias is not None else ("weight",):
        values: nn.Parameter = getattr(layer, name)
        bound = 1 / math.sqrt(max(layer.weight[0].numel(), 1))
        drawn = [
            _drawn(values[0], bound, (str(seed), head.path, name, label))
            if row is None
            else values[row].detach()
            for label, row in zip(names, rows, strict=True)
        ]
        trains = values.requires_grad or None in rows
        setattr(new, name, nn.Parameter(torch.stack(drawn), requires_grad=trains))
    new.training = layer.training
    counted = class_counts(model, head.path, head.size)
    for path in paths_of(model, layer):
        put(model, path, new)
    for module, name in counted:
        vars(module)[name] = classes.number
    return _change(head, classes, kept=sum(row is not None for row in rows), seed=seed)


def _require_untied(model: nn.Module, path: str) -> None:
    layer = model.get_submodule(path)
    own = {id(parameter) for parameter in layer.parameters()}
    for other, module in model.named_modules():
        if module is not layer and any(id(p) in own for p in module.parameters(recurse=False)):
            reason = f"its weights are those of {other or 'the model itself'}, too"
            raise error(Code.ADAPTATION, path, reason, "untie them first, or change both yourself")


def _change(head: Head, classes: Classes, *, kept: int, seed: int) -> Change:
    drawn = classes.number - kept
    detail = f"{kept} rows kept by their labels, {drawn} drawn with seed {seed}"
    return Change("classes", head.path, str(head.size), str(classes.number), detail)


def _drawn(like: torch.Tensor, bound: float, key: tuple[str, ...]) -> torch.Tensor:
    """Return values drawn uniformly within a bound, from a key alone."""
    drawn_from = int(digest("\0".join(key).encode())[:15], 16)
    generator = torch.Generator().manual_seed(drawn_from)
    values = torch.empty(like.shape, dtype=torch.float64).uniform_(
        -bound, bound, generator=generator
    )
    return values.to(like.device, like.dtype)


def _outputs(layer: Any) -> int:
    size: int = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return size


def _like(layer: Any, size: int, device: torch.device | str) -> nn.Module:
    """Return a new layer like another, with `size` outputs.

    Raises:
        ValueError: a grouped convolution cannot have that many.
    """
    has_bias = layer.bias is not None
    place = {"device": device, "dtype": layer.weight.dtype}
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, size, bias=has_bias, **place)
    kind: Any = type(layer)
    new: nn.Module = kind(
        layer.in_channels,
        size,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        has_bias,
        layer.padding_mode,
        **place,
    )
    return new


def class_counts(model: nn.Module, path: str, size: int) -> list[tuple[nn.Module, str]]:
    """Return the plain attributes above a layer that say how many classes there are."""
    parts = path.split(".")
    owners = [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]
    return [
        (owner, name)
        for owner in owners
        for name in _COUNTS
        if type(vars(owner).get(name)) is int and vars(owner)[name] == size
    ]


class _counting:  # noqa: N801 - used as a function is
    """Let attributes say another number while a block runs."""

    def __init__(self, counted: list[tuple[nn.Module, str]], size: int) -> None:
        self._before = [(module, name, vars(module)[name]) for module, name in counted]
        self._size = size

    def __enter__(self) -> None:
        for module, name, _ in self._before:
            vars(module)[name] = self._size

    def __exit__(self, *_: object) -> None:
        for module, name, value in self._before:
            vars(module)[name] = value


def _is_auxiliary(path: str) -> bool:
    return any(part.lower().startswith("aux") for part in path.split("."))


def _no_head(trial: Trial, reason: str, found: Sequence[Head]) -> PersistlibError:
    last = [path for path, module in trial.model.named_modules() if type(module) in _KINDS][-3:]
    known = f"those are {', '.join(head.path for head in found)}" if found else ""
    listed = f"its last layers with weights are {', '.join(last)}" if last else ""
    return error(
        Code.ADAPTATION,
        "adapt.classes",
        "; ".join(part for part in (reason, known or listed) if part),
        'build it with the number of classes and pass strict="report", which loads all that fits',
    )
