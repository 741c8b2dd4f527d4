"""A model's last classification layer: finding it by running the model, and replacing it.

Registration order says little (googlenet's auxiliary heads, swin's head, a `fc` that is declared
first), names say less. What counts is which layer with parameters was entered last on the way to
the outputs, and whether the outputs follow when its width changes.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from persistlib.errors import Code, PersistlibError, error
from persistlib.training.answers import primary
from persistlib.training.batches import call
from persistlib.wording import first_line

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

_REMEDY = "replace the last layer yourself and call persistlib.finetune"


class Head(NamedTuple):
    """A last layer: its path, and how many numbers go in and come out."""

    path: str
    layer: nn.Linear | nn.Conv2d
    width: int


def find_head(model: nn.Module, example: torch.Tensor) -> Head:
    """Return the last classification layer of a model, which is left in evaluation mode.

    Args:
        model: gives one row of scores a sample.
        example: a batch of inputs.

    Raises:
        UsageError: the model refuses the example.
        TrainingError: its last layer is neither linear nor a convolution, or does not give the
            outputs their width.
    """
    with _watching(model) as entered:
        width = _width(model, example)
    if not entered:
        raise _unknown("model", "no layer with parameters was run")
    path, layer = entered[-1]
    if not path or not isinstance(layer, (nn.Linear, nn.Conv2d)):
        raise _unknown(path or "model", f"the last layer is a {type(layer).__name__}")
    own = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if own != width:
        raise _unknown(path, f"the last layer gives {own} numbers, the model {width}")
    return Head(path, layer, width)


@torch.no_grad()
def entered_last(model: nn.Module, inputs: Any) -> Iterator[str]:
    """Yield the path of the layer that ran last, and those of the parts around it.

    Args:
        model: run, and left in evaluation.
        inputs: of a batch.
    """
    model.eval()
    with _watching(model) as entered:
        call(model, inputs)
    path = entered[-1][0] if entered else ""
    while path:
        yield path
        path = path.rpartition(".")[0]


@torch.no_grad()
def require_taken(model: nn.Module, example: torch.Tensor) -> torch.Tensor:
    """Return what a model answers to an example.

    Args:
        model: run, and left in evaluation.
        example: a batch of inputs.

    Raises:
        UsageError: the model refuses it.
    """
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            return primary(model(example))
    except Exception as fault:
        text = first_line(fault)
        raise _refused(example, text) from fault


@contextlib.contextmanager
def _watching(model: nn.Module) -> Generator[list[tuple[str, nn.Module]]]:
    """Yield a list to which each layer with parameters is added as it is entered."""
    entered: list[tuple[str, nn.Module]] = []

    def watch(path: str, module: nn.Module) -> Any:
        def enter(*_: Any) -> None:
            entered.append((path, module))

        return module.register_forward_pre_hook(enter)

    hooks = [
        watch(path, module)
        for path, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    try:
        yield entered
    finally:
        for hook in hooks:
            hook.remove()


def replace_head(
    model: nn.Module, head: Head, classes: int, *, example: torch.Tensor, seed: int
) -> nn.Module:
    """Put a new layer with `classes` outputs in the head's place; return it.

    Its values are drawn from the seed; the caller's random state is untouched.

    Raises:
        TrainingError: the outputs do not follow the new layer's width.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        new = _like(head.layer, classes)
    parent, _, name = head.path.rpartition(".")
    setattr(model.get_submodule(parent), name, new.to(head.layer.weight))
    try:
        width = _width(model, example)
    except PersistlibError as fault:
        raise _unknown(head.path, f"replaced, the model fails: {fault.reason}") from fault
    if width != classes:
        raise _unknown(head.path, f"replaced by {classes} outputs, the model gives {width}")
    return new


def drop_auxiliary_heads(model: nn.Module) -> tuple[str, ...]:
    """Remove the heads that googlenet and inception use while training; return their paths.

    They classify what the weights were made for, take no part in fine-tuning's loss, and refuse
    small images. torchvision's own pretrained builders drop them the same way.
    """
    if getattr(model, "aux_logits", None) is not True:
        return ()
    paths = tuple(name for name, _ in model.named_children() if name.lower().startswith("aux"))
    for name, value in (*((path, None) for path in paths), ("aux_logits", False)):
        setattr(model, name, value)
    return paths


def _width(model: nn.Module, example: torch.Tensor) -> int:
    """Return how many scores the model gives a sample."""
    scores = require_taken(model, example)
    if scores.ndim != 2:
        raise _unknown("model", f"outputs of shape {tuple(scores.shape)} are no scores of classes")
    return scores.shape[1]


def _refused(example: torch.Tensor, text: str) -> PersistlibError:
    """Return the error of a model that does not take what is given."""
    shape = " x ".join(map(str, example.shape[1:]))
    if example.ndim == 2:
        reason = f"the model refuses rows of {shape} numbers: {text}"
        return error(Code.USAGE, "data", reason, "give a model that takes them")
    reason = f"the model refuses images of {shape}: {text}"
    return error(Code.USAGE, "resize", reason, "give another size")


def _like(layer: nn.Linear | nn.Conv2d, classes: int) -> nn.Module:
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, classes, bias=bias)
    return nn.Conv2d(
        layer.in_channels,
        classes,
        layer.kernel_size,  # type: ignore[arg-type]  # torch stores what it takes as a tuple
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        bias=bias,
        padding_mode=layer.padding_mode,
    )


def _unknown(location: str, reason: str) -> PersistlibError:
    return error(Code.HEAD_UNKNOWN, location, reason, _REMEDY)
