"""Whether a model may be used: said in its manifest, and acted on wherever it is used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import persistlib
from command_line import invoke, told
from older_schemas import STEPS, make_older, sealed
from persistlib.errors import (
    CompatibilityError,
    ManifestError,
    PersistlibError,
    PersistlibWarning,
    UsageError,
)
from persistlib.manifest import upgrades
from persistlib.manifest.schema import Status
from persistlib.model_notes import ModelNote, render

FIXTURES = Path(__file__).parent.parent / "fixtures" / "v1"
OTHER = "blake3:" + "a" * 64


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    shutil.copytree(FIXTURES / "perceptron", tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def today(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1795737600")


def raw(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "manifest.json").read_bytes())
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# -- setting it --------------------------------------------------------------------------------


def test_the_status_changes_and_nothing_else(bundle: Path) -> None:
    before = raw(bundle)
    others = files(bundle)
    persistlib.set_status(bundle, "withdrawn", reason="labels swapped")
    after = raw(bundle)
    assert after.pop("status") == {
        "state": "withdrawn",
        "reason": "labels swapped",
        "date": "2026-11-27",
        "successor": None,
    }
    persistlib.set_status(bundle, "active")
    persistlib.set_status(bundle, "superseded-by", successor=OTHER, reason="a better one")
    assert raw(bundle)["status"]["successor"] == OTHER
    persistlib.set_status(bundle, "active")
    assert raw(bundle)["status"] == before.pop("status")
    assert after.pop("digest") != before.pop("digest")
    assert after == before
    assert files(bundle) == others


def test_the_same_status_again_changes_nothing(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    persistlib.set_status(bundle, "withdrawn", reason="labels swapped")
    before = files(bundle)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1895737600")
    persistlib.set_status(bundle, "withdrawn", reason="labels swapped")
    assert files(bundle) == before
    persistlib.set_status(bundle, "withdrawn", reason="and biased")
    assert raw(bundle)["status"]["date"] == "2030-01-27"


def test_a_successor_may_be_named_by_its_path(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "tied", tmp_path / "better")
    manifest = persistlib.set_status(bundle, "superseded-by", successor=tmp_path / "better")
    assert manifest.status.successor == raw(tmp_path / "better")["bundle_id"]
    assert manifest.status.reason == "better replaces it"
    assert str(tmp_path) not in (bundle / "manifest.json").read_text()


USAGE: dict[str, tuple[str, dict[str, Any]]] = {
    "an unknown state": ("superseded", {}),
    "withdrawn for no reason": ("withdrawn", {}),
    "withdrawn for an empty one": ("withdrawn", {"reason": " "}),
    "superseded by nothing": ("superseded-by", {"reason": "old"}),
    "active with a reason": ("active", {"reason": "fine"}),
    "active with a successor": ("active", {"successor": OTHER}),
}


@pytest.mark.parametrize("case", USAGE)
def test_what_cannot_be_meant_is_refused(bundle: Path, case: str) -> None:
    state, options = USAGE[case]
    before = files(bundle)
    with pytest.raises(UsageError):
        persistlib.set_status(bundle, state, **options)  # type: ignore[arg-type] # on purpose
    assert files(bundle) == before


def test_a_model_does_not_follow_itself(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "copy")
    for successor in (bundle, tmp_path / "copy", raw(bundle)["bundle_id"]):
        with pytest.raises(UsageError, match="follow itself"):
            persistlib.set_status(bundle, "superseded-by", successor=successor)


def test_a_withdrawn_model_is_never_made_usable_by_naming_its_successor(bundle: Path) -> None:
    persistlib.set_status(bundle, "withdrawn", reason="labels swapped")
    before = files(bundle)
    envelope, code = told("status", bundle, "--superseded-by", OTHER)
    (found,) = envelope["findings"]
    assert (code, found["code"], files(bundle)) == (2, "PL901", before)
    assert "labels swapped" in found["message"]
    assert f"persistlib status {bundle} --activate" in found["remedy"]
    told("status", bundle, "--activate")
    assert told("status", bundle, "--superseded-by", OTHER)[1] == 0
    persistlib.set_status(bundle, "withdrawn", reason="worse still")
    with pytest.raises(CompatibilityError, match="worse still"):
        opened(bundle)


def test_nothing_is_made_where_no_bundle_stands(tmp_path: Path) -> None:
    for path, code in ((tmp_path / "a" / "b", "PL412"), (tmp_path, "PL411")):
        with pytest.raises(PersistlibError) as caught:
            persistlib.set_status(path, "active")
        assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_a_time_that_is_none_is_told(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for epoch in ("soon", "1e400", "9" * 30):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
        with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
            persistlib.set_status(bundle, "withdrawn", reason="x")


def test_an_older_bundle_is_upgraded_with_it(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(upgrades.STEPS, "0.9", STEPS["0.9"])
    old = make_older(bundle)
    persistlib.set_status(bundle, "withdrawn", reason="x")
    assert (bundle / "manifest-0.9.json").read_bytes() == old
    assert raw(bundle)["status"]["state"] == "withdrawn"


def test_what_a_newer_release_wrote_survives_it(bundle: Path) -> None:
    waived = {"must_understand": False, "value": [1]}
    newer: dict[str, Any] = raw(bundle) | {"manifest_version": "1.9", "later": waived}
    newer["weights"]["later"] = waived
    (bundle / "manifest.json").write_bytes(sealed(newer))
    persistlib.set_status(bundle, "withdrawn", reason="x")
    after = raw(bundle)
    assert (after["manifest_version"], after["later"]) == ("1.9", waived)
    assert after["weights"] == newer["weights"]


# -- acting on it ------------------------------------------------------------------------------


def opened(bundle: Path, **options: Any) -> Any:
    return persistlib.load(bundle, runtime="onnxruntime", **options)


def test_a_withdrawn_model_is_refused_unless_it_is_asked_for(bundle: Path) -> None:
    persistlib.set_status(bundle, "withdrawn", reason="labels swapped", successor=OTHER)
    report = persistlib.check(bundle)
    assert report.verdict == "refused"
    for options in ({"runtime": "torch"}, {"runtime": "torch", "only": "*"}, {}):
        with pytest.raises(CompatibilityError) as caught:
            persistlib.load(bundle, **{"runtime": "onnxruntime", **options})  # type: ignore[call-overload]
        assert caught.value.code == "PL208"
        assert "labels swapped" in caught.value.reason
        assert OTHER in caught.value.remedy
    with pytest.warns(PersistlibWarning, match="PL208") as caught_warnings:
        session = opened(bundle, allow_withdrawn=True)
    assert len(caught_warnings) == 1
    assert session.run({session.inputs[0].name: np.zeros((2, 6), np.float32)})


def test_the_way_to_use_a_withdrawn_model_names_a_verb_that_has_it(bundle: Path) -> None:
    persistlib.set_status(bundle, "withdrawn", reason="labels swapped")
    warned, _ = told("convert", bundle, bundle.parent / "w.pt", "--allow-loss", "all")
    for found in (*warned["findings"], told("check", bundle)[0]["findings"][0]):
        words = found["remedy"].rpartition("; ")[2].split()
        assert words[0] == "persistlib"
        assert words[2] == "--allow-withdrawn"
        assert words[2] in invoke(words[1], "--help").stdout


def test_permission_to_use_a_withdrawn_model_excuses_nothing_else(bundle: Path) -> None:
    document = raw(bundle)
    document["status"]["state"] = "withdrawn"
    document["requires"]["python"] = ">=9"
    (bundle / "manifest.json").write_bytes(sealed(document))
    with pytest.raises(CompatibilityError, match="PL201"):
        opened(bundle, allow_withdrawn=True)


def test_a_superseded_model_loads_with_one_warning_that_names_the_successor(bundle: Path) -> None:
    persistlib.set_status(bundle, "superseded-by", successor=OTHER)
    assert persistlib.check(bundle).verdict == "degraded"
    with pytest.warns(PersistlibWarning) as caught:
        opened(bundle)
    assert len(caught) == 1
    assert OTHER in str(caught[0].message)


@pytest.mark.parametrize("state", ["withdrawn", "superseded-by"])
def test_verify_says_it_and_compares_all_the_same(bundle: Path, state: Any) -> None:
    persistlib.set_status(bundle, state, reason="old", successor=OTHER)
    report = persistlib.verify(bundle)
    assert report.ok
    assert [(found.code, found.severity) for found in report.findings] == [("PL208", "note")]
    (bundle / "model.safetensors").write_bytes(b"")
    assert not persistlib.verify(bundle).ok


@pytest.mark.parametrize("state", ["withdrawn", "superseded-by"])
def test_a_conversion_warns_since_its_file_may_not_say_so(bundle: Path, state: Any) -> None:
    persistlib.set_status(bundle, state, reason="old", successor=OTHER)
    out = bundle.parent / "out.safetensors"
    envelope, code = told("convert", bundle, out, "--allow-loss", "all")
    assert code == 0
    assert out.exists()
    assert [(f["code"], f["severity"]) for f in envelope["findings"]] == [("PL208", "warning")]
    persistlib.set_status(bundle, "active")
    envelope, _ = told("convert", bundle, out, "--allow-loss", "all", "--overwrite")
    assert envelope["findings"] == []


# -- the command line --------------------------------------------------------------------------


def test_the_verb_shows_and_sets(bundle: Path) -> None:
    envelope, code = told("status", bundle)
    assert (envelope["data"]["state"], code) == ("active", 0)
    envelope, code = told("status", bundle, "--withdraw", "labels swapped")
    assert (envelope["data"]["state"], envelope["data"]["reason"], code) == (
        "withdrawn",
        "labels swapped",
        0,
    )
    envelope, code = told("status", bundle)
    assert (envelope["ok"], envelope["data"]["date"], code) == (False, "2026-11-27", 1)
    assert "labels swapped" in invoke("inspect", bundle).stdout
    told("status", bundle, "--activate")
    told("status", bundle, "--superseded-by", OTHER, "--reason", "a better one")
    envelope, code = told("status", bundle)
    assert (envelope["data"]["successor"], envelope["data"]["reason"], code) == (
        OTHER,
        "a better one",
        3,
    )
    assert told("status", bundle, "--activate")[1] == 0
    assert told("status", bundle)[0]["data"]["state"] == "active"


@pytest.mark.parametrize(
    "words",
    [
        ("--activate", "--withdraw", "x"),
        ("--superseded-by", OTHER, "--withdraw", "x"),
        ("--reason", "x"),
        ("--withdraw", "x", "--reason", "y"),
        ("--withdraw", ""),
    ],
)
def test_options_that_contradict_each_other_are_usage(bundle: Path, words: tuple[str, ...]) -> None:
    before = files(bundle)
    envelope, code = told("status", bundle, *words)
    assert (code, envelope["findings"][0]["code"]) == (2, "PL901")
    assert files(bundle) == before


def test_run_takes_a_withdrawn_model_only_when_told_to(bundle: Path, tmp_path: Path) -> None:
    persistlib.set_status(bundle, "withdrawn", reason="labels swapped")
    np.save(tmp_path / "x.npy", np.zeros((2, 6), np.float32))
    words = ("run", bundle, "--input", tmp_path / "x.npy", "--runtime", "onnxruntime")
    envelope, code = told(*words)
    assert (code, envelope["findings"][0]["code"]) == (1, "PL208")
    envelope, code = told(*words, "--allow-withdrawn")
    assert (code, envelope["findings"][0]["severity"]) == (0, "warning")


# -- versions of the manifest ------------------------------------------------------------------

WAIVED = {"must_understand": False}


def major_2(bundle: Path) -> bytes:
    return sealed(
        {"bundle_id": raw(bundle)["bundle_id"], "manifest_version": "2.0", "everything": "else"}
    )


def waived(bundle: Path) -> bytes:
    return sealed(raw(bundle) | {"manifest_version": "1.9", "hue": WAIVED})


def required(bundle: Path) -> bytes:
    return sealed(raw(bundle) | {"manifest_version": "1.9", "hue": {"must_understand": True}})


def truncated(bundle: Path) -> bytes:
    data = (bundle / "manifest.json").read_bytes()
    return data[: len(data) // 2]


VERSIONS = {
    "another major version": (major_2, "PL104", "refused", "2.0"),
    "a newer minor one, its new field waived": (waived, "PL109", "ok", "hue"),
    "a newer minor one with a field to be understood": (required, "PL105", "refused", "hue"),
    "a truncated one": (truncated, "PL101", "refused", "no JSON"),
}


@pytest.mark.parametrize("case", VERSIONS)
def test_each_version_that_is_not_this_one_has_its_own_verdict(bundle: Path, case: str) -> None:
    make, code, verdict, named = VERSIONS[case]
    (bundle / "manifest.json").write_bytes(make(bundle))
    report = persistlib.check(bundle)
    assert report.verdict == verdict
    found = next(f for f in report.findings if f.code == code)
    assert named in f"{found.location} {found.message}"
    assert found.remedy
    envelope, exit_code = told("check", bundle)
    assert (envelope["data"].get("verdict"), exit_code) == (verdict, int(verdict == "refused"))
    assert code in {f["code"] for f in envelope["findings"]}
    if verdict == "refused":
        for use in (opened, persistlib.inspect, persistlib.upgrade):
            with pytest.raises(ManifestError) as caught:
                use(bundle)
            assert caught.value.code == code
        assert [f.code for f in persistlib.verify(bundle).findings] == [code]
    else:
        assert persistlib.verify(bundle).ok
        assert opened(bundle) is not None
        assert found.severity == "note"


def test_wherever_a_manifest_is_cut_off_it_is_refused_as_that(bundle: Path) -> None:
    data = (bundle / "manifest.json").read_bytes()
    for place in (0, 1, len(data) // 3, len(data) - 2, len(data) - 1):
        (bundle / "manifest.json").write_bytes(data[:place])
        (found,) = persistlib.check(bundle).findings
        assert found.code == ("PL102" if place == len(data) - 1 else "PL101")


# -- a graph alone -----------------------------------------------------------------------------


@pytest.fixture
def graph(bundle: Path, tmp_path: Path) -> Path:
    """Return the graph of a withdrawn model, in a file of its own that notes the model."""
    note = ModelNote(
        name="swapped",
        license="CC-BY-NC-4.0",
        architecture=persistlib.inspect(bundle).manifest.architecture,
        weights=persistlib.inspect(bundle).manifest.weights.identity,
        status=Status(state="withdrawn", reason="labels swapped"),
    )
    path = tmp_path / "alone.onnx"
    shutil.copy(bundle / "model.onnx", path)
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, render(note))
    onnx.save(model, str(path))
    return path


def test_a_graph_that_notes_a_withdrawn_model_is_refused_as_the_bundle_is(graph: Path) -> None:
    report = persistlib.check(graph, forbid_licenses=["CC-BY-NC-*"])
    assert report.verdict == "refused"
    assert {"PL208", "PL226"} <= {f.code for f in report.findings if f.severity == "error"}
    with pytest.raises(CompatibilityError, match="PL208"):
        opened(graph)
    with pytest.warns(PersistlibWarning, match="PL208"):
        opened(graph, allow_withdrawn=True)


def test_the_status_is_told_before_a_weight_is_compared(graph: Path) -> None:
    model = onnx.load(str(graph))
    tensor = next(t for t in model.graph.initializer if t.name == "inner.bias")
    tensor.raw_data = bytes(len(tensor.raw_data))
    onnx.save(model, str(graph))
    with pytest.raises(CompatibilityError, match="PL208"):
        opened(graph)
    with pytest.warns(PersistlibWarning), pytest.raises(PersistlibError, match="PL114"):
        opened(graph, allow_withdrawn=True)
