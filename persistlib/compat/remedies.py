"""What mends what a verdict refuses: a command to be pasted as it is, or else plain words."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from persistlib.compat.facts import Facts
    from persistlib.model_notes import ModelNote

_DERIVED = "derived-from"


def converted(facts: Facts, package: str, version: str) -> str:
    """Return what makes a graph of a model for a release of a runtime.

    An ONNX file becomes a bundle first, whose module is written anew. One that was derived from
    another graph names no file that it could be made from again.

    Args:
        facts: of the model.
        package: the runtime, such as "onnxruntime".
        version: its release.
    """
    wanted = f"{package}=={version}"
    base = os.path.splitext(facts.source)[0] if facts.manifest is None else facts.source.rstrip("/")
    graph = f"{base}-{package}-{version}.onnx"
    if facts.manifest is not None:
        return command("convert", facts.source, graph, "--target", wanted)
    bundle = command("identify", facts.source, "--bundle", base)
    if facts.note is not None and _is_derived(facts.note):
        how = f"the same --dtype or --quantize, and --target {wanted}"
        return f"derive it again from the bundle of its source: {how}"
    if facts.format == "onnx":
        bundle = command("convert", facts.source, base)
    return f"{bundle} && {command('convert', base, graph, '--target', wanted)}"


def _is_derived(note: ModelNote) -> bool:
    """Return whether a graph was derived from another: no module is rebuilt from its weights."""
    return any(origin.relation == _DERIVED for origin in note.lineage[:1])


def command(*words: str) -> str:
    """Return a command line of persistlib that a shell reads as these words."""
    return shlex.join(("persistlib", *words))
