"""timm's models, as an installed timm gives them.

timm has more than a thousand models, and building them all takes minutes. So a few of each module
are built first; only the modules whose names look like the checkpoint's are then built whole. What
was built is kept in the user's cache under timm's version, and timm is not asked again.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from persistlib.architecture import zoo, zoo_forms
from persistlib.errors import Code, error
from persistlib.identification.names import views
from persistlib.installed import is_importable, package_version

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from persistlib.architecture.zoo_forms import Form

_CHILD = "persistlib.identification.timm_child"
_REPRESENTATIVES = "representatives"
_SECONDS = 900
# Modules that are built whole: those whose names have so much in common with the checkpoint's.
_MODULES, _COMMON = 4, 0.5
_NUMBER = re.compile(r"\d+")


def timm_forms(names: Collection[str]) -> tuple[Form, ...]:
    """Return the forms of those of timm's models that a checkpoint's names look like.

    Args:
        names: of the checkpoint's tensors.

    Raises:
        MissingExtra: timm or torch is not installed.
        ArchitectureError: timm's models could not be built.
    """
    for package in ("timm", "torch"):
        if not is_importable(package):
            reason = "is not installed; its models cannot be asked for their tensors"
            raise error(Code.EXTRA_MISSING, package, reason, f"pip install {package}")
    version = package_version("timm") or "unknown"
    modules = _similar(names, _kept(version, _REPRESENTATIVES))
    return tuple(form for module in modules for form in _kept(version, module))


def _similar(names: Collection[str], representatives: Collection[Form]) -> list[str]:
    """Return the modules whose models are named most alike, the best first."""
    seen = [{_NUMBER.sub("#", name) for name in view.names} for view in views(names)]
    scores: dict[str, float] = {}
    for form in representatives:
        theirs = {_NUMBER.sub("#", name) for name, _, _ in form.rows}
        module = form.builder.partition(":")[0].rpartition(".")[2]
        best = max((len(ours & theirs) / len(ours | theirs) for ours in seen if ours), default=0.0)
        scores[module] = max(scores.get(module, 0.0), best)
    ranked = sorted(scores, key=lambda module: (-scores[module], module))
    return [module for module in ranked[:_MODULES] if scores[module] >= _COMMON * scores[ranked[0]]]


def _kept(version: str, asked: str) -> tuple[Form, ...]:
    """Return the forms in the user's cache, made now where they are not there."""
    path = cache_path(version, asked)
    try:
        return zoo_forms.read(zoo.unpack(path.read_bytes()))
    except (OSError, ValueError, KeyError):
        index = _asked(asked)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(zoo.pack(index))
    os.replace(temporary, path)
    return zoo_forms.read(index)


def cache_path(version: str, asked: str) -> Path:
    """Return where what a timm gave is kept."""
    return zoo.cache_path().with_name(f"timm-{re.sub(r'[^0-9A-Za-z.]', '_', version)}") / (
        f"{asked}.xz"
    )


def _asked(asked: str) -> dict[str, Any]:
    """Return the index that timm gives in a process of its own.

    Raises:
        ArchitectureError: it failed.
    """
    command = [sys.executable, "-W", "ignore", "-m", _CHILD, asked]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    try:
        child = subprocess.run(  # noqa: S603 - this interpreter, with our own program
            command, capture_output=True, timeout=_SECONDS, check=False, env=environment
        )
    except subprocess.TimeoutExpired as fault:
        reason = f"its models took longer than {_SECONDS} s to build"
        raise error(Code.BUILDER_FAILED, f"timm.models.{asked}", reason, "try again") from fault
    if child.returncode:
        last = child.stderr.decode(errors="replace").strip().splitlines()[-1:]
        reason = f"timm could not be asked: {''.join(last) or child.returncode}"
        raise error(Code.BUILDER_FAILED, f"timm.models.{asked}", reason, "pip install -U timm")
    index: dict[str, Any] = json.loads(child.stdout)
    return index
