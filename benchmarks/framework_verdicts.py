"""Compare verdicts with what releases of torch and torchvision do; write a table of it.

    python benchmarks/framework_verdicts.py [TORCH+TORCHVISION ...] [--folder DIR]

The table stands in docs/compatibility.md.
Each pair is installed in an environment of its own, one at a time, and removed afterwards (some
gigabytes and minutes each: the usual wheels cannot be imported without the libraries for graphics
cards). The models of `framework_models` are saved by the torch that runs this and by each pair.
Each pair loads what was saved before it, and the running torch what each pair saved: the outcome
is compared with the verdict, and the outputs with those where it was saved. A torch too old for
persistlib only calls the builders that the recipes name, with their arguments.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import venv
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from packaging.requirements import Requirement
from packaging.version import Version

import persistlib
from persistlib.errors import Code, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
CHILD = Path(__file__).parent / "framework_child.py"
BEGIN, END = "<!-- matrix: begin -->", "<!-- matrix: end -->"
PAIRS = ("2.6.0+0.21.0", "2.9.1+0.24.1", "2.0.1+0.15.2", "2.15.0+0.29.2")
OLDEST = Version("2.6")  # that persistlib itself runs with
NUMPY_2 = Version("2.3")  # the first torch that is built for it
CLOSE = 1e-5  # of the outputs' spread
# What the recipe alone decides.
NAMED = {code.identifier for code in (Code.BUILDER_ABSENT, Code.ARGUMENT_ABSENT, Code.DTYPE_ABSENT)}


class Row(NamedTuple):
    """What one pair made of the models that another saved.

    Attributes:
        saved: the pair that saved.
        there: the pair that loaded.
        models: how many.
        taken: how many of them it loaded, or built.
        error: the largest difference of the outputs, to their spread; None where nothing ran.
        differ: pairs of verdict and outcome that are not equal.
    """

    saved: str
    there: str
    models: int
    taken: int
    error: float | None
    differ: list[str]


class Place(NamedTuple):
    """A Python with one pair: the pair's name, and the interpreter."""

    pair: str
    python: str

    @property
    def is_old(self) -> bool:
        """Whether persistlib does not run with its torch."""
        return Version(self.pair.partition("+")[0]) < OLDEST

    @property
    def target(self) -> str:
        """Return what describes it."""
        torch, _, vision = self.pair.partition("+")
        python = platform.python_version()
        return f"torch=={torch},torchvision=={vision},python=={python}"

    def ask(self, verb: str, folder: Path) -> dict[str, dict[str, Any]]:
        """Return what its own process says of each model."""
        paths = os.pathsep.join(map(str, (ROOT, CHILD.parent)))
        env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        command = [self.python, "-W", "ignore", str(CHILD), verb, str(folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=env, check=True)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return {line["name"]: line for line in lines}


def running() -> Place:
    """Return the Python that runs this."""
    versions = (metadata.version(name).partition("+")[0] for name in ("torch", "torchvision"))
    return Place("+".join(versions), sys.executable)


def installed(pair: str, folder: Path) -> Place:
    """Return a pair in an environment of its own."""
    torch, _, vision = pair.partition("+")
    venv.create(folder, with_pip=True, clear=True)
    python = str(folder / "bin" / "python")
    needs = map(Requirement, metadata.requires("persistlib") or ())
    base = [str(one) for one in needs if one.marker is None]
    numpy = "numpy<2" if Version(torch) < NUMPY_2 else "numpy>=2"
    wanted = [f"torch=={torch}", f"torchvision=={vision}", numpy, *base]
    pip = [python, "-m", "pip", "install", "-q", "--no-cache-dir", "--disable-pip-version-check"]
    subprocess.run([*pip, *wanted], check=True)
    return Place(pair, python)


def compared(saved: str, folder: Path, there: Place) -> Row:
    """Return what a place made of the models of a folder, beside the verdicts."""
    outcomes = there.ask("build" if there.is_old else "load", folder)
    differ, errors = [], []
    for name, outcome in outcomes.items():
        report = persistlib.check(folder / name, there.target)
        found = [one for one in report.findings if one.severity == Severity.ERROR.value]
        if there.is_old:
            found = [one for one in found if one.code in NAMED]
        raised = outcome.get("raised")
        if bool(found) != bool(raised):
            said = str(found[0]) if found else report.verdict
            differ.append(f"{name}: predicted {said}; really {raised or 'loaded'}")
        if "error" in outcome:
            errors.append(float(outcome["error"]))
            if errors[-1] > CLOSE:
                differ.append(f"{name}: outputs differ by {errors[-1]:.1e}")
    taken = sum("raised" not in outcome for outcome in outcomes.values())
    worst = max(errors, default=None)
    return Row(saved, there.pair, len(outcomes), taken, worst, differ)


def matrix(pairs: list[str], folder: Path) -> Iterator[Row]:
    """Yield a row for each pair that saved and each that loaded."""
    base = running()
    kept = {base.pair: folder / base.pair}
    base.ask("save", kept[base.pair])
    for pair in pairs:
        home = folder / "environment"
        there = installed(pair, home)
        for saved, where in kept.items():
            yield compared(saved, where, there)
        if not there.is_old:
            kept[pair] = folder / pair
            there.ask("save", kept[pair])
            yield compared(pair, kept[pair], base)
        shutil.rmtree(home)


def table(rows: list[Row]) -> str:
    lines = [
        "| saved with | loaded with | models | loaded | verdict equal | largest error |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        wrong = {text.partition(":")[0] for text in row.differ}
        error = "builders alone" if row.error is None else f"{row.error:.1e}"
        equal = row.models - len(wrong)
        lines.append(
            f"| {row.saved} | {row.there} | {row.models} | {row.taken} | {equal} | {error} |"
        )
    differ = [f"- {row.saved} in {row.there}, {text}" for row in rows for text in row.differ]
    return "\n".join([*lines, "", "Pairs that differ:", "", *(differ or ["- none"])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", nargs="*", default=PAIRS)
    parser.add_argument("--folder", help="where environments are made; a disk with 10 GB free")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="persistlib-matrix-", dir=options.folder))
    rows: list[Row] = []
    try:
        for row in matrix(list(options.pairs), folder):
            rows.append(row)
            print(row, flush=True)
            write(table(rows))
    finally:
        shutil.rmtree(folder)


def write(measured: str) -> None:
    """Put the table between its marks in the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{measured}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
