"""Targets: what a text or a file says of an environment, and what is refused by its line."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import persistlib
from persistlib.cli.main import cli
from persistlib.compat import releases, target_files
from persistlib.compat.describing import parse_target
from persistlib.compat.environments import as_data, described_environment
from persistlib.compat.targets import Target, here
from persistlib.errors import PersistlibError, TargetError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

NEWEST = releases.versions()[-1]
RUNNING = ".".join(platform.python_version_tuple()[:2])

REQUIREMENTS = """\
# what the service needs
--index-url https://example.org/simple
onnxruntime==1.17.3 ; python_version >= "3.8" \\
    --hash=sha256:0000000000000000000000000000000000000000000000000000000000000000 \\
    --hash=sha256:1111111111111111111111111111111111111111111111111111111111111111
    # via service
persistlib[torch,evaluate]==0.1.0
torch @ https://example.org/whl/torch-2.6.0%2Bcpu-cp311-cp311-linux_x86_64.whl#sha256=00
-e ./service
./local.tar.gz
numpy>=1.26  # any
"""

PYLOCK = """\
lock-version = "1.0"
requires-python = ">=3.10"
created-by = "pip"
[[packages]]
name = "onnxruntime"
version = "1.18.1"
[[packages.wheels]]
name = "onnxruntime-1.18.1-cp311-cp311-manylinux_2_27_x86_64.whl"
[packages.wheels.hashes]
sha256 = "00"
[[packages]]
name = "numpy"
version = "1.26.4"
marker = "python_version < '3.0'"
[[packages]]
name = "service"
directory = {path = "."}
"""

UV = """\
version = 1
revision = 3
requires-python = ">=3.10, <3.13"
resolution-markers = ["python_full_version >= '3.11'", "python_full_version < '3.11'"]
[[package]]
name = "onnxruntime"
version = "1.17.3"
source = { registry = "https://pypi.org/simple" }
resolution-markers = ["python_full_version < '3.11'"]
[[package]]
name = "onnxruntime"
version = "1.20.1"
source = { registry = "https://pypi.org/simple" }
resolution-markers = ["python_full_version >= '3.11'"]
[[package]]
name = "service"
source = { virtual = "." }
"""

POETRY = """\
[[package]]
name = "onnxruntime"
version = "1.16.3"
optional = false
python-versions = "*"
files = [{file = "onnxruntime-1.16.3-cp310-cp310-manylinux_2_17_x86_64.whl", hash = "sha256:00"}]
[package.dependencies]
numpy = ">=1.24.2"
[metadata]
lock-version = "2.0"
python-versions = "^3.10"
content-hash = "00"
"""

PDM = """\
[metadata]
groups = ["default"]
lock_version = "4.5.0"
[[metadata.targets]]
requires_python = ">=3.9"
[[package]]
name = "onnxruntime"
version = "1.19.2"
requires_python = ">=3.8"
groups = ["default"]
"""

PIPFILE = """\
{"_meta": {"hash": {"sha256": "00"}, "pipfile-spec": 6, "requires": {"python_version": "3.10"}},
 "default": {"onnxruntime": {"hashes": ["sha256:00"], "markers": "python_version >= '3.8'",
   "version": "==1.18.0"}, "service": {"path": "."}},
 "develop": {"pytest": {"version": "==8.0.0"}}}
"""

CONDA = """\
name: service
channels:
  - conda-forge
  - defaults
dependencies:
  - python=3.10.14=hd12c33a_0_cpython
  - conda-forge::pytorch=2.3.1=cpu_py310h0
  - numpy>=1.26,<2
  - pip
  - pip:
    - onnxruntime==1.17.3
    - -e ./service
