"""Which builds of ONNX Runtime are installed, and which one the files on the disk belong to.

Every build is a distribution of its own and all unpack into one folder. pip does not see that two
of them clash: the files of the one installed last lie over those of the other.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
from importlib import metadata
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PACKAGE = "onnxruntime"
# The file that every build compiles anew: it says whose files lie there.
_CORE = "onnxruntime_pybind11_state"
# The build that has a provider, as PyPI names it.
_BUILDS = {
    "cuda": "onnxruntime-gpu",
    "tensorrt": "onnxruntime-gpu",
    "openvino": "onnxruntime-openvino",
    "dml": "onnxruntime-directml",
    "qnn": "onnxruntime-qnn",
    "migraphx": "onnxruntime-migraphx",
    "cann": "onnxruntime-cann",
}
_CHUNK = 1 << 20


class Build(NamedTuple):
    """An installed build.

    Attributes:
        distribution: what pip calls it.
        version: its version.
        is_whole: whether the compiled core on the disk is its own; None where it does not say.
    """

    distribution: str
    version: str
    is_whole: bool | None


def installed() -> tuple[Build, ...]:
    """Return every installed distribution whose files lie in the runtime's folder, by name."""
    made: dict[str, Build] = {}
    for distribution in metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name.startswith(("onnxruntime", "ort-")) and name not in made:
            core = [
                path
                for path in distribution.files or ()
                if path.parts[0] == _PACKAGE and path.name.startswith(_CORE)
            ]
            if core:
                made[name] = Build(name, distribution.version, _is_whole(core[0]))
    return tuple(made[name] for name in sorted(made))


def told(builds: Sequence[Build]) -> str:
    """Return the builds as a clause, and where they clash whose files won."""
    if not builds:
        return "not installed by pip"
    names = " and ".join(f"{build.distribution} {build.version}" for build in builds)
    if len(builds) == 1:
        return names
    won = [build.distribution for build in builds if build.is_whole]
    return f"{names} are installed over each other" + (
        f", and the files are those of {won[0]}" if len(won) == 1 else ""
    )


def cure(wanted: str, builds: Sequence[Build]) -> str:
    """Return what to do to have a provider, by its short name."""
    if (build := _BUILDS.get(wanted)) is None:
        return f"install a build of ONNX Runtime that has {wanted}, or ask for another provider"
    names = [build.distribution for build in builds] or [_PACKAGE]
    return f"pip uninstall -y {' '.join(names)} && pip install {build}"


def repair(builds: Sequence[Build]) -> str:
    """Return what to do about builds that are broken or lie over each other: keep the richest."""
    names = [build.distribution for build in builds]
    kept = next((name for name in names if name != _PACKAGE), _PACKAGE)
    return (
        f"pip uninstall -y {' '.join(names)} && pip install {kept}"
        if names
        else (f"pip install {_PACKAGE}")
    )


def _is_whole(path: metadata.PackagePath) -> bool | None:
    """Return whether a file has the digest that its distribution recorded."""
    if path.hash is None or path.hash.mode not in hashlib.algorithms_guaranteed:
        return None
    digest = hashlib.new(path.hash.mode)
    try:
        with open(path.locate(), "rb") as file:
            while part := file.read(_CHUNK):
                digest.update(part)
    except OSError:
        return False
    return base64.urlsafe_b64encode(digest.digest()).decode().rstrip("=") == path.hash.value


def library(name: str) -> str:
    """Return the path of a library beside the runtime's own; nothing need stand there."""
    import onnxruntime

    return os.path.join(os.path.dirname(os.path.abspath(onnxruntime.__file__)), "capi", name)


def cuda_version() -> str:
    """Return the version of CUDA that the build was made for; empty where it was for none."""
    import onnxruntime

    return str(getattr(onnxruntime, "cuda_version", "") or "")


def quietly(call: Callable[[], object]) -> None:
    """Call what prints; what it prints has no reader."""
    with contextlib.redirect_stdout(io.StringIO()):
        call()
