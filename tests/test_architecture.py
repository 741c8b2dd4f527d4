"""A model is told from its look-alikes: what `describe` gives rebuilds it, or it says why not."""

from __future__ import annotations

import copy
import random
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torchvision import models

import own_models
from persistlib.architecture.behaviour import Inputs, same_outputs
from persistlib.architecture.compare import differences
from persistlib.architecture.describe import Description, describe
from persistlib.architecture.recipe import build
from persistlib.architecture.skeleton import skeleton
from persistlib.architecture.structure import dtype_name, structure_digest
from persistlib.errors import ArchitectureError, Code, PersistlibError

if TYPE_CHECKING:
    from collections.abc import Callable

SYNC: Any = nn.SyncBatchNorm
IMAGE = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def with_part(model: nn.Module, path: str, part: Any) -> nn.Module:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, part)
    return model


def eval_eps(model: nn.Module, eps: float) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = eps
    return model


def old_weight_norm() -> Any:
    model: Any = models.resnet18()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(model.fc)
        nn.utils.weight_norm(model.layer1[0].conv1, dim=1)
        nn.utils.spectral_norm(model.layer2[0].conv1)
    return model


def without_auxiliaries() -> Any:
    model: Any = models.googlenet(init_weights=False)
    model.aux_logits, model.aux1, model.aux2 = False, None, None
    return model


def shared_relu() -> Any:
    model: Any = models.resnet18()
    model.layer1[0].relu = model.layer1[1].relu = model.relu
    return model


def tied_convolutions() -> Any:
    model: Any = models.resnet18()
    model.layer1[1].conv1.weight = model.layer1[0].conv1.weight
    return model


def removed() -> Any:
    model: Any = models.alexnet()
    del model.classifier[4:]
    return model


def inserted() -> Any:
    model: Any = models.resnet18()
    model.layer1.insert(1, nn.Conv2d(64, 64, 1))
    return model


def named_in_the_middle() -> Any:
    parts = {"a": nn.Conv2d(3, 4, 3), "b": nn.GELU(), "c": nn.Conv2d(4, 4, 3)}
    model: Any = models.resnet18()
    model.conv1 = nn.Sequential()
    for name, part in parts.items():
        model.conv1.add_module(name, part)
    model.bn1 = nn.BatchNorm2d(4)
    model.layer1[0].conv1 = nn.Conv2d(4, 64, 3, padding=1, bias=False)
    model.layer1[0].downsample = nn.Conv2d(4, 64, 1)
    return model


IMAGE_MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": models.resnet18,
    "replaced head": lambda: with_part(models.resnet18(), "fc", nn.Linear(512, 10)),
    "wide head": lambda: with_part(models.resnet18(), "fc", nn.Linear(512, 4000)),
    "Identity head": lambda: with_part(models.resnet18(), "fc", nn.Identity()),
    "Sequential head": lambda: with_part(
        models.mobilenet_v2(),
        "classifier",
        nn.Sequential(nn.Linear(1280, 8), nn.Hardswish(), nn.Dropout(0.1), nn.Linear(8, 3)),
    ),
    "longer head": lambda: with_part(
        models.resnet18(), "fc", nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 2))
    ),
    "dilation": lambda: models.resnet50(replace_stride_with_dilation=[False, True, True]),
    "eps in the constructor": lambda: models.resnet18(norm_layer=partial(nn.BatchNorm2d, eps=1e-3)),
    "eps by hand": lambda: eval_eps(models.resnet18(), 1e-3),
    "mobilenet eps": lambda: models.mobilenet_v2(norm_layer=partial(nn.BatchNorm2d, eps=1e-3)),
    "transform_input": lambda: models.googlenet(transform_input=True, init_weights=False),
    "no auxiliary heads": without_auxiliaries,
    "other dropout": lambda: with_part(models.mobilenet_v2(), "classifier.0", nn.Dropout(0.7)),
    "other activation": lambda: with_part(models.resnet18(), "layer2.0.relu", nn.SiLU()),
    "grey images": lambda: with_part(
        models.resnet18(), "conv1", nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    ),
    "group norm": lambda: with_part(models.resnet18(), "bn1", nn.GroupNorm(8, 64)),
    "half": lambda: models.resnet18().half(),
    "double": lambda: models.resnet18().double(),
    "mixed": lambda: with_part(models.resnet18(), "fc", nn.Linear(512, 5).double()),
    "orthogonal": lambda: with_part(
        models.resnet18(), "fc", parametrizations.orthogonal(nn.Linear(512, 10))
    ),
    "matrix exponential": lambda: with_part(
        models.resnet18(), "fc", parametrizations.orthogonal(nn.Linear(512, 512))
    ),
    "weight norm": lambda: with_part(
        models.resnet18(), "fc", parametrizations.weight_norm(nn.Linear(512, 1000), dim=1)
    ),
    "spectral norm": lambda: with_part(
        models.resnet18(), "fc", parametrizations.spectral_norm(nn.Linear(512, 7), eps=1e-9)
    ),
    "old norms": old_weight_norm,
    "shared relu": shared_relu,
    "tied weights": tied_convolutions,
    "layers removed": removed,
    "layer inserted": inserted,
    "stem of its own": named_in_the_middle,
    "other image size": lambda: models.vit_b_32(image_size=64, num_classes=10),
    "num_classes": lambda: models.squeezenet1_1(num_classes=10),
    "sync batch norm": lambda: SYNC.convert_sync_batchnorm(models.resnet18()),
}


