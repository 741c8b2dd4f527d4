"""What holds for every suite: hypothesis' profile, and each suite's time beside its budget."""

from __future__ import annotations

import platform
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

# Seconds that a suite may take on two cores. A suite is a file; one that has no row has the first.
# A suite above its budget is marked in the table and fails nothing: a slow machine is no fault.
BUDGET = 60
BUDGETS: dict[str, int] = {
    "tests/test_alignment.py": 120,  # two exporters, in a process of their own
    "tests/test_examples.py": 900,  # the long suite trains what the scripts train
    "tests/test_export.py": 120,
    "tests/test_invertible.py": 180,
    "tests/test_keras_conversion.py": 180,  # Keras and torch start anew for every file
    "tests/test_layout.py": 30,
    "tests/test_onnx_zoo.py": 240,  # a process for every network
    "tests/test_graph_files.py": 90,
    "tests/test_proof.py": 90,
    "tests/test_quantization.py": 150,  # a process for every graph in int8
    "tests/test_provider_environments.py": 1800,  # the long suite: pip fetches 500 MB
    "tests/test_save_load.py": 120,
    "tests/test_target_pipeline.py": 180,  # pip fetches two releases of the runtime
    "tests/test_training_resume.py": 120,  # the disk is waited for at every checkpoint
    "tests/test_zoo_bundles.py": 900,  # the long suite
}

# A shared machine may stop for a second at any point; what is slow shows in the table. A commit has
# one verdict, so that examples are drawn from each test's own text; the long suite draws others
# every time (--hypothesis-profile exploring).
hypothesis.settings.register_profile("persistlib", deadline=None, derandomize=True)
hypothesis.settings.register_profile("exploring", deadline=None)
hypothesis.settings.load_profile("persistlib")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--summary", metavar="FILE", help="write the table of suites and versions as Markdown"
    )


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print each suite's outcome and time beside its budget."""
    reports = [
        report
        for outcome in ("passed", "failed", "error", "skipped", "")
        for report in terminalreporter.stats.get(outcome, [])
        if isinstance(report, pytest.TestReport)
    ]
    if not reports:
        return
    table = suites(reports)
    terminalreporter.section("suites")
    for line in table:
        terminalreporter.write_line(line)
    if (path := config.getoption("--summary")) is not None:
        Path(path).write_text(summary(table), encoding="utf-8")


def suites(reports: Iterable[pytest.TestReport]) -> list[str]:
    """Return a Markdown table with a row a suite."""
    seconds: dict[str, float] = defaultdict(float)
    outcomes: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for report in reports:
        suite = report.nodeid.partition("::")[0]
        seconds[suite] += report.duration
        if report.when == "call" or report.outcome != "passed":
            outcomes[suite][report.outcome] += 1
    rows = ["| suite | passed | failed | skipped | seconds | budget |", "|---|--:|--:|--:|--:|--:|"]
    for suite in sorted(seconds):
        counts = (f"{outcomes[suite][outcome]}" for outcome in ("passed", "failed", "skipped"))
        budget = BUDGETS.get(suite, BUDGET)
        over = " (over)" if seconds[suite] > budget else ""
        rows.append(f"| {suite} | {' | '.join(counts)} | {seconds[suite]:.1f}{over} | {budget} |")
    return rows


def summary(table: list[str]) -> str:
    """Return the page that `make test-all` leaves under docs/."""
    names = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "safetensors", "numpy")
    versions = ", ".join(f"{name} {_version(name)}" for name in names)
    lines = "\n".join(table)
    return (
        "# The last run of `make test-all`\n\n"
        f"Python {platform.python_version()}, {versions}.\n\n{lines}\n"
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
