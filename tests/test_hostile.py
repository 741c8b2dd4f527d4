"""Every file of `fixtures/hostile`: refused by name, or read as the inert data that it is.

The files are opened in processes of their own (`hostile_trial`), where an audit hook notes what no
reader has a reason to do. What HDF5's library does on its own is seen by the times of files that
nobody may read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import hostile_trial
import persistlib
from persistlib.errors import Code, PersistlibError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hostile_trial import Job, Outcome, Row

GENERATOR = Path(__file__).parents[1] / "fixtures" / "hostile" / "make.py"
FORMATS = ("torch", "safetensors", "hdf5", "keras", "onnx")
THREATS = {f"T{number}" for number in range(1, 21)}
# Files that open without complaint: what the trial imports, it imports for them.
GOOD = {
    "torch": "torch/script-code/x.pt",
    "safetensors": "safetensors/poison-name-slip/x.safetensors",
    "hdf5": "hdf5/name-bidi/x.h5",
    "keras": "keras/asset-pickle/x.keras",
    "onnx": "onnx/opset-999/x.onnx",
}
MEMORY = 512 << 20
# Processor time of a core that needs a tenth of a second for the loop of `slowness`.
SECONDS = 2.0
# Refused by whoever writes, who names the tensor.
UNWRITABLE = {"torch/name-metadata/x.pt", "torch/name-metadata-stream/x.pt"}
# Values that the process which asks judges, not the one that parses.
JUDGED_LATER = {Code.FORMAT_VALUE.identifier}
MAY_BE_READ = "read"
CODES = {code.identifier for code in Code} - {Code.INTERNAL.identifier}


class Ground:
    """The folder of all attacks, and what became of each file.

    Attributes:
        top: the folder.
        rows: what the generator says of each file, by path.
        table: the table of README.md, as the generator makes it.
        ended: trials that ended before their last file, and where.
        before: everything under the folder before any file was opened.
    """

    def __init__(self, folder: Path, *, whole: bool) -> None:
        self.folder, self.top, self.whole = folder, folder / "attacks", whole
        self.top.mkdir()
        made = subprocess.run(
            [sys.executable, GENERATOR, self.top], check=True, capture_output=True, text=True
        )
        said = json.loads(made.stdout)
        self.rows: dict[str, Row] = {row["path"]: row for row in said["rows"]}
        self.table: str = said["table"]
        self.ended: list[str] = []
        self.secrets = [*(self.top / "secret").iterdir(), *(self.top / "plugins").iterdir()]
        self.control = self.top / "control"
        self.control.write_bytes(b"read")
        for path in (*self.secrets, self.control):
            os.utime(path, ns=(0, path.stat().st_mtime_ns))
        self.before = listing(self.top)

    @cached_property
    def outcomes(self) -> dict[str, list[tuple[Row, Outcome]]]:
        """What became of the files, by format; some formats are opened in two processes."""
        with ThreadPoolExecutor(2) as pool:
            trials = [
                (name, pool.submit(self._trial, f"{name}-{ways[0]}", name, rows, ways))
                for name, rows, ways in self._plan()
            ]
            found: dict[str, list[tuple[Row, Outcome]]] = {name: [] for name in FORMATS}
            for name, trial in trials:
                found[name] += trial.result()
        return found

    def _plan(self) -> Iterator[tuple[str, list[Row], list[str]]]:
        """Yield each trial: a format, its files, and the ways in which they are opened."""
        for name in FORMATS:
            rows = [row for row in self.rows.values() if row["path"].startswith(f"{name}/")]
            if name in {"hdf5", "keras"}:
                # What may crash HDF5 is opened in its own process alone.
                yield name, [row for row in rows if row["threat"] != "T11"], ["walk"]
                if not self.whole:  # a process a file
                    rows = [r for i, r in enumerate(rows) if r["threat"] == "T11" or i % 6 == 0]
            elif not self.whole and name == "torch":
                rows = [r for i, r in enumerate(rows) if "-stream/" not in r["path"] or i % 4 == 0]
            ways = ["convert", *(["graph"] if name == "onnx" else [])]
            if self.whole:
                ways += ["identify", *(["key"] if name in {"torch", "onnx"} else [])]
            yield name, rows, ways

    def _trial(
        self, slug: str, name: str, rows: list[Row], ways: list[str]
    ) -> list[tuple[Row, Outcome]]:
        """Open files in a process of their own."""
        place = self.folder / slug
        for folder in ("out", "cwd", "tmp"):
            (place / folder).mkdir(parents=True)
        job: Job = {
            "top": str(self.top),
            "good": [str(self.top / GOOD[name])],
            "out": str(place / "out"),
            "target": ".pt" if name == "safetensors" else ".safetensors",
            "rows": rows,
            "ways": ways,
        }
        outside = {"TMPDIR": str(place / "tmp"), "HDF5_PLUGIN_PATH": str(self.top / "plugins")}
        done = subprocess.run(
            [sys.executable, hostile_trial.__file__],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            cwd=place / "cwd",
            env=os.environ | outside | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
            check=False,
        )
        found: list[Outcome] = [json.loads(line) for line in done.stdout.splitlines()]
        if done.returncode or len(found) < len(rows):
            last = rows[len(found)]["path"] if len(found) < len(rows) else "the end"
            self.ended.append(f"{slug} at {last}: {done.returncode} {done.stderr}")
        return [(self.rows[outcome["path"]], outcome) for outcome in found]


def listing(top: Path) -> dict[str, tuple[int, int, int]]:
    """Return everything under a folder: kind, size and when it was changed."""
    found: dict[str, tuple[int, int, int]] = {}
    for path in top.rglob("*"):
        status = path.lstat()
        found[str(path)] = status.st_mode, status.st_size, status.st_mtime_ns
    return found


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)])
def ground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("hostile"), whole=request.param)


def expected(row: Row, way: str) -> set[str]:
    """Return the codes of which one must be the answer; an empty one where the file is read."""
    codes = set(row["codes"]) or {""}
    if MAY_BE_READ in codes:
        codes.add("")
    if way == "walk" and (
        JUDGED_LATER & codes
        or Code.FORMAT_UNKNOWN.identifier in codes
        or row["options"]
        or row["threat"] == "T20"
    ):
        codes.add("")
    if way == "graph":
        return set(row["whole"]) or {"", *CODES}
    return codes if way in {"convert", "walk"} else {"", *CODES}


def shown(faults: list[str]) -> str:
    return f"{len(faults)} files:\n" + "\n".join(faults)


def test_no_file_ends_the_process_that_opens_it(ground: Ground) -> None:
    assert ground.outcomes
    assert not ground.ended, shown(ground.ended)


@pytest.mark.parametrize("name", FORMATS)
def test_every_hostile_file_is_refused_by_its_code_or_read_as_it_stands(
    ground: Ground, name: str
) -> None:
    faults: list[str] = []
    for row, outcome in ground.outcomes[name]:
        for way in outcome["ways"]:
            wanted = expected(row, way["way"])
            if way["code"] not in wanted:
                said = f"{way['code'] or 'read'} {way['text'][:300]}"
                faults.append(f"{row['path']} ({way['way']}): {said}; wanted {sorted(wanted)[:6]}")
    assert not faults, shown(faults)


@pytest.mark.parametrize("name", FORMATS)
def test_every_refusal_is_one_short_printable_line_with_a_remedy(ground: Ground, name: str) -> None:
    faults = [
        f"{row['path']}: {way}"
        for row, outcome in ground.outcomes[name]
        for way in outcome["ways"]
        if way["code"]
        and not (way["remedy"] and way["text"].isprintable() and len(way["text"]) < 4_000)
    ]
    assert not faults, shown(faults)


@pytest.mark.parametrize("name", FORMATS)
def test_every_refusal_names_the_file(ground: Ground, name: str) -> None:
    faults = [
        f"{row['path']}: {way['text']}"
        for row, outcome in ground.outcomes[name]
        for way in outcome["ways"]
        if way["way"] == "convert" and way["code"]
        if os.path.dirname(row["path"]) not in way["text"] and row["path"] not in UNWRITABLE
    ]
    assert not faults, shown(faults)


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_is_executed_or_opened_outside_and_nothing_is_left(
    ground: Ground, name: str
) -> None:
    found = ground.outcomes[name]
    faults = [f"{row['path']}: {o['faults']}" for row, o in found if o["faults"]]
    assert not faults, shown(faults)


@pytest.mark.parametrize("name", FORMATS)
def test_no_hostile_file_costs_much(ground: Ground, name: str) -> None:
    found = ground.outcomes[name]
    faults: list[str] = []
    for row, outcome in found:
        faults.extend(
            f"{row['path']} ({way['way']}): {way['seconds']:.1f} s"
            for way in outcome["ways"]
            if way["seconds"] / outcome["slowness"] > SECONDS
        )
    assert not faults, shown(faults)
    memory = [(row["path"], o["memory"] >> 20) for row, o in found if o["memory"] > MEMORY]
    assert not memory, f"{len(memory)} MiB from here on: {memory[:1]}"


def test_no_file_is_written_or_changed(ground: Ground) -> None:
    assert ground.outcomes
    after = listing(ground.top)
    assert after == ground.before, set(after.items()) ^ set(ground.before.items())
    assert not [path for path in ground.folder.rglob("*owned*") if path.parent.name != "plugins"]


def test_no_file_outside_is_read_not_even_by_the_libraries(ground: Ground) -> None:
    assert ground.outcomes
    read = [path.name for path in ground.secrets if path.stat().st_atime_ns != 0]
    assert not read, read
    ground.control.read_bytes()
    if ground.control.stat().st_atime_ns == 0:
        pytest.skip("this file system does not note when a file is read")


def test_the_attacks_cover_every_threat(ground: Ground) -> None:
    assert {row["threat"] for row in ground.rows.values()} == THREATS
    assert len({os.path.dirname(path) for path in ground.rows}) == len(ground.rows)


def test_the_table_in_the_readme_is_the_generators(ground: Ground) -> None:
    text = GENERATOR.with_name("README.md").read_text(encoding="utf-8")
    assert text.endswith(ground.table), f"run python {GENERATOR} --readme"


def test_a_keras_model_with_code_is_never_built(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    pytest.importorskip("keras")
    from persistlib import keras_reading

    def never(*_: object) -> None:
        raise AssertionError("Keras was asked to open it")

    monkeypatch.setattr(keras_reading, "_run", never)
    rows = [
        row for row in ground.rows.values() if row["path"].startswith("keras/") and row["whole"]
    ]
    assert len(rows) > 30
    for row in rows:
        if ground.whole or row["path"].endswith(".keras"):
            with pytest.raises(PersistlibError) as caught:
                persistlib.convert(ground.top / row["path"], tmp_path / "x.onnx")
            assert caught.value.code in row["whole"], (row["path"], str(caught.value))
            assert caught.value.remedy, row["path"]
    assert not list(tmp_path.iterdir())


DEEDS = {
    "a command": "os.system('true')",
    "a process": "subprocess.run(['true'])",
    "another child": "subprocess.run([sys.executable, '-c', ''])",
    "an import": "import this",
    "a compilation": "compile('1', 'x', 'eval')",
    "an evaluation": "eval('1')",
    "a library": "ctypes.CDLL('libowned.so')",
    "a socket": "socket.socket()",
    "a read outside": "open('/etc/hostname')",
    "a read above": "os.open('../x', os.O_RDONLY)",
    "a write": "open('/tmp/owned-by-nobody/x', 'w')",
    "a pickle": "pickle.loads(b'cos\\nsystem\\n.')",
    "a signal": "os.kill(os.getpid(), 0)",
}


@pytest.mark.parametrize("deed", DEEDS)
def test_the_watch_notes_what_it_is_there_for(tmp_path: Path, deed: str) -> None:
    trial = f"""
import ctypes, os, pickle, socket, subprocess, sys
sys.path.insert(0, {os.path.dirname(hostile_trial.__file__)!r})
from hostile_trial import Watch
watch = Watch({str(tmp_path / "out")!r})
watch.allowed = ({str(tmp_path / "in") + "/"!r},)
watch.is_armed = True
try:
    {DEEDS[deed]}
except Exception:
    pass
watch.is_armed = False
print(len(watch.faults))
"""
    done = subprocess.run(
        [sys.executable, "-c", trial], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert int(done.stdout.splitlines()[-1]) > 0


@pytest.mark.slow
def test_the_generator_makes_the_same_bytes_again(ground: Ground, tmp_path: Path) -> None:
    top = tmp_path / "attacks"
    top.mkdir()
    subprocess.run([sys.executable, GENERATOR, top], check=True, capture_output=True)
    for path in ground.rows:
        old, new = ground.top / path, top / path
        if old.is_file() and not old.is_symlink() and old.stat().st_size < 1 << 26:
            there = new.read_bytes().replace(str(top).encode(), str(ground.top).encode())
            named = str(ground.top).encode() in old.read_bytes()
            assert named or there == old.read_bytes(), path