def rebuilt(model: nn.Module, found: Description, trust: set[str] | None = None) -> nn.Module:
    """Rebuild from the recipe alone, and compare everything but values."""
    copied = skeleton(found.architecture, trust=trust or set())
    assert differences(model, copied) == []
    assert all(parameter.is_meta for parameter in copied.parameters())
    dtypes = {name: dtype_name(tensor) for name, tensor in model.named_parameters()} | {
        name: dtype_name(tensor) for name, tensor in model.named_buffers()
    }
    assert structure_digest(copied, dtypes) == found.architecture.structure
    return copied


@pytest.mark.parametrize("label", IMAGE_MODELS)
def test_a_changed_torchvision_model_is_rebuilt_from_its_recipe_alone(label: str) -> None:
    torch.manual_seed(0)
    model = IMAGE_MODELS[label]()
    found = describe(model)
    assert found.architecture.builder.startswith("torchvision.models:")
    copied = rebuilt(model, found)
    assert found.findings == ()
    image = IMAGE[:, :1] if label == "grey images" else IMAGE
    image = image.to(next(model.parameters()).dtype)
    assert same_outputs(model, copied, Inputs((image,)))


OWN_MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "own class": (lambda: own_models.Net(4), torch.rand(2, 4)),
    "own function": (lambda: own_models.Net(4, own_models.halved), torch.rand(2, 4)),
    "depth left untold": (lambda: own_models.Net(4, depth=3), torch.rand(2, 4)),
    "other scales": (
        lambda: with_part(own_models.Net(4), "scales", [3.0, 4.0]),
        torch.rand(2, 4),
    ),
    "random buffer": (own_models.Random, torch.rand(2, 4)),
    "buffer from a parameter": (own_models.FromParameter, torch.rand(2, 4)),
    "tied": (own_models.Tied, torch.tensor([1, 2])),
    "normed in its constructor": (own_models.Normed, torch.rand(2, 6)),
    "closure": (own_models.Closure, torch.rand(2, 3)),
    "plain object": (own_models.Steered, torch.rand(2, 3)),
}


@pytest.mark.parametrize("label", OWN_MODELS)
def test_an_own_class_is_rebuilt_where_it_is_trusted(label: str) -> None:
    make, inputs = OWN_MODELS[label]
    torch.manual_seed(0)
    model = make()
    found = describe(model, inputs=inputs)
    assert found.findings == ()
    assert found.architecture.builder == f"own_models:{type(model).__name__}"
    copied = rebuilt(model, found, {"own_models"})
    assert same_outputs(model, copied, Inputs((inputs,)))
    with pytest.raises(ArchitectureError) as caught:
        skeleton(found.architecture)
    assert caught.value.code == Code.UNTRUSTED.identifier
    assert "own_models" in caught.value.remedy


def test_a_constructor_that_reads_parameters_is_run_for_real_and_says_so() -> None:
    model = own_models.FromParameter(reading=True)
    found = describe(model, inputs=torch.rand(2, 4))
    assert [finding.code for finding in found.findings] == [Code.BUILT_REALLY.identifier]
    with pytest.warns(UserWarning, match="PL310"):
        copied = skeleton(found.architecture, trust={"own_models"})
    assert all(parameter.is_meta for parameter in copied.parameters())


