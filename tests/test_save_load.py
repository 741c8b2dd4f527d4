"""What is saved comes back, bit for bit, in a process that has never seen it."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
import torchvision.models as zoo
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

import persistlib
import saved_models
from portrait import Loader, differences, draw, settle, state, tells, world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


# torch tells users of the old functions about the new ones.
OLD = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")


class Case(NamedTuple):
    """A model, inputs that it runs on, and what `save` is told besides."""

    model: nn.Module
    inputs: tuple[torch.Tensor, ...]
    told: dict[str, Any] = {}  # noqa: RUF012 - never changed


@pytest.fixture(scope="module")
def loader() -> Iterator[Loader]:
    process = Loader()
    yield process
    process.close()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(1)
    torch.set_num_threads(1)


def image(extent: int = 32, batch: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.rand(batch, channels, extent, extent, generator=torch.Generator().manual_seed(7))


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(8))


def tokens(high: int = 11) -> torch.Tensor:
    return torch.randint(0, high, (3, 5), generator=torch.Generator().manual_seed(9))


# -- the zoo, changed by hand ----------------------------------------------------------------------


def resnet50_dilated() -> Case:
    model = zoo.resnet50(replace_stride_with_dilation=[False, True, True], num_classes=7)
    return Case(settle(model, image()), (image(),))


def resnet18_eps_by_hand() -> Case:
    model = zoo.resnet18()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    return Case(settle(model, image()), (image(),))


def resnet18_eps_by_norm_layer() -> Case:
    model = zoo.resnet18(norm_layer=functools.partial(nn.BatchNorm2d, eps=1e-3))
    return Case(settle(model, image()), (image(),))


def resnet18_eps_of_one() -> Case:
    model = zoo.resnet18()
    norm = model.layer3[0].bn2
    norm.eps, norm.momentum = 0.02, 0.3
    return Case(settle(model, image()), (image(),))


def mobilenet_v2_eps() -> Case:
    model = zoo.mobilenet_v2(norm_layer=functools.partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01))
    return Case(settle(model, image()), (image(),))


def googlenet_transforming() -> Case:
    model = zoo.googlenet(transform_input=True, aux_logits=False, init_weights=False)
    return Case(settle(model, image(96)), (image(96),))


def googlenet_whole() -> Case:
    model = zoo.googlenet(init_weights=False, num_classes=5)
    return Case(settle(model, image(96)), (image(96),))


def googlenet_stripped() -> Case:
    """As torchvision's own builder does with pretrained weights and `aux_logits=False`."""
    model = zoo.googlenet(init_weights=False, num_classes=5)
    model.aux_logits = False
    model.aux1 = model.aux2 = None
    return Case(settle(model, image(96)), (image(96),))


def inception_without_auxiliary() -> Case:
    model = zoo.inception_v3(aux_logits=False, init_weights=False, transform_input=True)
    return Case(settle(model, image(96)), (image(96),))


def head(kind: str) -> Case:
    model = zoo.resnet18()
    heads: dict[str, Callable[[], nn.Module]] = {
        "linear": lambda: nn.Linear(512, 10),
        "without bias": lambda: nn.Linear(512, 10, bias=False),
        "sequential": lambda: nn.Sequential(
            nn.Dropout(0.3), nn.Linear(512, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)
        ),
        "identity": nn.Identity,
    }
    model.fc = heads[kind]()
    return Case(settle(model, image()), (image(),))


def mobilenet_head() -> Case:
    model = zoo.mobilenet_v3_small()
    model.classifier[3] = nn.Linear(1024, 4)
    model.classifier[2] = nn.Dropout(0.5)
    return Case(settle(model, image()), (image(),))


def vit_small() -> Case:
    model = persistlib.build(
        "torchvision.models:VisionTransformer",
        image_size=32,
        patch_size=16,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
    )
    model.heads = nn.Linear(16, 6)
    return Case(model.eval(), (image(32),))


def grey_stem() -> Case:
    model = zoo.resnet18(num_classes=3)
    model.conv1 = nn.Conv2d(1, 64, 3, bias=False)
    model.maxpool = nn.Identity()
    return Case(settle(model, image(32, channels=1)), (image(32, channels=1),))


def frozen_backbone() -> Case:
    model = zoo.resnet18()
    settle(model, image())
    model.fc = nn.Linear(512, 4)
    persistlib.freeze(model, ["*", "!fc.*"])
    return Case(model.train(), (image(),))


def frozen_by_hand() -> Case:
    model = settle(zoo.resnet18(num_classes=4), image())
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(("fc", "layer4.1"))
    model.train()
    model.layer1.eval()
    model.bn1.eval()
    return Case(model, (image(),))


def built_with_edits() -> Case:
    model = persistlib.build(
        "torchvision.models:shufflenet_v2_x0_5",
        edits=[
            {
                "op": "replace",
                "path": "fc",
                "builder": "torch.nn:Linear",
                "arguments": {"in_features": 1024, "out_features": 3},
            }
        ],
    )
    return Case(settle(model, image()), (image(),))


# -- what torch's own modules are made into --------------------------------------------------------


def net(*, classes: int = 4) -> nn.Module:
    model = saved_models.ConvNet(classes=classes)
    return settle(model, image(12))


def in_dtype(dtype: torch.dtype) -> Case:
    return Case(net().to(dtype), (image(12).to(dtype),))


def channels_last() -> Case:
    model = zoo.resnet18(num_classes=4)
    settle(model, image())
    return Case(
        model.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        (image().to(memory_format=torch.channels_last),),
    )


def transposed() -> Case:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    first = model[0]
    assert isinstance(first, nn.Linear)
    first.weight = nn.Parameter(first.weight.detach().t())
    return Case(model, (rows(3, 6),))


