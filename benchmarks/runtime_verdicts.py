"""Compare verdicts with what releases of ONNX Runtime do, and write docs/compatibility.md's table.

    python benchmarks/runtime_verdicts.py [VERSION ...] [--cache FOLDER] [--backend]

Each release's wheel is fetched in turn, its own process makes a session of each model, and the
outcome is compared with the verdict from the shipped table. `--backend` does it with the backend
test models of the installed onnx too, their IR version lowered to 8 so that more than its ceiling
is tried.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "fixtures"), str(ROOT / "tests")]

import make_runtimes  # noqa: E402 - the scripts lie beside the package

import runtime_models  # noqa: E402 - as above
from persistlib.compat import releases  # noqa: E402 - as above
from persistlib.compat.graph_reading import structure_of  # noqa: E402 - as above
from persistlib.compat.walk import causes  # noqa: E402 - as above

if TYPE_CHECKING:
    import onnx

PAGE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
_LOWERED = 8


class Row(NamedTuple):
    """A release and how its outcomes compare with the verdicts."""

    version: str
    taken: int
    differ: list[str]
    backend_taken: int
    backend_differ: list[str]


def backend_models() -> dict[str, onnx.ModelProto]:
    """Return the backend test models of the installed onnx, their IR version lowered."""
    models = runtime_models.backend()
    for model in models.values():
        model.ir_version = min(model.ir_version, _LOWERED)
    return models


def written(models: dict[str, onnx.ModelProto], folder: Path) -> Path:
    folder.mkdir()
    for name, model in models.items():
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    return folder


def compared(wheel: make_runtimes.Wheel, folder: Path) -> tuple[int, list[str]]:
    """Return how many models a release takes, and what differs from the verdicts."""
    release, differ = releases.release(wheel.version), []
    outcomes = wheel.outcomes(folder)
    for name, outcome in outcomes.items():
        found = causes(structure_of(memoryview((folder / name).read_bytes()), name), release)
        if bool(found) != (outcome is not None):
            said = found[0] if found else "nothing"
            differ.append(f"{name.removesuffix('.onnx')}: predicted {said}; really {outcome}")
    return sum(outcome is None for outcome in outcomes.values()), differ


def table(rows: list[Row], count: int, backend: int) -> str:
    lines = [
        f"{count} models of `tests/runtime_models.py`, and {backend} backend test models of onnx"
        f" (IR lowered to {_LOWERED}):"
        if backend
        else f"{count} models of `tests/runtime_models.py`:",
        "",
        "| release | IR | opset | taken | verdict equal | backend taken | verdict equal |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        release = releases.release(row.version)
        more = f"{row.backend_taken} | {backend - len(row.backend_differ)}" if backend else " | "
        lines.append(
            f"| {row.version} | {release.ir} | {release.newest('')} | {row.taken}"
            f" | {count - len(row.differ)} | {more} |"
        )
    pairs = [f"- {row.version}, {text}" for row in rows for text in row.differ + row.backend_differ]
    return "\n".join([*lines, "", "Pairs that differ:", "", *(pairs or ["- none"])])


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("versions", nargs="*", help="default: every release of the table")
    parser.add_argument("--cache", type=Path, help="where unpacked wheels lie by version; kept")
    parser.add_argument("--backend", action="store_true")
    arguments = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as made:
        own = runtime_models.models()
        folder = written(own, Path(made) / "own")
        others = backend_models() if arguments.backend else {}
        backend = written(others, Path(made) / "backend")
        for version in arguments.versions or releases.versions():
            wheel = make_runtimes.fetched(version, Path(made), arguments.cache)
            rows.append(Row(version, *compared(wheel, folder), *compared(wheel, backend)))
            print(rows[-1].version, len(own) - len(rows[-1].differ), "of", len(own), flush=True)
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    measured = table(rows, len(own), len(others))
    PAGE.write_text(f"{before}{BEGIN}\n\n{measured}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
