"""Where a model shall load and run: this environment, or one that was described.

A rule asks a target and never the machine, so that it judges here and elsewhere by one code.
What is not known of a target is None: a rule then says nothing, and never guesses.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from persistlib.installed import distributions_of, package_version

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persistlib.errors import Finding

PYTHON = "python"


@dataclass(frozen=True, kw_only=True)
class Target:
    """An environment, as far as it is known.

    Attributes:
        packages: versions by the normalised names of distributions, such as "onnxruntime-gpu".
        python: version of Python, such as "3.10" or "3.11.7".
        platform: as `platform.system()` says it, such as "Linux", "Darwin" or "Windows".
        machine: as `platform.machine()` says it, such as "x86_64" or "aarch64".
        byteorder: "little" or "big".
        memory: bytes that processes may use there.
        providers: execution providers of its ONNX Runtime, full names.
        accelerators: what it computes with beside the CPU, such as "cuda"; empty where there is
            nothing, None where that is not known.
        choices: for each package that the description leaves a choice of, or "python", the known
            releases that it admits, oldest first; `packages` then has the newest.
        is_here: whether it is the running environment, which can be asked for more.
        is_complete: whether a package that is not named is known to be absent.
        findings: how the description was read, where that is not plain.
    """

    packages: Mapping[str, str] = field(default_factory=dict)
    python: str | None = None
    platform: str | None = None
    machine: str | None = None
    byteorder: str | None = None
    memory: int | None = None
    providers: tuple[str, ...] | None = None
    accelerators: tuple[str, ...] | None = None
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    is_here: bool = False
    is_complete: bool = False
    findings: tuple[Finding, ...] = ()

    def version(self, package: str) -> str | None:
        """Return the version of a package (or "python") there, or None when absent or not said.

        Every build of ONNX Runtime counts as "onnxruntime".
        """
        if package == PYTHON:
            return self.python
        names = map(canonicalize_name, distributions_of(package))
        return next((self.packages[name] for name in names if name in self.packages), None)

    def oldest(self, package: str) -> str | None:
        """Return the oldest version of a package that the description admits, or None."""
        names = map(canonicalize_name, distributions_of(package))
        choices = (self.choices[name][0] for name in names if name in self.choices)
        return next(choices, self.version(package))

    def lacks(self, package: str) -> bool:
        """Return whether a package is known to be absent; False where nothing is said of it."""
        return self.is_complete and self.version(package) is None

    def with_release(self, package: str, version: str) -> Target:
        """Return the same target with another release of a package, or of "python"."""
        if package == PYTHON:
            return replace(self, python=version)
        return replace(self, packages={**self.packages, package: version})


class Installed(Mapping[str, str]):
    """Versions of what is installed here, each looked up when it is asked for."""

    def __getitem__(self, name: str) -> str:
        version = package_version(name)
        if version is None:
            raise KeyError(name)
        return version

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    @staticmethod
    def _names() -> list[str]:
        found = (one.metadata["Name"] or "" for one in metadata.distributions())
        return sorted({str(canonicalize_name(name)) for name in found if name})


def here() -> Target:
    """Return this environment; nothing is imported for it."""
    return Target(
        packages=Installed(),
        python=platform.python_version(),
        platform=platform.system(),
        machine=platform.machine(),
        byteorder=sys.byteorder,
        memory=memory(),
        is_here=True,
        is_complete=True,
    )


# What limits the memory of a container, in the second and the first version of control groups.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory() -> int | None:
    """Return the bytes that processes may use here, or None where the system does not say."""
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    return min(filter(None, (whole, *map(_limit, _LIMITS))), default=None)


def _limit(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read(32))
    except (OSError, ValueError):  # no control group, or "max"
        return None
