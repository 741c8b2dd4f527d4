"""Files that describe a target, read whole: small, regular, and text.

A stranger's file costs no more than its size admits: `LIMIT` bytes, and `LINE_LIMIT` characters in
a line where there are lines (JSON mostly stands in one).
"""

from __future__ import annotations

import codecs
import importlib
import os
import re
import stat
import sys
from typing import Any

from persistlib import canonical
from persistlib.errors import Code, PersistlibError, error
from persistlib.files import read_all, read_fault

LIMIT = 8 << 20  # the lock file of a large workspace has some 3 MB
LINE_LIMIT = 64 << 10
_AGAIN = "write it again with the tool that made it"
# A reader of TOML takes time that grows with the square of a dotted key's parts.
_DEEP_KEY = re.compile(
    r"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){33}""", re.ASCII
)
# What Windows' shells put before a text that they redirect.
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


def read_text(path: str, *, longest: int | None = LINE_LIMIT) -> str:
    """Return the text of a file.

    Args:
        path: of the file.
        longest: characters that a line may have; None where the form has no lines.

    Raises:
        TargetError: nothing stands there, or it cannot be read.
        UsageError: it is too large, not regular, or no text.
    """
    data = _read(path)
    mark = next((mark for mark in _MARKS if data.startswith(mark)), b"")
    encoding = _MARKS.get(mark, "utf-8")
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as fault:
        reason = f"no {encoding.upper()} at byte {fault.start}"
        raise refused(path, reason, "save it as UTF-8") from fault
    if longest is not None and any(len(line) > longest for line in text.splitlines()):
        raise refused(path, f"a line of more than {longest >> 10} kB", _AGAIN)
    return text


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as fault:
        raise read_fault(fault, path) from fault
    except ValueError as fault:  # a NUL in its name
        raise refused(path, str(fault), "check the path") from fault
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise refused(path, "not a regular file", "write what it gives to a file")
        data = read_all(fd, LIMIT + 1)
    except OSError as fault:
        raise read_fault(fault, path) from fault
    finally:
        os.close(fd)
    if len(data) > LIMIT:
        reason = f"larger than {LIMIT >> 20} MiB, which no description of a target is"
        raise refused(path, reason, "check the path")
    return data


def parse_json(path: str, text: str) -> dict[str, Any]:
    """Return the object of a JSON text; a list is the member `list` of one.

    Raises:
        UsageError: it is no JSON, or nested too deep.
    """
    if text.lstrip().startswith("["):
        text = f'{{"list":{text}}}'
    return canonical.parse(text.encode(), path, code=Code.TARGET_TEXT)


def parse_toml(path: str, text: str) -> dict[str, Any]:
    """Return the table of a TOML text.

    Raises:
        UsageError: it is no TOML, or nested too deep.
    """
    if _DEEP_KEY.search(text):
        raise refused(path, "nested too deep", _AGAIN)
    reader = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        made: dict[str, Any] = reader.loads(text)
    except reader.TOMLDecodeError as fault:
        raise refused(path, f"no TOML: {fault}", _AGAIN) from fault
    except RecursionError as fault:
        raise refused(path, "nested too deep", _AGAIN) from fault
    return made


def refused(where: str, reason: str, remedy: str) -> PersistlibError:
    """Return the error for a description that cannot be read."""
    return error(Code.TARGET_TEXT, where, reason, remedy)
