"""`persistlib check`: whether a model will work here, or somewhere else, and what would help."""

from __future__ import annotations

import difflib
import os
from typing import TYPE_CHECKING

import click

import persistlib
from persistlib.cli.answer import Answer, Exit, Fields, Findings, Line, Span, Style, verdict
from persistlib.cli.command import Spread, Verb, trust_option
from persistlib.cli.text import command as words
from persistlib.errors import (
    Code,
    FormatError,
    IntegrityError,
    ManifestError,
    Severity,
    error,
)
from persistlib.wording import counted

if TYPE_CHECKING:
    from persistlib.compat.verdicts import Report
    from persistlib.errors import Finding

_EXIT = {
    "ok": Exit.OK,
    "ok-after-upgrade": Exit.OK,
    "degraded": Exit.DEGRADED,
    "refused": Exit.FAILED,
}


# Of what is broken, not of what a rule judges.
_BROKEN = (ManifestError, IntegrityError, FormatError)


@click.command("check", cls=Verb)
@click.argument("source", metavar="BUNDLE|FILE", required=False)
@click.option(
    "--target",
    cls=Spread,
    metavar="REQUIREMENT|FILE...",
    help='Check for other versions, such as "onnxruntime==1.20.1", instead of those here; or for'
    " those in a requirements file, a lock file, or what `environment --json` wrote.",
)
@click.option(
    "--forbid-license",
    cls=Spread,
    metavar="LICENSE...",
    help="Refuse what stands, or was made from what stands, under these: CC-BY-NC-4.0, 'GPL-*'.",
)
@click.option(
    "--build",
    is_flag=True,
    help="Also build the module here, with torch, and compare its structure with the saved one.",
)
@trust_option
@click.option("--explain", metavar="CODE", help="Tell the long story of a code, such as PL207.")
def command(
    source: str | None,
    *,
    target: tuple[str, ...],
    forbid_license: tuple[str, ...],
    build: bool,
    trust: tuple[str, ...],
    explain: str | None,
) -> Answer:
    """Say whether a model will work here, or with other versions, without reading its weights.

    The graphs of a bundle, and a bare ONNX file, are held node by node against what ONNX Runtime
    can compute. Exits with 0 when it will work, 3 with less than everything, 1 when it will not.
    """
    if explain is not None:
        return _explained(explain)
    if source is None:
        raise click.UsageError("Missing argument 'BUNDLE|FILE'.", click.get_current_context())
    report = persistlib.check(
        source,
        _target(target),
        build=build,
        trust=trust,
        forbid_licenses=forbid_license,
    )
    return _judged(source, target, report)


def _target(words: tuple[str, ...]) -> str | None:
    """Return the description that words are; None where there are none.

    Raises:
        UsageError: one is empty, as where a shell's variable is not set.
    """
    if any(not word.strip() for word in words):
        remedy = "write onnxruntime==1.17.3, or give a file; without --target it is this machine"
        raise error(Code.USAGE, "--target", "empty", remedy)
    return ",".join(words) if words else None


def _judged(source: str, target: tuple[str, ...], report: Report) -> Answer:
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
        hints=_hints(source, findings, outcome),
        exit=outcome,
    )


def _counts(findings: tuple[Finding, ...]) -> str:
    severities = [found.severity for found in findings]
    counts = [(severities.count(kind.value), kind.value) for kind in reversed(tuple(Severity))]
    shown = ", ".join(counted(count, noun) for count, noun in counts if count)
    return f": {shown}" if shown else ""


def _hints(source: str, findings: tuple[Finding, ...], outcome: Exit) -> tuple[str, ...]:
    """Return the story of what decided, and for what is refused a look at what can be read."""
    if outcome is Exit.OK:
        return ()
    kinds = [kind.value for kind in reversed(tuple(Severity))]
    worst = min(findings, key=lambda found: kinds.index(found.severity), default=None)
    story = [words("persistlib", "check", "--explain", worst.code)] if worst is not None else []
    verb = _look(source, findings) if outcome is Exit.FAILED else None
    return (*story, *((words("persistlib", verb, source),) if verb else ()))


def _look(source: str, findings: tuple[Finding, ...]) -> str | None:
    """Return the verb that shows more of what is refused; None where no verb could read it."""
    errors = {found.code for found in findings if found.severity == Severity.ERROR.value}
    codes = [code for code in Code if code.identifier in errors and code.family in _BROKEN]
    if not codes:
        return "inspect"
    is_read = os.path.isdir(source) and not any(code.name.startswith("MANIFEST") for code in codes)
    return "verify" if is_read else None


def _explained(word: str) -> Answer:
    """Return the long story of a code.

    Raises:
        UsageError: there is no such code.
    """
    from persistlib.compat.fault_stories import FAULTS
    from persistlib.compat.stories import STORIES, code_of

    if (code := code_of(word)) is None:
        known = [name for code in Code for name in (code.identifier, code.name)]
        close = difflib.get_close_matches(word.upper(), known, n=1)
        remedy = f"did you mean {close[0]}?" if close else "codes stand in docs/errors.md"
        raise error(Code.USAGE, f"--explain {word}", "no such code", remedy)
    story = STORIES.get(code) or FAULTS.get(code)
    told = {
        "means": story.means if story else f"{code.title}.",
        "grade": story.grade if story else "",
        "mends": story.mends if story else "What the finding itself says, behind the bar.",
        "known": story.known if story else "",
    }
    head = (Span(code.identifier, Style.STRONG), Span(f"  {code.title}"))
    rows = (*((name, text) for name, text in told.items() if text), ("raised as", _class(code)))
    return Answer(
        data={"code": code.identifier, "name": code.name, "title": code.title, **told},
        report=(Line(head), Fields(rows)),
        brief=(code.title,),
    )


def _class(code: Code) -> str:
    return f"persistlib.errors.{code.family.__name__}, {code.name}"
