"""No wrong candidate is accepted: each trick is caught by a rule, or kept by the recipe."""

from __future__ import annotations

import types
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torchvision import models

import own_models
from persistlib.architecture import describe as describing
from persistlib.architecture.behaviour import Inputs, TrialFailedError, same_outputs
from persistlib.architecture.compare import differences
from persistlib.architecture.describe import describe
from persistlib.architecture.skeleton import rebuild
from persistlib.errors import ArchitectureError, Code

if TYPE_CHECKING:
    from collections.abc import Callable

NET = "own_models:Net"
IMAGE = torch.rand(1, 3, 64, 64)


def net() -> own_models.Net:
    return own_models.Net(4, nn.functional.relu)


def edits(model: nn.Module, **how: Any) -> list[tuple[str, str, str | None]]:
    found = describe(model, **how).architecture
    return [(edit.op, edit.path, edit.attribute) for edit in found.edits]


def swap(model: nn.Module, one: str, other: str) -> nn.Module:
    parent = model.get_submodule(one.rpartition(".")[0])
    names = one.rpartition(".")[2], other.rpartition(".")[2]
    parts = [parent._modules[name] for name in names]
    for name, part in zip(names, reversed(parts), strict=True):
        parent._modules[name] = part
    return model


def reordered(model: nn.Module) -> nn.Module:
    part = model._modules.pop("bn1")
    model._modules["bn1"] = part
    return model


def changed(model: nn.Module, attribute: str, value: Any) -> nn.Module:
    setattr(model, attribute, value)
    return model


def tricked_class() -> Any:
    class ResNet(models.ResNet):  # type: ignore[misc]  # torchvision ships no types
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x) * 2

    model: Any = models.resnet18()
    model.__class__ = ResNet
    return model


def extra_parameter() -> Any:
    model: Any = models.resnet18()
    model.scale = nn.Parameter(torch.ones(1))
    return model


def pruned() -> Any:
    model: Any = models.resnet18()
    model.fc.weight = nn.Parameter(model.fc.weight[:, :100].detach().clone())
    return model


def bound_forward() -> Any:
    model: Any = models.resnet18()
    model.forward = types.MethodType(lambda self, x: self.fc(x), model)
    return model


def persistent_no_more() -> Any:
    model: Any = models.resnet18()
    buffer = model.bn1.running_mean
    del model.bn1.running_mean
    model.bn1.register_buffer("running_mean", buffer, persistent=False)
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "forward patched with a lambda": (
        lambda: changed(models.resnet18(), "forward", lambda x: x),
        "forward",
    ),
    "forward patched with a method": (bound_forward, "forward"),
    "norm layer by a lambda": (
        lambda: models.resnet18(norm_layer=lambda size: nn.BatchNorm2d(size, eps=1e-3)),
        "_norm_layer",
    ),
    "children in another order": (lambda: reordered(models.resnet18()), "the module itself"),
    "a parameter more": (extra_parameter, "scale"),
    "a weight cut by hand": (pruned, "fc.weight"),
    "a buffer kept out of the state": (persistent_no_more, "bn1.non-persistent buffers"),
    "a generator as attribute": (
        lambda: changed(models.resnet18(), "gen", iter([1])),
        "gen",
    ),
}


@pytest.mark.parametrize("label", REFUSED)
def test_what_no_edit_says_is_refused_by_module_and_attribute(label: str) -> None:
    make, location = REFUSED[label]
    with pytest.raises(ArchitectureError) as caught:
        describe(make())
    assert caught.value.code == Code.LOOKALIKE.identifier
    assert caught.value.location == location


def test_a_class_that_only_looks_like_torchvisions_is_refused() -> None:
    with pytest.raises(ArchitectureError) as caught:
        describe(tricked_class())
    assert caught.value.code == Code.NO_ARCHITECTURE.identifier
    assert "cannot be imported" in caught.value.reason


def test_a_class_redefined_since_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = own_models.Steered()
    newer = type("Steered", (own_models.Steered,), {"__module__": "own_models"})
    monkeypatch.setattr(own_models, "Steered", newer)
    with pytest.raises(ArchitectureError):
        describe(model)
    copied = rebuild("own_models:Steered", {}, trust={"own_models"})
    found = differences(model, copied)
    assert [difference.path for difference in found] == [""]
    assert "another definition" in found[0].live


KEPT: dict[str, tuple[Callable[[], nn.Module], list[tuple[str, str, str | None]]]] = {
    "same-shaped children swapped with other settings": (
        lambda: swap(with_eps(models.resnet18()), "layer1.0.bn1", "layer1.0.bn2"),
        [("set", "layer1.0.bn2", "eps")],
    ),
    "a list changed": (lambda: changed(net(), "scales", [1.0, 2.5]), [("set", "", "scales")]),
    "a list of the same text": (
        lambda: changed(net(), "scales", (1.0, 2.0)),
        [("set", "", "scales")],
    ),
    "an integer for a float": (
        lambda: changed(net(), "scales", [1, 2.0]),
        [("set", "", "scales")],
    ),
    "True for one": (lambda: changed(net(), "scales", [True, 2.0]), [("set", "", "scales")]),
    "a function of the same shape": (
        lambda: changed(net(), "activation", nn.functional.gelu),
        [],
    ),
    "a partial": (
        lambda: changed(net(), "activation", partial(nn.functional.leaky_relu, negative_slope=0.3)),
        [],
    ),
    "forward patched with an importable function": (
        lambda: changed(net(), "forward", own_models.halved),
        [("set", "", "forward")],
    ),
    "an attribute gone": (lambda: without(net(), "scales"), [("remove", "", "scales")]),
    "a layer gone": (lambda: without_layer(net()), []),
    "a trivial activation": (
        lambda: changed(models.resnet18(), "relu", nn.ReLU()),
        [("set", "relu", "inplace")],
    ),
}


