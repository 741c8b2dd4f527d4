"""The one place that prints: the same answer for people, for programs, and quietly.

With `--json` exactly one envelope reaches stdout, for errors too. Everything that is not the answer
(progress, warnings, hints) goes to stderr. Colour and live progress only on a terminal.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from enum import Enum
from typing import TYPE_CHECKING, TextIO

from persistlib.cli.answer import Exit, Style
from persistlib.cli.layout import SHOWN, paint, render, severity_style
from persistlib.errors import Code, finding, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from persistlib.cli.answer import JSON, Answer, Block
    from persistlib.errors import Finding

SCHEMA = "persistlib.cli/1"
_WIDEST = 100
_NARROWEST = 40
# Where the stream cannot say these, plain characters do.
_PLAIN = str.maketrans({"✓": "+", "✗": "x", "·": "-", "…": "...", "→": "->", "≠": "!="})


class Mode(Enum):
    """For whom an answer is written."""

    HUMAN = "human"
    JSON = "json"
    QUIET = "quiet"


class Output:
    """Two streams and what each may be given.

    Attributes:
        mode: for whom.
        verb: the verb at work, null before it is known.
        live: whether stderr is a terminal that progress may redraw.
        colour: whether stdout is a terminal where colour is wanted.
    """

    def __init__(
        self,
        mode: Mode,
        *,
        stdout: TextIO | None,
        stderr: TextIO | None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.mode = mode
        self.verb: str | None = None
        self._stdout = stdout
        self._stderr = stderr
        self._warnings: list[Finding] = []
        self.live = mode is Mode.HUMAN and _is_terminal(stderr)
        self.debug = environ.get("PERSISTLIB_DEBUG", "") not in {"", "0"}
        plain = bool(environ.get("NO_COLOR")) or environ.get("TERM") == "dumb"
        self.colour = _is_terminal(stdout) and not plain
        self._colour_errors = _is_terminal(stderr) and not plain

    def leave_to_others(self) -> None:
        """Say nothing more but faults: another process of the same work speaks for all."""
        self.mode, self.live, self._stdout = Mode.QUIET, False, None

    def note(self, text: str) -> None:
        """Say on stderr what is going on, one line."""
        if self.mode is not Mode.QUIET:
            self._say(printable(text))

    def show(self, blocks: Iterable[Block]) -> None:
        """Lay out on stderr what is going to happen."""
        if self.mode is not Mode.QUIET:
            for line in render(blocks, self.width(), colour=self._colour_errors):
                self._say(line)

    def warn(self, found: Finding) -> None:
        """Keep a finding that does not stop the work, and show it on stderr, each once."""
        if found in self._warnings:
            return
        self._warnings.append(found)
        if self.mode is Mode.HUMAN:
            self._say_finding(found)

    def answer(self, answer: Answer) -> int:
        """Print the answer and return the exit code."""
        if self.mode is Mode.JSON:
            findings = (*answer.findings, *self._warnings)
            is_ok = answer.exit in {Exit.OK, Exit.DEGRADED}
            return self._print([self._envelope(answer.data, findings, ok=is_ok)], answer.exit)
        if self.mode is Mode.QUIET:
            return self._print([printable(line) for line in answer.brief], answer.exit)
        lines = render(answer.report, self.width(), colour=self.colour)
        code = self._print(lines, answer.exit)
        for hint in answer.hints if code == answer.exit else ():
            self._say(f"{paint('next:', Style.FAINT, colour=self._colour_errors)} {hint}")
        return code

    def failure(self, findings: Sequence[Finding], exit_code: Exit) -> int:
        """Print an error, each finding on one line, and return the exit code."""
        if self.mode is Mode.JSON:
            shown = (*findings, *self._warnings)
            return self._print([self._envelope({}, shown, ok=False)], exit_code)
        for found in findings[:SHOWN]:
            self._say_finding(found)
        if len(findings) > SHOWN:
            self._say(f"and {len(findings) - SHOWN} more: --json shows them")
        return exit_code

    def text(self, text: str) -> int:
        """Print a text that was laid out before, such as help, and return the exit code."""
        if self.mode is Mode.JSON:
            return self._print([self._envelope({"text": text}, (), ok=True)], Exit.OK)
        return self._print([text], Exit.OK)

    def width(self) -> int:
        """Return the columns that a report may use."""
        if not _is_terminal(self._stdout):
            return _WIDEST
        return min(max(shutil.get_terminal_size((_WIDEST, 24)).columns, _NARROWEST), _WIDEST)

    def _envelope(self, data: Mapping[str, JSON], findings: Iterable[Finding], *, ok: bool) -> str:
        envelope = {
            "schema": SCHEMA,
            "verb": self.verb,
            "ok": ok,
            "data": _strict(dict(data)),
            "findings": [found.to_dict() for found in findings],
        }
        # ASCII: names from files must not drive a terminal, and any encoding can carry it.
        return json.dumps(envelope, allow_nan=False)

    def _print(self, lines: Iterable[str], exit_code: Exit) -> int:
        """Write to stdout; a reader that has gone away changes nothing about the answer."""
        try:
            _write(self._stdout, "".join(f"{line}\n" for line in lines))
        except BrokenPipeError:
            _silence(self._stdout)
        except (OSError, ValueError) as fault:
            _silence(self._stdout)
            reason = getattr(fault, "strerror", None) or str(fault)
            self._say_finding(finding(Code.TARGET_WRITE, "stdout", reason, "free it or redirect"))
            return Exit.FAILED
        return exit_code

    def _say_finding(self, found: Finding) -> None:
        label = f"{found.severity}:"
        shown = paint(label, severity_style(found.severity), colour=self._colour_errors)
        self._say(f"{shown} {printable(str(found))}")

    def _say(self, text: str) -> None:
        try:
            _write(self._stderr, f"{text}\n")
        except (OSError, ValueError):
            _silence(self._stderr)


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def _write(stream: TextIO | None, text: str) -> None:
    """Write and flush; a character that the encoding lacks is escaped, never an error."""
    if stream is None:  # the caller closed the descriptor
        return
    encoding = stream.encoding or "utf-8"
    if not encoding.lower().replace("-", "").startswith("utf"):
        text = text.translate(_PLAIN)
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def _silence(stream: TextIO | None) -> None:
    """Point a dead stream elsewhere, or the interpreter complains when it flushes at exit."""
    try:
        assert stream is not None
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):
        return


def _strict(value: JSON) -> JSON:
    """Return the value with null for what JSON cannot say: NaN and infinities."""
    if isinstance(value, dict):
        return {name: _strict(member) for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(member) for member in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
