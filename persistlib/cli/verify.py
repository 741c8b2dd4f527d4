"""`persistlib verify`: whether every byte is still the one that was saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import persistlib
from persistlib.bundle import EXAMPLES
from persistlib.cli.answer import Answer, Exit, Findings, Span, Style, Table, verdict
from persistlib.cli.command import Verb, trust_option
from persistlib.cli.text import command as words
from persistlib.cli.text import number, size, trusting
from persistlib.errors import Code, Severity
from persistlib.wording import counted

if TYPE_CHECKING:
    from persistlib.cli.answer import Block
    from persistlib.errors import Finding
    from persistlib.verification import FileState


@click.command("verify", cls=Verb)
@click.argument("bundle")
@click.option("--behaviour", is_flag=True, help="Also run the stored examples and compare.")
@click.option("--base", help="The bundle that BUNDLE stands on, where it is not beside it.")
@trust_option
def command(bundle: str, *, behaviour: bool, base: str | None, trust: tuple[str, ...]) -> Answer:
    """Compare every byte of BUNDLE with what was saved, and of what it stands on.

    Exits with 0 when all is intact, with 1 when anything differs, with 3 when --behaviour has
    something that it cannot compute again.
    """
    report = persistlib.verify(bundle, behaviour=behaviour, trust=trust, base=base)
    files = tuple(report.files)
    text = "intact" if report.ok else "NOT intact"
    findings = tuple(report.findings)
    outcome = Exit.OK if report.ok else Exit.FAILED
    if report.ok and any(_is_missed(found) for found in findings):
        outcome = Exit.DEGRADED  # of what was asked for, something could not be computed again
    again = behaviour and outcome is Exit.OK
    compared = "; the stored outputs were computed again" if again else ""
    blocks: list[Block] = [
        verdict(f"{text}: {_count(files, findings)}{compared}", outcome),
        _files(files),
    ]
    if findings:
        blocks.append(Findings(findings))
    return Answer(
        data={
            "path": bundle,
            "verdict": "intact" if report.ok else "damaged",
            "behaviour": behaviour,
            "files": [{"name": f.name, "size": f.size, "ok": f.ok} for f in files],
        },
        report=tuple(blocks),
        findings=findings,
        hints=_hints(bundle, trust, files, ok=report.ok, behaviour=behaviour),
        exit=outcome,
    )


def _is_missed(found: Finding) -> bool:
    """Return whether a finding of an intact bundle is that outputs were not computed again."""
    return found.code == Code.BEHAVIOUR.identifier and found.severity != Severity.NOTE.value


def _count(files: tuple[FileState, ...], findings: tuple[Finding, ...]) -> str:
    wrong = sum(not state.ok for state in files)
    if wrong:
        return f"{number(wrong)} of {counted(len(files), 'file')} differ from the manifest"
    faults = sum(found.severity == Severity.ERROR.value for found in findings)
    if faults:
        return counted(faults, "fault")
    return f"{counted(len(files), 'file')}, {size(sum(state.size for state in files))}"


def _files(files: tuple[FileState, ...]) -> Table:
    rows = tuple(
        (Span("✓", Style.GOOD) if state.ok else Span("✗", Style.BAD), state.name, size(state.size))
        for state in files
    )
    return Table(("", "", ""), rows, frozenset({2}))


def _hints(
    bundle: str,
    trust: tuple[str, ...],
    files: tuple[FileState, ...],
    *,
    ok: bool,
    behaviour: bool,
) -> tuple[str, ...]:
    if not ok:
        return ()  # each finding says what to do
    if behaviour or not any(f.name == EXAMPLES or f.name.endswith(".onnx") for f in files):
        return (words("persistlib", "check", bundle),)
    return (words("persistlib", "verify", bundle, "--behaviour", *trusting(trust)),)
