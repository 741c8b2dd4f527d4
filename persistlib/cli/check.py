"""`persistlib check`: whether a model will work here, or somewhere else, and what would help."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import persistlib
from persistlib.cli.answer import Answer, Exit, Findings, verdict
from persistlib.cli.command import Spread, Verb
from persistlib.cli.text import command as words
from persistlib.cli.text import counted
from persistlib.errors import Severity

if TYPE_CHECKING:
    from persistlib.errors import Finding

_EXIT = {
    "ok": Exit.OK,
    "ok-after-upgrade": Exit.OK,
    "degraded": Exit.DEGRADED,
    "refused": Exit.FAILED,
}


@click.command("check", cls=Verb)
@click.argument("source", metavar="BUNDLE|FILE")
@click.option(
    "--target",
    cls=Spread,
    metavar="REQUIREMENT...",
    help='Check for other versions, such as "onnxruntime==1.20.1", instead of those here.',
)
def command(source: str, *, target: tuple[str, ...]) -> Answer:
    """Say whether a model will work here, or with other versions, without reading its weights.

    The graphs of a bundle, and a bare ONNX file, are held node by node against what ONNX Runtime
    can compute. Exits with 0 when it will work, 3 with less than everything, 1 when it will not.
    """
    report = persistlib.check(source, ",".join(target) or None)
    outcome = _EXIT[report.verdict]
    where = f"with {', '.join(target)}" if target else "here"
    findings = tuple(report.findings)
    return Answer(
        data={"path": source, "target": list(target), "verdict": report.verdict},
        report=(
            verdict(f"{report.verdict} {where}{_counts(findings)}", outcome),
            Findings(findings),
        ),
        brief=(report.verdict,),
        findings=findings,
        hints=(words("persistlib", "inspect", source),) if outcome is Exit.FAILED else (),
        exit=outcome,
    )


def _counts(findings: tuple[Finding, ...]) -> str:
    severities = [found.severity for found in findings]
    counts = [(severities.count(kind.value), kind.value) for kind in reversed(tuple(Severity))]
    shown = ", ".join(counted(count, noun) for count, noun in counts if count)
    return f": {shown}" if shown else ""
