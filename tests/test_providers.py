"""Providers: names and options, builds that clash, missing libraries, and what computed where."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

import persistlib
from graph_assembly import model, of
from persistlib.cli.main import cli
from persistlib.errors import Code
from persistlib.runtime import builds, libraries, machine, placement, providers, trials
from persistlib.runtime import session as session_module
from persistlib.runtime.profiles import read_profile, spent
from persistlib.runtime.providers import CPU, Provider, parse, render, resolve_all, short
from persistlib.runtime.session import open_session
from persistlib.runtime.trials import Trial, trial
from refusing import refused

CUDA = "CUDAExecutionProvider"
CORE = "onnxruntime/capi/onnxruntime_pybind11_state.so"


def lacking(monkeypatch: pytest.MonkeyPatch, *available: str) -> None:
    """Let ONNX Runtime say that its build has just these providers."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*available, CPU])


# names and options


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CUDAExecutionProvider", "cuda"),
        ("cuda", "cuda"),
        ("DmlExecutionProvider", "dml"),
        ("DirectML", "dml"),
        ("trt", "tensorrt"),
        ("CPU", "cpu"),
    ],
)
def test_a_provider_has_one_short_name(name: str, expected: str) -> None:
    assert short(name) == expected


def test_every_provider_that_the_runtime_knows_goes_by_its_short_name() -> None:
    assert set(providers.known().values()) >= set(onnxruntime.get_all_providers())
    for name, full in providers.known().items():
        assert short(full) == short(name) == name


def test_providers_come_with_options_and_truth_is_one() -> None:
    wishes = [("CPU", {"use_arena": True, "count": 3})]
    assert resolve_all(wishes, None) == (Provider(CPU, {"use_arena": "1", "count": "3"}),)
    assert resolve_all(("cpu", {"a": 1}), None) == (Provider(CPU, {"a": "1"}),)
    assert resolve_all("cpu", None) == resolve_all(None, None) == (Provider(CPU),)


@pytest.mark.parametrize("wishes", [7, [7], [("cpu", 7)], [("cpu",)], {"cpu": {}}, [None]])
def test_what_names_no_provider_is_refused(wishes: Any) -> None:
    refused(Code.USAGE, lambda: resolve_all(wishes, None))


def test_a_session_is_opened_with_the_options() -> None:
    session = open_session(of(model()), providers=[("cpu", {"use_arena": 1})])
    assert session.providers == ("cpu",)


NAMES = st.text("abcdefgh_", min_size=1, max_size=8)
VALUES = st.text("abc/:=.01 ", max_size=8).map(str.strip)


@given(st.lists(st.tuples(NAMES, st.dictionaries(NAMES, VALUES, max_size=3)), max_size=4))
def test_parsing_what_was_rendered_gives_the_wishes(wishes: list[Any]) -> None:
    assert parse(render(wishes)) == wishes


@pytest.mark.parametrize("text", ["device_id=1", "cuda:", "cuda:device_id", "cuda:=1", "=1,cpu"])
def test_an_option_without_a_provider_or_a_value_is_refused(text: str) -> None:
    refused(Code.USAGE, lambda: parse(text))


# builds


