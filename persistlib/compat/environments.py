"""An environment as data: written on one machine, read on another.

Law: `described_environment(as_data(target)) == target` for all that `as_data` writes.
"""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from packaging.utils import canonicalize_name

from persistlib.compat import live
from persistlib.compat.mentions import Description, exactly
from persistlib.compat.target_files import refused
from persistlib.compat.targets import Target, here

if TYPE_CHECKING:
    from collections.abc import Mapping

_TEXTS = ("python", "platform", "machine", "byteorder")
_LISTS = ("providers", "accelerators")
_AGAIN = "write it again: persistlib environment --json"
# What a driver leaves in the file system of Linux.
_DEVICES = {"cuda": "/proc/driver/nvidia/version", "rocm": "/dev/kfd", "npu": "/dev/davinci0"}


def environment() -> Target:
    """Return this environment with all that is cheaply known of it; torch is not imported."""
    target = here()
    return replace(
        target,
        packages=dict(target.packages),
        providers=live.providers(),
        accelerators=_accelerators(),
    )


def _accelerators() -> tuple[str, ...] | None:
    """Return what computes here beside the CPU, as far as drivers show it; None elsewhere."""
    if platform.system() == "Darwin":
        return ("mps",) if platform.machine() == "arm64" else ()
    if platform.system() != "Linux":
        return None
    return tuple(name for name, path in _DEVICES.items() if os.path.exists(path))


def as_data(target: Target) -> dict[str, Any]:
    """Return an environment as JSON, the packages by name."""
    return {
        **{name: getattr(target, name) for name in _TEXTS},
        "memory": target.memory,
        **{name: None if (v := getattr(target, name)) is None else [*v] for name in _LISTS},
        "packages": dict(sorted(target.packages.items())),
    }


def described_environment(path: str, data: Mapping[str, Any]) -> Description:
    """Return what `as_data` wrote elsewhere, or the envelope of `persistlib environment --json`.

    Raises:
        UsageError: a member of it is malformed.
    """
    if data.get("verb") == "environment" and isinstance(data.get("data"), dict):
        data = data["data"]
    known: dict[str, Any] = {name: _text(path, name, data.get(name)) for name in _TEXTS}
    known |= {name: _list(path, name, data.get(name)) for name in _LISTS}
    known["memory"] = memory = data.get("memory")
    if memory is not None and (type(memory) is not int or memory < 0):
        raise refused(f"{path}: memory", f"{memory!r} is no number of bytes", _AGAIN)
    packages = data.get("packages")
    if not isinstance(packages, dict):
        raise refused(path, "no packages", _AGAIN)
    versions = {
        str(canonicalize_name(name)): _version(f"{path}: {name}", version)
        for name, version in packages.items()
    }
    if known["python"] is not None:
        exactly(known["python"], f"{path}: python")
    return Description(target=Target(packages=versions, is_complete=True, **known))


def package_list(path: str, rows: list[Any]) -> Description:
    """Return what `pip list --format json` or `conda list --json` says.

    Raises:
        UsageError: a row is no package.
    """
    packages: dict[str, str] = {}
    for number, row in enumerate(rows):
        match row:
            case {"name": str(name), "version": str(version)}:
                packages[str(canonicalize_name(name))] = version
            case _:
                raise refused(f"{path}: {number}", "no name and version", "pip list --format json")
    python = packages.pop("python", None)
    if python is not None:
        exactly(python, f"{path}: python")
    return Description(target=Target(packages=packages, python=python, is_complete=True))


def _text(path: str, name: str, value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise refused(f"{path}: {name}", f"{value!r} is no text", _AGAIN)


def _list(path: str, name: str, value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return tuple(value)
    raise refused(f"{path}: {name}", f"{value!r} is no list of texts", _AGAIN)


def _version(where: str, value: object) -> str:
    if isinstance(value, str):
        return value
    raise refused(where, f"{value!r} is no version", _AGAIN)
