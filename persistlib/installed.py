"""What is installed here, without importing any of it."""

from __future__ import annotations

import importlib.util
import platform
import sys
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from persistlib.manifest.schema import Environment, Writer

# Distributions that provide a package of another name; the first one installed counts.
_DISTRIBUTIONS = {
    "onnxruntime": (
        *("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"),
        *("onnxruntime-qnn", "onnxruntime-migraphx", "onnxruntime-cann"),
    )
}


def distributions_of(package: str) -> tuple[str, ...]:
    """Return the distributions that provide a package, the usual one first."""
    return _DISTRIBUTIONS.get(package, (package,))


def package_of(distribution: str) -> str:
    """Return the package that a distribution provides: "onnxruntime-gpu" provides onnxruntime."""
    providers = _DISTRIBUTIONS.items()
    return next((package for package, names in providers if distribution in names), distribution)


def package_version(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    names = distributions_of(package)
    found = (d for name in names for d in metadata.distributions(name=name))
    return next((distribution.version for distribution in found), None)


def is_importable(package: str) -> bool:
    """Return whether a top-level package can be imported, without importing it."""
    if package in sys.modules:
        return sys.modules.get(package) is not None  # None there blocks the import
    return importlib.util.find_spec(package) is not None


def current(packages: Iterable[str], accelerator: str | None = None) -> Environment:
    """Return this environment; packages that are not installed are left out.

    Args:
        packages: those whose version matters.
        accelerator: the device that the model was on, when it was no CPU.
    """
    from persistlib.manifest.schema import Environment

    versions = {name: version for name in packages if (version := package_version(name))}
    return Environment(
        python=platform.python_version(),
        platform=f"{platform.system()}-{platform.machine()}",
        packages=versions,
        accelerator=accelerator,
    )


def writer() -> Writer:
    """Return this program as the writer of a manifest."""
    from persistlib.manifest.schema import Writer

    return Writer(name="persistlib", version=package_version("persistlib") or "unknown")
