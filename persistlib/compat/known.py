"""Which releases of a package are known, so that a range in a description can be read."""

from __future__ import annotations

import importlib

# Python's minor versions that persistlib runs on, or ran on: https://devguide.python.org/versions/
_PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")

# `module:function` of persistlib.compat, which returns the releases oldest first.
_TABLES = {
    "onnxruntime": "releases:versions",
    "torch": "frameworks:torch_versions",
    "torchvision": "frameworks:torchvision_versions",
}


def known(package: str) -> tuple[str, ...]:
    """Return the known releases of a package or "python", oldest first; none without a table."""
    if package == "python":
        return _PYTHONS
    if package not in _TABLES:
        return ()
    module, _, function = _TABLES[package].partition(":")
    found: tuple[str, ...] = getattr(
        importlib.import_module(f"persistlib.compat.{module}"), function
    )()
    return found
