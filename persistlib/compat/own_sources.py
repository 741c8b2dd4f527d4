"""A rule on a builder of one's own: whether its source here is still the one that saved the model.

Nothing is imported: the file is found where Python would find it, and is read.
"""

from __future__ import annotations

import ast
import importlib.util
import tokenize
from importlib.machinery import all_suffixes
from pathlib import Path
from typing import TYPE_CHECKING

from persistlib.compat.frameworks import PACKAGES
from persistlib.compat.recipes import Use, uses
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
    """Yield modules that the recipe names and are not here, and that the builder's has changed."""
    if facts.manifest is None or not target.is_here or facts.runtime == "onnxruntime":
        return
    architecture = facts.manifest.architecture
    named = [use for use in uses(architecture) if use.package not in _KNOWN]
    for name in dict.fromkeys(use.name for use in named):
        module = name.partition(":")[0]
        if not _is_here(module):
            remedy = "put the folder that holds it on PYTHONPATH"
            reason = f"no module {module} is to be found here"
            yield finding(Code.BUILDER_ABSENT, name, reason, remedy, torch_severity(facts, target))
    if architecture.source is None or Use(architecture.builder).package in _KNOWN:
        return
    text = _defining(*architecture.builder.split(":"))
    if text is not None and PREFIX + digest(text.encode()) != architecture.source:
        reason = "its source here is not the one that saved the model"
        remedy = f"persistlib verify --behaviour {facts.source}"
        yield finding(Code.SOURCE_DRIFT, architecture.builder, reason, remedy, Severity.WARNING)


def _places(module: str) -> tuple[Path, ...] | None:
    """Return where a module may lie, without its suffix; None where only importing would tell.

    Parents are not imported: of the top-level package Python is asked, below it names are folders.
    """
    top, *below = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None:
        return ()
    if not below:
        is_file = spec.has_location and spec.origin is not None
        return (Path(str(spec.origin)).with_suffix(""),) if is_file else None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if not all(folder.is_dir() for folder in folders):
        return None
    return tuple(folder.joinpath(*below) for folder in folders)


def _is_here(module: str) -> bool:
    """Return whether a module lies here; True where that cannot be told."""
    places = _places(module)
    return places is None or any(
        place.is_dir() or any(Path(f"{place}{suffix}").is_file() for suffix in all_suffixes())
        for place in places
    )


def _file(module: str) -> Path | None:
    """Return the Python file of a module, or None where none is found."""
    for place in _places(module) or ():
        for path in (Path(f"{place}.py"), place / "__init__.py"):
            if path.is_file():
                return path
    return None


def _defining(module: str, name: str) -> str | None:
    """Return the text of the module that defines a name, however it is handed through."""
    for _ in range(_FORWARDED):
        path = _file(module)
        text = _text(path) if path else None
        if path is None or text is None:
            return None
        home = _imported_from(text, module, name, is_package=path.name == "__init__.py")
        if home is None:
            return text
        module, name = home
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
