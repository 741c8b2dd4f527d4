"""Verdicts: the one table of rules, the story of each code, choices of releases, and `load`."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import shlex
import shutil
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import persistlib
import runtime_models
from command_line import invoke
from persistlib.compat import judging, verdicts
from persistlib.compat.coverage import silent
from persistlib.compat.describing import parse_target
from persistlib.compat.facts import Facts
from persistlib.compat.fault_stories import FAULTS
from persistlib.compat.judging import findings_of
from persistlib.compat.stories import STORIES, code_of
from persistlib.compat.table import RULES, Rule
from persistlib.compat.targets import Target, here
from persistlib.compat.verdicts import verdict_of
from persistlib.errors import (
    Code,
    CompatibilityError,
    PersistlibWarning,
    Severity,
    TrainingError,
    finding,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from persistlib.errors import Finding

MODELS = runtime_models.models()
ALL_STORIES = {**STORIES, **FAULTS}
NEW_GRAPH = MODELS["gelu-opset-20"].SerializeToString()  # 1.17.0 is the first that takes it


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a graph, of operators that every release computes."""
    folder = tmp_path_factory.mktemp("saved") / "a net"
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    inputs = torch.randn(2, 4)
    persistlib.save(model, folder, example_inputs=inputs, onnx={"opset": 18, "ir": 9})
    return folder


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A bundle without a graph."""
    model = nn.Linear(4, 3)
    persistlib.save(model, tmp_path / "plain", example_inputs=torch.randn(2, 4))
    return tmp_path / "plain"


# -- the table and its stories ---------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.judge)
def test_every_rule_is_a_function_of_a_model_and_a_target(rule: Rule) -> None:
    module = importlib.import_module(f"persistlib.compat.{rule.judge.partition(':')[0]}")
    assert rule.call is getattr(module, rule.judge.partition(":")[2])
    assert list(inspect.signature(rule.call).parameters) == ["facts", "target"]
    assert rule.call.__doc__
    assert rule.codes
    assert len(set(rule.codes)) == len(rule.codes)


def test_every_code_that_a_verdict_may_hold_has_its_story_and_no_other() -> None:
    given_by_rules = {code for rule in RULES for code in rule.codes}
    family = {code for code in Code if code.family is CompatibilityError}
    assert set(STORIES) == given_by_rules | family
    assert not set(STORIES) & set(FAULTS)
    for code, story in ALL_STORIES.items():
        for text in story:
            assert text, code
            assert text.isprintable(), code
        assert story.means.endswith("."), code
        assert any(word in story.grade for word in ("refused", "degraded", "note", "error", "ok"))


def test_rules_give_findings_of_their_own_codes(bundle: Path, plain: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.onnx"
    old.write_bytes(NEW_GRAPH)
    targets = ("torch==1.13,python==3.9", "onnxruntime==1.15.1", "numpy==1.0", "onnxruntime==99")
    for source in (bundle, plain, old):
        for target in map(parse_target, targets):
            facts = facts_of(source)
            for rule in RULES:
                codes = {code.identifier for code in rule.codes}
                assert {one.code for one in rule.call(facts, target)} <= codes, rule.judge


def facts_of(source: Path) -> Facts:
    """Return what `check` knows of a source."""
    caught: list[Facts] = []

    def keep(facts: Facts, _: Target, **__: bool) -> Iterator[Finding]:
        caught.append(replace(facts, structures=lambda: ()))
        return iter(())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("persistlib.compat.checking.findings_of", keep)
        persistlib.check(source)
    return caught[0]


_FINDINGS = st.lists(
    st.builds(
        finding,
        st.sampled_from([Code.STATUS, Code.PACKAGE_DRIFT]),
        st.text("ab", max_size=1),
        st.just("reason"),
        severity=st.sampled_from(Severity),
    )
)


@given(_FINDINGS, st.booleans())
def test_the_worst_finding_decides_and_stands_first(found: list[Finding], upgraded: bool) -> None:
    report = verdict_of(found, upgraded=upgraded)
    worst = {one.severity for one in found}
    assert report.verdict in verdicts.VERDICTS
    assert (report.verdict == "refused") == ("error" in worst) == (not report.ok)
    assert (report.verdict == "degraded") == ("warning" in worst and "error" not in worst)
    assert set(report.findings) == set(found)
    assert len(report.findings) == len(set(found))
    order = ["error", "warning", "note"]
    places = [order.index(one.severity) for one in report.findings]
    assert places == sorted(places)
    if report.verdict.startswith("ok"):
        assert (report.verdict == "ok-after-upgrade") == upgraded


# -- choices of releases ---------------------------------------------------------------------------


def test_a_range_whose_oldest_release_refuses_is_degraded_with_the_end_that_works(
    tmp_path: Path,
) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(NEW_GRAPH)
    report = persistlib.check(path, "onnxruntime>=1.15")
    assert report.verdict == "degraded"
    warned, note = report.findings
    assert (warned.code, warned.location, warned.severity) == ("PL213", "onnxruntime", "warning")
    assert "1.15.0, which the target admits, refuses it" in warned.message
    assert warned.remedy == "pip install 'onnxruntime>=1.17.0'"
    assert note.severity == "note"
    assert persistlib.check(path, "onnxruntime>=1.17.0").verdict == "ok"
    assert persistlib.check(path, "onnxruntime<1.17").verdict == "refused"
    assert persistlib.check(path, "onnxruntime>=1.16.3,<1.17.1").verdict == "degraded"


def test_releases_between_the_ends_are_found_by_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    releases = tuple(f"1.{minor}" for minor in range(64))
    asked: list[str | None] = []

    def rule(facts: Facts, target: Target) -> Iterator[Finding]:
        asked.append(target.version("onnxruntime"))
        if releases.index(str(asked[-1])) < 41:
            yield finding(Code.GRAPH_VERSION, facts.source, "too old")

    stand_in = type("Row", (), {"call": staticmethod(rule), "walks": False, "codes": ()})()
    monkeypatch.setattr(judging, "RULES", (stand_in,))
    target = Target(packages={"onnxruntime": "1.63"}, choices={"onnxruntime": releases})
    (found,) = findings_of(Facts(source="net"), target)
    assert found.remedy == "pip install 'onnxruntime>=1.41'"
    assert len(asked) <= 10


# -- what a target does not say --------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_weights_that_are_cut_short_or_gone_are_never_ok(
    plain: Path, bundle: Path, tmp_path: Path, damage: str
) -> None:
    graphed = shutil.copytree(bundle, tmp_path / "graphed")
    for path in (plain, graphed):
        weights = path / "model.safetensors"
        if damage == "cut":
            weights.write_bytes(weights.read_bytes()[:-1])
        else:
            weights.unlink()
    refused, degraded = (persistlib.check(path) for path in (plain, graphed))
    wanted = Code.FILE_SIZE if damage == "cut" else Code.FILE_MISSING
    assert (refused.verdict, degraded.verdict) == ("refused", "degraded")
    for report in (refused, degraded):
        assert [found.code for found in report.findings] == [wanted.identifier]


def test_a_target_that_names_no_runtime_is_never_ok(bundle: Path, tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("flask==3.0\n")
    for target in ("numpy==2.1", str(requirements)):
        report = persistlib.check(bundle, target)
        assert (report.verdict, report.findings[0].code) == ("degraded", "PL214")
    assert not list(silent(Facts(source="x"), Target(is_complete=True)))
    assert not list(silent(Facts(source="x"), Target(packages={"torch": "2.6.0"})))
    assert not list(silent(Facts(source="x"), here()))


def test_a_graph_is_never_ok_where_no_runtime_for_graphs_is_named(tmp_path: Path) -> None:
    graph = tmp_path / "net.onnx"
    graph.write_bytes(NEW_GRAPH)
    report = persistlib.check(graph, "torch==2.6.0")
    assert (report.verdict, [one.code for one in report.findings]) == ("degraded", ["PL214"])
    assert "onnxruntime" in report.findings[0].message
    assert persistlib.check(graph, "torch==2.6.0,onnxruntime==1.20.1").verdict == "ok"
    machine = tmp_path / "machine.json"
    machine.write_text(json.dumps({"python": "3.11.4", "packages": {"torch": "2.6.0"}}))
    absent = persistlib.check(graph, machine)
    assert (absent.verdict, [one.code for one in absent.findings]) == ("refused", ["PL203"])


def test_a_model_without_a_graph_is_refused_where_only_graphs_run(
    plain: Path, bundle: Path, tmp_path: Path
) -> None:
    report = persistlib.check(plain, "onnxruntime==1.17.3")
    assert (report.verdict, report.findings[0].code) == ("refused", "PL607")
    assert shlex.split(report.findings[0].remedy) == [
        *("persistlib", "convert", str(plain), f"{plain}-onnxruntime-1.17.3.onnx"),
        *("--target", "onnxruntime==1.17.3"),
    ]
    assert persistlib.check(bundle, "onnxruntime==1.17.3").verdict == "ok"
    assert persistlib.check(plain, f"onnxruntime==1.17.3,torch=={torch.__version__}").ok
    weights = tmp_path / "w.safetensors"
    persistlib.convert(plain, weights)
    bare = persistlib.check(weights, "onnxruntime==1.17.3")
    assert (bare.verdict, bare.findings[0].code) == ("refused", "PL607")
    assert bare.findings[0].remedy.startswith(f"persistlib identify {weights} --bundle ")


def test_without_torch_here_a_model_lacks_torch_and_weights_lack_nothing(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "w.safetensors"
    persistlib.convert(plain, weights)
    machine = replace(here(), packages={"onnxruntime": "1.20.1", "numpy": "2.1.0"})
    monkeypatch.setattr("persistlib.compat.describing.here", lambda: machine)
    report = persistlib.check(plain)
    assert [one.code for one in report.findings if one.severity == "error"] == ["PL203"]
    assert persistlib.check(weights).verdict == "ok"


def test_a_target_that_names_all_it_has_lacks_what_it_does_not_name(
    plain: Path, bundle: Path, tmp_path: Path
) -> None:
    machine = tmp_path / "machine.json"
    packages = {"onnxruntime": "1.20.1", "numpy": "2.1.0"}
    machine.write_text(json.dumps({"python": "3.11.4", "packages": packages}))
    refused = persistlib.check(plain, machine)
    assert refused.verdict == "refused"
    assert {"PL203", "PL607"} <= {one.code for one in refused.findings}
    assert persistlib.check(bundle, machine).verdict == "ok"


@pytest.mark.parametrize("ending", ["safetensors", "pt", "h5", "onnx"])
def test_any_bare_file_has_a_verdict(bundle: Path, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"net.{ending}"
    persistlib.convert(bundle, path, allow_loss="all")
    assert persistlib.check(path).verdict == "ok"


# -- the command line ------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ALL_STORIES)
def test_a_code_is_explained_at_length(code: Code) -> None:
    shown = invoke("check", "--explain", code.identifier.lower())
    assert shown.exit_code == 0
    assert shown.stdout.startswith(f"{code.identifier}  {code.title}")
    told = json.loads(invoke("check", "--explain", code.name, "--json").stdout)["data"]
    assert (told["code"], told["name"], told["title"]) == (code.identifier, code.name, code.title)
    assert (told["means"], told["grade"]) == ALL_STORIES[code][:2]


def test_every_code_is_explained_and_a_wrong_one_has_its_neighbour_named() -> None:
    for code in Code:
        assert code_of(code.identifier) is code_of(code.name) is code
        assert invoke("check", "--explain", code.identifier).exit_code == 0
    wrong = invoke("check", "--explain", "GRAPH_VERSIONS")
    assert wrong.exit_code == 2
    assert "did you mean GRAPH_VERSION?" in wrong.stderr
    assert invoke("check").exit_code == 2


def spoilt(source: Path, folder: Path, kind: str) -> Path:
    """Return a copy of a bundle, or its graph, that is broken."""
    made = folder / "spoilt"
    shutil.copytree(source, made)
    manifest, graph = made / "manifest.json", made / "model.onnx"
    match kind:
        case "cut off":
            manifest.write_bytes(manifest.read_bytes()[:500])
        case "edited":
            manifest.write_text(manifest.read_text("utf-8").replace(",", ", ", 1), "utf-8")
        case "changed":
            text = manifest.read_text("utf-8")
            manifest.write_text(text.replace('"python":"3', '"python":"4', 1), "utf-8")
        case _:
            graph.write_bytes(graph.read_bytes()[:100])
    return graph if kind == "a bare graph" else made


@pytest.mark.parametrize("kind", ["cut off", "edited", "changed", "a graph", "a bare graph"])
def test_what_a_refusal_proposes_is_possible_with_what_is_broken(
    bundle: Path, tmp_path: Path, kind: str
) -> None:
    path = spoilt(bundle, tmp_path, kind)
    shown = invoke("check", path)
    hints = [line.partition(": ")[2] for line in shown.stderr.splitlines()]
    assert shown.exit_code == 1
    assert hints == [hint for hint in hints if hint.startswith("persistlib ")]
    (story, *looks) = map(shlex.split, hints)
    assert invoke(*story[1:]).stdout.count("\n") > 3
    assert [look[1] for look in looks] == (["verify"] if kind == "a graph" else [])
    for look in looks:
        assert "NOT intact: 1 of" in invoke(*look[1:]).stdout
    if kind == "edited":
        assert "edited by hand" in shown.stdout


@pytest.mark.parametrize("words", [("",), ("", "torch==2.0.0"), ("torch==2.0.0", " ")])
def test_an_empty_target_is_not_taken_for_none(bundle: Path, words: tuple[str, ...]) -> None:
    shown = invoke("check", bundle, "--target", *words)
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert "PL901 --target: empty" in shown.stderr


def test_what_decided_is_the_next_command_to_try(plain: Path) -> None:
    refused = invoke("check", plain, "--target", "onnxruntime==1.17.3")
    assert refused.exit_code == 1
    assert "persistlib check --explain PL607" in refused.stderr
    degraded = invoke("check", plain, "--target", "numpy==2.1")
    assert degraded.exit_code == 3
    assert "persistlib check --explain PL214" in degraded.stderr
    assert "next" not in invoke("check", plain).stderr


# -- load ------------------------------------------------------------------------------------------


def test_load_refuses_what_is_refused_and_warns_once_of_what_is_degraded(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("persistlib.compat.targets.platform.python_version", lambda: "3.1.4")
    for runtime in ("torch", "onnxruntime"):
        with pytest.raises(CompatibilityError, match=r"PL201 python: 3\.1\.4 is outside"):
            persistlib.load(bundle, runtime=runtime)
    monkeypatch.undo()

    def warned(facts: Facts, target: Target) -> Iterator[Finding]:
        assert target.is_here
        yield finding(Code.PACKAGE_DRIFT, facts.source, "odd", "", Severity.WARNING)

    stand_in = type("Row", (), {"call": staticmethod(warned), "walks": False, "codes": ()})()
    monkeypatch.setattr(judging, "RULES", (stand_in,))
    calls: dict[str, Any] = {
        "torch": lambda: persistlib.load(bundle),
        "onnxruntime": lambda: persistlib.load(bundle, runtime="onnxruntime"),
        "both": lambda: persistlib.evaluate(bundle, "nowhere.npz"),
    }
    for name, call in calls.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with contextlib.suppress(TrainingError):  # data that is not there comes after it
                call()
        own = [one for one in caught if isinstance(one.message, PersistlibWarning)]
        assert [one.message.finding.message for one in own] == ["odd"], name  # type: ignore[union-attr]
