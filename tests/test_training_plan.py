"""The plan: the last layer found by running the model, and everything said before it starts."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import persistlib
from persistlib.errors import PersistlibError, UsageError
from persistlib.preprocessing import ImagePreprocessing
from persistlib.training.beginnings import Saved
from persistlib.training.head import drop_auxiliary_heads, find_head, replace_head
from persistlib.training.loop import finetune
from persistlib.training.plan import plan
from persistlib.training.presets import preprocessings
from persistlib.training.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

models = pytest.importorskip("torchvision.models")

SEEDED: dict[str, Any] = {"epochs": 1, "lr": 0.01}
SETTINGS = Settings(epochs=1, lr=0.01, batch_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("blue", "green", "red")):
        (root / name).mkdir()
        for number in range(6):
            pixels = rng.integers(0, 60, (20, 24, 3), np.uint8)
            pixels[:, :, 2 - label] += 180
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def built_on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        extra = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
        model: nn.Module = models.get_model(name, **extra)
        return model


HEADS = {
    "alexnet": "classifier.6",
    "convnext_tiny": "classifier.2",
    "densenet121": "classifier",
    "efficientnet_b0": "classifier.1",
    "efficientnet_v2_s": "classifier.1",
    "googlenet": "fc",
    "inception_v3": "fc",
    "maxvit_t": "classifier.5",
    "mnasnet0_5": "classifier.1",
    "mobilenet_v2": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "regnet_y_400mf": "fc",
    "resnet50": "fc",
    "resnext50_32x4d": "fc",
    "shufflenet_v2_x0_5": "fc",
    "squeezenet1_0": "classifier.1",
    "squeezenet1_1": "classifier.1",
    "swin_t": "head",
    "swin_v2_t": "head",
    "vgg11_bn": "classifier.6",
    "vit_b_16": "heads.head",
    "wide_resnet50_2": "fc",
}


def find_and_replace(name: str, model: nn.Module) -> str:
    device = next(model.parameters()).device
    drop_auxiliary_heads(model)
    for record in preprocessings(f"torchvision.models:{name}", model, None, None):
        assert record.size is not None
        example = torch.zeros(1, 3, *record.size, device=device)
        try:
            head = find_head(model, example)
        except UsageError:
            continue  # a size that other weights of this builder are for
        new = replace_head(model, head, 7, example=example, seed=0)
        assert head.width == 1000
        assert model.get_submodule(head.path) is new
        assert next(new.parameters()).device == device
        return head.path
    raise AssertionError(name)


@pytest.mark.parametrize(
    "name",
    [
        "alexnet",
        "googlenet",
        "inception_v3",
        "mnasnet0_5",
        "mobilenet_v2",
        "shufflenet_v2_x0_5",
        "squeezenet1_1",
        "swin_t",
        "vit_b_16",
    ],
)
def test_the_last_layer_of_every_family_is_found_and_replaced(name: str) -> None:
    assert find_and_replace(name, built_on_meta(name)) == HEADS[name]


def test_the_last_layer_of_a_regnet_is_found_and_replaced() -> None:
    # They cannot be built on the meta device.
    assert find_and_replace("regnet_y_400mf", models.regnet_y_400mf()) == HEADS["regnet_y_400mf"]


@pytest.mark.slow
@pytest.mark.parametrize("name", models.list_models(module=models))
def test_the_last_layer_of_the_whole_zoo_is_found_and_replaced(name: str) -> None:
    model = models.get_model(name) if name.startswith("regnet") else built_on_meta(name)
    family = next(name[:end] for end in range(len(name), 0, -1) if any_begins(name[:end]))
    (path,) = {path for known, path in HEADS.items() if known.startswith(family)}
    assert find_and_replace(name, model) == path


def any_begins(prefix: str) -> bool:
    return any(known.startswith(prefix) for known in HEADS)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_dropped_as_their_own_builders_do(name: str) -> None:
    model = built_on_meta(name)
    dropped = drop_auxiliary_heads(model)
    with torch.device("meta"):
        plain = models.get_model(name, aux_logits=False, init_weights=False)
    assert dropped
    assert list(model.state_dict()) == list(plain.state_dict())
    assert drop_auxiliary_heads(model) == ()


class Scaled(nn.Module):
    """A last layer whose outputs are scaled by a parameter of their width."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 5)
        self.scale = nn.Parameter(torch.ones(5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.fc(images.flatten(1))
        return scores * self.scale


class Declared(nn.Module):
    """Declares its last layer first, and an unused one last."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 5)
        self.first = nn.Linear(12, 6)
        self.unused = nn.Linear(6, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.last(self.first(images.flatten(1)))
        return scores


EXAMPLE = torch.zeros(1, 3, 2, 2)


def test_what_counts_is_the_order_of_running_not_of_declaring() -> None:
    model = Declared()
    head = find_head(model, EXAMPLE)
    assert head.path == "last"
    before = torch.get_rng_state()
    replace_head(model, head, 9, example=EXAMPLE, seed=0)
    assert model(EXAMPLE).shape == (1, 9)
    assert before.equal(torch.get_rng_state())


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5)),
        nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Unflatten(1, (2, 3)), nn.Flatten(0, 1)),
        nn.Sequential(nn.Conv2d(3, 5, 1)),
        nn.Flatten(),
        Scaled(),
        nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(12, 5))),
    ],
)
def test_a_last_layer_that_cannot_be_told_is_refused(model: nn.Module) -> None:
    with pytest.raises(PersistlibError) as caught:
        replace_head(model, find_head(model, EXAMPLE), 3, example=EXAMPLE, seed=0)
    assert caught.value.code == "PL806"
    assert "persistlib.finetune" in caught.value.remedy


def test_the_new_layer_keeps_bias_and_dtype_and_is_drawn_from_the_seed() -> None:
    drawn: list[torch.Tensor] = []
    for seed in (1, 1, 2):
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False)).double()
        example = EXAMPLE.double()
        new = replace_head(model, find_head(model, example), 3, example=example, seed=seed)
        assert isinstance(new, nn.Linear)
        assert new.bias is None
        assert new.weight.dtype == torch.float64
        drawn.append(new.weight)
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])


def test_images_are_prepared_as_the_weights_were_trained() -> None:
    model = nn.Conv2d(3, 8, 3)
    (record,) = preprocessings("torchvision.models:resnet50", model, "IMAGENET1K_V1", None)
    assert (record.resize, record.size) == (256, (224, 224))
    (record,) = preprocessings("torchvision.models:resnet50", model, "DEFAULT", None)
    assert (record.resize, record.size) == (232, (224, 224))
    (record,) = preprocessings("torchvision.models:swin_v2_t", model, "runs/a.pth", 96)
    assert (record.resize, record.size, record.interpolation) == (96, (96, 96), "bicubic")
    sizes = [r.size for r in preprocessings("torchvision.models:vit_h_14", model, None, None)]
    assert sizes == [(518, 518), (224, 224)]
    for builder in ("my_package:Net", "torchvision.models:no_such", "torch.nn:Linear"):
        assert [r.size for r in preprocessings(builder, model, None, None)] == [(224, 224)]
    (grey,) = preprocessings("my_package:Net", nn.Conv2d(1, 8, 3), None, 28)
    assert (grey.channels, len(grey.mean), grey.size) == (1, 1, (28, 28))


def test_a_plan_says_what_will_happen_in_words_and_as_data(folder: Path) -> None:
    made = plan("mnasnet0_5", data=folder, resize=32, settings=SETTINGS)
    words = dict(made.rows())
    assert words["data"] == f"{folder.name}: 18 images"
    assert words["classes"] == "3: blue, green, red"
    assert words["split"] == "15 to train on, 3 held out; stratified, seed 0"
    assert words["images"] == "32 x 32 pixels, 3 channels"
    assert words["last layer"] == "classifier.1: 1,000 classes become 3"
    assert "3,843 of" in words["trained"]
    assert "BatchNorm" in words["frozen"]
    facts = json.loads(json.dumps(made.to_dict()))
    assert facts["freeze"] == ["*", "!classifier.1.*"]
    assert facts["trained_parameters"] == 1280 * 3 + 3
    assert facts["frozen_buffers"] == sum(1 for _ in made.model.buffers())


def test_a_plan_draws_fresh_values_from_its_seed(folder: Path) -> None:
    before = torch.get_rng_state()
    states = [
        plan("squeezenet1_1", data=folder, resize=32, settings=Settings(**SEEDED, seed=seed))
        for seed in (1, 1, 2)
    ]
    first, again, other = (made.model.state_dict()["features.0.weight"] for made in states)
    assert first.equal(again)
    assert not first.equal(other)
    assert before.equal(torch.get_rng_state())


def test_a_plan_says_the_strategy_and_counts_what_the_last_phase_trains(folder: Path) -> None:
    made = plan(
        "squeezenet1_1",
        data=folder,
        resize=32,
        settings=Settings(epochs=3, lr=0.01),
        strategy={"kind": "gradual", "rate_decay": 0.5},
    )
    words = dict(made.rows())
    assert words["strategy"].startswith("gradual; one block more from epochs 2, 3 on; each block")
    assert made.freeze == ()
    last = made.strategy.phases[-1].freeze
    assert last[-2:] == ("!features.12", "!classifier.1")
    frozen = made.model.get_submodule("features.10")
    assert made.counts.trained < sum(item.numel() for item in made.model.parameters())
    assert next(frozen.parameters()).requires_grad  # nothing has been frozen yet
    with pytest.raises(PersistlibError) as caught:
        plan("squeezenet1_1", data=folder, settings=SETTINGS, strategy="head", freeze="*")
    assert caught.value.code == "PL901"


def test_a_plan_is_carried_out_as_stated(folder: Path) -> None:
    made = plan("squeezenet1_1", data=folder, resize=64, settings=SETTINGS)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    result = finetune(made.model, made.train, made.valid, **made.arguments)
    strategy = result.training.strategy
    assert strategy["trained_parameters"] == made.counts.trained
    assert strategy["frozen_parameters"] == made.counts.frozen
    assert result.interface.labels == ("blue", "green", "red")
    assert result.training.data is not None
    assert result.training.data.sizes == {"train": 15, "valid": 3}
    changed = {n for n, value in result.model.state_dict().items() if not value.equal(before[n])}
    assert changed == {"classifier.1.weight", "classifier.1.bias"}


def test_inception_is_trained_on_images_that_its_auxiliary_head_would_refuse(folder: Path) -> None:
    made = plan(
        "googlenet", data=folder, resize=32, settings=SETTINGS, arguments={"init_weights": False}
    )
    assert made.dropped == ("aux1", "aux2")
    assert "auxiliary heads dropped: aux1, aux2" in dict(made.rows())["last layer"]
    assert finetune(made.model, made.train, **made.arguments).history


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of three classes that says how its images are prepared, all but its head frozen."""
    torch.manual_seed(4)
    model = persistlib.build("torchvision.models:squeezenet1_1", num_classes=3).eval()
    persistlib.freeze(model, ["*", "!classifier.*"])
    path = tmp_path_factory.mktemp("saved") / "bundle"
    preprocessing = {"kind": "image", "channels": 3, "resize": [40, 48], "mean": [0.1, 0.2, 0.3]}
    interface = {"labels": ["blue", "green", "red"], "preprocessing": preprocessing}
    example = torch.randn(2, 3, 40, 48)
    persistlib.save(
        model, path, name="mine", license="MIT", example_inputs=example, interface=interface
    )
    return path


def opened(path: Path) -> Saved:
    return Saved(persistlib.load(path), persistlib.inspect(path).manifest)


def test_a_bundle_is_begun_from_with_its_values_images_and_lineage(
    folder: Path, saved: Path
) -> None:
    before = persistlib.load(saved).state_dict()
    made = plan(opened(saved), data=folder, settings=SETTINGS, strategy="full")
    assert isinstance(made.preprocessing, ImagePreprocessing)
    assert made.preprocessing.mean == (0.1, 0.2, 0.3)
    assert made.preprocessing.size == (40, 48)
    assert all(value.equal(made.model.state_dict()[name]) for name, value in before.items())
    assert dict(made.rows())["last layer"] == "classifier.1: kept, 3 classes as in the bundle"
    assert made.counts.frozen == 0
    assert made.lineage is not None
    assert (made.lineage.source, made.lineage.license) == ("mine", "MIT")
    assert made.lineage.id == persistlib.inspect(saved).manifest.bundle_id
    smaller = plan(opened(saved), data=folder, settings=SETTINGS, resize=32)
    assert isinstance(smaller.preprocessing, ImagePreprocessing)
    assert (smaller.preprocessing.size, smaller.preprocessing.mean) == ((32, 32), (0.1, 0.2, 0.3))
    assert smaller.freeze == ("*", "!classifier.1.*")


def test_a_bundle_for_other_classes_gets_a_new_last_layer(
    folder: Path, saved: Path, tmp_path: Path
) -> None:
    for name, other in (("blue", "azure"), ("green", "green"), ("red", "red")):
        (tmp_path / other).symlink_to(folder / name)
    before = persistlib.load(saved).state_dict()
    made = plan(opened(saved), data=tmp_path, settings=SETTINGS)
    assert dict(made.rows())["last layer"] == "classifier.1: made anew for 3 classes"
    now = made.model.state_dict()
    changed = {name for name, value in before.items() if not value.equal(now[name])}
    assert changed == {"classifier.1.weight", "classifier.1.bias"}


def test_weights_with_another_last_layer_give_all_but_that(folder: Path, saved: Path) -> None:
    file = saved / "model.safetensors"
    before = persistlib.load(saved).state_dict()
    made = plan("squeezenet1_1", data=folder, weights=file, resize=32, settings=SETTINGS)
    words = "classifier.1: 1,000 classes become 3; that of the weights, 3 classes, is left out"
    assert dict(made.rows())["last layer"] == words
    now = made.model.state_dict()
    changed = {name for name, value in before.items() if not value.equal(now[name])}
    assert changed == {"classifier.1.weight", "classifier.1.bias"}
    assert made.lineage is not None
    assert made.lineage.id == persistlib.inspect(saved).manifest.weights.identity
    with pytest.raises(PersistlibError) as caught:
        plan("squeezenet1_0", data=folder, weights=file, resize=32, settings=SETTINGS)
    assert caught.value.code == "PL807"
    assert not any(found.location.startswith("classifier.1.") for found in caught.value.findings)


def test_faults_of_a_plan_have_a_name(folder: Path) -> None:
    for arguments, code in (
        ({"freeze": "*"}, "PL901"),
        ({"freeze": ["no.such.*"]}, "PL804"),
        ({"resize": 3}, "PL901"),
        ({"data": "no/such"}, "PL801"),
        ({"fraction": 2.0}, "PL901"),
        ({"builder": "no_such_net"}, "PL304"),
        ({"weights": folder}, "PL901"),
        ({"strategy": "foo", "data": "no/such"}, "PL901"),
    ):
        given: dict[str, Any] = {"data": folder, "resize": 32, "builder": "squeezenet1_1"}
        given |= arguments
        with pytest.raises(PersistlibError) as caught:
            plan(given.pop("builder"), settings=SETTINGS, **given)
        assert caught.value.code == code, arguments


def test_every_kind_of_fault_of_images_is_in_one_report(folder: Path, tmp_path: Path) -> None:
    """The sizes depend on the model, and are reported with what depends on the files alone."""
    root = tmp_path / "pets"
    shutil.copytree(folder, root)
    (root / "empty").mkdir()
    (root / "alone").mkdir()
    shutil.copy(root / "red" / "0.png", root / "alone" / "0.png")
    (root / "blue" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n????")
    (root / "blue" / "gone.png").symlink_to("nowhere")
    Image.new("RGB", (31, 20)).save(root / "red" / "wide.png")
    Image.new("RGB", (24, 7)).save(root / "red" / "flat.png")
    model = persistlib.build("torchvision.models:squeezenet1_1", num_classes=3).eval()
    manifest: Any = {"channels": 3, "mean": [0.5, 0.5, 0.5]}
    persistlib.save(
        model,
        tmp_path / "bundle",
        example_inputs=torch.zeros(1, 3, 40, 40),
        interface={"labels": ["blue", "green", "red"], "preprocessing": manifest},
    )
    with pytest.raises(PersistlibError) as caught:
        plan(opened(tmp_path / "bundle"), data=root, settings=SETTINGS)
    found = {item.location.removeprefix(f"{root}/"): item.message for item in caught.value.findings}
    assert set(found) == {
        *("empty", "alone", "blue/broken.png", "blue/gone.png", "red/wide.png", "red/flat.png")
    }
    assert found["red/wide.png"] == "31 x 20 pixels, where 19 have 24 x 20"
    cropped = manifest | {"crop": [20, 20]}
    persistlib.save(
        model,
        tmp_path / "cropped",
        example_inputs=torch.zeros(1, 3, 40, 40),
        interface={"labels": ["blue", "green", "red"], "preprocessing": cropped},
    )
    with pytest.raises(PersistlibError) as caught:
        plan(opened(tmp_path / "cropped"), data=root, settings=SETTINGS)
    found = {item.location.removeprefix(f"{root}/"): item.message for item in caught.value.findings}
    assert "smaller than the crop" in found["red/flat.png"]
    assert {*found} == {"empty", "alone", "blue/broken.png", "blue/gone.png", "red/flat.png"}