def with_eps(model: Any) -> Any:
    model.layer1[0].bn1.eps = 0.5
    return model


def without(model: nn.Module, attribute: str) -> nn.Module:
    delattr(model, attribute)
    return model


def without_layer(model: own_models.Net) -> nn.Module:
    del model.layers[1]
    return model


@pytest.mark.parametrize("label", KEPT)
def test_what_an_edit_or_argument_says_is_kept(label: str) -> None:
    make, expected = KEPT[label]
    model = make()
    found = describe(model).architecture
    assert (
        differences(
            model, rebuild(found.builder, found.arguments, found.edits, trust={"own_models"})
        )
        == []
    )
    said = [(edit.op, edit.path, edit.attribute) for edit in found.edits]
    if label != "a layer gone":
        assert said == expected
    else:
        assert len(said) <= 1


def test_a_closure_over_another_value_is_refused() -> None:
    model = own_models.Closure(2.0)
    with pytest.raises(ArchitectureError) as caught:
        describe(model, inputs=torch.rand(1, 3))
    assert (caught.value.code, caught.value.location) == (Code.LOOKALIKE.identifier, "act")


def test_a_plain_object_with_another_setting_is_refused() -> None:
    model = own_models.Steered()
    model.setting.factor = 3.0
    with pytest.raises(ArchitectureError) as caught:
        describe(model, inputs=torch.rand(1, 3))
    assert (caught.value.code, caught.value.location) == (Code.LOOKALIKE.identifier, "setting")


def test_a_hook_that_changes_the_output_is_caught_by_running() -> None:
    model: Any = models.resnet18()
    model.fc.register_forward_hook(lambda _module, _inputs, output: output * 2)
    with pytest.raises(ArchitectureError) as caught:
        describe(model)
    assert caught.value.code == Code.LOOKALIKE.identifier
    assert "hook" in caught.value.remedy


def test_a_hook_that_only_looks_on_stays_and_is_told() -> None:
    model: Any = models.resnet18()
    seen: list[int] = []
    model.fc.register_forward_hook(lambda *_: seen.append(1))
    found = describe(model)
    assert [(f.code, f.severity, f.location) for f in found.findings] == [
        (Code.HOOKS_DROPPED.identifier, "note", "fc")
    ]
    assert len(model.fc._forward_hooks) == 1


def test_outputs_that_differ_are_told_although_everything_else_agrees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = own_models.Steered()
    monkeypatch.setattr(describing, "differences", lambda *_: [])
    other = own_models.Steered()
    other.setting.factor = 3.0
    with pytest.raises(ArchitectureError) as caught:
        describing._behaviour(model, own_recipe(), torch.rand(1, 3), other)
    assert caught.value.code == Code.LOOKALIKE.identifier


def own_recipe() -> Any:
    from persistlib.architecture.recipe import Recipe

    return Recipe("own_models:Steered")


def test_an_input_that_the_model_refuses_is_a_warning() -> None:
    found = describe(own_models.Steered(), inputs=torch.rand(1, 5))
    assert [f.code for f in found.findings] == [Code.BEHAVIOUR_UNTRIED.identifier]


def test_a_model_that_does_not_repeat_itself_is_not_blamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counter = iter(range(100))

    def unstable(self: own_models.Global, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x) + next(counter)
        return out

    monkeypatch.setattr(own_models.Global, "forward", unstable)
    with pytest.raises(TrialFailedError, match="each time"):
        same_outputs(own_models.Global(), own_models.Global(), Inputs((torch.rand(1, 3),)))


def test_a_trial_leaves_buffers_and_attributes_alone() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.seen.add_(1)  # type: ignore[operator]
            return x + self.seen  # type: ignore[operator]

    model, other = Counting(), Counting()
    same_outputs(model, other, Inputs((torch.rand(1),)))
    assert model.calls == 0
    assert model.training
    assert torch.equal(model.seen, torch.zeros(1))  # type: ignore[arg-type]


def test_settings_of_a_parametrization_are_part_of_the_recipe() -> None:
    for cayley in ("cayley", "householder"):
        model = nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map=cayley))
        (_, edit) = describe(model).architecture.edits
        assert edit.arguments["orthogonal_map"] == cayley


def test_a_parametrization_of_a_local_class_is_refused() -> None:
    class Symmetric(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.triu() + x.triu(1).transpose(-1, -2)

    model = nn.Sequential(nn.Linear(3, 3))
    nn.utils.parametrize.register_parametrization(model[0], "weight", Symmetric())
    with pytest.raises(ArchitectureError) as caught:
        describe(model)
    assert caught.value.location == "0.parametrizations"
