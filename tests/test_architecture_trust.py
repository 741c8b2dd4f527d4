"""Recipes reach what is allowed and what the caller trusts, and nothing else is even imported."""

from __future__ import annotations

import copy
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torchvision import models

from persistlib.architecture import fetching
from persistlib.architecture.recipe import build, origin, recorded
from persistlib.architecture.skeleton import rebuild, skeleton
from persistlib.architecture.structure import (
    configuration,
    source_digest,
    structure_digest,
)
from persistlib.architecture.trusted import builder_name, resolve
from persistlib.checkpoint import identity
from persistlib.converters import safetensors_file
from persistlib.errors import Code, PersistlibError
from persistlib.manifest.schema import Architecture, Edit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RESNET = "torchvision.models:resnet18"


def code_of(act: Callable[[], object]) -> str:
    with pytest.raises(PersistlibError) as caught:
        act()
    return caught.value.code


REFUSED = {
    "os:system": Code.UNTRUSTED,
    "subprocess:Popen": Code.UNTRUSTED,
    "this:anything": Code.UNTRUSTED,
    "torch:load": Code.UNTRUSTED,
    "torch:from_file": Code.UNTRUSTED,
    "torch:import_ir_module": Code.UNTRUSTED,
    "torch.hub:load": Code.UNTRUSTED,
    "torchvision.models._api:load_state_dict_from_url": Code.UNTRUSTED,
    "torchvision.models:get_model": Code.UNTRUSTED,
    "torchvision.models:get_weight": Code.UNTRUSTED,
    "torchvision.models:ResNet18_Weights": Code.UNTRUSTED,
    "torchvision.models.resnet:partial": Code.UNTRUSTED,
    "torchvision.models.resnet:nn": Code.UNKNOWN_BUILDER,
    "torchvision.modelsx:resnet18": Code.UNTRUSTED,
    "torchvision.models:resnet19": Code.UNKNOWN_BUILDER,
    "torch.nn:Lineer": Code.UNKNOWN_BUILDER,
    "torch.nn.nowhere:Linear": Code.UNKNOWN_BUILDER,
    "torch.nn.functional:importlib": Code.UNKNOWN_BUILDER,
    "torch.nn:Linear.__init__": Code.UNTRUSTED,
    "torch.nn:Linear.__init__.__globals__": Code.UNTRUSTED,
    "torch.nn.functional:relu": Code.BAD_RECIPE,
    "torch.nn:__builtins__": Code.UNTRUSTED,
    "__main__:Net": Code.UNTRUSTED,
    "torch.nn Linear": Code.BAD_RECIPE,
    "..torch:nn": Code.BAD_RECIPE,
    "": Code.BAD_RECIPE,
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_builder_off_the_allow_list_is_refused_with_its_code(name: str) -> None:
    assert code_of(lambda: rebuild(name, {})) == REFUSED[name].identifier
    assert "this" not in sys.modules


def test_a_near_name_is_proposed() -> None:
    with pytest.raises(PersistlibError) as caught:
        rebuild("torchvision.models:resnet19", {})
    assert "torchvision.models:resnet18" in caught.value.remedy


def test_trust_names_a_package_or_a_prefix_of_one() -> None:
    assert code_of(lambda: rebuild("own_models:Net", {"width": 2})) == "PL303"
    assert code_of(lambda: rebuild("own_models:Net", {"width": 2}, trust={"own"})) == "PL303"
    assert isinstance(rebuild("own_models:Net", {"width": 2}, trust={"own_models"}), nn.Module)
    assert code_of(lambda: rebuild("own_models:not_a_module", {}, trust={"own_models"})) == "PL306"
    assert code_of(lambda: rebuild("own_models:raising", {}, trust={"own_models"})) == "PL305"


def test_every_torchvision_builder_and_class_of_torch_nn_has_a_short_name_that_resolves() -> None:
    assert builder_name(models.resnet18) == RESNET
    assert builder_name(nn.Linear) == "torch.nn:Linear"
    for name in models.list_models():
        builder = models.get_model_builder(name)
        assert resolve(str(builder_name(builder))) is builder
    for name, found in vars(nn).items():
        if isinstance(found, type) and issubclass(found, nn.Module) and found is not nn.Module:
            assert resolve(f"torch.nn:{name}") is found


@pytest.mark.parametrize(
    ("builder", "arguments"),
    [
        (RESNET, {"weights": "DEFAULT"}),
        (RESNET, {"pretrained": True}),
        ("torchvision.models.segmentation:fcn_resnet50", {"weights_backbone": "DEFAULT"}),
        (RESNET, {"nonsense": 1}),
        (RESNET, {"norm_layer": {"$object": "os:system"}}),
        (RESNET, {"norm_layer": {"$nothing": 1}}),
        ("torch.nn:Linear", {"in_features": -1, "out_features": 2}),
    ],
)
def test_arguments_never_fetch_import_or_escape(builder: str, arguments: dict[str, Any]) -> None:
    assert code_of(lambda: rebuild(builder, arguments)) in {"PL303", "PL305", "PL306"}


def edit(**fields: Any) -> Edit:
    return Edit(**fields)


BAD_EDITS = [
    edit(op="replace", path="nowhere", builder="torch.nn:Identity"),
    edit(op="replace", path="", builder="torch.nn:Identity"),
    edit(op="replace", path="fc"),
    edit(op="insert", path="fc", builder="torch.nn:Identity"),
    edit(op="insert", path="layer1.a.b", builder="torch.nn:Identity"),
    edit(op="insert", path="forward.x", builder="torch.nn:Identity"),
    edit(op="remove", path="layer9"),
    edit(op="remove", path="", attribute="nothing"),
    edit(op="set", path="", attribute="__class__", value=1),
    edit(op="set", path="", attribute="_modules", value={}),
    edit(op="set", path="", attribute="_forward_hooks", value={}),
    edit(op="set", path="", attribute="fc", value=1),
    edit(op="set", path="fc", attribute="weight", value=1),
    edit(op="set", path="fc", value=1),
    edit(op="share", path="fc", value="nowhere"),
    edit(op="share", path="layer1.0.conv1", value=""),
    edit(op="share", path="fc", value=3),
    edit(op="parametrize", path="fc", attribute="weight", builder="torch.nn:Linear"),
    edit(op="parametrize", path="fc", attribute="weight"),
    edit(op="parametrize", path="fc", attribute="none", builder="torch.nn.utils:weight_norm"),
    edit(op="parametrize", path="fc", attribute="weight", builder="torch.nn.utils:prune"),
]


@pytest.mark.parametrize("bad", BAD_EDITS, ids=lambda e: f"{e.op} {e.path} {e.attribute}")
def test_an_edit_that_does_not_fit_is_our_own_error(bad: Edit) -> None:
    assert code_of(lambda: rebuild(RESNET, {}, (bad,))) in {"PL303", "PL304", "PL305", "PL306"}


def test_build_records_a_recipe_that_survives_a_copy() -> None:
    model = build(RESNET, num_classes=3, norm_layer=nn.InstanceNorm2d)
    found = recorded(copy.deepcopy(model))
    assert found == recorded(model)
    assert found is not None
    assert found.arguments == {
        "num_classes": 3,
        "norm_layer": {"$object": "torch.nn:InstanceNorm2d"},
    }
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_build_draws_from_the_callers_generator_as_the_builder_would() -> None:
    torch.manual_seed(5)
    expected = models.resnet18().state_dict()
    torch.manual_seed(5)
    given = build(RESNET).state_dict()
    assert all(torch.equal(expected[name], given[name]) for name in expected)


def test_build_refuses_what_no_recipe_holds() -> None:
    assert (
        code_of(lambda: build(RESNET, norm_layer=lambda size: nn.BatchNorm2d(size, eps=1)))
        == "PL901"
    )
    assert code_of(lambda: build(RESNET, edits=[{"op": "explode", "path": ""}])) == "PL306"
    with pytest.raises(PersistlibError) as caught:
        build("nothing")
    assert caught.value.code == "PL306"
    assert "torchvision.models:resnet18" in caught.value.remedy


@pytest.fixture
def checkpoint_file(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    state = models.squeezenet1_1().state_dict()
    path = tmp_path / "squeeze.pth"
    torch.save(state, path)
    return path, state


def test_weights_come_from_a_file_and_are_remembered(
    checkpoint_file: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    path, state = checkpoint_file
    swap = {
        "op": "replace",
        "path": "classifier.1",
        "builder": "torch.nn:Conv2d",
        "arguments": {"in_channels": 512, "out_channels": 4, "kernel_size": 1},
    }
    model = build("torchvision.models:squeezenet1_1", weights=path, edits=[swap])
    for name, value in model.state_dict().items():
        if not name.startswith("classifier"):
            assert torch.equal(value, state[name])
    found = origin(model)
    assert found is not None
    assert found.source == path.name
    from persistlib.converters import torch_file

    with torch_file.open_file(path) as reader:
        assert found.id == identity(reader)


def test_weights_that_do_not_fit_change_nothing_and_name_every_tensor(
    checkpoint_file: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    path, _ = checkpoint_file
    with pytest.raises(PersistlibError) as caught:
        build("torchvision.models:squeezenet1_1", weights=path, num_classes=4)
    assert caught.value.code == Code.WEIGHTS_MISMATCH.identifier
    assert [f.location for f in caught.value.findings] == [
        "classifier.1.weight",
        "classifier.1.bias",
    ]


def test_what_weights_configure_becomes_part_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    real = models.googlenet

    def fetch(*_: object) -> Any:
        return real(transform_input=True, aux_logits=False, init_weights=False)

    monkeypatch.setattr(fetching, "fetch", fetch)
    model = build("torchvision.models:googlenet", weights="DEFAULT")
    found = recorded(model)
    assert found is not None
    assert found.arguments == {"transform_input": True, "aux_logits": False}
    kept = origin(model)
    assert kept is not None
    assert kept.source == "torchvision.models:googlenet:DEFAULT"


def test_the_structure_digest_is_the_same_in_another_process() -> None:
    import subprocess

    script = (
        "from persistlib.architecture.structure import structure_digest, source_digest\n"
        "from persistlib.architecture.skeleton import rebuild\n"
        "from torchvision import models\n"
        f"print(structure_digest(rebuild({RESNET!r}, {{}})), source_digest(models.resnet18))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    digests = result.stdout.split()
    assert digests == [structure_digest(models.resnet18()), str(source_digest(models.resnet18))]


def test_the_structure_digest_tells_settings_apart_and_not_values() -> None:
    plain = structure_digest(nn.Sequential(nn.Linear(2, 2)))
    assert structure_digest(nn.Sequential(nn.Linear(2, 2))) == plain
    others: list[nn.Module] = [
        nn.Sequential(nn.Linear(2, 2, bias=False)),
        nn.Sequential(nn.Linear(2, 3)),
        nn.Sequential(nn.Linear(2, 2).double()),
        nn.Sequential(nn.Linear(2, 2), nn.ReLU()),
        nn.ModuleList([nn.Linear(2, 2)]),
    ]
    digests = {structure_digest(other) for other in others}
    assert plain not in digests
    assert len(digests) == len(others)
    halved = nn.Sequential(nn.Linear(2, 2)).half()
    dtypes = {"0.weight": "F32", "0.bias": "F32"}
    assert structure_digest(halved, dtypes) == plain


def test_a_modules_configuration_is_its_plain_attributes() -> None:
    assert configuration(nn.Dropout(0.25)) == {
        "inplace": False,
        "non-persistent buffers": [],
        "p": 0.25,
    }
    assert configuration(nn.Linear(2, 3, bias=False))["bias"] is None


def test_a_skeleton_of_a_manifests_architecture_is_on_meta_with_real_buffers() -> None:
    made = skeleton(Architecture(builder=RESNET, structure="blake3:" + "0" * 64))
    assert all(parameter.is_meta for parameter in made.parameters())
    assert not any(buffer.is_meta for buffer in made.buffers())


def test_safetensors_weights_are_read_too(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = nn.Linear(3, 2)
    path = tmp_path / "linear.safetensors"
    save_file(model.state_dict(), path)
    built = build("torch.nn:Linear", weights=str(path), in_features=3, out_features=2)
    assert torch.equal(built.weight, model.weight)  # type: ignore[arg-type]
    with safetensors_file.open_file(path) as reader:
        found = origin(built)
        assert found is not None
        assert found.id == identity(reader)
