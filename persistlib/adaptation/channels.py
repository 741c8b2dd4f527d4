"""Another number of input channels: the first convolutions of a model replaced.

Law: the same picture in every channel gives the outputs that it gave before. Each filter's weights
therefore keep their sum over the input channels:

- fewer channels than before: each is given the sum of the old ones, divided by how many there are;
- as many: nothing changes, to the bit;
- more: they stand for the old ones in turn (red, green, blue, red, ...), and the weight of an old
  channel is divided equally among those that stand for it.

So with more channels a picture whose channels are repeated in turn gives what it gave before.

A grouped convolution becomes one over all channels, with zeros where a filter did not look. The law
is tried on the model itself before it is given back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from persistlib.adaptation.record import Change
from persistlib.adaptation.trial import FailedError, paths_of, put
from persistlib.errors import Code, PersistlibError, error
from persistlib.examples import run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from persistlib.adaptation.trial import Image, Trial

_KINDS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Plain attributes that say how many channels go in.
_COUNTS = ("in_channels", "in_chans", "input_channels", "num_channels")
_MOST_TRIED = 8
# Of the outputs' spread, by how many bits a number of the dtype has.
_TOLERANCE = {64: 1e-8, 32: 1e-3, 16: 5e-2}


def spread_weight(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """Return a convolution's weight for another number of input channels.

    Args:
        weight: of shape (outputs, channels, ...), of any floating dtype.
        channels: how many there will be.

    Returns:
        A weight of shape (outputs, `channels`, ...); its sums over axis 1 are those of `weight`.
    """
    before = weight.shape[1]
    if channels == before:
        return weight
    wide = weight.detach().double()
    if channels < before:
        sums = wide.sum(1, keepdim=True) / channels
        return sums.expand(-1, channels, *(-1,) * (weight.ndim - 2)).to(weight.dtype).contiguous()
    stands_for = torch.arange(channels, device=weight.device) % before
    shares = torch.bincount(stands_for, minlength=before)[stands_for]
    column = (1, channels, *(1,) * (weight.ndim - 2))
    return (wide[:, stands_for] / shares.reshape(column)).to(weight.dtype)


def ungrouped(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """Return the weight of a convolution over all channels that computes what a grouped one does.

    Args:
        weight: of shape (outputs, channels / groups, ...).
        groups: how many.
    """
    outputs, inside = weight.shape[0] // groups, weight.shape[1]
    whole = weight.new_zeros(weight.shape[0], inside * groups, *weight.shape[2:])
    for group in range(groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        whole[rows, group * inside : (group + 1) * inside] = weight[rows]
    return whole


def find_stems(trial: Trial, image: Image, channels: int) -> tuple[str, ...]:
    """Return the paths of the convolutions that an image goes into, in the order they are run.

    They are the fewest, from the first on, with which the model takes the other number of channels
    and gives outputs of the same shapes. None are needed where the model itself repeats a single
    channel (by subtracting a mean of three); one that only overlooks further channels is refused.

    Raises:
        ArchitectureError: no such convolutions are found.
    """
    shape = trial.inputs[image.place].shape
    inputs = trial.resized(image, (channels, *shape[2:]))
    entered = _entered(trial, image.channels)
    reason = "no convolution takes the input's channels"
    counts = range(1, min(len(entered), _MOST_TRIED) + 1)
    for count in (*counts, 0) if channels == 1 else counts:
        stems = entered[:count]
        layers = {path: trial.model.get_submodule(path) for path in stems}
        try:
            with trial.swapped({path: _like(old, channels) for path, old in layers.items()}):
                after = trial.run(inputs)
        except FailedError as fault:
            reason = str(fault)
            continue
        if after == trial.outputs:
            return stems
    raise _refused(trial, image, reason)


def _entered(trial: Trial, channels: int) -> tuple[str, ...]:
    """Return the paths of the convolutions over so many channels, in the order they are run."""
    order: dict[str, None] = {}
    hooks = [
        module.register_forward_pre_hook(lambda *_, path=path: order.setdefault(path))
        for path, module in trial.model.named_modules()
        if type(module) in _KINDS and getattr(module, "in_channels", 0) == channels
    ]
    try:
        trial.run()
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(order)


def replace_stems(model: nn.Module, trial: Trial, image: Image, channels: int) -> Iterator[Change]:
    """Let a model take images of another number of channels, in place; yield what was done.

    Raises:
        ArchitectureError: no convolution could be replaced so that the law holds; the model is
            left as it was.
    """
    if channels == image.channels:
        return
    stems = find_stems(trial, image, channels)
    given = _alike(trial, image, image.channels)
    before = _answers(model, given)
    old = {path: model.get_submodule(path) for path in stems}
    for layer in old.values():
        _put(model, layer, _with_values(layer, channels))
    if not _same(before, _answers(model, _alike(trial, image, channels))):
        for path, layer in old.items():
            _put(model, model.get_submodule(path), layer)
        reason = "the same picture in every channel would give other outputs"
        raise _refused(trial, image, reason)
    how = "weights summed" if channels == 1 else "weights shared out"
    for path in stems or ("",):
        _recount(model, path, image.channels, channels)
        detail = f"{how if path else 'repeated by the model'}: the same picture, the same outputs"
        yield Change("channels", path, str(image.channels), str(channels), detail)


def _put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for path in paths_of(model, old):
        put(model, path, new)


def _with_values(layer: Any, channels: int) -> nn.Module:
    new = _like(layer, channels, device="meta")
    weight = spread_weight(ungrouped(layer.weight.detach(), layer.groups), channels)
    trains = layer.weight.requires_grad
    new.register_parameter("weight", nn.Parameter(weight, requires_grad=trains))
    new.register_parameter("bias", layer.bias)
    new.training = layer.training
    return new


def _like(layer: Any, channels: int, device: Any = None) -> nn.Module:
    kind: Any = type(layer)
    new: nn.Module = kind(
        channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        1,
        layer.bias is not None,
        layer.padding_mode,
        device=device or layer.weight.device,
        dtype=layer.weight.dtype,
    )
    return new


def _recount(model: nn.Module, path: str, before: int, after: int) -> None:
    """Let the attributes above a layer that say how many channels there are follow."""
    parts = path.split(".")
    for depth in range(len(parts)):
        owner = vars(model.get_submodule(".".join(parts[:depth])))
        for name in _COUNTS:
            if type(owner.get(name)) is int and owner[name] == before:
                owner[name] = after


def _alike(trial: Trial, image: Image, channels: int) -> list[torch.Tensor]:
    """Return inputs whose image is the same in every channel, drawn from a seed."""
    generator = torch.Generator().manual_seed(0)
    inputs: list[torch.Tensor] = []
    for index, value in enumerate(trial.inputs):
        if index == image.place:
            plane = torch.rand(value.shape[0], 1, *value.shape[2:], generator=generator)
            inputs.append(plane.expand(-1, channels, *value.shape[2:]).to(value.dtype))
        else:
            inputs.append(torch.zeros(value.shape, dtype=value.dtype))
    return inputs


def _answers(model: nn.Module, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    try:
        return run(model, {str(index): value for index, value in enumerate(inputs)})
    except PersistlibError as fault:
        raise error(Code.ADAPTATION, "adapt.channels", fault.reason, fault.remedy) from fault


def _same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    for name, one in before.items():
        other = after.get(name)
        if other is None or one.shape != other.shape:
            return False
        if not one.is_floating_point() or not one.numel():
            continue
        tolerance = _TOLERANCE[torch.finfo(one.dtype).bits]
        spread = float((one.max() - one.min()).double()) or 1.0
        if not float((one.double() - other.double()).abs().max()) <= tolerance * spread:
            return False
    return True


def _refused(trial: Trial, image: Image, reason: str) -> PersistlibError:
    known = ", ".join(_entered(trial, image.channels)[:_MOST_TRIED]) or "none"
    return error(
        Code.ADAPTATION,
        "adapt.channels",
        f"{reason}; convolutions over {image.channels} channels: {known}",
        f"prepare images with {image.channels} channels, or replace the layer yourself",
    )
