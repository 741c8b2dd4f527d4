"""A manifest is read strictly: every gate, each by its code, and never another exception."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from older_schemas import STEPS, older, sealed
from persistlib.canonical import encode
from persistlib.digests import PREFIX, digest
from persistlib.errors import Code, IntegrityError, ManifestError, PersistlibError
from persistlib.manifest import document, upgrades
from persistlib.manifest.misfits import LENGTH_LIMIT, PROBLEMS_LIMIT
from persistlib.manifest.schema import (
    Architecture,
    Edit,
    Environment,
    FileEntry,
    Graph,
    Manifest,
    State,
    Status,
    TensorRecord,
    UnsavedTensor,
    Weights,
    Writer,
)

if TYPE_CHECKING:
    from collections.abc import Callable

D, E = digest(b"d"), digest(b"e")


def weights(**changes: Any) -> Weights:
    record = TensorRecord(
        name="fc.weight", dtype="F32", shape=(2, 3), blake3=D, file=0, role="parameter"
    )
    bias = record.model_copy(update={"name": "fc.bias", "shape": (2,)})
    draft = Weights(
        identity=document.UNSEALED,
        files=(FileEntry(path="model.safetensors", size=200, header_blake3=D),),
        tensors=(record, bias),
        aliases={"head.weight": "fc.weight"},
    )
    draft = draft.model_copy(update={"identity": document.identity_of_weights(draft)})
    return draft.model_copy(update=changes)


def manifest(**changes: Any) -> Manifest:
    draft = Manifest(
        writer=Writer(name="persistlib", version="0.1.0"),
        bundle_id=document.UNSEALED,
        digest=document.UNSEALED,
        created="2026-11-22T00:00:00Z",
        architecture=Architecture(
            builder="torchvision.models:resnet18",
            edits=(Edit(op="set", path="", attribute="flag", value=[1, 2.5]),),
            structure=PREFIX + D,
        ),
        weights=weights(),
        state=State(
            unsaved_buffers={
                "mask": UnsavedTensor(dtype="F32", shape=(4,), blake3=D),
                "noise": UnsavedTensor(dtype="F32", shape=(4,), blake3=D, file=0),
            },
            files=(FileEntry(path="state.safetensors", size=100, header_blake3=D),),
            strides={"head.weight": (1, 2), "mask": (1,)},
        ),
        environment=Environment(python="3.11.7", platform="linux"),
        documents=("README.md",),
    )
    return draft.model_copy(update=changes)


def data_of(draft: Manifest) -> bytes:
    return document.write(document.seal(draft))


def raw_of(draft: Manifest | None = None) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(data_of(draft or manifest()))
    return raw


def refused(data: bytes, **arguments: Any) -> PersistlibError:
    with pytest.raises(PersistlibError) as caught:
        document.read(data, location="here", **arguments)
    assert all(finding.location.startswith("here") for finding in caught.value.findings)
    assert "\n" not in str(caught.value)
    return caught.value


def codes(data: bytes, **arguments: Any) -> set[str]:
    return {finding.code for finding in refused(data, **arguments).findings}


# -- bytes -------------------------------------------------------------------------------------


def test_what_is_written_is_read_back() -> None:
    draft = document.seal(manifest())
    again = document.read(document.write(draft))
    assert again == draft
    assert document.write(again) == document.write(draft)
    assert again.unknown == ()
    assert again.upgraded_from is None


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b",", b", "),
        lambda data: data[:-1],
        lambda data: data + b"\n",
        lambda data: data[:-1] + b"\r\n",
        lambda data: b" " + data,
        lambda data: data.replace(b"persistlib", b"\\u0070ersistlib"),
        lambda data: data.replace(b"2.5", b"2.50"),
        lambda data: data.replace(b"200", b"2e2"),
    ],
)
def test_what_is_not_canonical_is_refused(change: Callable[[bytes], bytes]) -> None:
    data = data_of(manifest())
    assert change(data) != data
    assert codes(change(data)) == {"PL102"}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_another_encoding_is_refused(encoding: str) -> None:
    assert codes(data_of(manifest()).decode().encode(encoding)) == {"PL101"}


def test_every_changed_byte_is_refused() -> None:
    data = data_of(manifest())
    chance = random.Random(1)
    changes = {(place, bit) for place in range(len(data)) for bit in (0, 5)}
    changes |= {(place, chance.randrange(8)) for place in range(len(data))}
    assert len(changes) > 2000
    for place, bit in changes:
        mutant = bytearray(data)
        mutant[place] ^= 1 << bit
        refused(bytes(mutant))


def test_every_byte_replaced_by_what_means_something_is_refused() -> None:
    data = data_of(manifest())
    for place in range(0, len(data), 3):
        for byte in b'0"{}[],:\\ \n\x00\xff-e':
            if data[place] != byte:
                refused(data[:place] + bytes([byte]) + data[place + 1 :])


def test_every_deleted_doubled_or_cut_off_byte_is_refused() -> None:
    data = data_of(manifest())
    for place in range(len(data)):
        refused(data[:place])
        refused(data[:place] + data[place + 1 :])
        refused(data[: place + 1] + data[place:])


def test_a_changed_content_with_an_old_digest_is_told_as_that() -> None:
    raw = raw_of() | {"license": "MIT"}
    fault = refused(encode(raw))
    assert isinstance(fault, IntegrityError)
    assert fault.code == "PL103"
    strange: list[Any] = [None, 1, [], {}, "", "blake3:", PREFIX + "A" * 64]
    for recorded in strange:
        assert codes(encode(raw | {"digest": recorded})) == {"PL103"}
    raw.pop("digest")
    assert codes(encode(raw)) == {"PL103"}


# -- fields ------------------------------------------------------------------------------------


def test_every_problem_is_told_with_its_place() -> None:
    raw = raw_of()
    raw["created"] = "yesterday"
    raw["weights"]["tensors"][1]["shape"] = [True, -1]
    raw["weights"]["files"][0]["path"] = "../x"
    raw["weights"]["tensors"][0]["strange"] = 1
    del raw["writer"]
    fault = refused(sealed(raw))
    places = {finding.location for finding in fault.findings}
    assert places == {
        "here: created",
        "here: weights.tensors.1.shape.0",
        "here: weights.tensors.1.shape.1",
        "here: weights.files.0.path",
        "here: weights.tensors.0.strange",
        "here: writer",
    }
    assert {finding.code for finding in fault.findings} == {"PL105", "PL106"}
    assert all(finding.remedy and finding.message for finding in fault.findings)


MALFORMED: dict[str, tuple[str, Any]] = {
    "true for an integer": ("weights.tensors.0.file", True),
    "a float for an integer": ("weights.tensors.0.file", 0.0),
    "a text for an integer": ("weights.tensors.0.file", "0"),
    "a negative size": ("weights.files.0.size", -1),
    "an integer for a text": ("writer.name", 1),
    "null for a text": ("writer.name", None),
    "a list for an object": ("writer", []),
    "an object for a list": ("weights.tensors", {}),
    "an unknown dtype": ("weights.tensors.0.dtype", "F31"),
    "a dtype of another spelling": ("weights.tensors.0.dtype", "float32"),
    "an unknown role": ("weights.tensors.0.role", "running mean"),
    "1 for true": ("weights.tensors.0.frozen", 1),
    "a short digest": ("weights.tensors.0.blake3", "ab"),
    "an upper-case digest": ("weights.tensors.0.blake3", "A" * 64),
    "a digest and a line end": ("weights.tensors.0.blake3", D + "\n"),
    "digits of another script": ("created", "\uff12026-11-22T00:00:00Z"),
    "a time with an offset": ("created", "2026-11-22T00:00:00+00:00"),
    "NUL in a tensor's name": ("weights.tensors.0.name", "a\0"),
    "NUL in an alias": ("weights.aliases", {"a\0": "fc.weight"}),
    "a path": ("weights.files.0.path", "a/b"),
    "an absolute path": ("weights.files.0.path", "/etc/passwd"),
    "a Windows path": ("weights.files.0.path", "C:x"),
    "a hidden file": ("weights.files.0.path", ".manifest.json.lock"),
    "a reserved name": ("weights.files.0.path", "NUL.safetensors"),
    "a builder that is none": ("architecture.builder", "os.system('x')"),
    "a builder with a path": ("architecture.builder", "../a:b"),
    "an unknown kind": ("architecture.kind", "pickle"),
    "an unknown edit": ("architecture.edits.0.op", "exec"),
    "an unknown status": ("status.state", "fine"),
    "a document that is a path": ("documents", ["../README.md"]),
    "an extension without a domain": ("extensions", {"x": 1}),
}


def put(raw: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *parents, last = path.split(".")
    inner: Any = raw
    for part in parents:
        inner = inner[int(part)] if part.isdigit() else inner[part]
    inner[last] = value
    return raw


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_field_is_refused_by_its_name(case: str) -> None:
    path, value = MALFORMED[case]
    fault = refused(sealed(put(raw_of(), path, value)))
    assert isinstance(fault, ManifestError)
    assert fault.code == "PL106"
    assert fault.location.startswith(f"here: {path}")


def test_a_missing_field_is_refused_wherever_it_is_required() -> None:
    for path in ("writer", "weights", "weights.identity", "architecture.structure", "environment"):
        raw = raw_of()
        *parents, last = path.split(".")
        inner = raw
        for part in parents:
            inner = inner[part]
        del inner[last]
        fault = refused(sealed(raw))
        assert (fault.code, fault.location) == ("PL106", f"here: {path}")


# -- contradictions ----------------------------------------------------------------------------


def entry(path: str, **digests: str) -> FileEntry:
    return FileEntry(path=path, size=100, **(digests or {"blake3": D}))


def graph(*paths: str) -> tuple[Graph, ...]:
    files = tuple(map(entry, paths))
    return (Graph(files=files, ir_version=10, opsets={"": 20}, weights_identity=PREFIX + D),)


def tensor(**changes: Any) -> TensorRecord:
    return weights().tensors[0].model_copy(update=changes)


def edits(**changes: Any) -> Architecture:
    edit = Edit(op="set", path="", attribute="x").model_copy(update=changes)
    return manifest().architecture.model_copy(update={"edits": (edit,)})


def state(**changes: Any) -> State:
    return manifest().state.model_copy(update=changes)


buffer = UnsavedTensor(dtype="F32", shape=(4,), blake3=D, file=0)

CONTRADICTIONS: dict[str, tuple[str, Manifest]] = {
    "a tensor in no file": ("weights.tensors.0.file", manifest(weights=weights(files=()))),
    "a tensor twice": ("weights.tensors", manifest(weights=weights(tensors=(tensor(), tensor())))),
    "an alias of nothing": ("weights.aliases.a", manifest(weights=weights(aliases={"a": "b"}))),
    "an alias that is a tensor": (
        "weights.aliases.fc.bias",
        manifest(weights=weights(aliases={"fc.bias": "fc.weight"})),
    ),
    "an alias of an alias": (
        "weights.aliases.b",
        manifest(weights=weights(aliases={"a": "fc.bias", "b": "a"})),
    ),
    "a file too small for its tensors": (
        "weights.files.0.size",
        manifest(
            weights=weights(files=(FileEntry(path="m.safetensors", size=41, header_blake3=D),))
        ),
    ),
    "a tensor larger than any file": (
        "weights.files.0.size",
        manifest(weights=weights(tensors=(tensor(shape=(1 << 62,) * 60),), aliases={})),
    ),
    "more dimensions than any tensor has": (
        "weights.tensors.0.shape",
        manifest(weights=weights(tensors=(tensor(shape=(1,) * 65),), aliases={})),
    ),
    "a buffer in no file": (
        "state.unsaved_buffers.noise.file",
        manifest(state=state(files=())),
    ),
    "a buffer that is a tensor": (
        "state.unsaved_buffers.fc.weight",
        manifest(state=state(unsaved_buffers={"fc.weight": buffer})),
    ),
    "strides of nothing": ("state.strides.x", manifest(state=state(strides={"x": (1,)}))),
    "strides of another shape": (
        "state.strides.mask",
        manifest(state=state(strides={"mask": (1, 4)})),
    ),
    "strides with holes": (
        "state.strides.fc.weight",
        manifest(state=state(strides={"fc.weight": (1 << 40, 1)})),
    ),
    "strides that overlap": (
        "state.strides.fc.weight",
        manifest(state=state(strides={"fc.weight": (1, 1)})),
    ),
    "a file twice": ("files", manifest(graphs=graph("a.onnx", "A.ONNX"))),
    "the manifest as a file": ("files", manifest(graphs=graph("manifest.json"))),
    "the manifest by another case": ("files", manifest(graphs=graph("Manifest.JSON"))),
    "a document that is verified": ("files", manifest(graphs=graph("README.md"))),
    "a file without a digest": (
        "m.safetensors",
        manifest(weights=weights(files=(FileEntry(path="m.safetensors", size=200),))),
    ),
    "a file with two digests": (
        "m.safetensors",
        manifest(
            weights=weights(
                files=(FileEntry(path="m.safetensors", size=200, header_blake3=D, blake3=E),)
            )
        ),
    ),
    "a replacement by nothing": (
        "architecture.edits.0.builder",
        manifest(architecture=edits(op="replace", attribute=None)),
    ),
    "a removal with a builder": (
        "architecture.edits.0.builder",
        manifest(architecture=edits(op="remove", builder="a:b", attribute=None)),
    ),
    "a setting of nothing": (
        "architecture.edits.0.attribute",
        manifest(architecture=edits(attribute=None)),
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_fields_that_contradict_each_other_are_refused(case: str) -> None:
    place, draft = CONTRADICTIONS[case]
    raw = draft.model_dump(mode="json")
    fault = refused(sealed(raw))
    assert fault.code == "PL106"
    assert f"here: {place}" in {finding.location for finding in fault.findings}


def test_all_contradictions_are_told_at_once() -> None:
    draft = manifest(
        weights=weights(files=(), aliases={"a": "b"}), architecture=edits(attribute=None)
    )
    assert len(refused(sealed(draft.model_dump(mode="json"))).findings) >= 4


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("weights.identity", PREFIX + E),
        ("weights.tensors.0.blake3", E),
        ("weights.tensors.0.shape", [3, 2]),
        ("weights.tensors.0.dtype", "I32"),
        ("weights.tensors.0.name", "fc.weights"),
        ("weights.aliases", {"neck.weight": "fc.weight"}),
        ("bundle_id", PREFIX + E),
        ("architecture.structure", PREFIX + E),
        ("architecture.builder", "torchvision.models:resnet34"),
        ("interface.labels", ["cat", "dog"]),
        ("state.training", ["fc"]),
    ],
)
def test_an_identity_that_its_parts_do_not_make_is_refused(path: str, value: Any) -> None:
    raw = put(raw_of(), path, value)
    raw["state"]["strides"] = {}
    if path == "weights.tensors.0.name":
        raw["weights"]["aliases"] = {}
    fault = refused(sealed(raw))
    assert isinstance(fault, IntegrityError)
    assert {finding.code for finding in fault.findings} == {"PL107"}


# -- versions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2.0", "0.9", "0.0", "9999.9999", "10.0"])
def test_another_major_version_is_refused_by_name(version: str) -> None:
    # Nothing else of it is looked at: its fields may mean anything.
    fault = refused(sealed({"manifest_version": version, "weights": "elsewhere"}))
    assert fault.code == "PL104"
    assert version in fault.reason
    assert "pip install" in fault.remedy


@pytest.mark.parametrize(
    "version",
    [None, 1, 1.0, "1", "1.", "1.0.0", "01.0", "1.00", "1.0 ", "v1.0", "\uff11.0", ""],
)
def test_a_version_that_is_none_is_refused(version: object) -> None:
    raw = raw_of() | {"manifest_version": version}
    if version is None:
        del raw["manifest_version"]
    assert codes(sealed(raw)) == {"PL106"}


def newer(raw: dict[str, Any]) -> dict[str, Any]:
    return raw | {"manifest_version": "1.7"}


WAIVED = {"must_understand": False, "value": [1, {"deep": True}]}


def test_a_newer_minor_version_is_read_and_its_waived_fields_are_kept() -> None:
    raw = newer(raw_of())
    raw["new"] = WAIVED
    raw["weights"]["tensors"][1]["new"] = WAIVED
    raw["state"]["unsaved_buffers"]["mask"]["new"] = {"must_understand": False}
    raw["architecture"]["edits"][0]["new"] = WAIVED
    data = sealed(raw)
    read = document.read(data)
    assert document.write(read) == data
    assert read.manifest_version == "1.7"
    assert dict(read.unknown) == {
        ("new",): WAIVED,
        ("weights", "tensors", 1, "new"): WAIVED,
        ("state", "unsaved_buffers", "mask", "new"): {"must_understand": False},
        ("architecture", "edits", 0, "new"): WAIVED,
    }
    assert read.bundle_id == document.bundle_id(manifest())


@pytest.mark.parametrize(
    "value",
    [
        1,
        None,
        [],
        {},
        {"must_understand": True},
        {"must_understand": 0},
        {"must_understand": None},
        {"must_understand": "false"},
        [{"must_understand": False}],
    ],
)
@pytest.mark.parametrize("place", ["", "weights", "writer"])
def test_a_field_that_must_be_understood_is_refused(place: str, value: object) -> None:
    raw = newer(raw_of())
    (raw[place] if place else raw)["new"] = value
    raw["waived"] = WAIVED
    fault = refused(sealed(raw))
    assert fault.code == "PL105"
    assert fault.location == f"here: {place}.new".replace(": .", ": ")
    assert len(fault.findings) == 1


def test_unknown_fields_follow_changes_of_the_rest() -> None:
    raw = newer(raw_of(manifest(graphs=graph("a.onnx"))))
    raw["graphs"][0]["new"] = WAIVED
    raw["new"] = WAIVED
    read = document.read(sealed(raw))
    added = read.model_copy(update={"graphs": (*read.graphs, *graph("b.onnx"))})
    again = document.read(data_of(added))
    assert dict(again.unknown) == {("graphs", 0, "new"): WAIVED, ("new",): WAIVED}
    assert again.bundle_id == read.bundle_id
    bare = document.read(data_of(read.model_copy(update={"graphs": ()})))
    assert dict(bare.unknown) == {("new",): WAIVED}


def test_a_waiver_excuses_no_field_that_is_known() -> None:
    raw = put(raw_of(), "writer", {"must_understand": False})
    assert codes(sealed(raw)) == {"PL105", "PL106"}


def test_what_makes_the_bundle_id_is_only_what_the_model_is() -> None:
    before = document.seal(manifest())
    for changes in (
        {"evaluations": ({"accuracy": 0.5},)},
        {"graphs": graph("model.onnx")},
        {"documents": ()},
        {"environment": Environment(python="3.14", platform="mars")},
        {"created": "2031-01-01T00:00:00Z"},
        {"name": "other", "license": "MIT"},
        {"status": Status(state="withdrawn")},
        {"architecture": manifest().architecture.model_copy(update={"source": PREFIX + E})},
        {"weights": weights(files=(entry("other.safetensors", header_blake3=E),))},
        {"extensions": {"org.example": 1}},
    ):
        after = document.seal(before.model_copy(update=changes))
        assert after.bundle_id == before.bundle_id, changes
        assert after.digest != before.digest, changes


# -- upgrades ----------------------------------------------------------------------------------


def old() -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(older(data_of(manifest())))
    return raw


def test_an_older_file_is_upgraded_and_stays_the_same_model() -> None:
    data = sealed(old())
    read = document.read(data, steps=STEPS)
    current = document.seal(manifest())
    assert read.upgraded_from == "0.9"
    assert read.manifest_version == "1.0"
    assert read.bundle_id == current.bundle_id
    assert document.write(document.seal(read)) == document.write(current)
    assert codes(data) == {"PL104"}, "without the step it is another major version"


def test_steps_follow_one_another_and_none_goes_beyond_this_release() -> None:
    steps = STEPS | {
        "0.8": upgrades.Step("0.9", lambda raw: raw),
        "1.0": upgrades.Step("1.1", lambda raw: raw | {"new": 1}),
    }
    read = document.read(sealed(old() | {"manifest_version": "0.8"}), steps=steps)
    assert (read.upgraded_from, read.manifest_version) == ("0.8", "1.0")
    assert document.read(data_of(manifest()), steps=steps).upgraded_from is None


def test_an_older_file_is_verified_as_it_is_before_it_is_upgraded() -> None:
    called: list[object] = []

    def step(raw: dict[str, Any]) -> dict[str, Any]:
        called.append(raw)
        return raw

    steps = {"0.9": upgrades.Step("1.0", step)}
    assert codes(encode(old() | {"license": "MIT"}), steps=steps) == {"PL103"}
    assert called == []


def test_a_step_that_meets_what_it_does_not_expect_is_an_error_of_ours() -> None:
    strange: list[Any] = [[], None, {}, 1, "text"]
    for value in strange:
        assert codes(sealed(old() | {"architecture": value}), steps=STEPS) == {"PL106"}
    raw = old()
    del raw["tensors_and_files"]
    assert codes(sealed(raw), steps=STEPS) == {"PL106"}


def test_steps_in_a_circle_lead_nowhere() -> None:
    steps = {
        "0.1": upgrades.Step("0.2", lambda raw: raw),
        "0.2": upgrades.Step("0.1", lambda raw: raw),
    }
    assert codes(sealed({"manifest_version": "0.1"}), steps=steps) == {"PL104"}


def test_a_step_may_change_what_it_is_given_and_the_file_stays_as_it_was() -> None:
    raw = old()
    before = encode(raw)
    upgrades.upgrade(raw, STEPS, "here")
    assert encode(raw) == before


# -- size --------------------------------------------------------------------------------------


def test_a_manifest_of_many_tensors_is_read() -> None:
    tensors = tuple(tensor(name=f"layers.{i}.weight", shape=(1,)) for i in range(5000))
    draft = weights(
        tensors=tensors,
        aliases={},
        files=(FileEntry(path="m.safetensors", size=1 << 20, header_blake3=D),),
    )
    draft = draft.model_copy(update={"identity": document.identity_of_weights(draft)})
    read = document.read(data_of(manifest(weights=draft, state=State())))
    assert len(read.weights.tensors) == 5000


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("evaluations", [0] * 5_000),
        ("graphs", [{}] * 400),
        ("weights.aliases", {f"a{n}": 0 for n in range(5_000)}),
        ("interface", {"labels": [0] * 5_000}),
        ("interface", {"labels": ["a"] * (LENGTH_LIMIT + 1)}),
        ("weights.tensors", [{"shape": [-1] * 5_000}]),
        ("requires", {f"p{n}": None for n in range(5_000)}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_manifest_that_is_malformed_throughout_is_refused_before_each_place_is_explained(
    place: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explained(*_: object) -> None:
        pytest.fail("each problem is explained, at hundreds of bytes")

    data = sealed(put(raw_of(), place, value))
    monkeypatch.setattr(Manifest, "model_validate_json", explained)
    fault = refused(data)
    assert fault.code == Code.MANIFEST_FIELD.identifier
    assert len(fault.findings) == 1
    assert place in fault.location


def test_as_many_problems_as_are_read_are_all_told() -> None:
    raw = put(raw_of(), "evaluations", [0] * PROBLEMS_LIMIT)
    assert len(refused(sealed(raw)).findings) == PROBLEMS_LIMIT


def test_more_waived_fields_than_problems_are_kept() -> None:
    waived = {f"later{n}": {"must_understand": False} for n in range(2 * PROBLEMS_LIMIT)}
    assert len(document.read(sealed({**raw_of(), **waived})).unknown) == len(waived)
