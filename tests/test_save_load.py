"""What is saved comes back, bit for bit, in a process that has never seen it."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
import torchvision.models as zoo
from safetensors.torch import load_file, load_model
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

import persistlib
import saved_models
from persistlib import bundle
from persistlib.digests import digest_all
from persistlib.errors import Code, PersistlibError
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
    return torch.randn(shape, generator=torch.Generator().manual_seed(8), dtype=torch.float32)


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
    norm = model.get_submodule("layer3.0.bn2")
    assert isinstance(norm, nn.BatchNorm2d)
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
    model.set_submodule("fc", heads[kind]())
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
    model.set_submodule("maxpool", nn.Identity())
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
    model.get_submodule("layer1").eval()
    model.get_submodule("bn1").eval()
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
        model.to(memory_format=torch.channels_last),
        (image().to(memory_format=torch.channels_last),),
    )


def transposed() -> Case:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    first = model[0]
    assert isinstance(first, nn.Linear)
    first.weight = nn.Parameter(first.weight.detach().t())
    return Case(model, (rows(3, 6),))


def recurrent(kind: type[nn.LSTM | nn.GRU]) -> Case:
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


# Large models of which a kin is tried by default.
LARGE = {
    "googlenet with auxiliary heads",
    "googlenet stripped of them",
    "inception_v3 without auxiliary head",
    "head without bias",
    "head Identity",
    "resnet18 with eps through norm_layer",
}


@OLD
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in LARGE else ()) for n in CASES]
)
def test_a_model_is_the_same_in_another_process(loader: Loader, tmp_path: Path, name: str) -> None:
    model, inputs, told = CASES[name]()
    target = tmp_path / "model"
    before = state(model)
    outside = world()
    manifest = persistlib.save(model, target, example_inputs=inputs, **told)
    assert not differences(outside, world())
    assert not differences(before, state(model))
    expected = draw(model, inputs)
    assert tells(expected)
    trust = (
        ["saved_models"] if "saved_models" in json.dumps(manifest.model_dump(mode="json")) else []
    )
    loaded = loader.load(target, inputs, trust=trust)
    assert not differences(before, {key: loaded[key] for key in before})
    assert not differences(expected, loaded)


# -- the caller ------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_callers_world_is_left_as_it_is(
    tmp_path: Path, *, grad: bool, dtype: torch.dtype
) -> None:
    model = saved_models.Noisy()
    torch.set_default_dtype(dtype)
    try:
        with torch.set_grad_enabled(grad):
            before = world()
            persistlib.save(model, tmp_path / "model", example_inputs=rows(3, 5))
            assert not differences(before, world())
            loaded = module(tmp_path / "model")
            assert not differences(before, world())
            assert persistlib.verify(tmp_path / "model").ok
            assert not differences(before, world())
    finally:
        torch.set_default_dtype(torch.float32)
    assert not differences(state(model), state(loaded))


def test_inputs_that_a_model_writes_into_are_left_as_they_are(tmp_path: Path) -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2)).eval()
    inputs = rows(3, 4)
    before = inputs.clone()
    persistlib.save(model, tmp_path / "model", example_inputs=inputs)
    assert torch.equal(inputs, before)
    stored = load_file(tmp_path / "model" / "examples.safetensors")
    assert torch.equal(stored["input.input"], before)
    assert persistlib.verify(tmp_path / "model", behaviour=True).ok


def test_what_was_loaded_is_the_callers_to_change(tmp_path: Path) -> None:
    persistlib.save(net(), tmp_path / "model", example_inputs=image(12))
    files = contents(tmp_path / "model")
    model = module(tmp_path / "model")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(1)
    assert contents(tmp_path / "model") == files
    assert persistlib.verify(tmp_path / "model").ok


def module(path: Path, **told: Any) -> nn.Module:
    model = persistlib.load(path, trust={"saved_models"}, **told)
    assert isinstance(model, nn.Module)
    return model


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("kind", ["set", "deque", "partial", "array", "instance"])
def test_a_tensor_where_nothing_saves_it_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(PersistlibError) as caught:
        persistlib.save(saved_models.Hidden(kind), tmp_path / "model", example_inputs=rows(2, 3))
    assert caught.value.location.startswith("box")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["leaf", "parameter"])
def test_a_tensor_that_trains_and_is_no_parameter_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(PersistlibError, match=r"PL329 box.*trains, but is no parameter"):
        persistlib.save(saved_models.Hidden(kind), tmp_path / "model", example_inputs=rows(2, 3))


def test_frozen_statistics_stay_frozen_through_a_second_life(tmp_path: Path) -> None:
    case = frozen_backbone()
    persistlib.save(case.model, tmp_path / "one", example_inputs=case.inputs)
    persistlib.save(module(tmp_path / "one"), tmp_path / "two", example_inputs=case.inputs)
    model = module(tmp_path / "two").train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(*case.inputs)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]


# -- the same model gives the same files -----------------------------------------------------------


@OLD
@pytest.mark.parametrize("make", [net, saved_models.Tied, saved_models.Seven, saved_models.Noisy])
def test_a_loaded_model_saves_as_what_it_was(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    inputs: dict[str, torch.Tensor] = {
        "net": image(12), "Tied": tokens(), "Seven": rows(3, 6), "Noisy": rows(3, 5)
    }  # fmt: skip
    told: dict[str, Any] = {"example_inputs": inputs[make.__name__]}
    first = persistlib.save(make(), tmp_path / "first", **told)
    again = persistlib.save(module(tmp_path / "first"), tmp_path / "again", **told)
    assert again.bundle_id == first.bundle_id
    assert again.weights == first.weights
    one, other = contents(tmp_path / "first"), contents(tmp_path / "again")
    assert {name for name in one if one[name] != other[name]} <= {"manifest.json", "README.md"}


@pytest.mark.parametrize("shard_bytes", [1 << 30, 400])
def test_two_saves_of_one_model_differ_in_their_time_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_bytes: int
) -> None:
    model = net()
    told: dict[str, Any] = {
        "example_inputs": image(12), "onnx": True, "shard_bytes": shard_bytes
    }  # fmt: skip
    saved = []
    for name, epoch in (("a", "1"), ("b", "2"), ("c", "2")):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
        persistlib.save(model, tmp_path / name, **told)
        saved.append(contents(tmp_path / name))
    assert saved[1] == saved[2]
    assert {n for n in saved[0] if saved[0][n] != saved[1][n]} <= {"manifest.json", "README.md"}
    one, other = (json.loads(files["manifest.json"]) for files in saved[:2])
    assert {key for key in one if one[key] != other[key]} == {"created", "digest"}


# -- shards, parts and links -----------------------------------------------------------------------


def test_shards_are_what_the_hub_and_safetensors_read(tmp_path: Path) -> None:
    model = net()
    manifest = persistlib.save(
        model, tmp_path / "model", example_inputs=image(12), shard_bytes=300, sha256=True
    )
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_bytes())
    names = [entry.path for entry in manifest.weights.files]
    assert len(names) > 2
    assert names == [
        f"model-{n + 1:05d}-of-{len(names):05d}.safetensors" for n in range(len(names))
    ]
    assert sorted(set(index["weight_map"].values())) == names
    read: dict[str, torch.Tensor] = {}
    for name in names:
        part = load_file(tmp_path / "model" / name)
        assert {key for key, file in index["weight_map"].items() if file == name} == set(part)
        read |= part
    wanted = model.state_dict()
    assert set(read) == set(wanted)
    assert all(torch.equal(read[key], wanted[key]) for key in wanted)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in wanted.values())
    assert persistlib.verify(tmp_path / "model").ok
    assert not differences(state(model), state(module(tmp_path / "model")))


@pytest.mark.parametrize("make", [net, saved_models.Tied])
def test_the_weights_file_loads_by_safetensors_itself(
    tmp_path: Path, make: Callable[[], nn.Module]
) -> None:
    model = make()
    inputs = tokens() if make is saved_models.Tied else image(12)
    persistlib.save(model, tmp_path / "model", example_inputs=inputs)
    file = tmp_path / "model" / "model.safetensors"
    fresh = type(model)()
    assert not any(load_model(fresh, file))
    wanted = model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in fresh.state_dict().items())


def test_a_partial_load_reads_just_those_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved_models.Tied()
    persistlib.save(model, tmp_path / "model", example_inputs=tokens(), shard_bytes=200)
    hashed: list[int] = []

    def counting(buffers: Any) -> list[str]:
        hashed.extend(memoryview(buffer).nbytes for buffer in buffers)
        return digest_all(buffers)

    monkeypatch.setattr(bundle, "digest_all", counting)
    wanted = model.state_dict()
    for patterns in (["head"], ["rnn.bias*"], ["*", "!rnn"], "embedding.weight"):
        hashed.clear()
        part: Any = persistlib.load(tmp_path / "model", only=patterns)
        assert all(torch.equal(part[name], wanted[name]) for name in part)
        distinct = {tensor.data_ptr(): tensor.nbytes for tensor in part.values()}
        assert sum(hashed) == sum(distinct.values())
    assert set(persistlib.load(tmp_path / "model", only=["rnn.bias*"])) == {
        name for name in wanted if name.startswith("rnn.bias")
    }
    both: Any = persistlib.load(tmp_path / "model", only=["head", "embedding"])
    assert both["head.weight"] is both["embedding.weight"]
    with pytest.raises(PersistlibError, match="PL804 heat"):
        persistlib.load(tmp_path / "model", only=["heat.*"])


def test_train_says_the_mode_and_frozen_modules_keep_theirs(tmp_path: Path) -> None:
    model = net()
    persistlib.freeze(model, ["features.1"])
    model.train()
    model.get_submodule("dropout").eval()
    persistlib.save(model, tmp_path / "model", example_inputs=image(12))

    def modes(**told: Any) -> dict[str, bool]:
        loaded = module(tmp_path / "model", **told)
        return {path: inner.training for path, inner in loaded.named_modules()}

    assert modes() == {path: inner.training for path, inner in model.named_modules()}
    assert not any(modes(train=False).values())
    assert [path for path, mode in modes(train=True).items() if not mode] == ["features.1"]


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("mmap", [True, False])
def test_every_way_of_reading_gives_the_same_model(
    tmp_path: Path, *, mmap: bool, verify: bool
) -> None:
    case = trained(saved_models.Noisy(), rows(3, 5))
    persistlib.save(case.model, tmp_path / "model", example_inputs=case.inputs)
    loaded = module(tmp_path / "model", mmap=mmap, verify=verify)
    assert not differences(state(case.model), state(loaded))
    if not mmap:  # its own memory: what is written into the file later does not show
        (tmp_path / "model" / "model.safetensors").write_bytes(bytes(4096))
        assert not differences(state(case.model), state(loaded))


def test_links_are_followed_where_they_are_verified(tmp_path: Path) -> None:
    """As in the Hub's cache, where every file of a snapshot is a link."""
    model = saved_models.Noisy()
    persistlib.save(model, tmp_path / "real", example_inputs=rows(3, 5))
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in (tmp_path / "real").iterdir():
        (linked / file.name).symlink_to(file)
    assert persistlib.verify(linked).ok
    assert not differences(state(model), state(module(linked)))
    with pytest.raises(PersistlibError) as caught:
        module(linked, verify=False)
    assert caught.value.code == Code.FILE_KIND.identifier
    before = contents(tmp_path / "real")
    persistlib.save(net(), linked, example_inputs=image(12), overwrite=True)
    assert contents(tmp_path / "real") == before
    assert not any(file.is_symlink() for file in linked.iterdir())
    (tmp_path / "folder").symlink_to("real")
    with pytest.raises(PersistlibError) as caught:
        persistlib.save(net(), tmp_path / "folder", example_inputs=image(12), overwrite=True)
    assert caught.value.code == Code.TARGET_KIND.identifier
    assert contents(tmp_path / "real") == before
    assert not differences(state(model), state(module(tmp_path / "folder")))


def test_a_card_that_was_edited_stays_when_the_bundle_is_overwritten(tmp_path: Path) -> None:
    persistlib.save(net(), tmp_path / "model", example_inputs=image(12))
    card = tmp_path / "model" / "README.md"
    card.write_text(card.read_text() + "\nWritten by a person.\n")
    persistlib.save(net(), tmp_path / "model", example_inputs=image(12), overwrite=True)
    assert "Written by a person." in card.read_text()
    assert persistlib.verify(tmp_path / "model").ok
