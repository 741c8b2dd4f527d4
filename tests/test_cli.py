"""The frame of the command line: envelope, exit codes, errors, streams and start-up time."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import click
import pytest
import torch
from click.testing import CliRunner, Result
from pydantic import BaseModel, ConfigDict, Field

import persistlib
from persistlib.cli.command import Spread, Verb, spread
from persistlib.cli.main import VERBS, cli
from persistlib.errors import Code, PersistlibError, error, finding, missing_extra, warn
from persistlib.verification import FileState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "persistlib"]
PIPE = subprocess.PIPE
# What could not be written stays in the buffer and is tried again at exit; unbuffered it is not.
BUFFERED = {"PYTHONUNBUFFERED": ""}
HEAVY = {"torch", "torchvision", "onnx", "onnxruntime", "numpy", "rich", "PIL", "h5py", "pydantic"}


class Finding(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    code: Annotated[str, Field(pattern="^PL[0-9]{3}$")]
    severity: Literal["note", "warning", "error"]
    location: str
    message: str
    remedy: str


class Envelope(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    form: Annotated[Literal["persistlib.cli/1"], Field(alias="schema")]
    verb: str | None
    ok: bool
    data: dict[str, Any]
    findings: list[Finding]


@dataclass(frozen=True)
class Report:
    ok: bool = True
    verdict: str = "ok"
    findings: tuple[Any, ...] = ()
    files: tuple[FileState, ...] = (FileState("manifest.json", 900, ok=True),)


def invoke(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words))


def envelope(*words: str) -> tuple[Envelope, Result]:
    result = invoke(*words, "--json")
    assert result.stdout.count("\n") == 1
    return Envelope.model_validate_json(result.stdout), result


@pytest.fixture
def verifying(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Replace what `persistlib.verify` does: a value is returned, an exception raised."""

    def replace(outcome: Any) -> None:
        def fake(path: str, *, behaviour: bool, trust: Sequence[str], base: str | None) -> Any:
            del path, behaviour, trust, base
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome() if callable(outcome) else outcome

        monkeypatch.setattr(persistlib, "verify", fake, raising=False)

    return replace


def test_the_published_schema_is_the_envelopes() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    published = json.loads(text.split("```json\n")[1].split("```")[0])

    def without_titles(schema: Any) -> Any:
        if isinstance(schema, dict):
            return {k: without_titles(v) for k, v in schema.items() if k != "title"}
        return schema

    assert published == without_titles(Envelope.model_json_schema())


def test_every_verb_is_documented_and_listed_as_it_describes_itself() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    help_text = invoke("--help").stdout
    for verb, entry in VERBS.items():
        assert f"`{verb} " in text
        assert entry.summary in help_text
        assert "--json" in invoke(verb, "--help").stdout


def test_the_bare_command_shows_the_verbs_in_groups_and_a_tour() -> None:
    result = invoke()
    assert result.exit_code == 0
    for heading in ("Make:", "Look:", "Trust:", "A short tour:"):
        assert heading in result.stdout


@pytest.mark.parametrize("words", [(), ("--help",), ("--version",), ("inspect", "--help")])
def test_help_is_an_envelope_too(words: tuple[str, ...]) -> None:
    shown, result = envelope(*words)
    assert shown.ok
    assert result.exit_code == 0
    assert "persistlib" in shown.data["text"]


