"""A rule on a builder of one's own: whether its source here is still the one that saved the model.

Nothing is imported: the file is found where Python would find it, and is read.
"""

from __future__ import annotations

import ast
import importlib.util
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING

from persistlib.compat.frameworks import PACKAGES
from persistlib.compat.severities import torch_severity
from persistlib.digests import PREFIX, digest
from persistlib.errors import Code, Severity, finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.compat.facts import Facts
    from persistlib.compat.targets import Target
    from persistlib.errors import Finding

_FORWARDED = 8  # modules that a name may be handed through
_KNOWN = {*PACKAGES, "persistlib"}


def drift(facts: Facts, target: Target) -> Iterator[Finding]:
    """Yield that a builder's module is not here, or is not what it was."""
    if facts.manifest is None or not target.is_here or facts.runtime == "onnxruntime":
        return
    architecture = facts.manifest.architecture
    module, _, name = architecture.builder.partition(":")
    if module.partition(".")[0] in _KNOWN:
        return
    path = _file(module)
    if path is None:
        reason = "its module is not to be found here"
        remedy = "put the folder that holds it on PYTHONPATH"
        severity = torch_severity(facts, target)
        yield finding(Code.BUILDER_ABSENT, architecture.builder, reason, remedy, severity)
    elif architecture.source is not None:
        text = _defining(module, name, path)
        if text is not None and PREFIX + digest(text.encode()) != architecture.source:
            yield finding(
                Code.SOURCE_DRIFT,
                architecture.builder,
                "its source here is not the one that saved the model",
                f"persistlib verify --behaviour {facts.source}",
                Severity.WARNING,
            )


def _file(module: str) -> Path | None:
    """Return the file of a module, or None where none is found; parents are not imported."""
    top, *below = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not below:
        return Path(spec.origin) if spec.origin else None
    for folder in spec.submodule_search_locations or ():
        place = Path(folder, *below)
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                return path
    return None


def _defining(module: str, name: str, path: Path) -> str | None:
    """Return the text of the module that defines a name, however it is handed through."""
    for _ in range(_FORWARDED):
        text = _text(path)
        if text is None:
            return None
        home = _imported_from(text, module, name, is_package=path.name == "__init__.py")
        if home is None:
            return text
        module, name = home
        following = _file(module)
        if following is None:
            return None
        path = following
    return None


def _text(path: Path) -> str | None:
    """Return a source as `inspect.getsource` gives that of its module."""
    try:
        with tokenize.open(path) as file:
            text = file.read()
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None
    return text if text.endswith("\n") or not text else text + "\n"


def _imported_from(
    text: str, module: str, name: str, *, is_package: bool
) -> tuple[str, str] | None:
    """Return the module and name that a module takes a name from; None where it has its own."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError):
        return None
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    kept = package[: len(package) - node.level + 1] if node.level else []
                    return ".".join([*kept, *filter(None, [node.module])]), alias.name
    return None
