"""A bundle becomes a graph, and the graph alone becomes the bundle again."""

from __future__ import annotations

import copy
import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

import graph_models
import persistlib
import saved_models
from persistlib import examples, graph_bundles, model_notes
from persistlib.architecture.module_state import tensor_bytes, unsaved_tensors
from persistlib.bundle import open_bundle
from persistlib.digests import digest
from persistlib.errors import Code, PersistlibError, PersistlibWarning
from persistlib.export import onnx_export
from persistlib.graph_notes import ALIASES, COMPLEX, KEYS, MODEL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from persistlib.manifest.schema import Manifest

TRUST = {"graph_models", "saved_models"}
LABELS = ("left", "middle", "right")


class Case(NamedTuple):
    """A module and what it takes."""

    module: nn.Module
    inputs: tuple[torch.Tensor, ...]


def language() -> Case:
    return Case(graph_models.Language(), (torch.arange(14).reshape(2, 7) % 23,))


def recurrent() -> Case:
    return Case(graph_models.Recurrent(), (torch.randn(2, 6, 4),))


def pair() -> Case:
    return Case(graph_models.Pair(), (torch.randn(3, 4), torch.randn(3, 4)))


def gated() -> Case:
    module = graph_models.Gated()
    module.auxiliary.requires_grad_(False)
    return Case(module.eval(), (torch.randn(3, 6),))


def normed() -> Case:
    module = graph_models.Normed()
    for _ in range(2):
        module(torch.randn(8, 3, 6, 6))
    module.again.load_state_dict(copy.deepcopy(module.norm.state_dict()))
    module.conv.weight.data = module.conv.weight.data.to(memory_format=torch.channels_last)
    persistlib.freeze(module, ["norm.*", "conv.*"])
    return Case(module, (torch.randn(2, 3, 6, 6),))


def remembering() -> Case:
    return Case(graph_models.Remembering(), (torch.randn(2, 5),))


def writing() -> Case:
    """Return a module that writes into what it is given."""
    return Case(saved_models.Outputs().eval(), (torch.randn(4, 3), torch.randn(4, 3) + 1))


def logarithm() -> Case:
    """Return a module that takes positive numbers alone."""
    return Case(graph_models.Logarithm(), (torch.rand(2, 4) + 0.5,))


CASES: dict[str, Callable[[], Case]] = {
    "a language model whose head is its embedding": language,
    "a bidirectional LSTM of two layers": recurrent,
    "two inputs and a dict, a parameter named like an input": pair,
    "gates at zero, bounds in buffers, complex numbers": gated,
    "statistics, twins, strides, frozen layers": normed,
    "tensors outside the state_dict": remembering,
    "inputs that are written to": writing,
    "inputs of one kind alone": logarithm,
}


def saved(case: Case, path: Path, **more: Any) -> Manifest:
    named = examples.name_inputs(case.module, case.inputs)
    interface = {"labels": LABELS, "preprocessing": {"size": 3}}
    return persistlib.save(
        case.module,
        path,
        example_inputs=named,
        interface=interface,
        name="a model",
        license="MIT",
        onnx=True,
        **more,
    )


class Exported(NamedTuple):
    """A module, its bundle's manifest, and a folder that holds its graph alone."""

    case: Case
    manifest: Manifest
    graph: Path


