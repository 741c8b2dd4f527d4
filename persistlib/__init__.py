"""Save, verify and load fine-tuned models: safer and faster than a bare checkpoint.

    import persistlib

    model = persistlib.build("torchvision.models:resnet18", weights="DEFAULT")
    persistlib.save(model, "runs/plain")
    model = persistlib.load("runs/plain")

The names below are loaded when they are first used; importing the package loads no framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from persistlib import errors

if TYPE_CHECKING:
    from persistlib.api import (
        Batch,
        adaptation_of,
        build,
        check,
        compare,
        convert,
        cross_validate,
        diff,
        environment,
        evaluate,
        finetune,
        fit_classifier,
        freeze,
        identify,
        inspect,
        load,
        log,
        materialize,
        prune,
        save,
        set_status,
        unfreeze,
        upgrade,
        verify,
    )

__all__ = [
    "Batch",
    "adaptation_of",
    "build",
    "check",
    "compare",
    "convert",
    "cross_validate",
    "diff",
    "environment",
    "errors",
    "evaluate",
    "finetune",
    "fit_classifier",
    "freeze",
    "identify",
    "inspect",
    "load",
    "log",
    "materialize",
    "prune",
    "save",
    "set_status",
    "unfreeze",
    "upgrade",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("persistlib.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