prefix: /env
"""

CONDA_LIST = """\
# This file may be used to create an environment using:
# $ conda create --name <env> --file <this file>
# platform: linux-64
@EXPLICIT
https://conda.anaconda.org/conda-forge/linux-64/python-3.10.14-hd12c33a_0_cpython.conda#00
https://conda.anaconda.org/conda-forge/linux-64/pytorch-2.3.1-cpu_py310h0.tar.bz2
onnxruntime=1.17.3=py310h0
"""

PROJECT = """\
[project]
name = "service"
requires-python = ">=3.10"
dependencies = ["onnxruntime>=1.16,<1.19", "torch==2.6.0; python_version > '3.0'"]
"""


def written(folder: Path, name: str, text: str | bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def versions(target: Target, *names: str) -> list[str | None]:
    return [target.version(name) for name in names]


def test_without_a_description_it_is_this_environment_and_nothing_is_imported() -> None:
    target = parse_target()
    assert (target.is_here, target.is_complete) == (True, True)
    assert target.python == platform.python_version()
    assert target.version("numpy")
    assert target.version("no-such-package") is None
    assert target.lacks("no-such-package")
    assert target.byteorder == sys.byteorder
    assert target.memory is None or target.memory > 1 << 20


def test_pins_are_taken_as_they_are() -> None:
    target = parse_target("torch==2.6,torchvision==0.21,python==3.10,Onnxruntime_GPU==1.17.3")
    assert versions(target, "torch", "torchvision", "python", "onnxruntime") == [
        *("2.6", "0.21", "3.10", "1.17.3"),
    ]
    assert not target.choices
    assert not target.findings
    assert not target.lacks("keras")
    assert parse_target("torch==2.6.0+cu118").version("torch") == "2.6.0+cu118"
    assert parse_target("onnxruntime===1.17.3").version("onnxruntime") == "1.17.3"


def test_a_range_is_the_newest_known_release_that_it_admits() -> None:
    for text, newest, oldest in (
        ("onnxruntime>=1.17,<1.19,!=1.18.1", "1.18.0", "1.17.0"),
        ("onnxruntime~=1.17.0", "1.17.3", "1.17.0"),
        ("onnxruntime==1.17.*", "1.17.3", "1.17.0"),
        ("onnxruntime", NEWEST, releases.versions()[0]),
        ("onnxruntime[extra]>=1.15", NEWEST, releases.versions()[0]),
    ):
        target = parse_target(text)
        assert target.version("onnxruntime") == newest, text
        assert target.choices["onnxruntime"][0] == oldest, text
        assert [(f.code, f.severity) for f in target.findings] == [("PL213", "note")], text
        assert f"read as {newest}" in target.findings[0].message
        assert target.findings[0].remedy == f"pin it: onnxruntime=={newest}"


def test_a_range_of_one_known_release_is_that_one() -> None:
    target = parse_target("onnxruntime>1.17.1,<1.18")
    assert target.version("onnxruntime") == "1.17.3"
    assert not target.findings


def test_a_range_beyond_what_is_known_is_what_it_names() -> None:
    assert parse_target("onnxruntime>=99.0").version("onnxruntime") == "99.0"
    assert parse_target("unknown-package>=2").version("unknown-package") is None
    assert parse_target("unknown-package~=2.1").version("unknown-package") == "2.1"


def test_a_range_of_pythons_is_the_one_that_runs_here() -> None:
    target = parse_target("python>=3.10,torch==2.6")
    assert target.python == RUNNING
    assert target.choices["python"][0] == "3.10"
    assert parse_target("python<3.10,torch==2.6").python == "3.9"


@pytest.mark.parametrize(
    "text",
    [
        *("", ",", "torch>=", "torch==", "==2.6", "torch 2.6", "torch==newest"),
        *("torch==2.6,torch==2.7,", "torch==2.6,<2", "python==three", "-r a"),
        "onnxruntime<1.15",
    ],
)
def test_a_text_that_is_no_description_is_refused_by_its_part(text: str) -> None:
    if text == "torch==2.6,torch==2.7,":  # the later replaces the earlier
        assert parse_target(text).version("torch") == "2.7"
        return
    with pytest.raises(UsageError) as caught:
        parse_target(text)
    assert "\n" not in str(caught.value)
    assert caught.value.findings[0].remedy


def test_a_requirements_file_is_read_as_pip_reads_it(tmp_path: Path) -> None:
    path = written(tmp_path, "requirements.txt", REQUIREMENTS)
    target = parse_target(path)
    assert versions(target, "onnxruntime", "persistlib", "torch", "numpy", "service") == [
        *("1.17.3", "0.1.0", "2.6.0+cpu", None, None),
    ]
    assert not target.is_complete


def test_markers_are_held_against_what_the_target_says(tmp_path: Path) -> None:
    text = 'torch==2.2.2; python_version < "3.11"\ntorch==2.6.0; python_version >= "3.11"\n'
    path = written(tmp_path, "requirements.txt", text)
    assert parse_target(f"{path},python==3.10").version("torch") == "2.2.2"
    assert parse_target(f"{path},python==3.12.1").version("torch") == "2.6.0"
    windows = 'torch==2.6.0; sys_platform == "win32" and os_name == "nt"\n'
    path = written(tmp_path, "windows.txt", windows)
    machine = written(
        tmp_path, "machine.json", json.dumps(as_data(Target(platform="Windows", python="3.11")))
    )
    assert parse_target(f"{machine},{path}").version("torch") is None
    assert parse_target(path).version("torch") is None


def test_what_stands_later_replaces_what_a_file_says(tmp_path: Path) -> None:
    path = written(tmp_path, "pylock.toml", PYLOCK)
    target = parse_target(f"{path},onnxruntime==1.15.1")
    assert target.version("onnxruntime") == "1.15.1"
    assert target.is_complete


def test_files_beside_are_included_and_constraints_only_limit(tmp_path: Path) -> None:
    written(tmp_path, "more/base.txt", "onnxruntime>=1.15\n-c ../limits.txt\n-r ../top.txt\n")
    written(tmp_path, "limits.txt", "onnxruntime<1.17\ntorch==2.6\n")
    path = written(tmp_path, "top.txt", "-r more/base.txt\n--requirement=more/base.txt\n")
    target = parse_target(path)
    assert target.version("onnxruntime") == "1.16.3"
    assert target.version("torch") is None


def test_no_include_leaves_the_folder(tmp_path: Path) -> None:
    outside = written(tmp_path, "outside.txt", "torch==2.6\n")
    (tmp_path / "in").mkdir()
    os.symlink(outside, tmp_path / "in" / "link.txt")
    for include in ("-r ../outside.txt", f"-r {outside}", "-r link.txt", "-c https://a.b/c.txt"):
        path = written(tmp_path, "in/top.txt", f"numpy\n{include}\n")
        with pytest.raises(UsageError) as caught:
            parse_target(path)
        assert caught.value.findings[0].location == f"{path}:2"


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("pylock.toml", PYLOCK, "1.18.1"),
        ("poetry.lock", POETRY, "1.16.3"),
        ("pdm.lock", PDM, "1.19.2"),
        ("Pipfile.lock", PIPFILE, "1.18.0"),
        ("packages.json", '[{"name": "onnxruntime", "version": "1.17.3", "x": 1}]', "1.17.3"),
    ],
)
def test_a_lock_file_says_all_that_is_there(
    tmp_path: Path, name: str, text: str, wanted: str
) -> None:
    target = parse_target(written(tmp_path, name, text))
    assert target.version("onnxruntime") == wanted
    assert target.is_complete
    assert target.lacks("torch")
    assert target.lacks("numpy")  # in pylock.toml its marker does not hold
    assert target.lacks("pytest")
    if name not in {"Pipfile.lock", "packages.json"}:
        assert target.python == RUNNING
    if name == "Pipfile.lock":
        assert target.python == "3.10"


def test_a_lock_is_installed_without_extras_and_with_its_default_groups(tmp_path: Path) -> None:
    text = """\