@pytest.fixture(scope="module", params=CASES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    torch.manual_seed(5)
    case = CASES[request.param]()
    folder = tmp_path_factory.mktemp("exported")
    manifest = saved(case, folder / "saved")
    (folder / "alone").mkdir()
    persistlib.convert(folder / "saved", folder / "alone" / "m.onnx")
    for entry in os.scandir(folder / "saved"):
        os.unlink(entry)
    return Exported(case, manifest, folder / "alone" / "m.onnx")


def held(module: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Return all that a module holds, each tensor with its bytes."""
    tensors = {**module.state_dict(keep_vars=True), **dict(unsaved_tensors(module))}
    return {
        name: (t.dtype, tuple(t.shape), t.stride(), t.requires_grad, bytes(tensor_bytes(t)))
        for name, t in tensors.items()
    }


def tied(module: nn.Module) -> set[frozenset[str]]:
    owners: dict[int, set[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        owners.setdefault(id(tensor), set()).add(name)
    return {frozenset(names) for names in owners.values()}


def test_the_bundle_comes_back_from_the_graph_alone(exported: Exported, tmp_path: Path) -> None:
    case, manifest, graph = exported
    report = persistlib.convert(graph, tmp_path / "back", trust=TRUST)
    assert report.proof["proved"]
    assert report.proof["batch_sizes"] == [1, 3]
    assert report.identity == report.source_identity == manifest.weights.identity
    assert report.tensors == len(case.module.state_dict())
    assert report.losses == ("value examples, which a graph does not carry",)
    with open_bundle(tmp_path / "back") as bundle:
        found = bundle.manifest
        assert bytes(bundle.whole(found.graphs[0].files[0])) == graph.read_bytes()
    assert found.bundle_id == manifest.bundle_id
    assert (found.name, found.license) == ("a model", "MIT")
    assert found.interface == manifest.interface
    assert found.lineage[0].relation == "converted-from"
    assert found.lineage[0].source == "m.onnx"
    assert persistlib.verify(tmp_path / "back").ok


def test_the_module_comes_back_with_all_that_it_held(exported: Exported, tmp_path: Path) -> None:
    case, _, graph = exported
    persistlib.convert(graph, tmp_path / "back", trust=TRUST)
    again = persistlib.load(tmp_path / "back", trust=TRUST)
    assert isinstance(again, nn.Module)
    assert list(again.state_dict()) == list(case.module.state_dict())
    assert held(again) == held(case.module)
    assert tied(again) == tied(case.module)
    flags = [module.training for module in case.module.modules()]
    assert [module.training for module in again.modules()] == flags
    assert [m.training for m in again.train().modules()] == [
        m.training for m in case.module.train().modules()
    ]
    inputs = examples.name_inputs(case.module, case.inputs)
    ours, theirs = examples.run(case.module, inputs), examples.run(again, inputs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_state_dict_comes_back_as_a_file(exported: Exported, tmp_path: Path) -> None:
    case, manifest, graph = exported
    for name in ("w.safetensors", "w.pt"):
        report = persistlib.convert(graph, tmp_path / name, allow_loss=["graph"])
        assert report.identity == manifest.weights.identity
        assert report.losses == ("graph the network itself",)
    loaded = torch.load(tmp_path / "w.pt", weights_only=True)
    state = case.module.state_dict()
    assert set(loaded) == set(state)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_no_value_of_the_graph_has_a_name_of_the_state_beside_the_state_itself(
    exported: Exported,
) -> None:
    case, _, graph = exported
    model = onnx.load(graph)
    made = {name for node in model.graph.node for name in node.output}
    made |= {value.name for value in model.graph.input}
    assert not made & set(case.module.state_dict())
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, tensor in case.module.state_dict().items():
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        assert np.array_equal(numpy_helper.to_array(stored[name]), real.numpy())


def test_nothing_of_the_machine_stands_in_any_file(exported: Exported, tmp_path: Path) -> None:
    persistlib.convert(exported.graph, tmp_path / "back", trust=TRUST)
    traces = [os.getcwd(), os.path.expanduser("~/"), str(tmp_path), "site-packages", "stack_trace"]
    for path in (exported.graph, *(tmp_path / "back").iterdir()):
        data = path.read_bytes()
        assert not [trace for trace in traces if trace.encode() in data], path


# -- what a graph notes --------------------------------------------------------------------------


def test_a_graph_made_at_once_and_one_made_of_the_bundle_are_the_same_bytes(tmp_path: Path) -> None:
    torch.manual_seed(5)
    case = remembering()
    named = examples.name_inputs(case.module, case.inputs)
    for name, onnx_too in (("with", True), ("without", False)):
        persistlib.save(case.module, tmp_path / name, example_inputs=named, onnx=onnx_too)
        persistlib.convert(tmp_path / name, tmp_path / f"{name}.onnx", trust=TRUST)
    assert (tmp_path / "with.onnx").read_bytes() == (tmp_path / "without.onnx").read_bytes()


def test_folders_that_a_lineage_names_stay_behind(tmp_path: Path) -> None:
    lineage = [
        {"relation": "fine-tuned-from", "source": source}
        for source in ("/data/models/base.pt", "C:\\models\\base.pt", "~/base.pt", "org/base")
    ]
    saved(linear(), tmp_path / "saved", lineage=lineage)
    persistlib.convert(tmp_path / "saved", tmp_path / "m.onnx")
    persistlib.convert(tmp_path / "m.onnx", tmp_path / "back")
    with open_bundle(tmp_path / "back") as bundle:
        sources = [parent.source for parent in bundle.manifest.lineage]
    assert sources == ["m.onnx", "base.pt", "base.pt", "base.pt", "org/base"]


def test_what_a_graph_leaves_out_is_named(tmp_path: Path) -> None:
    saved(linear(), tmp_path / "saved", training={"metrics": {"accuracy": 0.5}})
    persistlib.convert(tmp_path / "saved", tmp_path / "m.onnx")
    report = persistlib.convert(tmp_path / "m.onnx", tmp_path / "back")
    assert [loss.split(",")[0] for loss in report.losses] == ["value training", "value examples"]


def test_tensors_too_large_to_be_noted_are_named_and_never_made_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_notes, "VALUES_LIMIT", 28 + 4 * 35)
    torch.manual_seed(5)
    saved(remembering(), tmp_path / "saved")
    persistlib.convert(tmp_path / "saved", tmp_path / "m.onnx")
    noted = note_in(tmp_path / "m.onnx")["state"]["unsaved"]
    assert [name for name, tensor in noted.items() if "values" not in tensor] == [
        "shift.1.scale",
        "table",
    ]
    fault = refused(tmp_path / "m.onnx", Code.STRUCTURE_DRIFT, trust=TRUST)
    assert fault.location.endswith(": shift.1.scale")


def test_a_module_of_untrusted_code_is_not_built(tmp_path: Path) -> None:
    saved(pair(), tmp_path / "saved")
    persistlib.convert(tmp_path / "saved", tmp_path / "m.onnx")
    assert "graph_models" in refused(tmp_path / "m.onnx", Code.UNTRUSTED).remedy


def test_a_graph_that_another_tool_changed_is_told_so(tmp_path: Path) -> None:
    path = exported_linear(tmp_path)
    model = onnx.load(path)
    model.graph.initializer[0].name += "_folded"
    for node in model.graph.node:
        node.input[:] = [f"{n}_folded" if n == "bias" else n for n in node.input]
    path.write_bytes(model.SerializeToString())
    assert "--architecture torch.nn:Linear" in refused(path, Code.GRAPH_NOTES).remedy


def test_weights_in_a_given_graph_are_no_longer_the_noted_model(tmp_path: Path) -> None:
    path = exported_linear(tmp_path)
    persistlib.convert(path, tmp_path / "w.safetensors", allow_loss=["graph"])
    persistlib.convert(tmp_path / "w.safetensors", tmp_path / "again.onnx", template=path)
    assert {item.key for item in onnx.load(tmp_path / "again.onnx").metadata_props} == KEYS - {
        MODEL,
        ALIASES,
        COMPLEX,
    }


# -- what a stranger notes -----------------------------------------------------------------------


def linear() -> Case:
    torch.manual_seed(5)
    module = persistlib.build("torch.nn:Linear", in_features=4, out_features=3)
    return Case(module, (torch.randn(2, 4),))


def exported_linear(folder: Path) -> Path:
    saved(linear(), folder / "saved")
    persistlib.convert(folder / "saved", folder / "m.onnx")
    return folder / "m.onnx"


def note_in(path: Path) -> Any:
    return json.loads({p.key: p.value for p in onnx.load(path).metadata_props}[MODEL])


def noting(path: Path, text: str) -> Path:
    """Return a copy of a graph that notes something else of its model."""
    model = onnx.load(path)
    for item in model.metadata_props:
        if item.key == MODEL:
            item.value = text
    other = path.with_name("other.onnx")
    other.write_bytes(model.SerializeToString())
    return other


def refused(path: Path, code: Code, **options: Any) -> PersistlibError:
    back = path.parent / f"back{len(os.listdir(path.parent))}"
    with pytest.raises(PersistlibError) as caught:
        persistlib.convert(path, back, **options)
    assert caught.value.code == code.identifier, caught.value
    assert not back.exists()
    return caught.value


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_linear(tmp_path_factory.mktemp("graph"))


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", "null", '{"a":NaN}', '{"version":"1.0","version":"1.0"}',
        '{"version":"1.0"}', '{"version":"2.0"}', '{"version":1}',
        "[" * 100_000, '{"a":' * 5_000 + "1" + "}" * 5_000,
        '{"a":' + "9" * 5_000 + "}", '{ "version":"1.0"}', '{"version":"1.0","stranger":1}',
    ],
)  # fmt: skip
def test_a_note_that_is_no_note_is_refused(graph: Path, text: str) -> None:
    fault = refused(noting(graph, text), Code.GRAPH_NOTES)
    assert MODEL in fault.location
    assert fault.remedy


Changes = dict[str, Any]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"architecture.builder": "os:system"}, Code.UNTRUSTED),
        ({"architecture.builder": "torch:load"}, Code.UNTRUSTED),
        ({"architecture.builder": "torch.hub:load"}, Code.UNTRUSTED),
        ({"architecture.builder": "no name"}, Code.GRAPH_NOTES),
        ({"architecture.kind": "pickle"}, Code.GRAPH_NOTES),
        ({"architecture.arguments": {"in_features": 5, "out_features": 3}}, Code.TENSOR_MISMATCH),
        ({"architecture.arguments": {"in_features": -1, "out_features": 3}}, Code.BUILDER_FAILED),
        ({"architecture.arguments": {"a": {"$object": "os:system"}}}, Code.UNTRUSTED),
        ({"architecture.builder": "torchvision.models:resnet18"}, Code.BUILDER_FAILED),
        ({"weights": "blake3:" + "0" * 64}, Code.GRAPH_NOTES),
        ({"weights": "sha256:" + "0" * 64}, Code.GRAPH_NOTES),
        ({"inputs": []}, Code.GRAPH_NOTES),
        ({"inputs": [{"shape": [2, 5]}]}, Code.GRAPH_NOTES),
        ({"inputs": [{"shape": [2]}]}, Code.GRAPH_NOTES),
        ({"inputs": [{"shape": [1 << 40, 4]}]}, Code.GRAPH_NOTES),
        ({"inputs": [{"shape": [-1, 4]}]}, Code.GRAPH_NOTES),
        ({"inputs": [{"shape": [2, 4], "low": 2, "high": 1}]}, Code.GRAPH_NOTES),
        ({"inputs": [{"shape": [2, 4], "low": 2}]}, Code.GRAPH_NOTES),
        ({"inputs": [{"shape": [0, 4]}]}, Code.GRAPH_NOTES),
        ({"interface.inputs.0.dtype": "I64"}, Code.GRAPH_NOTES),
        ({"interface.inputs": []}, Code.GRAPH_NOTES),
        ({"state.frozen": ["gone"]}, Code.GRAPH_NOTES),
        ({"state.frozen_modules_in_eval": ["a.b"]}, Code.GRAPH_NOTES),
        ({"state.strides": {"weight": [1, 1]}}, Code.GRAPH_NOTES),
        ({"state.strides": {"weight": [1]}}, Code.GRAPH_NOTES),
        ({"state.strides": {"weight": [1 << 62, 1]}}, Code.GRAPH_NOTES),
        ({"state.unsaved": {"x": {"dtype": "F32", "shape": [1], "blake3": "0" * 64}}},
         Code.STRUCTURE_DRIFT),
        ({"state.unsaved": {"x": {"dtype": "F32", "shape": [], "blake3": "0" * 64,
                                  "values": "AAAAAA=="}}}, Code.GRAPH_NOTES),
        ({"state.unsaved": {"x": {"dtype": "F32", "shape": [], "blake3": digest(bytes(4)),
                                  "values": "AAAAAA=="}}}, Code.TENSOR_MISMATCH),
        ({"state.unsaved": {"x": {"dtype": "F32", "shape": [1 << 50], "blake3": digest(bytes(4)),
                                  "values": "AAAAAA=="}}}, Code.GRAPH_NOTES),
        ({"state.unsaved": {"x": {"dtype": "F32", "shape": [], "blake3": digest(bytes(4)),
                                  "values": "%%%"}}}, Code.GRAPH_NOTES),
    ],
)  # fmt: skip
def test_what_a_note_says_is_not_believed(graph: Path, changes: Changes, code: Code) -> None:
    note = note_in(graph)
    for field, value in changes.items():
        *path, last = field.split(".")
        place = note
        for part in path:
            place = place[int(part)] if part.isdigit() else place.setdefault(part, {})
        place[last] = value
    text = json.dumps(note, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    refused(noting(graph, text), code)


def test_a_note_has_one_spelling(graph: Path) -> None:
    fault = refused(noting(graph, json.dumps(note_in(graph))), Code.GRAPH_NOTES)
    assert "canonical" in fault.reason


def test_a_module_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(5)
    module = persistlib.build("torch.nn:BatchNorm1d", num_features=4)
    module(torch.randn(9, 4))
    saved(Case(module, (torch.randn(2, 4),)), tmp_path / "saved")
    persistlib.convert(tmp_path / "saved", tmp_path / "m.onnx")
    note = note_in(tmp_path / "m.onnx")
    note["architecture"]["arguments"]["eps"] = 10.0
    path = noting(tmp_path / "m.onnx", json.dumps(note, sort_keys=True, separators=(",", ":")))
    with pytest.warns(PersistlibWarning, match="PL205"):
        refused(path, Code.EXPORT_MISMATCH)


def test_a_graph_that_never_ends_is_ended(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_bundles, "_SECONDS", 1.0)
    model = onnx.load(graph)
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Sin", ["before"], ["after"]),
        ],
        "body",
        [
            value("round", onnx.TensorProto.INT64, []),
            value("go", onnx.TensorProto.BOOL, []),
            value("before", onnx.TensorProto.FLOAT, None),
        ],
        [value("on", onnx.TensorProto.BOOL, []), value("after", onnx.TensorProto.FLOAT, None)],
    )
    (output,) = model.graph.output
    model.graph.node[-1].output[0] = "result"
    rounds = numpy_helper.from_array(np.array(1 << 62), "rounds")
    model.graph.initializer.append(rounds)
    loop = helper.make_node("Loop", ["rounds", "", "result"], [output.name], body=body)
    model.graph.node.append(loop)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    refused(tmp_path / "m.onnx", Code.RUN_TIMEOUT)


def test_an_old_bundle_is_replaced_when_that_is_asked_for(graph: Path, tmp_path: Path) -> None:
    persistlib.convert(graph, tmp_path / "back")
    with pytest.raises(PersistlibError) as caught:
        persistlib.convert(graph, tmp_path / "back")
    assert caught.value.code == Code.TARGET_EXISTS.identifier
    persistlib.convert(graph, tmp_path / "back", overwrite=True)
    assert persistlib.verify(tmp_path / "back").ok


# -- free axes and data beside the graph ---------------------------------------------------------


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_recurrence_of_any_length_comes_back(batch_first: bool, tmp_path: Path) -> None:
    torch.manual_seed(5)
    module = graph_models.Recurrent(batch_first=batch_first)
    case = Case(module, (torch.randn(2, 6, 4) if batch_first else torch.randn(6, 2, 4),))
    named = examples.name_inputs(case.module, case.inputs)
    manifest = persistlib.save(module, tmp_path / "saved", example_inputs=named)
    axes = ["steps:1=length"] if batch_first else ["steps:0=length", "steps:1=batch"]
    persistlib.convert(tmp_path / "saved", tmp_path / "m.onnx", dynamic=axes, trust=TRUST)
    report = persistlib.convert(tmp_path / "m.onnx", tmp_path / "back", trust=TRUST)
    assert report.proof["proved"]
    assert "length" in str(report.proof)
    with open_bundle(tmp_path / "back") as bundle:
        assert bundle.manifest.bundle_id == manifest.bundle_id
    session = persistlib.load(tmp_path / "back", runtime="onnxruntime")
    for length in (1, 9):
        steps = torch.randn((3, length, 4) if batch_first else (length, 3, 4))
        (given,) = session.run([steps.numpy()]).values()
        with torch.no_grad():
            assert np.allclose(given, module(steps).numpy(), atol=1e-5)


def test_data_beside_a_graph_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = onnx_export.export.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "external_above", 0)
    comes_back(tmp_path, graph_models.Wide(1 << 12), 64)
    comes_back(tmp_path / "tall", graph_models.Tall(), 1 << 10)


@pytest.mark.slow
def test_a_model_above_two_gigabytes_comes_back(tmp_path: Path) -> None:
    comes_back(tmp_path, graph_models.Wide((1 << 24) + 1), 64)


@pytest.mark.slow
def test_one_tensor_above_two_gigabytes_comes_back(tmp_path: Path) -> None:
    words = (1 << 20) + 5
    comes_back(tmp_path, graph_models.Tall(words), words)


def comes_back(folder: Path, module: torch.nn.Module, words: int) -> None:
    """Give a module of tokens below `words` to a graph whose data lies beside it, and back."""
    torch.manual_seed(5)
    tokens = torch.randint(words, (2, 32))
    tokens[0, 0], tokens[0, 1] = 0, words - 1
    manifest = persistlib.save(
        module, folder / "saved", example_inputs={"tokens": tokens}, onnx=True
    )
    (folder / "alone").mkdir()
    persistlib.convert(folder / "saved", folder / "alone" / "m.onnx")
    for path in (folder / "saved").iterdir():
        path.unlink()
    beside = {path.name: path.stat().st_size for path in (folder / "alone").iterdir()}
    assert sorted(beside) == ["m.onnx", "m.onnx.data"]
    assert beside["m.onnx.data"] >= sum(p.nbytes for p in module.parameters())
    session = persistlib.load(folder / "alone" / "m.onnx", runtime="onnxruntime")
    with torch.no_grad():
        expected = module(tokens).numpy()
    (given,) = session.run([tokens.numpy()]).values()
    del session
    assert np.allclose(given, expected, atol=1e-6)
    assert np.ptp(expected) > 0.1
    report = persistlib.convert(folder / "alone" / "m.onnx", folder / "back", trust=TRUST)
    assert report.proof["proved"]
    assert report.identity == manifest.weights.identity
    with open_bundle(folder / "back") as bundle:
        assert bundle.manifest.bundle_id == manifest.bundle_id
        files = [entry.path for entry in bundle.manifest.graphs[0].files]
    assert files == ["model.onnx", "model.onnx.data"]
    assert persistlib.verify(folder / "back", behaviour=True, trust=TRUST).ok
