"""The command line as tests call it, in this process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner

from persistlib.cli.main import cli

if TYPE_CHECKING:
    from click.testing import Result


def invoke(*words: object) -> Result:
    """Return what a command line says to people."""
    return CliRunner().invoke(cli, [str(word) for word in words])


def told(*words: object) -> tuple[dict[str, Any], int]:
    """Return the envelope of a command line, and its exit code, which agree."""
    result = invoke(*words, "--json")
    envelope: dict[str, Any] = json.loads(result.stdout)
    assert envelope["ok"] == (result.exit_code in {0, 3})
    return envelope, result.exit_code