lock-version = "1.0"
extras = ["gpu"]
dependency-groups = ["serve", "dev"]
default-groups = ["serve"]
[[packages]]
name = "onnxruntime"
version = "1.17.3"
marker = "'gpu' not in extras and 'serve' in dependency_groups"
[[packages]]
name = "onnxruntime"
version = "1.20.1"
marker = "'gpu' in extras or 'dev' in dependency_groups"
"""
    target = parse_target(written(tmp_path, "pylock.toml", text))
    assert target.version("onnxruntime") == "1.17.3"
    assert not target.choices


def test_versions_of_a_lock_are_told_apart_by_their_markers(tmp_path: Path) -> None:
    path = written(tmp_path, "uv.lock", UV)
    assert parse_target(f"{path},python==3.10").version("onnxruntime") == "1.17.3"
    assert parse_target(f"{path},python==3.12").version("onnxruntime") == "1.20.1"
    both = parse_target(written(tmp_path, "uv.lock", UV.replace("resolution-markers", "x")))
    assert both.version("onnxruntime") == "1.20.1"
    assert both.choices["onnxruntime"] == ("1.17.3", "1.20.1")


def test_what_conda_writes_is_read(tmp_path: Path) -> None:
    for name, text in (("environment.yml", CONDA), ("spec.txt", CONDA_LIST)):
        target = parse_target(written(tmp_path, name, text))
        assert versions(target, "python", "torch", "onnxruntime") == ["3.10.14", "2.3.1", "1.17.3"]
    loose = CONDA.replace("pytorch=2.3.1=cpu_py310h0", "onnxruntime=1.16").replace("- onnx", "- x")
    target = parse_target(written(tmp_path, "environment.yaml", loose))
    assert target.choices["onnxruntime"][-1] == "1.16.3"


def test_a_projects_own_dependencies_are_read(tmp_path: Path) -> None:
    target = parse_target(written(tmp_path, "pyproject.toml", PROJECT))
    assert versions(target, "onnxruntime", "torch", "python") == ["1.18.1", "2.6.0", RUNNING]
    assert not target.is_complete


def test_texts_of_windows_shells_are_read(tmp_path: Path) -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        data = "torch==2.6.0\r\n# größe\r\n".encode(encoding)
        assert parse_target(written(tmp_path, "a.txt", data)).version("torch") == "2.6.0"


_TEXT = st.text("abc.-1é\\\"'", max_size=8)


@given(
    st.builds(
        Target,
        packages=st.dictionaries(st.from_regex(r"\A[a-z][a-z0-9]{0,8}\Z"), _TEXT, max_size=4),
        python=st.none() | st.just("3.12.1"),
        platform=st.none() | _TEXT,
        machine=st.none() | _TEXT,
        byteorder=st.sampled_from(["little", "big", None]),
        memory=st.none() | st.integers(0, 1 << 50),
        providers=st.none() | st.lists(_TEXT, max_size=2).map(tuple),
        accelerators=st.none() | st.lists(_TEXT, max_size=2).map(tuple),
        is_complete=st.just(True),
    )
)
def test_an_environment_that_was_written_is_read_as_it_was(target: Target) -> None:
    data = json.loads(json.dumps(as_data(target)))
    assert described_environment("machine.json", data).target == target
    envelope = {"schema": "persistlib.cli/1", "verb": "environment", "data": data}
    assert described_environment("machine.json", envelope).target == target


def test_the_environment_of_this_machine_is_a_target_on_any_other(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["environment", "--json"])
    assert done.exit_code == 0
    read = parse_target(written(tmp_path, "machine.json", done.stdout))
    there = persistlib.environment()
    assert read == replace(there, is_here=False)
    for name in ("torch", "onnxruntime", "numpy", "no-such-package"):
        assert read.version(name) == here().version(name)
    assert parse_target(there) is there


DEEP_JSON = '{"a":' * 100_000
HOSTILE: dict[str, tuple[str, str | bytes]] = {
    "no text": ("a.txt", b"\xff\xfe\xff"),
    "too large": ("a.txt", b"#" * 100 + b"\n" * (target_files.LIMIT + 1)),
    "a long line": ("a.txt", "torch==2.6 #" + "-" * target_files.LINE_LIMIT),
    "no requirement": ("a.txt", "numpy\n<html>not found</html>\n"),
    "a control character": ("a.txt", "torch==2.6\x1b[31m\n"),
    "endless includes": ("a.txt", "\n".join(f"-r {i}.txt" for i in range(100))),
    "no TOML": ("a.lock", "version = = 1"),
    "a deep key": ("a.lock", "a." * 30_000 + "a = 1"),
    "a deep quoted key": ("a.toml", '"a" . ' * 10_000 + "a = 1"),
    "a deep list": ("a.lock", "x = " + "[" * 30_000),
    "no lock": ("a.toml", "a = 1"),
    "a package without a name": ("a.lock", "[[package]]\nversion = '1'"),
    "a version that is none": ("a.lock", "[[package]]\nname = 'a'\nversion = 'x y'"),
    "a marker that is none": ("pylock.toml", PYLOCK.replace("python_version <", "<")),
    "a deep marker": (
        "a.lock",
        f"[[package]]\nname = 'a'\nversion = '1'\nmarker = '{'(' * 9_000}'",
    ),
    "dependencies that are none": ("pyproject.toml", "[project]\ndependencies = 1"),
    "no JSON": ("a.json", "{"),
    "deep JSON": ("a.json", DEEP_JSON),
    "JSON of another kind": ("a.json", '{"a": 1}'),
    "a name twice": ("a.json", '{"packages": {}, "packages": {}}'),
    "memory that is none": ("a.json", '{"packages": {}, "memory": true}'),
    "a list of none": ("a.json", "[1]"),
    "packages of none": ("a.json", '{"packages": {"a": 1}}'),
    "a Python that is none": ("a.json", '{"packages": {}, "python": "x"}'),
    "a Pipfile of none": ("Pipfile.lock", '{"default": 1}'),
    "YAML of another kind": ("a.yml", "dependencies: [a, b]\n"),
    "YAML with anchors": ("a.yml", "dependencies:\n  - &a numpy\n  - *a\n"),
    "YAML at another depth": ("a.yml", "dependencies:\n  - numpy\n    - torch\n"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_description_is_one_line_that_names_the_file(tmp_path: Path, kind: str) -> None:
    name, text = HOSTILE[kind]
    for number in range(100):
        written(tmp_path, f"{number}.txt", "numpy\n")
    path = written(tmp_path, name, text)
    with pytest.raises(UsageError) as caught:
        parse_target(path)
    (found,) = caught.value.findings
    assert found.code == "PL906"
    assert found.location.startswith(path)
    assert found.remedy
    assert str(caught.value).isprintable()


_PIECES = [
    *("torch", "==", "2.6", ">=", "~=", "===", ".*", ",", ";", "[", "]", "{", "}", '"', "'", ":"),
    *("\n", " ", "  - ", "-r ", "-c ", "#", "\\\n", "@", "/", "=", "python_version", "<", "!", "+"),
    *("[[package]]\n", "name = 'a'\n", "version = '1'\n", "marker = ", "dependencies:\n", "pip:"),
    *(
        '"packages"',
        '"default"',
        '"version"',
        "1",
        "x.whl",
        "file:",
        "https://[a.b/",
        "\0",
        "(",
        ")",
        "é",
    ),
]


@given(
    st.lists(st.sampled_from(_PIECES), max_size=30).map("".join),
    st.sampled_from(["a.txt", "a.lock", "pyproject.toml", "a.json", "Pipfile.lock", "a.yml"]),
)
def test_no_text_of_a_file_raises_anything_but_an_error_of_ours(text: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        with contextlib.suppress(PersistlibError):
            assert isinstance(parse_target(path), Target)


def test_what_is_no_regular_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="PL412"):
        parse_target(str(tmp_path / "absent.txt"))
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "folder.txt").mkdir()
    for name in ("pipe.txt", "folder.txt"):
        with pytest.raises(PersistlibError, match=r"not a regular file|directory"):
            parse_target(str(tmp_path / name))


def test_a_file_of_many_lines_costs_what_it_holds(tmp_path: Path) -> None:
    lines = "\n".join(f"package-{number}==1.{number}" for number in range(3_000))
    target = parse_target(written(tmp_path, "a.txt", lines))
    assert len(target.packages) == 3_000
    machine = json.dumps(as_data(target))
    assert len(machine) > target_files.LINE_LIMIT
    assert len(parse_target(written(tmp_path, "a.json", machine)).packages) == 3_000


def test_the_shell_is_told_in_one_line(tmp_path: Path) -> None:
    path = written(tmp_path, "requirements.txt", "torch=>2\n")
    done = CliRunner().invoke(cli, ["check", str(tmp_path), "--target", path])
    assert done.exit_code == 2
    assert f"PL906 {path}:1: " in done.stderr