def install(folder: Path, name: str, version: str, *, owns: bool = True, core: str = CORE) -> None:
    """Make a distribution whose core has the digest of what lies there, or another one."""
    path = folder / core
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"core")
    data = b"core" if owns else b"another"
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text(f"{core},sha256={digest},4\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that alone holds what is installed."""
    real = metadata.distributions
    monkeypatch.setattr(
        metadata, "distributions", lambda **more: real(path=[str(tmp_path)], **more)
    )
    return tmp_path


def test_the_build_that_is_installed_here_is_whole() -> None:
    (build,) = builds.installed()
    assert (build.distribution, build.version) == ("onnxruntime", onnxruntime.__version__)
    assert build.is_whole


def test_builds_that_lie_over_each_other_are_told_with_whose_files_won(site: Path) -> None:
    install(site, "onnxruntime", "1.32.0")
    install(site, "onnxruntime-gpu", "1.31.1", owns=False)
    install(site, "onnxruntime-extensions", "0.14", core="onnxruntime_extensions/_core.so")
    assert [(b.distribution, b.is_whole) for b in builds.installed()] == [
        ("onnxruntime", True),
        ("onnxruntime-gpu", False),
    ]
    said = builds.told(builds.installed())
    assert "over each other, and the files are those of onnxruntime" in said
    assert not said.endswith("gpu")
    assert builds.repair(builds.installed()).endswith("&& pip install onnxruntime-gpu")


def test_a_core_that_is_gone_is_not_whole(site: Path) -> None:
    install(site, "onnxruntime", "1.32.0")
    (site / CORE).unlink()
    assert [build.is_whole for build in builds.installed()] == [False]


# four causes, four messages


def test_an_unknown_provider_is_told_apart_from_an_absent_one(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "onnxruntime", "1.32.0")
    lacking(monkeypatch)
    unknown = refused(Code.PROVIDER_UNKNOWN, lambda: resolve_all(["cudaa", "cpu"], None))
    assert "did you mean 'cuda'" in unknown.remedy
    for wishes, require in ((None, "cuda"), (["cuda", "cpu"], None), ([("cuda", {})], "cuda")):
        absent = refused(Code.PROVIDER_ABSENT, lambda w=wishes, r=require: resolve_all(w, r))  # type: ignore[misc]
        assert "onnxruntime 1.32.0" in absent.reason
        assert absent.remedy == "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"


def test_a_clash_of_builds_is_told_apart_from_an_absent_provider(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "onnxruntime", "1.32.0")
    install(site, "onnxruntime-gpu", "1.31.1", owns=False)
    lacking(monkeypatch)
    clash = refused(Code.PROVIDER_CLASH, lambda: resolve_all(["cuda", "cpu"], None))
    assert "files are those of onnxruntime;" in clash.reason
    assert clash.remedy.startswith("pip uninstall -y onnxruntime onnxruntime-gpu &&")


def changed(tmp_path: Path, old: bytes, new: bytes) -> str:
    """Return a copy of a real library that needs another one."""
    (source,) = Path(builds.library("")).glob("onnxruntime_pybind11_state*")
    data = source.read_bytes()
    assert len(old) == len(new)
    assert data.count(b"\0" + old + b"\0") == 1
    copy = tmp_path / "libonnxruntime_providers_cuda.so"
    copy.write_bytes(data.replace(b"\0" + old + b"\0", b"\0" + new + b"\0"))
    return str(copy)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads libraries of Linux")
def test_a_missing_driver_is_told_apart_from_an_absent_provider(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "onnxruntime-gpu", "1.31.1")
    lacking(monkeypatch, CUDA)
    library = changed(tmp_path, b"libpthread.so.0", b"libcuda.so.1\0\0\0")
    monkeypatch.setattr(builds, "library", lambda name: library if "cuda" in name else name)
    fault = refused(Code.PROVIDER_BROKEN, lambda: open_session(of(model()), require="cuda"))
    assert "libcuda.so.1" in fault.reason
    assert "NVIDIA driver" in fault.remedy


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads libraries of Linux")
def test_what_a_library_needs_is_read_and_what_is_missing_named(tmp_path: Path) -> None:
    (core,) = Path(builds.library("")).glob("onnxruntime_pybind11_state*")
    needs = libraries.needs_of(str(core))
    assert "libc.so.6" in needs.names
    assert libraries.missing(str(core)) == ()
    copy = changed(tmp_path, b"libpthread.so.0", b"libqthread.so.0")
    assert libraries.missing(copy) == ("libqthread.so.0",)


@pytest.mark.parametrize("size", [0, 5, 63, 64, 200, 5000])
def test_a_library_that_is_none_or_cut_off_needs_nothing(tmp_path: Path, size: int) -> None:
    path = tmp_path / "l.so"
    (core,) = Path(builds.library("")).glob("onnxruntime_pybind11_state*")
    path.write_bytes(core.read_bytes()[:size])
    assert libraries.needs_of(str(path)).names == ()
    path.write_bytes(b"x" * size)
    assert libraries.missing(str(path)) == ()
    assert libraries.missing(str(tmp_path / "absent.so")) == ()


@pytest.mark.parametrize(
    ("names", "cuda", "expected"),
    [
        (("libcublasLt.so.13", "libcublas.so.13"), "13.0", "pip install nvidia-cublas"),
        (("libcublas.so.12",), "12.8", "pip install nvidia-cublas-cu12"),
        (("libcudnn.so.9",), "13.0", "pip install nvidia-cudnn-cu13"),
        (("libcudnn.so.9",), "", "pip install nvidia-cudnn-cu12"),
        (("libodd.so.1",), "", "install what has libodd.so.1"),
    ],
)
def test_a_missing_library_has_a_cure(names: tuple[str, ...], cuda: str, expected: str) -> None:
    assert libraries.cure_of(names, cuda) == expected


# what a session must be


def opened(given: dict[str, int] | None, *has: str) -> Any:
    """Return what looks like ONNX Runtime's session: its providers, and who was given what."""
    made = SimpleNamespace(get_providers=lambda: [*has, CPU])
    if given is not None:
        parts = [
            SimpleNamespace(
                ep_name=name,
                get_nodes=lambda n=count: [SimpleNamespace(op_type="Conv")] * n,
            )
            for name, count in given.items()
        ]
        made.get_provider_graph_assignment_info = lambda: parts
    return made


@pytest.mark.parametrize(
    ("given", "has", "alone", "share", "code"),
    [
        ({CUDA: 9, CPU: 1}, (CUDA,), False, None, None),
        ({CUDA: 9, CPU: 1}, (CUDA,), False, 0.9, None),
        ({CUDA: 9, CPU: 1}, (CUDA,), False, 0.95, Code.PROVIDER_UNUSED),
        ({CPU: 10}, (CUDA,), False, None, Code.PROVIDER_UNUSED),
        ({CPU: 10}, (CUDA,), False, 0, Code.PROVIDER_UNUSED),
        ({CUDA: 10}, (), False, None, Code.PROVIDER_BROKEN),
        (None, (CUDA,), False, None, Code.PROVIDER_UNUSED),
        (None, (CUDA,), True, None, None),
        ({}, (CUDA,), False, None, Code.PROVIDER_UNUSED),
    ],
)
def test_require_never_gives_a_session_of_the_cpu(  # noqa: PLR0917 - one column a fact
    monkeypatch: pytest.MonkeyPatch,
    site: Path,
    given: dict[str, int] | None,
    has: tuple[str, ...],
    alone: bool,
    share: float | None,
    code: Code | None,
) -> None:
    install(site, "onnxruntime-gpu", "1.31.1")
    lacking(monkeypatch, CUDA)
    monkeypatch.setattr(placement, "trial", lambda _: Trial(False, False, "CUDA failure 35"))
    wanted = (Provider(CUDA),) if alone else (Provider(CUDA), Provider(CPU))

    def work() -> None:
        placement.require_placed(opened(given, *has), wanted, "cuda", share)

    if code is None:
        work()
    else:
        fault = refused(code, work)
        assert fault.location == "cuda"


def test_what_the_cpu_computes_instead_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking(monkeypatch, CUDA)
    both = opened({CUDA: 3, CPU: 7}, CUDA)
    wanted = (Provider(CUDA), Provider(CPU))
    fault = refused(
        Code.PROVIDER_UNUSED, lambda: placement.require_placed(both, wanted, "cuda", 0.5)
    )
    assert "3 of 10 operators, less than 50%: cpu has 7 Conv" in fault.reason


def test_a_provider_that_does_not_suffice_alone_is_told_what_it_lacks() -> None:
    given = {"cuda": Counter(Conv=3), "cpu": Counter(TopK=2, Add=1)}
    fault = placement.not_alone((Provider(CUDA),), given, of(model(dtype=TensorProto.DOUBLE)))
    assert "for 2 TopK, 1 Add of F64" in fault.reason
    assert 'add "cpu"' in fault.remedy


def fails_with_others(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    """Let opening fail wherever a provider beside the CPU is asked for."""
    real = onnxruntime.InferenceSession

    def opening(data: bytes, options: Any, providers: list[tuple[str, Any]], **more: Any) -> Any:
        if [name for name, _ in providers] != [CPU]:
            raise RuntimeError(message)
        return real(data, options, providers=providers, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", opening)


@pytest.mark.parametrize("beside", [["cpu"], []])
def test_a_provider_that_fails_on_a_good_graph_is_at_fault(
    monkeypatch: pytest.MonkeyPatch, beside: list[str]
) -> None:
    lacking(monkeypatch, CUDA)
    fails_with_others(monkeypatch, "Invalid option: nonsense")
    wishes = [("cuda", {"nonsense": 1}), *beside]
    fault = refused(Code.PROVIDER_UNUSED, lambda: open_session(of(model()), providers=wishes))
    assert (fault.location, fault.reason) == ("cuda", "Invalid option: nonsense")
    assert "nonsense=1" in fault.remedy


def test_a_graph_that_fails_everywhere_is_at_fault_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking(monkeypatch, CUDA)
    fails_with_others(monkeypatch, "no such operator")
    data = of(model([helper.make_node("NoSuchOperator", ["x"], ["y"])]))
    refused(Code.OPERATOR_UNSUPPORTED, lambda: open_session(data, providers=["cuda", "cpu"]))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), "all", True])
