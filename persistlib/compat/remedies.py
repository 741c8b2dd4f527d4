"""Commands that mend what a verdict refuses, each one to be pasted as it is."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from persistlib.compat.facts import Facts


def converted(facts: Facts, package: str, version: str) -> str:
    """Return the command that makes a graph of a model for a release of a runtime.

    An ONNX file becomes a bundle first, whose module is written anew.

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
    if facts.format == "onnx":
        bundle = command("convert", facts.source, base)
    return f"{bundle} && {command('convert', base, graph, '--target', wanted)}"


def command(*words: str) -> str:
    """Return a command line of persistlib that a shell reads as these words."""
    return shlex.join(("persistlib", *words))