def recurrent(kind: type[nn.RNNBase]) -> Case:
    model = kind(5, 4, num_layers=2, bidirectional=True, batch_first=True, dropout=0.2)
    return Case(model.eval(), (rows(3, 6, 5),))


def transformer() -> Case:
    layers = [
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True),
        nn.TransformerEncoderLayer(8, 4, 16, batch_first=True, activation="gelu", dropout=0.2),
    ]
    return Case(nn.Sequential(*layers).eval(), (rows(2, 4, 8),))


def normed(which: Callable[[nn.Module], nn.Module]) -> Case:
    model = nn.Sequential(nn.Linear(6, 6), which(nn.Linear(6, 6)), nn.Tanh(), nn.Linear(6, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    for _ in range(2):
        model(rows(3, 6))  # spectral norms iterate
    return Case(model.eval(), (rows(3, 6),))


def tied() -> Case:
    model = saved_models.Tied()
    return Case(model, (tokens(),))


def trained(model: nn.Module, *inputs: torch.Tensor) -> Case:
    """Return a model after two steps, so that no value is one that building gives."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        output = model(*inputs)
        (output**2).mean().backward()
        optimizer.step()
    return Case(model.eval(), inputs)


def moved_derived() -> Case:
    """The buffer is no longer what the parameter would give."""
    case = trained(saved_models.Derived(persistent=False), rows(3, 4))
    return Case(case.model, case.inputs)


def unsettled() -> Case:
    """Modules in modes of all kinds, and a module of no class of its own mode."""
    model = net().train()
    model.get_submodule("features.1").eval()
    model.get_submodule("dropout").eval()
    return Case(model, (image(12),))


CASES: dict[str, Callable[[], Case]] = {
    "resnet50 with dilation for stride": resnet50_dilated,
    "resnet18 with eps set by hand": resnet18_eps_by_hand,
    "resnet18 with eps through norm_layer": resnet18_eps_by_norm_layer,
    "resnet18 with one eps and momentum": resnet18_eps_of_one,
    "mobilenet_v2 with another norm": mobilenet_v2_eps,
    "googlenet transforming its input": googlenet_transforming,
    "googlenet with auxiliary heads": googlenet_whole,
    "googlenet stripped of them": googlenet_stripped,
    "inception_v3 without auxiliary head": inception_without_auxiliary,
    "resnet18 with another stem": grey_stem,
    "head Linear": lambda: head("linear"),
    "head without bias": lambda: head("without bias"),
    "head Sequential": lambda: head("sequential"),
    "head Identity": lambda: head("identity"),
    "mobilenet_v3 with another head": mobilenet_head,
    "vision transformer": vit_small,
    "built with edits": built_with_edits,
    "backbone frozen by persistlib": frozen_backbone,
    "backbone frozen by hand": frozen_by_hand,
    "float16": lambda: in_dtype(torch.float16),
    "bfloat16": lambda: in_dtype(torch.bfloat16),
    "float64": lambda: in_dtype(torch.float64),
    "own: dtypes of all kinds": lambda: Case(saved_models.Kinds(), (rows(4, 6),)),
    "channels last": channels_last,
    "transposed weight": transposed,
    "LSTM": lambda: recurrent(nn.LSTM),
    "GRU": lambda: recurrent(nn.GRU),
    "transformer": transformer,
    "orthogonal": lambda: normed(parametrizations.orthogonal),
    "weight_norm": lambda: normed(parametrizations.weight_norm),
    "spectral_norm": lambda: normed(parametrizations.spectral_norm),
    "old weight_norm": lambda: normed(old_weight_norm),
    "old spectral_norm": lambda: normed(old_spectral_norm),
    "own: all of these": lambda: trained(saved_models.Seven(), rows(3, 6)),
    "own: parametrization": lambda: trained(saved_models.Parametrized(), rows(3, 5)),
    "own: tied": tied,
    "own: shared child": lambda: trained(saved_models.Shared(), rows(3, 4)),
    "own: random unsaved buffer": lambda: trained(saved_models.Noisy(), rows(3, 5)),
    "own: unsaved table": lambda: trained(saved_models.Positions(), rows(3, 6)),
    "own: derived buffer": lambda: trained(saved_models.Derived(), rows(3, 4)),
    "own: derived unsaved buffer": lambda: Case(
        saved_models.Derived(persistent=False), (rows(3, 4),)
    ),
    "own: derived buffer after training": moved_derived,
    "own: tensors in attributes": lambda: trained(saved_models.Attributes(), rows(3, 4)),
    "own: scalars and empty tensors": lambda: Case(saved_models.Scalars(), (rows(4, 3),)),
    "own: several inputs and outputs": lambda: Case(
        saved_models.Outputs(), (rows(4, 3), rows(4, 3) + 1)
    ),
    "own: modes of all kinds": unsettled,
}


@OLD
@pytest.mark.parametrize("name", CASES)
def test_a_model_is_the_same_in_another_process(loader: Loader, tmp_path: Path, name: str) -> None:
    model, inputs, told = CASES[name]()
    bundle = tmp_path / "model"
    before = state(model)
    outside = world()
    manifest = persistlib.save(model, bundle, example_inputs=inputs, **told)
    assert not differences(outside, world())
    assert not differences(before, state(model))
    expected = draw(model, inputs)
    assert tells(expected)
    trust = (
        ["saved_models"] if "saved_models" in json.dumps(manifest.model_dump(mode="json")) else []
    )
    loaded = loader.load(bundle, inputs, trust=trust)
    assert not differences(before, {key: loaded[key] for key in before})
    assert not differences(expected, loaded)