@pytest.mark.parametrize(
    ("words", "named", "verb"),
    [
        (("inspekt", "x"), "Did you mean 'inspect'?", None),
        (("predict", "x"), "Did you mean 'run'?", None),
        (("Export", "x"), "Did you mean 'convert'?", None),
        (("qqqq",), "No such verb 'qqqq'.", None),
        (("inspect", "x", "--al"), "Did you mean", "inspect"),
        (("inspect",), "BUNDLE", "inspect"),
        (("inspect", "x", "y"), "y", "inspect"),
        (("run", "x", "y", "--top", "0"), "--top", "run"),
        (("run", "x", "y", "--runtime", "tensorrt"), "onnxruntime", "run"),
        (("--nonsense",), "--nonsense", None),
        (("verify", "--behaviour=1", "x"), "--behaviour", "verify"),
        (("convert", "x"), "OUT", "convert"),
    ],
)
def test_a_usage_error_is_one_line_with_code_and_remedy(
    words: tuple[str, ...], named: str, verb: str | None
) -> None:
    shown, result = envelope(*words)
    assert result.exit_code == 2
    assert (shown.ok, shown.verb, shown.data) == (False, verb, {})
    assert shown.findings[0].code == Code.USAGE.identifier
    assert named in shown.findings[0].message
    assert shown.findings[0].remedy.endswith("--help")
    plain = invoke(*words)
    assert (plain.exit_code, plain.stdout) == (2, "")
    assert re.fullmatch(r"error: PL901 persistlib.*: .* \| persistlib.* --help\n", plain.stderr)


def test_json_is_understood_before_the_verb_and_not_after_a_double_dash() -> None:
    before = invoke("--json", "inspekt")
    assert Envelope.model_validate_json(before.stdout).verb is None
    after = invoke("inspekt", "--", "--json")
    assert after.stdout == ""


