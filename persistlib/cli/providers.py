"""`persistlib providers`: what ONNX Runtime can compute with on this machine, and why not more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from persistlib.cli.answer import Answer, Exit, Fields, Findings, Line, Span, Style, Table, verdict
from persistlib.cli.command import Verb
from persistlib.cli.text import command as words
from persistlib.cli.text import listing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.cli.answer import JSON, Block
    from persistlib.runtime.machine import Machine, State


@click.command("providers", cls=Verb)
def command() -> Answer:
    """Show which of ONNX Runtime's providers work on this machine, and why the others do not.

    Every provider of the installed build computes a small graph, in a process of its own. Exits
    with 3 when one of them does not work, or when builds lie over each other.
    """
    from persistlib.runtime.machine import machine

    found = machine()
    return Answer(
        data={
            "version": found.version,
            "cuda": found.cuda or None,
            "builds": [
                {"distribution": b.distribution, "version": b.version, "whole": b.is_whole}
                for b in found.builds
            ],
            "providers": [_data(state) for state in found.providers],
        },
        report=tuple(_report(found)),
        brief=tuple(state.name for state in found.providers if state.is_used),
        findings=found.findings,
        hints=_hints(found),
        exit=Exit.DEGRADED if found.findings else Exit.OK,
    )


def _data(state: State) -> dict[str, JSON]:
    return {
        "name": state.name,
        "available": state.is_available,
        "created": state.is_created,
        "used": state.is_used,
        "reason": state.reason,
        "remedy": state.remedy,
        "missing": [*state.missing],
    }


def _report(found: Machine) -> Iterator[Block]:
    here = [state for state in found.providers if state.is_available]
    working = [state.name for state in here if state.is_used]
    yield verdict(
        f"{len(working)} of this build's {len(here)} providers compute here: {', '.join(working)}",
        Exit.DEGRADED if found.findings else Exit.OK,
        f"ONNX Runtime {found.version}",
    )
    yield Table(("provider", "session", "computes", "why not"), tuple(map(_row, here)))
    yield Line((Span(""),))
    yield Fields(tuple(_facts(found)))
    if found.findings:
        yield Findings(found.findings)


def _row(state: State) -> tuple[str | Span, ...]:
    return (
        Span(state.name, Style.STRONG if state.is_used else Style.FAINT),
        _mark(state.is_created),
        _mark(state.is_used),
        _why_not(state),
    )


def _why_not(state: State) -> str:
    """Return a cause that fits a row; the whole of it stands in the finding below."""
    if state.missing:
        first, *rest = state.missing
        return f"lacks {first}" + (f" and {len(rest)} more" if rest else "")
    return state.reason


def _mark(is_so: bool) -> Span:
    return Span("✓", Style.GOOD) if is_so else Span("✗", Style.BAD)


def _facts(found: Machine) -> Iterator[tuple[str, str]]:
    for index, build in enumerate(found.builds):
        owner = "" if build.is_whole is None else "its own" if build.is_whole else "another build's"
        files = f", files {owner}" if owner else ""
        yield "installed" if not index else "", f"{build.distribution} {build.version}{files}"
    if found.cuda:
        yield "made for", f"CUDA {found.cuda}"
    absent = tuple(state.name for state in found.providers if not state.is_available)
    if absent:
        yield "not in it", listing(absent, limit=len(absent))


def _hints(found: Machine) -> tuple[str, ...]:
    used = [state.name for state in found.providers if state.is_used and state.name != "cpu"]
    names = f"{used[0]},cpu" if used else "cpu"
    return (words("persistlib", "run", "BUNDLE", "IMAGE", "--providers", names, "--report"),)
