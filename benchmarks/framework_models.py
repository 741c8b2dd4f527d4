"""The models of the matrix of torch and torchvision: what their releases differ in, and what not.

Each is made with statistics that its normalisations have really seen, and has a seeded input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torchvision
from torch import nn

import persistlib

if TYPE_CHECKING:
    from collections.abc import Callable

Shape = tuple[int, ...]


class Model(NamedTuple):
    """A model of the matrix.

    Attributes:
        make: builds it; raises where a release has not what it needs.
        shapes: of its inputs.
        dtype: of its inputs.
        part: what is run; the model itself, but for detection, whose boxes jump with the last bit.
    """

    make: Callable[[], nn.Module]
    shapes: tuple[Shape, ...]
    dtype: torch.dtype = torch.float32
    part: str = ""


class Own(nn.Module):
    """A class of one's own, with what its constructor was given as attributes."""

    def __init__(self, width: int = 8, *, bias: bool = True) -> None:
        super().__init__()
        self.width, self.bias = width, bias
        self.first, self.second = nn.Linear(6, width, bias=bias), nn.Linear(width, 3, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


class Coded(nn.Module):
    """A layer with a buffer of a dtype that not every release has."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        self.kind = kind
        self.layer = nn.Linear(12, 4)
        self.register_buffer("codes", torch.ones(4).to(kind))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def _zoo(name: str, package: str = "", **arguments: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        home: Any = torchvision.models
        for part in filter(None, package.split(".")):
            home = getattr(home, part)
        return getattr(home, name)(weights=None, **arguments)

    return make


def _head() -> nn.Module:
    model = torchvision.models.resnet18(weights=None)
    model.fc = nn.Sequential(nn.Linear(512, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 7))
    return model


def _frozen() -> nn.Module:
    norm = torchvision.ops.FrozenBatchNorm2d
    model = torchvision.models.resnet18(weights=None, norm_layer=norm, num_classes=5)
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, norm):
            module.running_var.uniform_(0.5, 1.5)
    return model


def _of(*parts: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(part() for part in parts))


def _built(builder: str, **arguments: Any) -> Callable[[], nn.Module]:
    return lambda: persistlib.build(builder, **arguments)


def _linear() -> nn.Module:
    return nn.Linear(12, 4)


def _weight_norm() -> nn.Module:
    from torch.nn.utils import parametrizations

    return parametrizations.weight_norm(nn.Linear(12, 4))


_DEEPLAB = "torchvision.models.segmentation.deeplabv3:DeepLabHead"
_IMAGE = ((2, 3, 96, 96),)
_ROWS = ((5, 12),)
_BACKBONE = {"weights_backbone": None}

MODELS: dict[str, Model] = {
    "resnet18": Model(_zoo("resnet18", num_classes=10), _IMAGE),
    "resnet18 with a head": Model(_head, _IMAGE),
    "resnet18 FrozenBatchNorm2d": Model(_frozen, _IMAGE),
    "mobilenet_v3_small": Model(_zoo("mobilenet_v3_small", dropout=0.1), _IMAGE),
    "efficientnet_b0": Model(_zoo("efficientnet_b0"), _IMAGE),
    "googlenet": Model(_zoo("googlenet", aux_logits=False, init_weights=False), _IMAGE),
    "swin_v2_t": Model(_zoo("swin_v2_t"), ((1, 3, 64, 64),)),
    "fasterrcnn_mobilenet": Model(
        _zoo("fasterrcnn_mobilenet_v3_large_320_fpn", "detection", **_BACKBONE, num_classes=4),
        _IMAGE,
        part="backbone",
    ),
    "deeplabv3_mobilenet": Model(
        _zoo("deeplabv3_mobilenet_v3_large", "segmentation", **_BACKBONE, num_classes=4), _IMAGE
    ),
    "quantization mobilenet_v2": Model(
        _zoo("mobilenet_v2", "quantization", quantize=False), _IMAGE
    ),
    "DeepLabHead": Model(_built(_DEEPLAB, in_channels=8, num_classes=3), ((2, 8, 24, 24),)),
    "DeepLabHead atrous_rates": Model(
        _built(_DEEPLAB, in_channels=8, num_classes=3, atrous_rates=(2, 4)), ((2, 8, 24, 24),)
    ),
    "Conv2dNormActivation": Model(
        _built("torchvision.ops:Conv2dNormActivation", in_channels=3, out_channels=16),
        ((2, 3, 24, 24),),
    ),
    "Sequential BatchNorm1d": Model(
        _of(lambda: nn.Linear(12, 8), lambda: nn.BatchNorm1d(8), lambda: nn.Linear(8, 4)), _ROWS
    ),
    "GroupNorm bias": Model(
        _of(lambda: nn.Linear(12, 8), lambda: nn.GroupNorm(2, 8, bias=False)), _ROWS
    ),
    "GroupNorm bias at its default": Model(
        _built("torch.nn:GroupNorm", num_groups=2, num_channels=12, bias=True), _ROWS
    ),
    "LayerNorm bias": Model(_of(lambda: nn.LayerNorm(12, bias=False), _linear), _ROWS),
    "RMSNorm": Model(_of(lambda: nn.RMSNorm(12), _linear), _ROWS),
    "Softplus": Model(_of(_linear, nn.Softplus), _ROWS),
    "weight_norm": Model(_of(_weight_norm), _ROWS),
    "LSTM": Model(lambda: nn.LSTM(12, 8, bidirectional=True), ((4, 2, 12),)),
    "TransformerEncoderLayer": Model(
        lambda: nn.TransformerEncoderLayer(12, 2, dim_feedforward=16, batch_first=True),
        ((2, 5, 12),),
    ),
    "bfloat16": Model(lambda: nn.Sequential(nn.Linear(12, 4)).bfloat16(), _ROWS, torch.bfloat16),
    "float8_e8m0fnu buffer": Model(lambda: Coded(torch.float8_e8m0fnu), _ROWS),
    "uint16 buffer": Model(lambda: Coded(torch.uint16), _ROWS),
    "own class": Model(Own, ((5, 6),)),
}


def made(model: Model) -> nn.Module:
    """Return the module, its normalisations having seen some inputs, in evaluation."""
    torch.manual_seed(0)
    module = model.make()
    part = module.get_submodule(model.part)
    part.train()
    with torch.no_grad():
        for seed in range(3):
            part(*inputs(model, seed))
    return module.eval()


def inputs(model: Model, seed: int = 7) -> list[torch.Tensor]:
    """Return inputs that every release of numpy draws alike."""
    draw = np.random.RandomState(seed)
    arrays = [draw.standard_normal(shape).astype("float32") for shape in model.shapes]
    return [torch.tensor(array.tolist()).to(model.dtype) for array in arrays]


def outputs(model: Model, module: nn.Module) -> list[np.ndarray]:
    """Return every tensor of what the module computes, in order, as single precision."""
    with torch.no_grad():
        found = module.get_submodule(model.part)(*inputs(model))
    return [np.array(tensor.float().tolist(), "float32") for tensor in _tensors(found)]


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [tensor for item in items for tensor in _tensors(item)]
