"""`persistlib environment`: what this machine has, so that another can check models for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import persistlib
from persistlib.cli.answer import Answer, Fields, Line, Span, Style
from persistlib.cli.command import Verb
from persistlib.cli.text import listing, size
from persistlib.wording import counted

if TYPE_CHECKING:
    from persistlib.compat.targets import Target

# What most verdicts turn on; `--json` has every package.
_SHOWN = ("persistlib", "torch", "torchvision", "onnxruntime", "onnx", "numpy")


@click.command("environment", cls=Verb)
def command() -> Answer:
    """Show what of this machine a verdict may turn on; torch is not imported.

    With --json it is a target for `persistlib check`, on any machine: persistlib environment --json
    > machine.json.
    """
    from persistlib.compat.environments import as_data

    found = persistlib.environment()
    title = Line((Span(f"Python {found.python}", Style.STRONG), Span(f"  {_system(found)}")))
    return Answer(
        data=as_data(found),
        report=(title, Fields(tuple((n, value) for n, value in _rows(found) if value))),
        brief=tuple(f"{name}=={version}" for name, version in sorted(found.packages.items())),
        hints=(
            "persistlib environment --json > machine.json",
            "persistlib check BUNDLE --target machine.json",
        ),
    )


def _system(found: Target) -> str:
    return f"{found.platform} {found.machine}, {found.byteorder}-endian"


def _rows(found: Target) -> list[tuple[str, str]]:
    versions = {name: found.version(name) for name in _SHOWN}
    return [
        *((name, version or "") for name, version in versions.items()),
        ("packages", counted(len(found.packages), "package")),
        ("providers", listing(found.providers or ())),
        ("accelerators", listing(found.accelerators or ()) or _nothing(found)),
        ("memory", size(found.memory) if found.memory is not None else ""),
    ]


def _nothing(found: Target) -> str:
    return "none that a driver shows" if found.accelerators is not None else ""
