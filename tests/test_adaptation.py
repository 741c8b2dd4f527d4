"""Models adapted while they are loaded or built: what is done, what is told, what is refused."""

from __future__ import annotations

import copy
import json
import re
import sys
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx.parser
import pytest
import torch
from torch import nn

import persistlib
from adaptable_models import Centred, Choosy, Headless, Heads, Net, Patches, awake
from command_line import invoke
from persistlib.adaptation.adapting import Origin, adapt
from persistlib.adaptation.wishes import parse
from persistlib.architecture.recipe import Recipe
from persistlib.architecture.skeleton import rebuild
from persistlib.architecture.zoo_scan import builders
from persistlib.errors import Code, PersistlibError, PersistlibWarning
from persistlib.manifest.schema import Interface
from saved_models import Tied

if TYPE_CHECKING:
    from persistlib.adaptation.record import Adaptation

LABELS = ("cat", "dog", "owl")
TRUST = ("adaptable_models", "saved_models")
IMAGE = torch.randn(2, 3, 8, 8)
ZOO = "torchvision.models"


def record(model: Any) -> Adaptation:
    found = persistlib.adaptation_of(model)
    assert found is not None
    return found


def saved(model: nn.Module, path: Path, inputs: Any = IMAGE, **settings: Any) -> Path:
    persistlib.save(model, path, example_inputs=inputs, **settings)
    return path


def load(path: Path, **how: Any) -> Any:
    return persistlib.load(path, trust=TRUST, **how)


