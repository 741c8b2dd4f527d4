"""Rules carried out: the findings on a model, and the verdict on a manifest alone."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from persistlib.compat.facts import Facts
from persistlib.compat.table import RULES
from persistlib.compat.verdicts import verdict_of
from persistlib.errors import Code, Severity, finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from persistlib.compat.targets import Target
    from persistlib.compat.verdicts import Report
    from persistlib.errors import Finding
    from persistlib.manifest.schema import Manifest


def findings_of(facts: Facts, target: Target, *, walks: bool = True) -> Iterator[Finding]:
    """Yield what every rule finds, and how the target's description was read.

    Where the target leaves a choice of releases its newest is judged, and the oldest besides: what
    only that one refuses is a warning, since it may be what is installed there.

    Args:
        facts: of the model.
        target: where it shall load.
        walks: whether rules that read the graphs are among them.

    Raises:
        PersistlibError: a graph cannot be read.
    """
    yield from target.findings
    found = list(_each(facts, target, walks=walks))
    yield from found
    for package in target.choices:
        yield from _of_oldest(facts, target, package, found, walks=walks)


def _each(facts: Facts, target: Target, *, walks: bool) -> Iterator[Finding]:
    for rule in RULES:
        if walks or not rule.walks:
            yield from rule.call(facts, target)


def _of_oldest(
    facts: Facts, target: Target, package: str, found: Sequence[Finding], *, walks: bool
) -> Iterator[Finding]:
    """Yield that the oldest release that a target admits refuses what its newest takes."""
    if any(one.severity == Severity.ERROR.value for one in found):
        return
    releases = target.choices[package]

    def refusals(release: str) -> list[Finding]:
        there = target.with_release(package, release)
        each = _each(facts, there, walks=walks)
        return [one for one in each if one.severity == Severity.ERROR.value]

    if not (refused := refusals(releases[0])):
        return
    # What a release takes later ones take, apart from few.
    first = releases[bisect_left(releases, True, key=lambda release: not refusals(release))]
    more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
    yield finding(
        Code.TARGET_CHOICE,
        package,
        f"{releases[0]}, which the target admits, refuses it: {refused[0].message}{more}",
        f"pip install '{package}>={first}'" if package != "python" else f"require >={first}",
        Severity.WARNING,
    )


def check_manifest(
    manifest: Manifest, target: Target, *, source: str = "BUNDLE", runtime: str | None = None
) -> Report:
    """Return the verdict on a manifest; no graph is read.

    Args:
        manifest: of the bundle.
        target: where it shall load.
        source: its path, as remedies name it.
        runtime: "torch" or "onnxruntime" when that one is meant; None for either.
    """
    facts = Facts(source=source, manifest=manifest, runtime=runtime)
    found = findings_of(facts, target, walks=False)
    return verdict_of(found, upgraded=bool(manifest.upgraded_from))
