"""What the table says of torch and torchvision, and what is judged by it."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

import persistlib
from persistlib.architecture import fitting
from persistlib.architecture.structure import source_digest
from persistlib.checkpoint import Entry
from persistlib.compat import frameworks, machines, offers, own_sources, tensors
from persistlib.compat.facts import Facts
from persistlib.compat.judging import findings_of
from persistlib.compat.targets import Target, here
from persistlib.compat.verdicts import verdict_of
from persistlib.digests import PREFIX
from persistlib.dtypes import DType
from persistlib.manifest import document
from persistlib.manifest.schema import (
    Architecture,
    Edit,
    Environment,
    FileEntry,
    Manifest,
    TensorRecord,
    Weights,
    Writer,
)

if TYPE_CHECKING:
    from persistlib.errors import Finding

D = "0" * 64
ROOT = Path(__file__).parents[1]
SAVED = {"torch": "2.14.1", "torchvision": "0.29.1"}
INSTALLED = {"torch": torch.__version__, "torchvision": torchvision.__version__}
NEWEST = Target(packages={"torch": "2.15.0", "torchvision": "0.29.2"})


def manifest(
    builder: str = "torchvision.models:resnet18",
    arguments: dict[str, Any] | None = None,
    edits: tuple[Edit, ...] = (),
    *,
    dtype: str = "F32",
    source: str | None = None,
) -> Manifest:
    record = TensorRecord(
        name="w", dtype=dtype, shape=(1000, 1000), blake3=D, file=0, role="parameter"
    )
    return Manifest(
        writer=Writer(name="persistlib", version="0.1.0"),
        bundle_id=document.UNSEALED,
        digest=document.UNSEALED,
        created="2026-11-22T00:00:00Z",
        architecture=Architecture(
            builder=builder,
            arguments=arguments or {},
            edits=edits,
            structure=PREFIX + D,
            source=source,
        ),
        weights=Weights(
            identity=PREFIX + D,
            files=(FileEntry(path="model.safetensors", size=8, header_blake3=D),),
            tensors=(record,),
        ),
        environment=Environment(python="3.11.7", platform="Linux-x86_64", packages=SAVED),
    )


def facts(*arguments: Any, **changes: Any) -> Facts:
    return Facts(source="B", manifest=manifest(*arguments, **changes))


def at(torch_version: str | None = None, vision: str | None = None, **known: Any) -> Target:
    pairs = {"torch": torch_version, "torchvision": vision, **known.pop("packages", {})}
    packages = {name: version for name, version in pairs.items() if version}
    return Target(packages=packages, **known)


def told(found: Any) -> list[tuple[str, str]]:
    return [(one.code, one.severity) for one in found]


def edit(builder: str, path: str = "fc", **arguments: Any) -> tuple[Edit, ...]:
    return (Edit(op="replace", path=path, builder=builder, arguments=arguments),)


def framework(package: str, version: str) -> frameworks.Framework:
    found = frameworks.framework(package, version)
    assert found is not None
    return found


def installed() -> dict[str, frameworks.Framework]:
    return {package: framework(package, version) for package, version in INSTALLED.items()}


# What Python itself says of the installed releases.


def public(package: str) -> list[tuple[str, frameworks.Definition, Any]]:
    """Return the callables of the installed release whose modules are public, with themselves."""
    release, found = installed()[package], []
    for name in sorted(release.names()):
        module, _, attribute = name.partition(":")
        definition = release.find(name)
        if definition is None or "._" in module or not definition.code:
            continue
        if definition.name == name and not module.startswith("torch.nn.parallel"):
            found.append((name, definition, getattr(importlib.import_module(module), attribute)))
    return found


@pytest.mark.parametrize("package", frameworks.PACKAGES)
def test_keywords_and_defaults_are_those_that_python_says(package: str) -> None:
    seen = 0
    for name, definition, value in public(package):
        taken = frameworks.accepted(definition, installed())
        function = value.__init__ if inspect.isclass(value) else value
        parameters = list(inspect.signature(function).parameters.values())[inspect.isclass(value) :]
        named = {
            one.name: one.default is one.empty
            for one in parameters
            if one.kind in {one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY}
        }
        if taken.is_open and not definition.defaults:
            continue  # a dataclass, say: the sources alone do not tell
        extra = set(taken.defaults) - set(named) - {"pretrained", "pretrained_backbone"}
        assert set(named) <= set(taken.defaults), name
        assert not extra or any(one.kind is one.VAR_KEYWORD for one in parameters), name
        for keyword, is_needed in named.items():
            assert (taken.defaults[keyword] is None) == is_needed, (name, keyword)
        seen += 1
    assert seen > 200


def test_every_builder_of_the_zoo_refuses_a_keyword_that_the_table_lacks() -> None:
    from torch import nn

    from persistlib.architecture.zoo_scan import builders

    closed = 0
    for name in builders():
        definition = installed()["torchvision"].find(name)
        assert definition is not None, name
        if frameworks.accepted(definition, installed()).is_open:
            continue
        module, _, attribute = name.partition(":")
        builder = getattr(importlib.import_module(module), attribute)
        with pytest.raises(TypeError, match="nonsense"), torch.device("meta"):
            builder(nonsense=1)
        closed += 1
    assert closed > 50
    assert all(
        installed()["torch"].find(f"torch.nn:{one}")
        for one, value in vars(nn).items()
        if inspect.isclass(value) and issubclass(value, nn.Module)
    )


def test_dtypes_and_what_loading_does_are_those_of_the_installed_torch() -> None:
    known = installed()["torch"].facts
    there = {name for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
    ours = {dtype.value.torch for dtype in DType} | {dtype.value.torch_pairs for dtype in DType}
    assert there & ours == set(known["dtypes"]) & ours
    assert known["weights_only"]
    assert known["mmap"]
    assert known["assign"]
    allowed = vars(torch)["_weights_only_unpickler"]._get_allowed_globals()
    assert set(known["allowed"]) <= set(allowed)


# Recipes.


@pytest.mark.parametrize(
    ("model", "there", "expected"),
    [
        (facts(), at("2.6.0", "0.21.0"), []),
        (facts("torchvision.models:resnet19"), at("2.6.0", "0.21.0"), [("PL215", "error")]),
        (
            facts(edits=edit("torch.nn:RMSNorm", normalized_shape=3)),
            at("2.3.1"),
            [("PL215", "error")],
        ),
        (facts(edits=edit("torch.nn:RMSNorm", normalized_shape=3)), at("2.4.0"), []),
        (
            facts(edits=edit("torch.nn:GroupNorm", num_groups=1, num_channels=2, bias=False)),
            at("2.9.1"),
            [("PL216", "error")],
        ),
        (
            facts(edits=edit("torch.nn:GroupNorm", num_groups=1, num_channels=2, bias=True)),
            at("2.9.1"),
            [("PL216", "note")],
        ),
        (facts("torch.nn:Linear", {"in_features": 3}), at("2.9.1"), [("PL216", "error")]),
        (
            facts(
                "torchvision.models.segmentation.deeplabv3:DeepLabHead",
                {"in_channels": 8, "num_classes": 2, "atrous_rates": [2]},
            ),
            at("2.0.1", "0.15.2"),
            [("PL216", "error"), ("PL206", "note")],
        ),
        (
            facts(
                edits=(
                    Edit(
                        op="parametrize",
                        path="fc",
                        attribute="weight",
                        builder="torch.nn.utils.parametrizations:weight_norm",
                        arguments={"dim": 0},
                    ),
                )
            ),
            at("2.0.0", "0.21.0"),
            [("PL215", "error")],
        ),
        (
            facts(
                arguments={
                    "norm_layer": {
                        "$partial": {
                            "function": {"$object": "torch.nn:LayerNorm"},
                            "arguments": [],
                            "keywords": {"bias": False},
                        }
                    }
                }
            ),
            at("2.0.1", "0.21.0"),
            [("PL216", "error")],
        ),
        (
            facts(arguments={"norm_layer": {"$object": "torch.nn:RMSNorm"}}),
            at("2.3.0", "0.21.0"),
            [("PL215", "error")],
        ),
        (facts("torch.nn:Quaternion"), at("2.99.0"), [("PL215", "warning")]),
        (
            facts(
                edits=edit(
                    "torchvision.ops:MLP",
                    in_channels=3,
                    hidden_channels=[3],
                    norm_layer={"$object": "torch.nn:RMSNorm"},
                )
            ),
            at("2.3.0", "0.21.0"),
            [("PL215", "error")],
        ),
        (
            facts(
                edits=(
                    Edit(op="set", path="", attribute="f", value=[{"$object": "torch.nn:RMSNorm"}]),
                )
            ),
            at("2.3.0", "0.21.0"),
            [("PL215", "error")],
        ),
        (facts(arguments={"nonsense": 1}), at("2.6.0", "0.21.0"), [("PL216", "error")]),
        (facts("my.package:Net"), at("2.6.0"), []),
        (facts("torch.nn:Softplus"), at("2.0.0"), []),
    ],
)
def test_a_recipe_is_refused_exactly_for_what_a_release_lacks(
    model: Facts, there: Target, expected: list[tuple[str, str]]
) -> None:
    assert told(offers.recipe(model, there)) == expected


def test_a_refusal_names_the_first_release_that_has_it() -> None:
    model = facts(edits=edit("torch.nn:GroupNorm", num_groups=1, num_channels=2, bias=False))
    (found,) = offers.recipe(model, at("2.6.0"))
    first = found.remedy.partition(">=")[2].rstrip("'")
    assert not told(offers.recipe(model, at(first)))
    before = frameworks.versions("torch")[frameworks.versions("torch").index(first) - 1]
    assert told(offers.recipe(model, at(before)))


def test_a_changed_default_that_a_recipe_leaves_degrades_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table: Any = frameworks.accepted

    def changed(definition: frameworks.Definition, among: Any) -> frameworks.Accepted:
        found: frameworks.Accepted = table(definition, among)
        old = among["torch"].version == "2.6.0"
        return found._replace(defaults={**found.defaults, "eps": "0.1" if old else "1e-05"})

    monkeypatch.setattr(frameworks, "accepted", changed)
    left = facts(edits=edit("torch.nn:BatchNorm2d", num_features=3))
    said = facts(edits=edit("torch.nn:BatchNorm2d", num_features=3, eps=1e-5))
    assert ("PL217", "warning") in told(offers.recipe(left, at("2.6.0")))
    assert ("PL217", "warning") not in told(
        one for one in offers.recipe(said, at("2.6.0")) if "edits" in one.location
    )


def test_an_argument_that_would_be_ignored_there_degrades_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table: Any = frameworks.accepted

    def swallowing(definition: frameworks.Definition, among: Any) -> frameworks.Accepted:
        found: frameworks.Accepted = table(definition, among)
        old = among["torch"].version == "2.6.0"
        named = {name: v for name, v in found.defaults.items() if name != "eps"} if old else None
        return frameworks.Accepted(named, is_open=True) if named is not None else found

    monkeypatch.setattr(frameworks, "accepted", swallowing)
    for value, expected in ((0.5, "warning"), (1e-5, "note")):
        model = facts(edits=edit("torch.nn:BatchNorm2d", num_features=3, eps=value))
        found = [one for one in offers.recipe(model, at("2.6.0")) if "edits" in one.location]
        assert told(found) == [("PL216", expected)]


def test_of_a_pair_that_names_one_the_other_is_the_one_that_belongs_to_it() -> None:
    assert offers.offered(at("2.6.0"))["torchvision"].version == "0.21.0"
    assert offers.offered(at("2.6"))["torchvision"].version == "0.21.0"
    assert offers.offered(at("2.14.1"))["torchvision"].version == "0.29.2"
    assert offers.offered(at(None, "0.24.1"))["torch"].version == "2.9.1"
    ranged = at("2.6.0", "0.29.2", choices={"torchvision": frameworks.versions("torchvision")})
    assert offers.offered(ranged)["torchvision"].version == "0.21.0"
    other = at("2.15.0", "0.21.0", choices={"torch": frameworks.versions("torch")})
    assert offers.offered(other)["torch"].version == "2.6.0"
    assert not told(machines.partners(facts(), other))
    assert "torchvision" not in offers.offered(at("2.6.0", is_complete=True))
    assert offers.offered(Target()) == {}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    ["$object", "$enum", "$partial", "function", "keywords", "arguments", "x"]
                ),
                inner,
            )
        ),
    )
)
def test_no_recipe_makes_a_rule_raise(value: Any) -> None:
    edits = (Edit(op="set", path="fc", attribute="x", value=value),)
    for builder in ("torchvision.models:resnet18", "torch.nn:Linear", "torch:x"):
        model = facts(builder, {"x": value}, edits)
        verdict_of(offers.recipe(model, NEWEST))
        verdict_of(tensors.numbers(model, NEWEST))


# The recipe that is built here.


def test_an_argument_that_is_not_here_is_left_out_if_it_was_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    older = {"torch": "2.6.0", "torchvision": "0.21.0"}
    monkeypatch.setattr(fitting, "package_version", older.get)
    given: dict[str, Any] = {"num_groups": 1, "num_channels": 2}

    def fitted(bias: bool) -> Any:
        changes = edit("torch.nn:GroupNorm", **given, bias=bias)
        return fitting.fitted(manifest(edits=changes).architecture, SAVED).edits[0].arguments

    assert fitted(bias=True) == given
    assert fitted(bias=False) == {**given, "bias": False}
    whole = manifest("torch.nn:GroupNorm", {**given, "bias": True}).architecture
    assert fitting.fitted(whole, SAVED).arguments == given
    assert fitting.fitted(whole, older) == whole


def test_a_recipe_is_built_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from persistlib.compat import building

    path = tmp_path / "model"
    module = torch.nn.Sequential(torch.nn.Linear(3, 2)).eval()
    persistlib.save(module, path, example_inputs=torch.ones(1, 3))
    assert persistlib.check(path, build=True).verdict == "ok"
    monkeypatch.setattr("persistlib.architecture.structure.is_as_saved", lambda *_: False)
    assert persistlib.check(path).verdict == "ok"
    assert told(persistlib.check(path, build=True).findings) == [("PL205", "error")]
    assert persistlib.check(path, Target(packages=INSTALLED), build=True).verdict == "ok"
    monkeypatch.setattr(building, "package_version", {"torch": "2.6.0"}.get)
    assert told(persistlib.check(path, build=True).findings) == [("PL205", "warning")]


def test_a_recipe_that_is_not_built_here_is_refused_with_its_cause() -> None:
    from persistlib.compat import building

    own = replace(facts("saved_models:Nothing"), trusted=())
    (found,) = building.structure(own, here())
    assert (found.code, found.severity) == ("PL215", "error")
    assert "PL303" in found.message
    assert not told(building.structure(replace(own, trusted=None), here()))


# Tensors, machines and files.


@pytest.mark.parametrize(
    ("dtype", "version", "is_there"),
    [
        ("F8_E4M3", "2.0.1", False),
        ("F8_E4M3", "2.1.0", True),
        ("F8_E4M3FNUZ", "2.1.2", False),
        ("F8_E4M3FNUZ", "2.2.0", True),
        ("U16", "2.2.2", False),
        ("U16", "2.3.0", True),
        ("F8_E8M0", "2.6.0", False),
        ("F8_E8M0", "2.7.0", True),
        ("BF16", "2.0.0", True),
        ("F4", "2.7.1", False),
        ("F4", "2.8.0", True),
    ],
)
def test_a_dtype_is_refused_where_torch_lacks_it(dtype: str, version: str, is_there: bool) -> None:
    found = told(tensors.numbers(facts(dtype=dtype), at(version)))
    assert found == ([] if is_there else [("PL221", "error")])
    entry = Entry("w", DType[dtype], (8, 8))
    bare = Facts(source="w.safetensors", format="safetensors", entries=(entry,))
    assert told(tensors.numbers(bare, at(version))) == found
    graph = replace(bare, format="onnx")
    assert not told(tensors.numbers(graph, at(version)))


def test_a_dtype_that_a_recipe_names_counts() -> None:
    model = facts(arguments={"kind": {"$dtype": "float8_e8m0fnu"}})
    assert told(tensors.numbers(model, at("2.6.0"))) == [("PL221", "error")]
    assert not told(tensors.numbers(model, at("2.7.0")))


def test_a_device_without_a_dtype_degrades() -> None:
    double = facts(dtype="F64")
    assert told(tensors.numbers(double, Target(accelerators=("mps",)))) == [("PL222", "warning")]
    assert not told(tensors.numbers(double, Target(accelerators=("cuda",))))
    assert not told(tensors.numbers(facts(), Target(accelerators=("mps",))))


@pytest.mark.parametrize("version", ["0.15", "0.15.0", "0.99", "0.24.2"])
def test_a_model_is_never_ok_with_a_release_that_is_not_known(version: str) -> None:
    partner = "2.99.0" if version == "0.99" else "2.9.1" if version == "0.24.2" else "2.0.0"
    pairs = (at(partner, version), at("2.6.1"), at("2.99.0", "0.29.1"))
    for there in pairs:
        found = [one for one in findings_of(facts(), there) if one.code == "PL218"]
        assert {one.severity for one in found} == {"warning"}
        assert verdict_of(findings_of(facts(), there)).verdict == "degraded"
    tensors_alone = Facts(source="w.safetensors", format="safetensors")
    assert told(machines.unknown(tensors_alone, at("2.6.1"))) == [("PL218", "warning")]
    assert not told(machines.unknown(tensors_alone, at("2.6.0", version)))


def test_a_recipe_that_is_built_with_an_unknown_release_here_proves_more_than_the_table() -> None:
    there = at("2.99.0", "0.99", is_here=True)
    (first, _) = machines.unknown(facts(), there)
    assert (first.severity, first.remedy) == ("warning", "persistlib check --build B")
    built = machines.unknown(replace(facts(), trusted=()), there)
    assert {one.severity for one in built} == {"note"}


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (at("2.6.0", "0.21.0"), []),
        (at("2.6.0+cpu", "0.21.0+cpu"), []),
        (at("2.9.1", "0.21.0"), [("PL219", "error")]),
        (at("2.15.0", "0.29.1"), []),
        (at("2.9.1", "0.21.0", is_here=True), [("PL219", "warning")]),
        # Releases that the table lacks are judged by the nearest.
        (at("2.6.0", "0.15"), [("PL219", "error")]),
        (at("2.6.0", "0.15.0"), [("PL219", "error")]),
        (at("2.0.0", "0.15.0"), []),
        (at("2.9.2", "0.24.2"), []),
        (at("2.8.0", "0.24.2"), [("PL219", "error")]),
        (at("2.6.0", "0.99"), [("PL219", "warning")]),
        (at("2.99.0", "0.99"), []),
        (at("2.6.0", "0.14.1"), [("PL219", "warning")]),
        (at("1.13.1", "0.14.1"), []),
        (at("2.2.2", packages={"numpy": "2.0.1"}), [("PL219", "warning")]),
        (at("2.3.0", packages={"numpy": "2.0.1"}), []),
        (at("2.2.2", packages={"numpy": "1.26.4"}), []),
    ],
)
def test_packages_that_do_not_go_together_are_told(
    there: Target, expected: list[tuple[str, str]]
) -> None:
    assert told(machines.partners(facts(), there)) == expected


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (at("2.6.0", python="3.11"), []),
        (at("2.6.0", python="3.8"), [("PL220", "error")]),
        (at("2.6.0", python="3.14"), [("PL220", "warning")]),
        (at("2.6.0", python="3.12", platform="Linux", machine="aarch64"), []),
        (at("2.6.0", python="3.12", platform="Darwin", machine="x86_64"), [("PL220", "warning")]),
        (at("2.2.2", python="3.11", platform="Darwin", machine="x86_64"), []),
        (at(None, "0.29.2", python="3.13"), []),
        (at(None, "0.29.2", python="3.14.1"), [("PL220", "error")]),
        (at("2.6.0"), []),
    ],
)
def test_a_python_or_machine_without_a_build_is_told(
    there: Target, expected: list[tuple[str, str]]
) -> None:
    assert told(machines.builds(facts(), there)) == expected


def test_a_build_without_the_lock_serves_no_other_python(monkeypatch: pytest.MonkeyPatch) -> None:
    release = framework("torch", "2.15.0")
    builds = {"Linux-x86_64": ["3.14t"]}
    monkeypatch.setitem(release.facts, "wheels", builds)
    assert told(machines.builds(facts(), at("2.15.0", python="3.14"))) == [("PL220", "warning")]
    builds["Linux-x86_64"] = ["3.13+"]
    assert not told(machines.builds(facts(), at("2.15.0", python="3.14")))


def test_memory_and_the_order_of_bytes_are_held_against_the_weights() -> None:
    assert not told(machines.room(facts(), Target(memory=4_000_000, byteorder="little")))
    assert told(machines.room(facts(), Target(memory=3_999_999))) == [("PL223", "warning")]
    assert told(machines.room(facts(), Target(byteorder="big"))) == [("PL224", "error")]
    found = findings_of(facts(), replace(here(), byteorder="big"), walks=False)
    assert ("PL224", "error") in told(found)


@pytest.mark.parametrize(
    ("version", "dtype", "warnings", "notes"),
    [
        ("2.0.1", "F32", 0, 5),
        ("2.4.1", "F32", 0, 3),
        ("2.6.0", "F32", 0, 1),
        ("2.10.0", "F32", 0, 0),
        ("2.5.1", "U16", 1, 3),
        ("2.6.0", "U16", 0, 1),
    ],
)
def test_what_torch_load_does_otherwise_is_told_of_its_own_files(
    version: str, dtype: str, warnings: int, notes: int
) -> None:
    file = Facts(source="w.pt", format="torch", entries=(Entry("w", DType[dtype], (2,)),))
    severities = [severity for _, severity in told(tensors.loading(file, at(version)))]
    assert (severities.count("warning"), severities.count("note")) == (warnings, notes)
    assert not told(tensors.loading(replace(file, format="safetensors"), at(version)))


# Classes of one's own.


def test_the_source_of_an_own_class_is_compared_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "own_of_frameworks"
    package.mkdir()
    (package / "__init__.py").write_text("from .nets import Net as Network\n")
    (package / "nets.py").write_text("class Net:\n    pass")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = importlib.import_module("own_of_frameworks").Network
    digest = source_digest(found)
    for name in [name for name in sys.modules if name.startswith("own_of_frameworks")]:
        del sys.modules[name]

    def judged(builder: str) -> list[tuple[str, str]]:
        return told(own_sources.drift(facts(builder, source=digest), here()))

    for builder in ("own_of_frameworks:Network", "own_of_frameworks.nets:Net"):
        assert not judged(builder)
    (package / "nets.py").write_text("class Net:\n    width = 3\n")
    for builder in ("own_of_frameworks:Network", "own_of_frameworks.nets:Net"):
        assert judged(builder) == [("PL206", "warning")]
    assert judged("own_of_frameworks.none:Net") == [("PL215", "error")]
    assert judged("nowhere_of_frameworks:Net") == [("PL215", "error")]
    assert not told(own_sources.drift(facts("own_of_frameworks:X", source=digest), Target()))
    for name, is_here in (
        *(("own_of_frameworks.nets:Net", True), ("nowhere_of_frameworks:Net", False)),
        *(("builtins:abs", True), ("math:sqrt", True), ("_struct:Struct", True)),
        *(("collections.abc:Sized", True), ("numpy.random._pcg64:PCG64", True)),
        *(("numpy.nowhere:x", False), ("importlib:import_module", True)),
    ):
        found = told(own_sources.drift(facts(edits=edit(name)), here()))
        assert found == ([] if is_here else [("PL215", "error")]), name
    assert not [name for name in sys.modules if name.startswith("own_of_frameworks")]


# The table and the script that makes it.


def test_versions_are_found_by_number_and_the_nearest_older_stands_in() -> None:
    assert framework("torch", "2.6").is_exact
    assert framework("torch", "2.6.0+cu124").is_exact
    assert not framework("torch", "2.6.1").is_exact
    assert framework("torch", "2.6.1").version == "2.6.0"
    assert framework("torch", "1.13.1").version == frameworks.versions("torch")[0]
    assert framework("torch", "99.0").is_newer
    assert not framework("torch", "2.6.1").is_newer
    assert frameworks.framework("torch", "no version") is None
    assert frameworks.framework("torch", None) is None


def test_a_verdict_imports_no_framework() -> None:
    bundle = next((ROOT / "fixtures" / "v1").glob("*/manifest.json")).parent
    script = (
        "import sys, persistlib; persistlib.check(sys.argv[1], 'torch==2.6,torchvision==0.21');"
        " sys.exit('torch' in sys.modules or 'onnxruntime' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(bundle)], check=True)


def scripts() -> tuple[Any, Any]:
    sys.path.insert(0, str(ROOT / "fixtures"))
    try:
        return importlib.import_module("make_frameworks"), importlib.import_module("wheel_sources")
    finally:
        sys.path.remove(str(ROOT / "fixtures"))


@given(st.permutations(["1.0", "1.1", "1.10", "2.0"]))
def test_releases_may_be_added_in_any_order(order: list[str]) -> None:
    make, _ = scripts()

    def part(versions: list[str]) -> dict[str, Any]:
        made: dict[str, Any] = {"releases": [], "facts": [], "rows": []}
        for version in versions:
            rows = [["m", "always", "value"], ["m", "x", "value", version[0]]]
            make.add(made, version, {"of": version}, rows)
        return made

    assert part(order) == part(["1.0", "1.1", "1.10", "2.0"])


SOURCE = {
    "pack/__init__.py": "from .nets import *\nfrom .nets import _Hidden\n",
    "pack/nets.py": textwrap.dedent(
        """
        import torch.nn as nn
        __all__ = ["Net", "net", "Odd", "Child"]

        class Net(nn.Module):
            def __init__(self, width, /, depth=2, *, norm=None, **more):
                super().__init__()
                self.drop = more.pop("drop", 0.5)
                if "banned" in more:
                    raise ValueError("no")
                self.inner = _Hidden(depth, **more)

        class Child(Net):
            pass

        class _Hidden:
            def __init__(self, size, banned=1, eps=1e-5):
                pass

        class Odd(nn.Linear):
            pass

        def net(*, weights=None, **more):
            return _net(3, more.pop("depth", 1), weights, **more)

        def _net(width, depth, weights, **more):
            return Net(width, depth=depth, **more)

        def swallow(**more):
            return 1
        """
    ),
}


def test_keywords_are_followed_to_where_they_end() -> None:
    _, wheels = scripts()
    sources = wheels.Sources(SOURCE, ("pack",))

    def keywords(name: str) -> Any:
        module, _, attribute = name.partition(":")
        place, node = sources.find(wheels.Place(module, attribute))
        return sources.accepted(place, node)

    inner = {"norm": "None", "drop": "0.5", "eps": "1e-05"}
    assert keywords("pack:net").defaults == {"weights": "None", "depth": "1", **inner}
    assert not keywords("pack:net").open
    assert keywords("pack.nets:Child").defaults.items() >= inner.items()
    assert keywords("pack:Odd").like == ["torch.nn:Linear"]
    assert keywords("pack.nets:swallow").open
    assert sources.find(wheels.Place("pack", "swallow")) is None
    assert sources.find(wheels.Place("pack", "_Hidden")) is not None


def test_a_digest_of_code_changes_with_what_is_used_and_not_with_words() -> None:
    _, wheels = scripts()

    def digest(old: str, new: str) -> str:
        texts = {name: text.replace(old, new) for name, text in SOURCE.items()}
        code: str = wheels.Sources(texts, ("pack",)).code(wheels.Place("pack.nets", "net"))
        return code

    plain = digest("", "")
    assert digest("return 1", "return 2") == plain
    assert digest("def net(*", "# a word\ndef net(*") == plain
    assert digest("depth=2", "depth: int = 2") == plain
    assert digest("eps=1e-5", "eps=1e-6") != plain
    assert digest("raise ValueError", "raise TypeError") != plain


def test_a_fault_that_stands_in_many_places_is_told_once() -> None:
    many = tuple(one for _ in range(3) for one in edit("torch.nn:Nothing", path="fc"))
    found: list[Finding] = list(offers.recipe(facts(edits=many), at("2.6.0")))
    assert [one.location for one in found] == ["edits.0 fc: torch.nn:Nothing (and 2 more)"]


def test_a_hostile_recipe_of_many_names_is_judged_in_time() -> None:
    many = tuple(edit(f"torch.nn:Nothing{number}")[0] for number in range(5_000))
    started = time.process_time()
    model = facts("torch.nn:Identity", edits=many)
    assert len(list(offers.recipe(model, at("2.0.0")))) == 5_000
    assert time.process_time() - started < 20  # it takes a second