def test_a_share_is_a_part_of_one(share: Any) -> None:
    refused(Code.USAGE, lambda: open_session(of(model()), require="cpu", min_share=share))
    refused(Code.USAGE, lambda: open_session(of(model()), min_share=0.5))


def test_the_cpu_has_its_share() -> None:
    session = open_session(of(model()), require="cpu", min_share=1.0)
    assert session.assigned == {"cpu": Counter(Add=1)}
    assert session.placement == {"cpu": 1}


def test_a_graph_whose_constants_fold_away_has_nobodys_operator() -> None:
    constant = helper.make_tensor("c", 1, [2], [1.0, 2.0])
    data = of(model([helper.make_node("Identity", ["c"], ["y"])], [constant]))
    open_session(data, require="cpu")


def test_a_runtime_that_cannot_be_imported_is_our_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    fault = refused(Code.SESSION_FAILED, lambda: open_session(of(model())))
    assert "cannot be imported" in fault.reason
    refused(Code.SESSION_FAILED, machine.machine)


# trials, the machine, and the verb


def test_the_cpu_computes_a_small_graph_rightly() -> None:
    assert trial(Provider(CPU)) == Trial(True, True, "")


def test_a_provider_that_kills_its_process_kills_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "_MAIN", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    done = trial(Provider(CPU))
    assert (done.is_created, done.is_used) == (False, False)
    assert "signal 11" in done.reason


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("print('noise')", "ended with 0"),
        ("import sys; sys.exit('[E:onnxruntime:, x.cc:1 f] libq.so missing')", "libq.so missing"),
    ],
)
def test_a_trial_without_an_answer_has_a_cause(
    monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    monkeypatch.setattr(trials, "_MAIN", script)
    assert said in trial(Provider(CPU)).reason


def test_the_verb_shows_every_provider_and_tries_those_of_the_build() -> None:
    result = CliRunner().invoke(cli, ["providers", "--json"])
    envelope = json.loads(result.stdout)
    assert (result.exit_code, envelope["ok"]) == (0, True)
    data = envelope["data"]
    rows = {row["name"]: row for row in data["providers"]}
    assert set(rows) == set(providers.known())
    assert rows["cpu"]["used"]
    assert not rows["cuda"]["available"]
    assert "onnxruntime-gpu" in rows["cuda"]["remedy"]
    assert data["builds"][0]["distribution"] == "onnxruntime"
    shown = CliRunner().invoke(cli, ["providers"])
    assert shown.stdout.startswith("✓ 1 of this build's")
    assert CliRunner().invoke(cli, ["providers", "-q"]).stdout == "cpu\n"


def test_the_verb_is_degraded_where_builds_clash(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "onnxruntime", "1.32.0")
    install(site, "onnxruntime-gpu", "1.31.1", owns=False)
    monkeypatch.setattr(machine, "trial", lambda _: Trial(True, True, ""))
    result = CliRunner().invoke(cli, ["providers", "--json"])
    assert result.exit_code == 3
    assert [f["code"] for f in json.loads(result.stdout)["findings"]] == ["PL709"]


def test_the_verb_names_a_provider_of_the_build_that_does_not_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "trial", lambda _: Trial(False, False, "no device"))
    result = CliRunner().invoke(cli, ["providers", "--json"])
    assert result.exit_code == 3
    found = json.loads(result.stdout)["findings"]
    assert {f["code"] for f in found} == {"PL710"}
    assert all("no device" in f["message"] and f["remedy"] for f in found)