@pytest.mark.parametrize(
    ("fault", "exit_code"),
    [
        (error(Code.SOURCE_MISSING, "x", "nothing stands there", "check the path"), 1),
        (error(Code.USAGE, "only", "is empty", "give a pattern"), 2),
        (missing_extra("torch", "torch", "running in torch"), 1),
        (MemoryError(), 1),
        (ZeroDivisionError("division by zero"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_fault_is_one_envelope_or_one_line(
    verifying: Callable[[Any], None], fault: BaseException, exit_code: int
) -> None:
    verifying(fault)
    shown, result = envelope("verify", "x")
    assert (shown.ok, shown.verb, shown.data) == (False, "verify", {})
    assert result.exit_code == exit_code
    plain = invoke("verify", "x")
    assert (plain.exit_code, plain.stdout) == (exit_code, "")
    assert re.fullmatch(r"\n?error: PL\d{3} [^\n]+\n", plain.stderr)
    if isinstance(fault, PersistlibError):
        assert shown.findings[0].model_dump() == fault.finding.to_dict()


def test_a_traceback_is_shown_only_when_asked_for(
    verifying: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    verifying(ZeroDivisionError("division by zero"))
    assert "Traceback" not in invoke("verify", "x").stderr
    monkeypatch.setenv("PERSISTLIB_DEBUG", "1")
    assert "Traceback" in invoke("verify", "x").stderr


def test_our_warnings_become_findings_and_those_of_libraries_are_quiet(
    verifying: Callable[[Any], None],
) -> None:
    def work() -> Report:
        warn(Code.SOURCE_DRIFT, "x", "the source changed", "verify --behaviour")
        warn(Code.SOURCE_DRIFT, "x", "the source changed", "verify --behaviour")
        warnings.warn("a library's concern", DeprecationWarning, stacklevel=1)
        return Report()

    verifying(work)
    shown, result = envelope("verify", "x")
    assert [found.code for found in shown.findings] == [Code.SOURCE_DRIFT.identifier]
    assert (shown.ok, result.exit_code, result.stderr) == (True, 0, "")
    plain = invoke("verify", "x").stderr
    assert plain.count("warning: PL206 x: the source changed") == 1
    assert "library" not in plain


def test_what_libraries_print_does_not_reach_stdout(verifying: Callable[[Any], None]) -> None:
    def work() -> Report:
        sys.stdout.write("[library] progress\n")
        return Report()

    verifying(work)
    _, result = envelope("verify", "x")
    assert "[library] progress" in result.stderr


def test_names_from_files_never_drive_a_terminal(verifying: Callable[[Any], None]) -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J\u202e\nPL000"
    found = finding(Code.FILE_DIGEST, hostile, hostile, hostile)
    verifying(Report(ok=False, findings=(found,), files=(FileState(hostile, 1, ok=False),)))
    for words in (("verify", "x"), ("verify", "x", "--json"), ("verify", hostile)):
        result = invoke(*words)
        assert not {"\x1b", "\x07", "\u202e"} & set(result.stdout + result.stderr)
        assert result.exit_code == 1
    verifying(error(Code.FILE_DIGEST, hostile, hostile, hostile))
    lines = ["verify", "x"], ["verify", "x", "--quiet"], [hostile], ["run", "--" + hostile]
    for line in lines:
        result = invoke(*line)
        assert not {"\x1b", "\x07", "\u202e"} & set(result.stdout + result.stderr)
        assert result.stderr.count("\n") == 1


def test_an_error_of_many_findings_is_cut_for_people_alone(
    verifying: Callable[[Any], None],
) -> None:
    many = tuple(finding(Code.MANIFEST_FIELD, f"f{i}", "is missing") for i in range(25))
    verifying(Code.MANIFEST_FIELD.family(many))
    shown, _ = envelope("verify", "x")
    assert len(shown.findings) == 25
    lines = invoke("verify", "x").stderr.splitlines()
    assert len(lines) == 11
    assert lines[-1] == "and 15 more: --json shows them"


def test_verify_gives_the_verdict_first_then_each_file(verifying: Callable[[Any], None]) -> None:
    found = finding(Code.TENSOR_DIGEST, "x/model.safetensors: fc.weight", "differs", "fetch again")
    files = (FileState("manifest.json", 900, ok=True), FileState("model.safetensors", 9, ok=False))
    verifying(Report(ok=False, findings=(found,), files=files))
    result = invoke("verify", "x")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == "✗ NOT intact: 1 of 2 files differ from the manifest"
    assert "fc.weight" in result.stdout
    shown, _ = envelope("verify", "x")
    assert shown.data["verdict"] == "damaged"
    assert [record["ok"] for record in shown.data["files"]] == [True, False]
    assert invoke("verify", "x", "-q").output == ""


@pytest.mark.parametrize(
    ("verdict", "ok", "exit_code"),
    [("ok", True, 0), ("ok-after-upgrade", True, 0), ("degraded", True, 3), ("refused", False, 1)],
)
def test_check_exits_by_its_verdict(
    monkeypatch: pytest.MonkeyPatch, verdict: str, ok: bool, exit_code: int
) -> None:
    asked: list[Any] = []

    def fake(source: str, target: Any = None, **how: Any) -> Report:
        asked.append((source, target, *how["forbid_licenses"]))
        return Report(verdict=verdict)

    monkeypatch.setattr(persistlib, "check", fake, raising=False)
    shown, result = envelope("check", "--target", "torch==2.6", "onnx==1.17", "x")
    assert (shown.ok, result.exit_code, shown.data["verdict"]) == (ok, exit_code, verdict)
    assert shown.data["target"] == ["torch==2.6", "onnx==1.17"]
    assert asked == [("x", "torch==2.6,onnx==1.17")]
    invoke("check", "--forbid-license", "MIT", "GPL-*", "x")
    assert asked[-1] == ("x", None, "MIT", "GPL-*")
    assert invoke("check", "x", "-q").stdout == f"{verdict}\n"


def _params() -> list[Any]:
    command = Verb("x", params=[])
    return [
        click.Argument(["first"]),
        click.Argument(["second"]),
        Spread(["--freeze"]),
        click.Option(["--out"]),
        *command.params,
    ]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("a b --freeze x y", "a b --freeze x --freeze y"),
        ("--freeze x y a b", "--freeze x --freeze y a b"),
        ("a --freeze x b", "a --freeze x b"),
        ("--freeze x a b", "--freeze x a b"),
        ("a b --freeze x y --out o --freeze z", "a b --freeze x --freeze y --out o --freeze z"),
        ("a b --freeze=x y", "a b --freeze=x --freeze y"),
        ("a b --freeze x --json y", "a b --freeze x --json y"),
        ("--freeze x y -- a b", "--freeze x --freeze y -- a b"),
        ("a b --freeze", "a b --freeze"),
        ("a b --out", "a b --out"),
    ],
)
def test_an_option_takes_its_values_together_or_one_by_one(given: str, meant: str) -> None:
    assert spread(given.split(), _params()) == meant.split()


# In processes of their own


def run(
    words: Sequence[str], *, env: Mapping[str, str] | None = None, **settings: Any
) -> subprocess.CompletedProcess[bytes]:
    settings.setdefault("capture_output", True)
    return subprocess.run(
        [*COMMAND, *words], env={**os.environ, **(env or {})}, check=False, timeout=60, **settings
    )


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom persistlib.cli.main import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stderr.decode().strip() == "[]"


def test_help_and_inspect_answer_at_once(tmp_path: Path) -> None:
    """In processor time, which a busy machine stretches least, and by how long Python itself takes.

    On a machine that starts Python in 0.04 s these are the promised 0.3 s and 0.35 s.
    """
    source = {"builder": "torch.nn:Linear", "arguments": {"in_features": 2, "out_features": 2}}
    model, example = torch.nn.Linear(2, 2), torch.randn(2, 2)
    persistlib.save(model, tmp_path / "tiny", architecture=source, example_inputs=example)

    def seconds(command: list[str]) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    def least(command: list[str]) -> float:
        return min(seconds(command) for _ in range(7))

    slowness = max(1.0, least([sys.executable, "-c", "pass"]) / 0.04)
    assert least([*COMMAND, "--help"]) < 0.3 * slowness
    assert least([*COMMAND, "inspect", str(tmp_path / "tiny")]) < 0.35 * slowness


def test_a_reader_that_goes_away_changes_nothing_about_the_exit_code() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run(["--help"], env=BUFFERED, capture_output=False, stdout=writing, stderr=PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_under_stdout_is_an_error() -> None:
    with Path("/dev/full").open("wb") as full:
        done = run(["--help"], env=BUFFERED, capture_output=False, stdout=full, stderr=PIPE)
    assert done.returncode == 1
    assert re.fullmatch(rb"error: PL404 stdout: .*\n", done.stderr)


def test_closed_streams_are_no_fault() -> None:
    line = f"{' '.join(COMMAND)} inspekt >&- 2>&-"
    assert subprocess.run(["sh", "-c", line], check=False).returncode == 2


def test_an_encoding_without_our_characters_is_no_fault(tmp_path: Path) -> None:
    absent = str(tmp_path / "модель")
    done = run(["verify", absent], env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 1
    assert done.stderr.isascii()
    assert b"PL412" in done.stderr


def _on_terminal(words: list[str], env: Mapping[str, str] | None = None) -> str:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *words], stdout=theirs, stderr=theirs, env={**os.environ, **(env or {})}
    ) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # EIO: the other side has closed
                break
            if not part:
                break
            seen += part
        process.wait()
    os.close(ours)
    return seen.decode()


def test_colour_appears_on_a_terminal_alone_and_not_where_it_is_unwanted() -> None:
    terminal = {"TERM": "xterm-256color", "NO_COLOR": ""}
    assert "\x1b[31merror:\x1b[0m" in _on_terminal(["inspekt"], terminal)
    assert "\x1b" not in _on_terminal(["inspekt"], {**terminal, "NO_COLOR": "1"})
    assert "\x1b" not in _on_terminal(["inspekt"], {**terminal, "TERM": "dumb"})
    assert b"\x1b" not in run(["inspekt"], env=terminal).stderr