def same(one: nn.Module, other: nn.Module, inputs: torch.Tensor) -> bool:
    """Return whether two models give the same bits, which differ from sample to sample."""
    with torch.no_grad():
        ours, theirs = one.eval()(inputs), other.eval()(inputs)
    assert float(ours.std()) > 0
    return torch.equal(ours, theirs)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with all that an interface may say."""
    model = awake(Net(3, width=9))
    return saved(
        model,
        tmp_path / "net",
        name="photos",
        license="MIT",
        lineage=[{"relation": "fine-tuned-from", "source": "somewhere"}],
        interface={
            "labels": LABELS,
            "preprocessing": {
                "kind": "image",
                "channels": 3,
                "resize": 10,
                "crop": 8,
                "mean": [0.2, 0.4, 0.6],
                "std": [0.1, 0.2, 0.3],
            },
        },
    )


def test_everything_follows_and_is_told_and_comes_back(bundle: Path, tmp_path: Path) -> None:
    before = load(bundle)
    asked = {"classes": ["owl", "bee"], "channels": 1, "image_size": 16}
    model = load(bundle, adapt=asked)
    assert torch.equal(model.last.weight[0], before.last.weight[2])
    done = record(model)
    assert [(c.kind, c.location, c.before, c.after) for c in done.changes] == [
        ("image_size", "", "8x8", "16x16"),
        ("channels", "features.0", "3", "1"),
        ("classes", "last", "3", "2"),
    ]
    assert (done.missing, done.unexpected, done.reshaped, done.renamed) == ((), (), (), {})
    assert done.is_whole
    manifest = persistlib.save(model, tmp_path / "again", onnx=True, name="grey")
    given = manifest.interface
    assert given.labels == ("owl", "bee")
    assert [spec.shape for spec in given.inputs] == [("batch", 1, 16, 16)]
    assert [spec.shape for spec in given.outputs] == [("batch", 2)]
    prepared = given.preprocessing
    assert prepared is not None
    assert (prepared["channels"], prepared["resize"], prepared["crop"]) == (1, 20, [16, 16])
    assert prepared["mean"] == pytest.approx([0.4])
    assert prepared["std"] == pytest.approx([0.2])
    assert "differed" in done.notes[0]
    nearest, *others = manifest.lineage
    source = persistlib.inspect(bundle).manifest
    assert (nearest.relation, nearest.id) == ("adapted-from", source.bundle_id)
    assert nearest.license == "MIT"
    assert nearest.source.startswith("photos: image_size 8x8 to 16x16")
    assert re.search(
        r"classes 3 to 2 at last \(1 rows kept by their labels, 1 drawn", nearest.source
    )
    assert [parent.source for parent in others] == ["somewhere"]
    again = load(tmp_path / "again")
    assert same(model, again, torch.randn(3, 1, 16, 16))
    x = torch.randn(3, 1, 16, 16)
    session = persistlib.load(tmp_path / "again", runtime="onnxruntime")
    (scores,) = session.run({"x": x.numpy()}).values()
    assert torch.allclose(torch.from_numpy(scores), again(x), atol=1e-4)


def test_a_further_adaptation_adds_to_the_lineage(bundle: Path, tmp_path: Path) -> None:
    one = load(bundle, adapt={"classes": 7})
    assert record(one).interface.labels is None
    assert "no labels" in record(one).notes[0]
    first = persistlib.save(one, tmp_path / "one")
    with pytest.warns(PersistlibWarning, match="PL708"):
        two = load(tmp_path / "one", adapt={"channels": 4})
    second = persistlib.save(two, tmp_path / "two")
    assert [parent.relation for parent in second.lineage] == [
        *("adapted-from", "adapted-from", "fine-tuned-from")
    ]
    assert second.lineage[0].id == first.bundle_id
    assert second.lineage[1:] == first.lineage
    assert second.interface.preprocessing is None


def test_nothing_to_change_changes_nothing(bundle: Path) -> None:
    asked = {"channels": 3, "image_size": 8, "seed": 3}
    ways: tuple[dict[str, Any], ...] = ({"adapt": asked}, {"adapt": {}}, {"strict": "report"})
    for how in ways:
        model = load(bundle, **how)
        done = record(model)
        assert (done.changes, done.notes, done.is_whole) == ((), (), True)
        assert same(model, load(bundle), IMAGE)


def test_frozen_layers_and_flags_stay_and_a_new_layer_trains(tmp_path: Path) -> None:
    model = Net(4)
    persistlib.freeze(model, ["*"])
    path = saved(model.train(), tmp_path / "net")
    made = load(path, adapt={"classes": 6, "channels": 1, "image_size": 12})
    trains = {name for name, parameter in made.named_parameters() if parameter.requires_grad}
    assert trains == {"last.weight", "last.bias"}
    assert made.training
    made.train()
    assert not made.features[1].training


def test_fine_tuning_an_adapted_model_keeps_what_is_known_of_it(
    bundle: Path, tmp_path: Path
) -> None:
    model = load(bundle, adapt={"classes": ["ant", "bee"]})
    samples = (torch.randn(8, 3, 8, 8), torch.tensor([0, 1] * 4))
    persistlib.finetune(model, samples, samples, epochs=1, lr=0.01, out=tmp_path / "tuned")
    manifest = persistlib.inspect(tmp_path / "tuned").manifest
    assert manifest.interface.labels == ("ant", "bee")
    assert [parent.relation for parent in manifest.lineage] == ["adapted-from", "fine-tuned-from"]


HEADS = [
    (Heads("helped"), {"first", "aux"}),
    (Heads("plain", others=9), {"first"}),
    (Heads("summed"), {"first", "second"}),
    (Heads("beside", others=9), {"first"}),
    (Net(6, width=6), {"last"}),
]


@pytest.mark.parametrize(("model", "wanted"), HEADS, ids=["-".join(sorted(w)) for _, w in HEADS])
def test_last_layers_are_told_by_trying(model: nn.Module, wanted: set[str]) -> None:
    made = adapted(model, {"classes": 5})
    assert {change.location for change in record(made).changes} == wanted


def adapted(model: Any, wishes: dict[str, Any], inputs: Any = IMAGE) -> Any:
    name = f"{type(model).__module__}:{type(model).__qualname__}"
    arguments = {
        key: value for key, value in vars(model).items() if type(value) in {int, str, bool}
    }
    arguments.pop("training")
    asked = parse({"example_inputs": inputs, **wishes})
    origin = Origin(renamed={})
    return adapt(model, Recipe(name, arguments), Interface(), asked, origin, trust=TRUST)


REFUSED: list[tuple[nn.Module, dict[str, Any], Code, str]] = [
    (Heads("beside"), {"classes": 5}, Code.ADAPTATION_CHOICE, "first, second"),
    (Heads("plain"), {"classes": {"second": 5}}, Code.ADAPTATION, "second is no last layer"),
    (Heads("plain"), {"classes": {"nothing": 5}}, Code.ADAPTATION, "nothing is no last layer"),
    (Headless(), {"classes": 5}, Code.ADAPTATION, "fc"),
    (nn.Flatten(), {"classes": 5}, Code.ADAPTATION, "no linear layer"),
    (Centred(overlooks=True), {"channels": 4}, Code.ADAPTATION, "convolutions over 3 channels"),
    (Centred(), {"channels": 4}, Code.ADAPTATION, "conv"),
    (Net(), {"image_size": 1000, "channels": 2, "classes": {"mix": 2}}, Code.ADAPTATION, "mix"),
    (Patches(named=False), {"image_size": 12}, Code.ADAPTATION, "table of"),
    (Patches(), {"image_size": [8, 16]}, Code.ADAPTATION, "one number"),
    (Centred(), {"image_size": 2}, Code.ADAPTATION, "does not take it"),
]


@pytest.mark.parametrize(("model", "wishes", "code", "named"), REFUSED)
def test_what_does_not_apply_is_refused_by_name(
    model: nn.Module, wishes: dict[str, Any], code: Code, named: str
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(PersistlibError, match=re.escape(named)) as caught:
        adapted(model, {key: wishes[key] for key in wishes})
    assert caught.value.code == code.identifier
    assert caught.value.remedy
    if set(wishes) == {"channels"} or set(wishes) == {"classes"}:
        after = model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("shape", [(2, 3, 1 << 40, 1 << 40), (2, 3, 1 << 15, 1 << 15)])
def test_inputs_beyond_all_measure_are_refused(shape: tuple[int, ...]) -> None:
    given = {"inputs": [{"name": "x", "dtype": "F32", "shape": shape}]}
    interface = Interface.model_validate_json(json.dumps(given))
    recipe = Recipe("adaptable_models:Net")
    with pytest.raises(PersistlibError, match="larger than a model is tried with"):
        adapt(Net(), recipe, interface, parse({"classes": 2}), Origin(renamed={}))
    with pytest.raises(PersistlibError, match="larger than a model is tried with"):
        adapted(Net(), {"channels": 4096, "image_size": 8192})


def test_a_model_that_needs_values_is_tried_with_values() -> None:
    made = adapted(Choosy(), {"classes": 7, "channels": 1})
    assert made(torch.ones(2, 1, 8, 8)).shape == (2, 7)
    assert {change.location for change in record(made).changes} == {"conv", "fc"}


def test_a_layer_of_several_is_named(tmp_path: Path) -> None:
    model = adapted(Heads("beside"), {"classes": {"second": 5}})
    assert {name: out.shape for name, out in model(IMAGE).items()} == {"a": (2, 4), "b": (2, 5)}
    both = adapted(Heads("beside"), {"classes": {"second": 5, "first": ["x", "y"]}})
    assert both(IMAGE)["a"].shape == (2, 2)
    path = saved(both, tmp_path / "both")
    assert load(path)(IMAGE)["b"].shape == (2, 5)
    summed = adapted(Heads("summed"), {"classes": {"second": 5, "first": 5}})
    assert summed(IMAGE).shape == (2, 5)


def test_a_layer_that_is_tied_to_another_is_refused() -> None:
    tokens = torch.randint(0, 11, (2, 4))
    with pytest.raises(PersistlibError, match="embedding") as caught:
        adapted(Tied(), {"classes": 12}, tokens)
    assert caught.value.location == "head"
    with pytest.raises(PersistlibError, match="no input is a batch of images"):
        adapted(Tied(), {"channels": 1}, tokens)


def test_a_model_that_repeats_a_single_channel_is_left_alone() -> None:
    model = awake(Centred())
    plane = torch.randn(2, 1, 8, 8)
    made = adapted(model, {"channels": 1})
    assert torch.equal(made(plane), model(plane.expand(-1, 3, -1, -1)))
    assert record(made).changes[0].location == ""


def test_position_tables_are_interpolated_as_torchvision_does_it(tmp_path: Path) -> None:
    from torchvision.models.vision_transformer import interpolate_embeddings

    arguments: dict[str, Any] = {
        "patch_size": 8,
        "num_layers": 1,
        "num_heads": 2,
        "hidden_dim": 8,
        "mlp_dim": 8,
    }
    builder = f"{ZOO}.vision_transformer:VisionTransformer"
    model = awake(persistlib.build(builder, image_size=32, **arguments))
    path = saved(model, tmp_path / "vit", torch.randn(2, 3, 32, 32))
    made = persistlib.load(path, adapt={"image_size": 48})
    wanted = interpolate_embeddings(48, 8, OrderedDict(model.state_dict()))
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in made.state_dict().items())
    size, table = record(made).changes
    assert (size.kind, size.before, size.after) == ("image_size", "32x32", "48x48")
    assert (table.kind, table.location) == ("positions", "encoder.pos_embedding")
    manifest = persistlib.save(made, tmp_path / "again")
    assert manifest.architecture.arguments["image_size"] == 48
    assert not manifest.architecture.edits
    assert same(made, persistlib.load(tmp_path / "again"), torch.randn(2, 3, 48, 48))
    with pytest.raises(PersistlibError, match="indivisible"):
        persistlib.load(path, adapt={"image_size": 50})


def test_tokens_stay_indexes_are_built_anew_and_other_buffers_are_carried(tmp_path: Path) -> None:
    model: Any = Patches()
    model.noise.fill_(0.5)
    path = saved(model, tmp_path / "net")
    made = load(path, adapt={"image_size": 12, "classes": 3})
    assert torch.equal(made.pos_embed[:, :2], model.pos_embed[:, :2])
    assert made.pos_embed.shape == (1, 2 + 36, 6)
    assert made.index.tolist() == list(range(11 * 11))
    assert torch.equal(made.noise, model.noise)
    again = load(saved(made, tmp_path / "again", torch.randn(2, 3, 12, 12)))
    assert same(made, again, torch.randn(2, 3, 12, 12))


def state_of(model: nn.Module, path: Path, change: Any = lambda name: name) -> Path:
    torch.save({change(name): tensor for name, tensor in model.state_dict().items()}, path)
    return path


def build(path: Path, **how: Any) -> Any:
    return persistlib.build("adaptable_models:Net", weights=path, trust=TRUST, **how)


def test_names_of_a_weights_file_are_changed_by_rules(tmp_path: Path) -> None:
    model = awake(Net())
    path = state_of(model, tmp_path / "w.pt", lambda name: "module.net." + name)
    made = build(path, adapt={"rename": {"module.net.*": "*"}})
    assert same(model, made, IMAGE)
    assert record(made).renamed["module.net.last.bias"] == "last.bias"
    manifest = persistlib.save(made, tmp_path / "net", example_inputs=IMAGE)
    assert manifest.lineage[0].source.startswith(f"w.pt: {len(record(made).renamed)} tensors ren")
    for rules, code in (
        ({"module.net.last.*": "module.net.mix.*"}, Code.FORMAT_NAME),
        ({"nothing.*": "*"}, Code.PATTERN_UNMATCHED),
        ({"module.net.*": "n.*"}, Code.WEIGHTS_MISMATCH),
    ):
        with pytest.raises(PersistlibError) as caught:
            build(path, adapt={"rename": rules})
        assert caught.value.code == code.identifier


def test_torchvisions_weights_bring_their_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

    from persistlib.architecture import fetching

    known = awake(squeezenet1_1())
    monkeypatch.setattr(fetching, "fetch", lambda *_: copy.deepcopy(known))
    for weights in ("DEFAULT", "IMAGENET1K_V1", SqueezeNet1_1_Weights.DEFAULT):
        given: Any = weights
        asked: Any = {"classes": ["goldfish", "unicorn"]}
        made: Any = persistlib.build(f"{ZOO}:squeezenet1_1", weights=given, adapt=asked)
        assert torch.equal(made.classifier[1].weight[0], known.classifier[1].weight[1])
    manifest = persistlib.save(made, tmp_path / "fish")
    assert manifest.interface.labels == ("goldfish", "unicorn")
    assert manifest.lineage[0].relation == "adapted-from"
    assert manifest.lineage[0].source.startswith(f"{ZOO}:squeezenet1_1:")


def test_what_fits_is_taken_and_the_rest_is_told(tmp_path: Path) -> None:
    model = awake(Net(9, width=6))
    path = state_of(model, tmp_path / "w.pt", lambda name: name.replace("mix.bias", "mix.offset"))
    with pytest.raises(PersistlibError, match="PL807"):
        build(path, classes=4)
    with pytest.warns(PersistlibWarning, match="1 missing; 1 unexpected; 2 of another shape"):
        made = build(path, classes=4, strict="report")
    done = record(made)
    assert (done.missing, done.unexpected) == (("mix.bias",), ("mix.offset",))
    assert [tuple(item) for item in done.reshaped] == [
        ("last.weight", (9, 6), (4, 6)),
        ("last.bias", (9,), (4,)),
    ]
    assert torch.equal(made.mix.weight, model.mix.weight)
    manifest = persistlib.save(made, tmp_path / "net", example_inputs=IMAGE)
    assert "2 tensors of another shape: last.weight, last.bias" in manifest.lineage[0].source
    whole = build(state_of(model, path), classes=9, strict="report")
    assert record(whole).is_whole
    assert [parent.relation for parent in record(whole).lineage] == ["fine-tuned-from"]
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(PersistlibError, match="0 of the model's"):
        build(path, strict="report")
    with pytest.raises(PersistlibError, match="weights file"):
        persistlib.build("adaptable_models:Net", trust=TRUST, strict="report")


def test_a_bundle_whose_class_has_changed_since_is_loaded_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parent / "adaptable_models.py").read_text()
    source = tmp_path / "changing_models.py"
    source.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    trust = ("changing_models",)
    built: Any = persistlib.build("changing_models:Patches", trust=trust)
    path = saved(awake(built), tmp_path / "net")
    head = built.head.weight.detach().clone()
    changed = text.replace("self.head", "self.fc").replace("torch.randn(1, 2, 6)", "torch.ones(2)")
    source.write_text(
        changed.replace("x = torch.cat([self", "x = torch.cat([0 * x[:, :2], x], 1) #")
    )
    del sys.modules["changing_models"]

    def again(**how: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PersistlibWarning)
            return persistlib.load(path, trust=trust, **how)

    with pytest.raises(PersistlibError, match="configured otherwise"):
        again()
    with pytest.raises(PersistlibError) as caught:
        again(strict=False, adapt={"rename": {"head": "fc"}})
    assert caught.value.location == "tokens"
    made = again(strict="report", adapt={"rename": {"head": "fc"}})
    assert torch.equal(made.fc.weight, head)
    assert [item.name for item in record(made).reshaped] == ["tokens"]
    assert torch.equal(made.tokens, torch.ones(2))
    assert record(made).renamed == {"head.weight": "fc.weight", "head.bias": "fc.bias"}
    assert made(IMAGE).shape == (2, 4)
    del sys.modules["changing_models"]


def test_two_tensors_of_a_bundle_never_get_one_name(bundle: Path) -> None:
    with pytest.raises(PersistlibError, match=r"mix\.bias and last\.bias|last\.bias and mix\.bias"):
        load(bundle, adapt={"rename": {"mix.bias": "x", "last.bias": "x"}})


def test_only_a_module_is_adapted(bundle: Path) -> None:
    for how in ({"only": ["last"]}, {"runtime": "onnxruntime"}):
        for change in ({"adapt": {"classes": 2}}, {"strict": "report"}):
            with pytest.raises(PersistlibError, match="only a module"):
                load(bundle, **how, **change)


SOME = ("squeezenet1_1", "mobilenet_v3_small", "googlenet")


@pytest.mark.parametrize("name", SOME)
def test_a_model_of_the_zoo_takes_other_classes_and_channels(name: str, tmp_path: Path) -> None:
    how: dict[str, Any] = {"init_weights": False} if name == "googlenet" else {}
    model = persistlib.build(f"{ZOO}:{name}", adapt={"classes": 7, "channels": 1}, **how)
    manifest = persistlib.save(awake(model), tmp_path / name)
    again: Any = persistlib.load(tmp_path / name)
    assert manifest.architecture.builder == f"{ZOO}:{name}"
    assert same(model, again, torch.rand(2, 1, 96, 96))
    if name == "googlenet":
        assert again.aux1.fc2.out_features == 7


# Their outputs are boxes or flows.
NO_CLASSES = ("torchvision.models.detection", "torchvision.models.optical_flow")


@pytest.mark.slow
@pytest.mark.parametrize("builder", [*builders()])
def test_every_builder_of_the_zoo_is_adapted_or_refused_by_name(builder: str) -> None:
    asked = {"classes": 7}
    model = rebuild(builder, {})
    recipe = Recipe(builder)
    if builder.startswith(NO_CLASSES):
        with pytest.raises(PersistlibError) as caught:
            adapt(model, recipe, Interface(), parse(asked), Origin(renamed={}))
        assert caught.value.code == Code.ADAPTATION.identifier
        assert caught.value.remedy
        return
    adapt(model, recipe, Interface(), parse(asked), Origin(renamed={}))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wanted = rebuild(builder, {"num_classes": 7}).state_dict()
    assert shapes == {name: tuple(tensor.shape) for name, tensor in wanted.items()}


@pytest.mark.slow
@pytest.mark.parametrize("builder", [b for b in builders() if not b.startswith(NO_CLASSES)])
def test_every_builder_of_the_zoo_takes_one_channel(builder: str) -> None:
    # Drawn at once: initial values as builders draw them take minutes for the largest.
    model = rebuild(builder, {})
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            drawn = torch.empty(parameter.shape).uniform_(-0.1, 0.1, generator=generator)
            setattr(module, name, nn.Parameter(drawn))
    # The law is tried on the model itself, or it would be refused.
    adapt(model, Recipe(builder), Interface(), parse({"channels": 1}), Origin(renamed={}))
    assert [(change.before, change.after) for change in record(model).changes] == [("3", "1")]


def test_the_verb_makes_a_bundle_and_shows_what_was_done(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("adapt", bundle, out, "--classes", "owl", "bee", "--channels", 1, "--image-size", 16)
    shown = invoke(*words, "--trust", "adaptable_models")
    assert shown.exit_code == 0, shown.output
    for text in ("8x8 → 16x16", "3 → 1, features.0", "3 → 2, last", "2: owl, bee"):
        assert text in shown.output
    manifest = persistlib.inspect(out).manifest
    assert (manifest.interface.labels, manifest.license) == (("owl", "bee"), "MIT")
    assert manifest.examples is not None
    assert persistlib.verify(out, behaviour=True, trust=TRUST).ok
    told = json.loads(invoke(*words, "--trust", "adaptable_models", "--json", "--overwrite").stdout)
    assert told["data"]["bundle_id"] == manifest.bundle_id
    assert [change["kind"] for change in told["data"]["adaptation"]["changes"]] == [
        *("image_size", "channels", "classes")
    ]


def test_the_verb_takes_a_weights_file_in_part(tmp_path: Path) -> None:
    path = state_of(Net(9), tmp_path / "w.pt", lambda name: f"old.{name}")
    words: tuple[object, ...] = ("adapt", path, tmp_path / "out", "--trust", "adaptable_models")
    assert invoke(*words, "--partly").exit_code == 2  # whose model it is was not said
    words += ("--architecture", "adaptable_models:Net", "--rename", "old.*=*")
    assert invoke(*words).exit_code == 1
    shown = invoke(*words, "--partly")
    assert shown.exit_code == 3, shown.output
    assert "2 tensors of another shape: last.weight, last.bias" in shown.output


@pytest.mark.parametrize("size", [("16x24",), ("16", "24")])
def test_the_verb_takes_height_and_width_in_one_word_or_two(
    bundle: Path, tmp_path: Path, size: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    words = ("adapt", "--trust", "adaptable_models", bundle, out, "--image-size", *size, "--json")
    shown = invoke(*words)
    assert shown.exit_code == 0, shown.output
    (change,) = json.loads(shown.stdout)["data"]["adaptation"]["changes"]
    assert change["after"] == "16x24"


def test_the_verb_leads_from_a_graph_to_a_bundle(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] y) { y = Relu(x) }'
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    shown = invoke("adapt", path, tmp_path / "out", "--classes", 3)
    assert shown.exit_code == 2
    assert f"persistlib convert {path} DIR" in shown.stderr


def test_the_verb_looks_at_its_target_before_it_loads(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise AssertionError("loaded")

    monkeypatch.setattr(persistlib, "load", load)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine", encoding="utf-8")
    shown = invoke("adapt", bundle, tmp_path / "out", "--classes", 3)
    assert (shown.exit_code, "PL401" in shown.stderr) == (1, True), shown.stderr


@pytest.mark.parametrize(
    "words",
    [(), ("--head", "fc"), ("--image-size", "4y"), ("--channels", "0"), ("--classes", "0")],
)
def test_the_verb_refuses_what_means_nothing(bundle: Path, words: tuple[str, ...]) -> None:
    assert invoke("adapt", bundle, "out", *words).exit_code == 2
    assert not Path("out").exists()