# profiles


def test_a_profile_says_who_computed_what_and_is_the_runtimes_own(tmp_path: Path) -> None:
    import numpy as np

    session = open_session(of(model()), profile=str(tmp_path / "p"))
    for _ in range(3):
        session.run(np.ones((1, 2), np.float32))
    found = read_profile(session.end_profile())
    assert list(found) == ["cpu"]
    assert (found["cpu"].kernels, found["cpu"].calls) == (1, 3)
    (tmp_path / "bad").write_bytes(b"{]")
    refused(Code.RUN_FAILED, lambda: read_profile(tmp_path / "bad"))


def test_time_is_summed_for_each_provider() -> None:
    events = [
        {"cat": "Node", "name": name, "dur": dur, "args": {"provider": provider}}
        for name, dur, provider in [
            ("a_kernel_time", 3, CUDA),
            ("a_kernel_time", 4, CUDA),
            ("b_kernel_time", 1, CPU),
            ("b_fence_before", 9, CPU),
        ]
    ]
    events.append({"cat": "Session", "name": "model_run", "dur": 99, "args": {}})
    found = spent(events)
    assert found == {"cuda": (1, 2, 7e-6), "cpu": (1, 1, 1e-6)}


def test_looking_at_providers_needs_no_torch() -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from persistlib.runtime.machine import machine\n"
        "print([s.name for s in machine().providers if s.is_used])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "['cpu']\n", "")


def test_the_public_function_takes_the_same_wishes(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(of(model()))
    session = persistlib.load(
        path, runtime="onnxruntime", providers=[("cpu", {})], require="cpu", min_share=1
    )
    assert isinstance(session, session_module.Session)
    refused(
        Code.PROVIDER_ABSENT, lambda: persistlib.load(path, runtime="onnxruntime", require="cuda")
    )
