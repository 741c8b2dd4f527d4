"""Descriptions of targets, read: texts such as `"torch==2.6,python==3.10"`, and files.

A part of a text that has a separator or one of the endings below is a file; what stands behind it
replaces what it says, as in `requirements.txt,python==3.10`.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from persistlib.compat.mentions import Description, described
from persistlib.compat.requirement_files import mentions, requirement_file
from persistlib.compat.target_files import parse_json, parse_toml, read_text, refused
from persistlib.compat.targets import Target, here

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.files import StrPath

_ENDINGS = (".txt", ".in", ".toml", ".lock", ".json", ".yml", ".yaml")
_WRITE = "write onnxruntime==1.17.3, or give a file"


def parse_target(*parts: StrPath | Target | None) -> Target:
    """Return the target that texts and files describe; nothing, or None, is here.

    Args:
        *parts: a path; a text of requirements with commas between, such as
            "torch==2.6,python==3.10" or "onnxruntime>=1.17,<1.20"; or a target as it is.

    Raises:
        UsageError: a text or a file is no description of a target.
        TargetError: a file is not there, or cannot be read.
    """
    given = [part for part in parts if part is not None]
    if not given:
        return here()
    if len(given) == 1 and isinstance(given[0], Target):
        return given[0]
    return described([one for part in given for one in _descriptions(part)])


def _descriptions(part: StrPath | Target) -> Iterator[Description]:
    if isinstance(part, Target):
        yield Description(target=part)
    elif not isinstance(part, str) or (os.path.isfile(part) and _is_path(part)):
        yield _file(os.fspath(part))
    else:
        words = [*_split(part)]
        for word in words or [""]:
            yield _file(word) if _is_path(word) else _text(word)


def _is_path(text: str) -> bool:
    return text.endswith(_ENDINGS) or (os.sep in text and "@" not in text)


def _split(text: str) -> Iterator[str]:
    """Yield the requirements of a text: a comma also stands within a range, and among extras."""
    word = ""
    for part in re.split(r",(?![^\[]*\])", text):
        if word and re.match(r"\s*[<>=!~]", part):
            word = f"{word},{part.strip()}"
            continue
        if word:
            yield word
        word = part.strip()
    if word:
        yield word


def _text(text: str) -> Description:
    where = text or "target"
    if not text:
        raise refused(where, "empty", _WRITE)
    found = tuple(mentions(text, where))
    if not found:
        raise refused(where, "names no version", _WRITE)
    return Description(mentions=found)


def _file(path: str) -> Description:
    if path.endswith(".json") or os.path.basename(path) == "Pipfile.lock":
        return _json(path, read_text(path, longest=None))
    text = read_text(path)
    if path.endswith((".toml", ".lock")):
        from persistlib.compat.lock_files import toml_description

        return toml_description(path, parse_toml(path, text))
    if path.endswith((".yml", ".yaml")):
        from persistlib.compat.conda_files import conda_file

        return conda_file(path, text)
    return requirement_file(path, text)


def _json(path: str, text: str) -> Description:
    from persistlib.compat.environments import described_environment, package_list
    from persistlib.compat.lock_files import pipfile

    document = parse_json(path, text)
    if isinstance(rows := document.get("list"), list):
        return package_list(path, rows)
    if "default" in document:
        return pipfile(path, document)
    return described_environment(path, document)