def test_torch_containers_are_rebuilt_child_by_child() -> None:
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3, padding="same", padding_mode="circular"),
        nn.LSTM(5, 6, 2, bidirectional=True, batch_first=True),
        nn.GRU(3, 3, bias=False),
        nn.RNN(3, 3, nonlinearity="relu"),
        nn.MultiheadAttention(8, 2, add_bias_kv=True, kdim=3, vdim=5),
        nn.ModuleDict({"e": nn.Embedding(9, 4, padding_idx=0), "n": nn.LayerNorm(4, bias=False)}),
        nn.ModuleList([nn.AdaptiveAvgPool2d((1, None)), nn.Upsample(scale_factor=2.0)]),
        nn.TransformerEncoderLayer(8, 2, 16, activation=nn.functional.gelu, norm_first=True),
        nn.PReLU(3),
        nn.Flatten(0),
        nn.BatchNorm1d(4, affine=False),
        nn.ConvTranspose2d(2, 4, 3, output_padding=0, groups=2),
        nn.Bilinear(2, 3, 4),
    )
    found = describe(model)
    assert [finding.code for finding in found.findings] == [Code.BEHAVIOUR_UNTRIED.identifier]
    rebuilt(model, found)


def test_a_recipe_that_was_recorded_counts_first_and_takes_later_changes() -> None:
    model = build("torchvision.models:resnet18", num_classes=7)
    assert describe(model).architecture.arguments == {"num_classes": 7}
    model.relu = nn.GELU()
    found = describe(copy.deepcopy(model)).architecture
    assert found.arguments == {"num_classes": 7}
    assert [(edit.op, edit.path) for edit in found.edits] == [("replace", "relu")]


def test_a_recorded_edit_that_was_overtaken_is_dropped() -> None:
    edit = {"op": "replace", "path": "fc", "builder": "torch.nn:Linear"}
    edit["arguments"] = {"in_features": 512, "out_features": 10}  # type: ignore[assignment]
    model = build("torchvision.models:resnet18", edits=[edit])
    assert [e.path for e in describe(model).architecture.edits] == ["fc"]
    model.fc = nn.Linear(512, 20)
    edits = describe(model).architecture.edits
    assert [e.arguments for e in edits] == [{"in_features": 512, "out_features": 20}]


def test_the_callers_word_serves_where_nothing_else_is_known() -> None:
    model = own_models.make(6)
    found = describe(model, architecture="own_models:make", inputs=torch.rand(1, 6))
    assert found.architecture.builder == "own_models:make"
    assert found.architecture.arguments == {"width": 6}
    with pytest.raises(ArchitectureError):
        describe(model, architecture={"builder": "torchvision.models:resnet18"})


def random_states() -> tuple[object, ...]:
    numeric: Any = np.random.get_state()  # noqa: NPY002 - the state that modules draw from
    return random.getstate(), numeric[1].tobytes(), torch.get_rng_state().tolist()


def test_describing_leaves_the_model_and_the_callers_state_alone() -> None:
    model: Any = with_part(models.resnet18(), "fc", own_models.Forking())
    model.layer1.eval()
    flags = {path: module.training for path, module in model.named_modules()}
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.set_default_dtype(torch.float64)
    try:
        before = random_states()
        with torch.no_grad():
            found = describe(model)
            skeleton(found.architecture, trust={"own_models"})
            assert not torch.is_grad_enabled()
        assert random_states() == before
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert {path: module.training for path, module in model.named_modules()} == flags
    assert all(torch.equal(values[name], t) for name, t in model.state_dict().items())
    assert not any(p.is_meta for p in nn.Linear(2, 2).parameters())


def test_a_module_is_described_inside_inference_mode_and_meta_contexts() -> None:
    model: Any = models.resnet18()
    with torch.inference_mode():
        found = describe(model)
    with torch.device("meta"):
        copied = skeleton(found.architecture)
    assert not any(buffer.is_meta or buffer.is_inference() for buffer in copied.buffers())


def refusal(model: nn.Module, **how: Any) -> PersistlibError:
    with pytest.raises(PersistlibError) as caught:
        describe(model, **how)
    return caught.value


def test_nothing_known_names_what_to_do() -> None:
    fault = refusal(own_models.Forgetful(3))
    assert fault.code == Code.NO_ARCHITECTURE.identifier
    assert "size" in fault.reason
    assert "persistlib.build" in fault.remedy
    assert "architecture=" in fault.remedy


def test_a_layer_in_a_plain_list_is_refused_by_name() -> None:
    fault = refusal(own_models.Hidden())
    assert (fault.code, fault.location) == (Code.MODEL_STATE.identifier, "others")
